"""Count the spikes and the synaptic events of a running network (Section VI.A)."""

from dataclasses import dataclass, field
from math import prod
from typing import Any, Self

import torch
from spikingjelly.activation_based import base
from torch import Tensor, nn
from torch.func import functional_call

from onespike.metrics.macs import WEIGHTED, macs_of
from onespike.spikingjelly import DirectEncoder, HybridEncoder

POOLS = tuple(getattr(nn, f"{kind}AvgPool{d}d") for kind in ("", "Adaptive") for d in (1, 2, 3))


@dataclass
class Layer:
    """What was counted in one spiking layer, over all images."""

    neurons: int = 0
    spikes: Tensor | float = 0.0


@dataclass
class Synapses:
    """What was counted in one Conv or Linear layer.

    Attributes:
        macs: MACs of one dense pass for one image (Table III).
        source: the spiking layer that feeds it; None for the first, which sees the encoded image.
        target: the spiking layer that it feeds; None for the output layer.
        spikes: input spikes over all images; pixel spikes for the first layer.
        inputs: inputs (pixels or neurons) per image.
        analogue_events: exact multiply-accumulates by analogue inputs, borders left out, over all images.
        events: exact accumulates by spikes, borders left out, over all images; a pooled value k / n counts as its k spikes.
    """

    macs: int = 0
    source: str | None = None
    target: str | None = None
    spikes: Tensor | float = 0.0
    inputs: int = 0
    analogue_events: Tensor | float = 0.0
    events: Tensor | float = 0.0


@dataclass
class _Path:
    """Where a forward pass is: the last spiking layer, what one spike of it is worth after pooling, the last weights."""

    source: str | None = None
    share: int = 1
    weights: str | None = None
    frame: Tensor | None = field(default=None, repr=False)


