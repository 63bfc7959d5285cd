"""Multiply-accumulate operations of an ANN's layers (Table III)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from onespike.functional.checks import check_positive

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
WEIGHTED = (*CONVOLUTIONS, nn.Linear)


def macs_of(module: nn.Module, output: Tensor) -> int:
    """Count the MACs of one image (or step) in a Conv or Linear layer, borders counted as if they were inside.

    A convolution costs k * k * C_in / groups for each of its C_out * H_o * W_o outputs, a Linear layer f_i * f_o (Table III).

    Args:
        module: a Conv or Linear layer.
        output: one image's output, [C_out, *] or [f_o].
    """
    per_output = module.weight[0].numel()  # type: ignore[index]
    return per_output * output.numel()


@torch.no_grad()
def count_macs(ann: nn.Module, input_shape: Sequence[int]) -> dict[str, int]:
    """Count the multiply-accumulate operations of each Conv and Linear layer for one image.

    Args:
        ann: the network; run once on an image of zeros, in eval mode.
        input_shape: the shape of one image, such as (3, 32, 32); a leading batch dimension before a convolution is ignored.

    Returns:
        Path of the layer -> MACs, in forward order.

    Raises:
        ValueError: a dimension is below 1, or there is no Conv or Linear layer.
    """
    for size in input_shape:
        check_positive("input_shape", size)
    layers = {name: module for name, module in ann.named_modules() if isinstance(module, WEIGHTED)}
    if not layers:
        raise ValueError(f"ann must hold a Conv or Linear layer, got {type(ann).__name__} without any")
    first = next(iter(layers.values()))
    shape = tuple(input_shape)
    if isinstance(first, CONVOLUTIONS):
        shape = shape[-first.weight.dim() + 1 :]

    macs: dict[str, int] = {}

    def count(name: str):
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG001
            macs[name] = macs.get(name, 0) + macs_of(module, output[0])

        return hook

    hooks = [module.register_forward_hook(count(name)) for name, module in layers.items()]
    training = ann.training
    try:
        ann.eval()(torch.zeros(1, *shape, device=first.weight.device, dtype=first.weight.dtype))
    finally:
        ann.train(training)
        for hook in hooks:
            hook.remove()
    return macs
