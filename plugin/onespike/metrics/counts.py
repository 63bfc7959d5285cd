"""What is counted in a layer of neurons, and where spikes meet weights."""

from dataclasses import dataclass

import torch
from spikingjelly.activation_based import layer
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd

from onespike.metrics.macs import WEIGHTED

BLOCK = 2**16
PLAIN = {*WEIGHTED, layer.Linear, layer.Conv1d, layer.Conv2d, layer.Conv3d}
"""Layers whose forward is known."""


@dataclass
class Layer:
    """What was counted in one spiking layer, over all images; `updates` are its neurons times the steps that they saw."""

    neurons: int = 0
    spikes: Tensor | float = 0.0
    updates: int = 0


@dataclass
class Synapses:
    """What was counted in one Conv or Linear layer, or on a shortcut, whose spikes are added to currents as they are.

    Attributes:
        macs: MACs of one dense pass for one image (Table III); 0 on a shortcut.
        dense: the same, borders left out.
        sources: the spiking layers (or maximum pools of theirs) that feed it; none for a layer that sees the encoded image.
        target: the spiking layer that it feeds; None for the output layer.
        spikes: input spikes over all images; pixel spikes for the first layer.
        inputs: inputs (pixels or neurons) per image.
        arrivals, positions: the same spikes, a pooled one by its share of the window, and the size of what arrives per image.
        analogue_events: exact multiply-accumulates by analogue inputs, borders left out, over all images.
        events: exact accumulates by spikes, borders left out, over all images; a pooled value k / n counts as its k spikes.
        bias_events: accumulates of biases other than 0, over all images.
        framed: whether it sees the image, whose frames are multiplied, and not spikes of an encoder that emits nothing else.
    """

    macs: int = 0
    dense: float = 0.0
    sources: tuple[str, ...] = ()
    target: str | None = None
    spikes: Tensor | float = 0.0
    inputs: int = 0
    arrivals: Tensor | float = 0.0
    positions: int = 0
    analogue_events: Tensor | float = 0.0
    events: Tensor | float = 0.0
    bias_events: Tensor | float = 0.0
    framed: bool = False

    @property
    def source(self) -> str | None:
        """What feeds it, in a word: several layers joined by " + "."""
        return " + ".join(self.sources) or None


def total(values: Tensor) -> Tensor:
    """Add up what is counted, exactly: in float64, of which a CPU is given no more at once than its cache holds."""
    if values.numel() <= BLOCK or values.device.type != "cpu":
        return values.sum(dtype=torch.float64)
    rows = BLOCK * len(values) // values.numel()
    return torch.stack([total(part) for part in (values.split(rows) if rows else values)]).sum()


def events_of(module: nn.Module, counts: Tensor) -> Tensor:
    """Sum over the inputs [N, *] of one step their spike count times their number of synapses.

    That is a pass with all weights at 1. Outputs of a convolution's group have the same inputs, and one stands for all. Weights
    that `torch.nn.utils.prune` has cut off are no synapses.
    """
    weight, mask = module.weight, getattr(module, "weight_mask", None)
    assert isinstance(weight, Tensor)
    if type(module) not in PLAIN:
        return events_of_own_forward(module, counts)
    if isinstance(module, nn.Linear):
        return total(counts) * len(weight) if mask is None else total(counts * mask.sum(0))
    assert isinstance(module, _ConvNd)
    groups, alike = module.groups, len(weight) // module.groups
    synapses = torch.ones_like(weight[:groups]) if mask is None else mask.unflatten(0, (groups, alike)).sum(1)
    return total(module._conv_forward(counts, synapses, None)) * (alike if mask is None else 1)


def events_of_own_forward(module: nn.Module, counts: Tensor) -> Tensor:
    """Do the same with a layer that may make something of its weights, such as masking them."""
    ones = {"weight": torch.ones_like(module.weight)}  # type: ignore[arg-type]
    if isinstance(module.bias, Tensor):  # no input's spike brings it
        ones["bias"] = torch.zeros_like(module.bias)
    return total(functional_call(module, ones, counts.unsqueeze(0) if module.step_mode == "m" else counts))