class SpikingActivity:
    """Monitor the spikes of every neuron and the synaptic events of every weight of a network.

    Use it as a context manager around forward passes in eval mode:

        with SpikingActivity(network) as activity:
            for x in batches:
                network(x)
        print(activity.zeta, activity.mean)

    It works on a `SpikingNetwork` and on any feed-forward chain of SpikingJelly modules, in both step modes. Spikes are
    counted before dropout and pooling. A first-layer input is an analogue frame at the first step, wherever it is not binary,
    and always after a `DirectEncoder`. Images are recognised by their fresh state: reset the network between batches.

    Args:
        network: the network to watch.

    Raises:
        ValueError: the network holds no spiking neuron.
        TypeError: a Conv or Linear layer has no step mode, so that steps and images cannot be told apart.
        RuntimeError: it is run in training mode, where dropout would blur the count, or without a reset between two batches.
    """

    def __init__(self, network: nn.Module) -> None:
        own_names = getattr(network, "named_layers", None)
        named: dict[str, nn.Module] = own_names() if own_names else dict(network.named_modules())
        self._nodes = {name: m for name, m in named.items() if isinstance(m, base.MemoryModule) and "v" in m._memories}
        if not self._nodes:
            other = {type(module).__name__ for module in named.values() if of_snntorch(module)}
            found = f"snnTorch's {', '.join(sorted(other))}" if other else f"{type(network).__name__} without any"
            raise ValueError(
                f"network must hold spiking neurons of SpikingJelly's kind, such as SingleSpikeLIFNode, got {found}"
            )
        self._weights = {name: module for name, module in named.items() if isinstance(module, WEIGHTED)}
        for name, module in self._weights.items():
            if not hasattr(module, "step_mode"):
                kind = type(module).__name__
                raise TypeError(f"{name} ({kind}) must be a layer with a step mode: use spikingjelly's layer.{kind}")
        self._pools = [module for module in named.values() if isinstance(module, POOLS)]
        self._first_node = next(iter(self._nodes.values()))
        self._first_weights: str | None = None
        self._direct = any(isinstance(module, DirectEncoder) for module in network.modules())
        self._presents = any(isinstance(module, HybridEncoder | DirectEncoder) for module in network.modules())
        self._path = _Path()
        self._counting = False
        self._hooks: list[Any] = []
        self.images = 0
        self.layers = {name: Layer() for name in self._nodes}
        self.synapses = {name: Synapses() for name in self._weights}

    def __enter__(self) -> Self:
        for name, module in self._nodes.items():
            self._hooks.append(module.register_forward_hook(self._node_hook(name)))
        for name, module in self._weights.items():
            self._hooks.append(module.register_forward_hook(self._weight_hook(name)))
        for module in self._pools:
            self._hooks.append(module.register_forward_hook(self._pool_hook))
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    @property
    def zeta(self) -> dict[str, float]:
        """Spikes per neuron and image of each spiking layer, over all steps."""
        self._check_ran()
        return {name: float(layer.spikes) / (layer.neurons * self.images) for name, layer in self.layers.items()}

    @property
    def neurons(self) -> dict[str, int]:
        """Neurons of each spiking layer."""
        return {name: layer.neurons for name, layer in self.layers.items()}

    @property
    def mean(self) -> float:
        """Spikes per neuron and image over all spiking layers."""
        self._check_ran()
        spikes = sum(float(layer.spikes) for layer in self.layers.values())
        return spikes / (sum(self.neurons.values()) * self.images)

    @property
    def flop_weighted_mean(self) -> float:
        """Mean of zeta weighted by the FLOPs of the layer's own weights, the first layer (MACs anyway) left out (eq. 25)."""
        zeta = self.zeta
        own = [(s.macs, zeta[s.target]) for s in self.synapses.values() if s.source is not None and s.target is not None]
        return sum(macs * z for macs, z in own) / sum(macs for macs, _ in own) if own else 0.0

    def _check_ran(self) -> None:
        if not self.images:
            raise RuntimeError("no image was counted: run the network inside the `with` block")

    def _node_hook(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG001
            layer = self.layers[name]
            layer.spikes = layer.spikes + output.sum(dtype=torch.float64)
            layer.neurons = prod(output.shape[2:] if module.step_mode == "m" else output.shape[1:])
            if self._path.weights is not None:
                self.synapses[self._path.weights].target = name
            self._path.source, self._path.share = name, 1

        return hook

    def _pool_hook(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not self._counting:
            self._path.share *= pooled_inputs(module, inputs[0], output)

    def _weight_hook(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if self._counting:
                return
            if module.training:
                raise RuntimeError("SpikingActivity needs eval mode: call network.eval() first")
            multi_step = module.step_mode == "m"
            x_seq, y_seq = (inputs[0], output) if multi_step else (inputs[0].unsqueeze(0), output.unsqueeze(0))
            self._count(name, module, x_seq, y_seq)

        return hook

    @torch.no_grad()
    def _count(self, name: str, module: nn.Module, x_seq: Tensor, y_seq: Tensor) -> None:
        synapses, path = self.synapses[name], self._path
        self._first_weights = first_weights = self._first_weights or name
        first = name == first_weights
        if first:
            path.source, path.share = None, 1
            if not isinstance(self._first_node.v, Tensor):  # a fresh state: new images
                self.images += x_seq.shape[1]
                path.frame = None
            elif module.step_mode == "m" and self._presents:
                raise RuntimeError(
                    "the network must be reset between batches to be counted, got a second one on neurons that go on from the "
                    "first: call reset_net(network)"
                )
        path.weights = name
        synapses.source, synapses.inputs = path.source, prod(x_seq.shape[2:]) * path.share
        synapses.macs = macs_of(module, prod(y_seq.shape[2:]))
        for x in x_seq:
            if first and (path.frame is None or self._direct or not ((x == 0) | (x == 1)).all()):
                if path.frame is None or not torch.equal(x, path.frame):  # shown again, its products are known
                    synapses.analogue_events = synapses.analogue_events + self._events(module, torch.ones_like(x) * x.any())
                path.frame = x
            else:
                spikes = x * path.share
                synapses.spikes = synapses.spikes + spikes.sum(dtype=torch.float64)
                synapses.events = synapses.events + self._events(module, spikes)

    def _events(self, module: nn.Module, counts: Tensor) -> Tensor:
        """Sum over the inputs of their spike count times their number of synapses, by a pass with all weights at 1."""
        counts = counts.unsqueeze(0) if module.step_mode == "m" else counts
        self._counting = True
        try:
            ones = {"weight": torch.ones_like(module.weight)}  # type: ignore[arg-type]
            if isinstance(module.bias, Tensor):  # no input's spike brings it
                ones["bias"] = torch.zeros_like(module.bias)
            return functional_call(module, ones, counts).sum(dtype=torch.float64)
        finally:
            self._counting = False


def of_snntorch(module: nn.Module) -> bool:
    """Whether a module is a snnTorch neuron, ours for it included; snnTorch need not be there to tell."""
    return any(kind.__module__.startswith("snntorch.") for kind in type(module).__mro__)


def pooled_inputs(module: nn.Module, x: Tensor, output: Tensor) -> int:
    """Return how many inputs one output of an average pool is the mean of.

    Raises:
        ValueError: the number differs between outputs, so that spikes cannot be counted from them.
    """
    if isinstance(module, POOLS[3:]):
        sizes = list(zip(x.shape, output.shape, strict=True))
        if any(i % o for i, o in sizes):
            raise ValueError(f"an adaptive pool must divide its input evenly to be counted, got input {tuple(x.shape)}")
        return prod(i // o for i, o in sizes)
    if getattr(module, "divisor_override", None):
        return int(module.divisor_override)  # type: ignore[arg-type]
    dims = 1 + next(d for d, kind in enumerate(POOLS[:3]) if isinstance(module, kind))
    kernel, padding = (value if isinstance(value, tuple) else (value,) * dims for value in (module.kernel_size, module.padding))
    if module.ceil_mode or (any(padding) and not module.count_include_pad):
        raise ValueError(
            f"an average pool must divide by the same number everywhere to be counted, got ceil_mode={module.ceil_mode}, "
            f"padding={padding}, count_include_pad={module.count_include_pad}"
        )
    return prod(kernel)
