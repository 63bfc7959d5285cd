"""Which layers of a spiking network can still learn: the answer to "my network stays at chance"."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import sqrt
from typing import Any, Self

import torch
from torch import Tensor, nn

from onespike.metrics.watched import named_modules
from onespike.spikingjelly import SingleSpikeLIFNode

SUPPORT_LIMIT = 0.01
"""Share of a layer's potentials within the surrogate's support below which it counts as dead."""


@dataclass
class LayerHealth:
    """What was seen of one layer of neurons, over all steps and images; a potential U is seen as z = U / V - 1.

    Attributes:
        potentials: number of potentials seen: steps x images x neurons.
        spikes: spikes of each neuron, of the layer's shape.
        below: potentials with z <= -1, which are U <= 0: no spike, and a surrogate of 0.
        within: potentials with |z| < 1, the surrogate's support: only they pass gradients on.
        above: potentials with z >= 1, far beyond the threshold, with a surrogate of 0.
        squared_gradient: sum of (V dL/dx)^2 over the layer's currents x.
        gradients: number of currents that a gradient reached.
    """

    potentials: int = 0
    spikes: Tensor | float = 0.0
    below: Tensor | float = 0.0
    within: Tensor | float = 0.0
    above: Tensor | float = 0.0
    squared_gradient: Tensor | float = 0.0
    gradients: int = 0

    @property
    def silent(self) -> float:
        """Share of neurons that did not fire at all."""
        return (self.spikes == 0).double().mean().item() if isinstance(self.spikes, Tensor) else 1.0

    @property
    def support(self) -> float:
        """Share of potentials within the surrogate's support."""
        return self._share(self.within)

    @property
    def saturated(self) -> float:
        """Share of potentials at twice the threshold and more."""
        return self._share(self.above)

    @property
    def inhibited(self) -> float:
        """Share of potentials at or below 0."""
        return self._share(self.below)

    @property
    def gradient(self) -> float | None:
        """Root mean square of V dL/dx, the change of the loss by a threshold more of current; None without a backward pass."""
        return sqrt(float(self.squared_gradient) / self.gradients) if self.gradients else None

    @property
    def dead(self) -> bool:
        """Whether hardly a potential is in support: next to no gradient gets through to this layer and those before it."""
        return self.support < SUPPORT_LIMIT

    def _share(self, count: Tensor | float) -> float:
        return float(count) / self.potentials if self.potentials else 0.0


