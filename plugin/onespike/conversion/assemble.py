"""From the layers of an ANN to those of a spiking network: what a spike is worth, and what has to be scaled for it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from onespike.conversion.layers import NEURON, WEIGHTED, Layer
from onespike.conversion.rules import Plan
from onespike.graph import INPUT

Threshold = Callable[["Assembly", Layer], float]


class Assembly:
    """The modules of a spiking network but for its neurons, in step mode "m", and the unit of what runs between them.

    The unit of an edge is what 1.0 on it stands for in the ANN's activations: 1 for the image; a neuron multiplies that of
    its current by its threshold V, since a spike stands for V; every other layer keeps it. Then

        a bias is divided by the unit of its layer's currents, and acts with the layer at every step, or once, as a `Bias`,
        where branches add up, all are brought to the unit of the first that is fixed, such as an identity shortcut's: a Conv or
        Linear layer that gives to the sum alone takes the factor into its weights, another fixed one goes through a `Scale`,
        behind a concatenation each channel has a unit of its own, and the columns of the next weights take the factor.

    A chain without biases keeps its weights as they are.

    Args:
        plan: the ANN's layers and weights.
        images: one image at least, [N, *], as the ANN takes them: its shape is followed through the layers.
        threshold: called with the assembly so far and the layer of each neuron; returns its threshold V.
        bias_once: whether biases act at the first step alone.
        image_unit: what 1.0 of the encoded image stands for.
    """

    def __init__(
        self, plan: Plan, images: Tensor, threshold: Threshold, *, bias_once: bool = False, image_unit: float = 1.0
    ) -> None:
        self.bias_once = bias_once
        self.biased: dict[str, str] = {}
        self.layers: list[Layer] = []
        self.modules: dict[str, nn.Module] = {}
        self.units: dict[str, Tensor | float] = {INPUT: image_unit}
        self.thresholds: dict[str, float] = {}
        self.users: dict[str, int] = {}
        for layer in plan.layers:
            for source in layer.inputs:
                self.users[source] = self.users.get(source, 0) + 1
        self.plan = plan
        self.probes = {INPUT: torch.zeros_like(images[:1], device=plan.device)}
        with torch.no_grad():
            for layer in plan.layers:
                self.take(layer, threshold)

    def take(self, layer: Layer, threshold: Threshold) -> None:
        """Make one layer."""
        units = [self.units[source] for source in layer.inputs]
        inputs, unit = layer.inputs, units[0]
        if layer.kind == "Add":
            fixed = [source for source in inputs if not self.adjustable(source)]
            unit = largest(self.units[fixed[0] if fixed else inputs[0]])
            inputs = tuple(self.brought(source, unit, layer.name) for source in inputs)
        elif layer.kind == "Concat":
            inputs, unit = self.side_by_side(layer)
        elif layer.kind == NEURON:
            unit = largest(unit)
            inputs = (self.brought(inputs[0], unit, layer.name),)
        layer = replace(layer, inputs=tuple(self.biased.get(source, source) for source in inputs))
        if layer.kind == NEURON:
            self.thresholds[layer.name] = threshold(self, layer)
            unit = unit * self.thresholds[layer.name]
        elif layer.kind not in WEIGHTED:
            self.modules[layer.name] = layer.build()
        if layer.kind in WEIGHTED:
            self.weighted(layer, unit)
        else:
            self.append(layer, unit)

    def append(self, layer: Layer, unit: Tensor | float) -> None:
        """Add a layer, and the shape that it gives."""
        self.layers.append(replace(layer, unit=None if isinstance(unit, Tensor) else unit))
        self.units[layer.name] = unit
        inputs = [self.probes[source] for source in layer.inputs]
        if layer.kind == NEURON:
            self.probes[layer.name] = inputs[0]
            return
        module: Any = self.modules[layer.name].to(inputs[0].device)
        probe = module(*[x.unsqueeze(0) for x in inputs])[0]
        self.probes[layer.name] = torch.zeros_like(probe)
        if hasattr(module, "reset"):
            module.reset()

    def weighted(self, layer: Layer, unit: Tensor | float) -> None:
        """Make a Conv or Linear layer with copies of its weights, in the unit of its input, and what adds its bias."""
        own = self.plan.weights[layer.name]
        weight, common = own.weight.detach().clone(), largest(unit)
        module = layer.build(bias=own.bias is not None and not self.bias_once).to(weight.dtype)
        if isinstance(unit, Tensor):
            scale_columns(weight, module, (unit / common).to(weight))
        module.weight = nn.Parameter(weight)
        self.modules[layer.name] = module
        self.append(layer, common)
        if own.bias is None:
            return
        if self.bias_once:
            name = f"{layer.name}_bias"
            once = Layer(name, "Bias", {"channels": len(own.bias), "dims": weight.dim() - 2}, (layer.name,))
            self.biased[layer.name], self.modules[name] = name, once.build().to(weight.dtype)
            self.append(once, common)
        adding: Any = self.modules[self.biased.get(layer.name, layer.name)]
        adding.bias = nn.Parameter(own.bias.detach().clone() / common)

    def adjustable(self, source: str) -> bool:
        """Whether a layer's weights may take a factor, since what it gives goes to one place."""
        return source in self.plan.weights and self.users[source] == 1

    def brought(self, source: str, unit: float, user: str) -> str:
        """Return the name of an edge that carries what `source` does in another unit."""
        ratio = self.units[source] / unit
        if isinstance(ratio, float) and ratio == 1:
            return source
        if self.adjustable(source):
            names = {source, self.biased.get(source, source)}
            for parameter in [parameter for name in names for parameter in self.modules[name].parameters()]:
                parameter.mul_(ratio)
            self.layers = [replace(layer, unit=unit) if layer.name in names else layer for layer in self.layers]
            self.units[source] = unit
            return source
        name = f"{source or 'input'}_to_{user}"
        if name not in self.units:
            channels = len(ratio) if isinstance(ratio, Tensor) else None
            layer = Layer(name, "Scale", {"channels": channels}, (self.biased.get(source, source),))
            module = layer.build()
            module.weight = nn.Parameter(torch.as_tensor(ratio).to(self.probes[source]))
            self.modules[name] = module
            self.append(layer, unit)
        return name

    def side_by_side(self, layer: Layer) -> tuple[tuple[str, ...], Tensor | float]:
        """Bring what layers give to one unit, leave spikes as they are; return the inputs and the unit of each channel."""
        currents = [source for source in layer.inputs if self.adjustable(source)]
        inputs = tuple(
            self.brought(source, largest(self.units[currents[0]]), layer.name) if source in currents else source
            for source in layer.inputs
        )
        units = [self.units[source] for source in inputs]
        if all(isinstance(unit, float) and unit == units[0] for unit in units):
            return inputs, units[0]
        columns = [torch.as_tensor(unit, dtype=torch.float64).view(-1) for unit in units]
        sizes = [self.probes[source].shape[1] // len(column) for source, column in zip(inputs, columns, strict=True)]
        return inputs, torch.cat([column.repeat_interleave(size) for size, column in zip(sizes, columns, strict=True)])


def largest(unit: Tensor | float) -> float:
    """Return the one unit to which those of the channels are brought."""
    return float(unit.max()) if isinstance(unit, Tensor) else unit


def scale_columns(weight: Tensor, module: nn.Module, factor: Tensor) -> None:
    """Multiply a weight [out, in / groups, *] by the factor [C] of the channel that each of its columns sees, in place."""
    groups = getattr(module, "groups", 1)
    grouped = weight.view(groups, weight.shape[0] // groups, *weight.shape[1:])
    values = factor.repeat_interleave(groups * weight.shape[1] // len(factor))  # Flatten puts a channel's values side by side
    grouped *= values.view(groups, 1, -1, *[1] * (weight.dim() - 2))
