"""Multiply-accumulate operations of an ANN's layers (Table III)."""

import copy
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from onespike.functional.checks import check_positive

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
WEIGHTED = (*CONVOLUTIONS, nn.Linear)


def macs_of(module: nn.Module, outputs: int) -> int:
    """Count the MACs of a Conv or Linear layer that gives `outputs` values, borders counted as if they were inside.

    A convolution costs k * k * C_in / groups for each of its C_out * H_o * W_o outputs, a Linear layer f_i * f_o (Table III).
    """
    return module.weight[0].numel() * outputs  # type: ignore[index]


@torch.no_grad()
def count_macs(ann: nn.Module, input_shape: Sequence[int]) -> dict[str, int]:
    """Count the multiply-accumulate operations of each Conv and Linear layer for one image.

    Args:
        ann: the network; a copy is run once on an image of zeros.
        input_shape: the shape of one image without a batch dimension, such as (3, 32, 32).

    Returns:
        Path of the layer -> MACs, in forward order.

    Raises:
        ValueError: a dimension is below 1, or there is no Conv or Linear layer.
    """
    for size in input_shape:
        check_positive("input_shape", size)
    probe = copy.deepcopy(ann).eval()
    layers = {name: module for name, module in probe.named_modules() if isinstance(module, WEIGHTED)}
    if not layers:
        raise ValueError(f"ann must hold a Conv or Linear layer, got {type(ann).__name__} without any")
    first = next(iter(layers.values()))
    shape = tuple(input_shape)
    if isinstance(first, CONVOLUTIONS) and len(shape) == first.weight.dim():
        shape = shape[1:]  # a batch dimension after all

    macs: dict[str, int] = {}
    for name, module in layers.items():
        module.register_forward_hook(partial(_count, macs, name))
    probe(torch.zeros(1, *shape, device=first.weight.device, dtype=first.weight.dtype))
    return macs


def _count(macs: dict[str, int], name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG001
    macs[name] = macs.get(name, 0) + macs_of(module, output.numel())