@dataclass
class NetworkHealth:
    """Watch every single-spike neuron of a network, of either host, while it is called and while gradients flow back.

        with NetworkHealth(network) as health:
            loss(network(x), y).backward()
        print(health)

    A neuron learns through S(z) = gamma max(0, 1 - |z|), z = U / V - 1 (eq. 22). Where all of a layer's potentials have left
    |z| < 1 no gradient passes it, nothing before it learns any more, and nothing brings it back. The report shows how far each
    layer is from that. `docs/training.md` says what to do about it.

    Args:
        network: any module that holds `SingleSpikeLIFNode`s or `SingleSpikeLeaky`s, called step by step, in training or not. In
            step mode "m" a layer's trace, T x N x neurons float32 numbers, is held while it runs.

    Attributes:
        layers: name of each neuron layer -> what was seen, in the order of the modules.

    Raises:
        ValueError: the network holds no such neuron.
    """

    network: nn.Module
    layers: dict[str, LayerHealth] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        named = named_modules(self.network).items()
        self._nodes: dict[str, Any] = {name: module for name, module in named if is_single_spike(module)}
        if not self._nodes:
            raise ValueError(f"network must hold single-spike neurons, got {type(self.network).__name__} without any")
        self.layers = {name: LayerHealth() for name in self._nodes}
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> Self:
        for name, node in self._nodes.items():
            forget = not getattr(node, "store_v_seq", True)
            self._undo.append(node.register_forward_hook(partial(self._see, self.layers[name], forget)).remove)
            if isinstance(node, SingleSpikeLIFNode) and not node.store_v_seq:
                self._undo.append(partial(setattr, node, "store_v_seq", False))
                node.store_v_seq = True
        return self

    def __exit__(self, *exception: object) -> None:
        while self._undo:
            self._undo.pop()()

    @property
    def dead(self) -> list[str]:
        """Names of the layers that let next to no gradient through.

        Raises:
            RuntimeError: a layer did not run while it was watched.
        """
        for name, layer in self.layers.items():
            if not layer.potentials:
                raise RuntimeError(
                    f"{name} has not run: call the network inside the `with` block (a SingleSpikeLeaky step by step: what goes "
                    "through its `sequence` is not seen)"
                )
        return [name for name, layer in self.layers.items() if layer.dead]

    def as_dict(self) -> dict[str, dict[str, float | None]]:
        """Return the shares and the gradient by quantity and layer, for logs."""
        return {column: {name: getattr(layer, column) for name, layer in self.layers.items()} for column in COLUMNS}

    def __str__(self) -> str:
        """Lay the report out as a table, a line for each layer, the dead ones marked."""
        width = max(5, *map(len, self.layers))
        lines = [f"{'layer':<{width}}" + "".join(f"{column:>11}" for column in COLUMNS)]
        for name, layer in self.layers.items():
            shares = "".join(f"{getattr(layer, column):11.3f}" for column in COLUMNS[:-1])
            gradient = "-" if layer.gradient is None else f"{layer.gradient:.1e}"
            remark = ("  dead" if layer.dead else "") if layer.potentials else "  has not run"
            lines.append(f"{name:<{width}}{shares}{gradient:>11}{remark}")
        return "\n".join(lines)

    @staticmethod
    @torch.no_grad()
    def _see(layer: LayerHealth, forget: bool, node: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x = inputs[0]
        spikes, potential, v_threshold, leading = seen_of(node, output)
        if forget:
            node.v_seq = None
        layer.potentials += potential.numel()
        counted = spikes.sum(tuple(range(leading)), dtype=torch.float32)
        if isinstance(layer.spikes, Tensor) and layer.spikes.shape != counted.shape:
            before, now = tuple(layer.spikes.shape), tuple(counted.shape)
            raise ValueError(f"a layer's neurons must stay the same while it is watched, got {before}, then {now}")
        layer.spikes = layer.spikes + counted
        layer.below = layer.below + (potential <= 0).sum()
        layer.within = layer.within + ((potential > 0) & (potential < 2 * v_threshold)).sum()
        layer.above = layer.above + (potential >= 2 * v_threshold).sum()

        def arrived(gradient: Tensor) -> None:
            scaled = gradient.detach().double() * v_threshold
            layer.squared_gradient = layer.squared_gradient + scaled.square().sum()
            layer.gradients += gradient.numel()

        if x.requires_grad:
            x.register_hook(arrived)


COLUMNS = ("silent", "inhibited", "support", "saturated", "gradient")


def is_single_spike(module: nn.Module) -> bool:
    """Whether a module is a `SingleSpikeLIFNode`, or a `SingleSpikeLeaky`, known by name as snnTorch may be absent."""
    kinds = {f"{kind.__module__}.{kind.__name__}" for kind in type(module).__mro__}
    return isinstance(module, SingleSpikeLIFNode) or "onespike.snntorch.neuron.SingleSpikeLeaky" in kinds


def seen_of(node: Any, output: Any) -> tuple[Tensor, Tensor, Tensor, int]:
    """Return what a call showed: spikes, potentials, the threshold in a shape that broadcasts, and their leading dimensions."""
    if not isinstance(node, SingleSpikeLIFNode):  # (spk, fired, mem), or spk alone and the rest inside
        spikes, _, potential = output if isinstance(output, tuple) else (output, node.fired, node.mem)
        return spikes, potential, node.threshold.detach(), 1
    assert node.v_seq is not None
    leading, potential = (2, node.v_seq) if node.step_mode == "m" else (1, node.v_seq[-1])
    v_threshold = node.v_threshold.detach()
    if node.per_channel is not None:
        v_threshold = v_threshold.view(-1, *[1] * (potential.dim() - leading - 1))
    return output, potential, v_threshold, leading
