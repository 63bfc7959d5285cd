"""What became of an ANN's modules in a spiking network, and which layer loses most."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onespike.conversion.assemble import Assembly
from onespike.conversion.layers import MAX_POOL, NEURON, check_images
from onespike.conversion.network import SpikingNetwork
from onespike.conversion.rules import Plan, read_ann
from onespike.functional.checks import check_T
from onespike.functional.pool import POOLS
from onespike.graph import INPUT


@dataclass(frozen=True)
class Converted:
    """One module of an ANN, or one function that it calls.

    Attributes:
        name: its path in the ANN.
        became: what stands for it in the spiking network.
        theta: what one spike stands for in the ANN's activations, its unscaled threshold in their unit; None but of neurons.
        threshold: the neuron's threshold now, in the unit of its current (the mean, if it is by channel).
        firing: share of neurons that fire on one of the images at least.
        error: ||a - g n|| / ||a|| of the ANN's activations a and the neurons' spike counts n, with the factor g that fits best:
            0 where counts say all of it, 1 where they say nothing. Spikes that have a size count as much as that.
    """

    name: str
    became: str
    theta: float | None = None
    threshold: float | None = None
    firing: float | None = None
    error: float | None = None


@dataclass(frozen=True)
class ConversionReport:
    """What became of every module of an ANN, in forward order; print it for a table."""

    rows: tuple[Converted, ...]

    @property
    def worst(self) -> Converted:
        """The layer of neurons whose spikes say least about the ANN's activations."""
        return max((row for row in self.rows if row.error is not None), key=lambda row: row.error or 0.0)

    def __str__(self) -> str:
        """Lay the report out as a table."""
        widths = [max(6, *(len(getattr(row, column)) for row in self.rows)) for column in ("name", "became")]
        lines = [f"{'module':<{widths[0]}}  {'became':<{widths[1]}}{'theta':>11}{'threshold':>11}{'firing':>9}{'error':>9}"]
        for row in self.rows:
            line = f"{row.name:<{widths[0]}}  {row.became:<{widths[1]}}"
            if row.error is not None:
                theta = "-" if row.theta is None else f"{row.theta:.4g}"
                line += f"{theta:>11}{row.threshold:>11.4g}{row.firing:>9.1%}{row.error:>9.1%}"
            lines.append(line.rstrip())
        return "\n".join([*lines, f"{self.worst.name} loses most, {self.worst.error:.1%} of its activations"])


@torch.no_grad()
def compare(ann: nn.Module, network: SpikingNetwork, images: Tensor, *, batch_size: int = 128) -> ConversionReport:
    """Compare a spiking network with the ANN of which `convert` made it, layer by layer, on images [N, *].

    It may have been trained since. Both are in eval mode meanwhile.

        print(compare(ann, network, images))

    Raises:
        ConversionError: the ANN cannot be converted.
        ValueError: the network was made of another ANN, or there is no image.
    """
    plan = read_ann(ann)
    check_images(plan.layers, images)
    check_T(batch_size, name="batch_size")
    if not len(images):
        raise ValueError(f"images must hold at least one image, got shape {tuple(images.shape)}")
    nodes = network.nodes()
    names = [layer.name for layer in plan.layers if layer.kind == NEURON]
    if list(nodes) != names:
        raise ValueError(f"network must be made of this ANN, whose ReLUs are {', '.join(names)}, got {', '.join(nodes)}")
    assembly = Assembly(plan, images, lambda *_: 1.0)  # units of 1: the ANN itself
    seen = {name: Seen() for name in names}
    modes = {module: module.training for module in network.modules()}
    counts: dict[str, Tensor] = {}
    hooks = [
        node.register_forward_hook(lambda _, __, s_seq, name=name: counts.update({name: s_seq.sum(0)}))
        for name, node in nodes.items()
    ]
    try:
        network.eval()
        for batch in images.to(plan.device).split(batch_size):
            network.currents(batch)
            for name, activation in activations(assembly, batch).items():
                seen[name].add(activation, counts[name])
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    return ConversionReport(rows_of(plan, network, seen))


def activations(assembly: Assembly, x: Tensor) -> dict[str, Tensor]:
    """Return what each ReLU of the ANN gives."""
    values, found = {INPUT: x}, {}
    for layer in assembly.layers:
        inputs = [values[name] for name in layer.inputs]
        if layer.kind == NEURON:
            values[layer.name] = found[layer.name] = F.relu(inputs[0])
        elif layer.kind == MAX_POOL:
            values[layer.name] = POOLS[x.dim()](inputs[0], **layer.arguments)
        else:
            module = assembly.modules[layer.name].eval()
            module.step_mode = "s"  # type: ignore[assignment]
            values[layer.name] = module(*inputs)
    return found


class Seen:
    """Sums over the activations and the spike counts of one layer."""

    def __init__(self) -> None:
        self.sums = torch.zeros(3, dtype=torch.float64)
        self.fired: Tensor | None = None

    def add(self, activation: Tensor, count: Tensor) -> None:
        """Take a batch of both, [N, *]."""
        a, n = activation.double().flatten(), count.double().flatten()
        self.sums += torch.stack([a @ a, a @ n, n @ n]).cpu()
        fired = (count > 0).any(0)
        self.fired = fired if self.fired is None else self.fired | fired

    @property
    def error(self) -> float:
        """Share of the activations' norm that the counts do not explain."""
        aa, an, nn_ = self.sums.tolist()
        return max(0.0, 1 - an**2 / (aa * nn_)) ** 0.5 if aa and nn_ else float(aa > 0)


def rows_of(plan: Plan, network: SpikingNetwork, seen: dict[str, Seen]) -> tuple[Converted, ...]:
    """Put what was seen beside what became of each module."""
    units = {layer.name: layer.unit for layer in network.layers}
    nodes, folded = network.nodes(), {text.removeprefix("folded into "): name for name, text in plan.notes.items()}
    rows = []
    for layer in plan.layers:
        if layer.kind != NEURON:
            rows.append(Converted(layer.name, layer.kind))
            if layer.name in folded:
                rows.append(Converted(folded[layer.name], plan.notes[folded[layer.name]]))
            continue
        one, fired = seen[layer.name], seen[layer.name].fired
        assert fired is not None
        node: Any = nodes[layer.name]
        threshold = torch.as_tensor(node.v_threshold).mean().item()  # of another's neuron it is a number
        firing = fired.double().mean().item()
        rows.append(Converted(layer.name, type(node).__name__, units[layer.name], threshold, firing, one.error))
    return tuple(rows)
