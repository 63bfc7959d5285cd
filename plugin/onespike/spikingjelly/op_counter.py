"""Rules by which SpikingJelly 2's operation counters see hybrid input in whole sequences as it is.

The host judges the input of a convolution or matrix product as a whole: one analogue image among the T steps makes all of them
multiply-accumulates (MAC). These rules judge each image of each step on its own: the analogue first step costs MACs, the
binary steps after it one accumulation (AC) for every weight that a spike meets, borders included.

    from spikingjelly.activation_based.op_counter import ACCounter, DispatchCounterMode, MACCounter

    macs, acs = MACCounter(extra_rules=mac_rules()), ACCounter(extra_rules=ac_rules(), extra_ignore_modules=[HybridEncoder])
    with DispatchCounterMode([macs, acs]):
        net(images)

Pooled spikes are no longer 0 or 1 and count as MACs; `onespike.metrics` counts them as the spikes that they are.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
Rule = Callable[[tuple[Any, ...], dict[str, Any], Tensor], int]


def mac_rules() -> dict[Any, Rule]:
    """Return the `extra_rules` of a MACCounter."""
    return {aten.convolution.default: convolution_macs, aten.mm.default: product_macs, aten.addmm.default: product_macs}


def ac_rules() -> dict[Any, Rule]:
    """Return the `extra_rules` of an ACCounter."""
    return {aten.convolution.default: convolution_acs, aten.mm.default: product_acs, aten.addmm.default: product_acs}


def is_binary(x: Tensor) -> Tensor:
    """For each image of each step, [T * N, *], whether it holds nothing but 0 and 1: [T * N], bool."""
    return ((x == 0) | (x == 1)).flatten(1).all(1)


def convolution_macs(args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> int:  # noqa: ARG001, the host's signature
    """Count k * k * C_in for each output value of the analogue images."""
    x, weight = args[:2]
    return int((~is_binary(x)).sum()) * out[0].numel() * weight[0].numel()


def convolution_acs(args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> int:  # noqa: ARG001
    """Count the weights that the spikes of the binary images meet."""
    x, weight, _, *settings = args
    spikes = x[is_binary(x)].double()
    return int(aten.convolution.default(spikes, torch.ones_like(weight, dtype=torch.float64), None, *settings).sum())


def product_macs(args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> int:  # noqa: ARG001
    """Count inputs times outputs for each analogue row."""
    x, weight = args[-2:]  # a bias stands before them
    return int((~is_binary(x)).sum()) * weight.numel()


def product_acs(args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> int:  # noqa: ARG001
    """Count the outputs of each spike in the binary rows."""
    x, weight = args[-2:]
    return int(x[is_binary(x)].sum(dtype=torch.float64)) * weight.shape[1]
