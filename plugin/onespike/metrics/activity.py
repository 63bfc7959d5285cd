"""Count the spikes and the synaptic events of a running network (Section VI.A)."""

from dataclasses import dataclass
from math import prod
from typing import Any, Self

import torch
from spikingjelly.activation_based import base, layer
from torch import Tensor, nn
from torch.func import functional_call

from onespike.graph import INPUT, Node, read
from onespike.metrics.macs import WEIGHTED, macs_of
from onespike.spikingjelly import DirectEncoder, HybridEncoder, SpikeMaxPool
from onespike.spikingjelly.wiring import Add, Bias, Concat, Scale

POOLS = tuple(getattr(nn, f"{kind}AvgPool{d}d") for kind in ("", "Adaptive") for d in (1, 2, 3))
MAX_POOLS = (SpikeMaxPool, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
MOVES = (nn.Flatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, layer.Dropout, layer.Dropout2d)
"""Layers that in eval mode leave every value as it is."""


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


@dataclass(frozen=True)
class Image:
    """What runs along an edge before the first weights."""


@dataclass(frozen=True)
class Spikes:
    """Spikes on an edge: how many each value stands for, what it would be without factors, and the mean of how many it is."""

    counts: Tensor
    rates: Tensor
    share: float
    sources: tuple[str, ...]

    def through(self, module: nn.Module, inputs: int = 1) -> "Spikes":
        """Return what a layer without weights makes of them, one that takes the mean of so many inputs."""
        return Spikes(inputs * module(self.counts), module(self.rates), inputs * self.share, self.sources)


@dataclass(frozen=True)
class Current:
    """What runs behind weights, and behind which."""

    weights: tuple[str, ...]


@dataclass(frozen=True)
class Lost:
    """Spikes that have gone through something from which they cannot be counted any more."""

    where: str


Flow = Image | Spikes | Current | Lost


class SpikingActivity:
    """Monitor the spikes of every neuron and the synaptic events of every weight of a network.

    Use it as a context manager around forward passes in eval mode:

        with SpikingActivity(network) as activity:
            for x in batches:
                network(x)
        print(activity.zeta, activity.mean)

    It works on a `SpikingNetwork` and on any network of SpikingJelly modules that torch.fx can trace, in both step modes:
    through sums, concatenations and pools, as modules or functions, spikes are followed to the weights that they reach. They
    are counted before dropout and pooling; one that has a size or a sign counts as one. A first-layer input is an analogue
    frame at the first step, wherever it is not binary, and always after a `DirectEncoder`; what an encoder with the attribute
    `emits_spikes` gives (those of `onespike.peers`, and a `HybridEncoder` with analogue=False) are spikes from the first step
    on, whose every synapse is an accumulate. Images are recognised by their fresh state: reset the network between batches.

    Args:
        network: the network to watch.

    Raises:
        ValueError: the network calls no spiking neuron or cannot be traced; when it runs, spikes reach weights through
            something from which they cannot be counted.
        TypeError: the network is no module; a Conv or Linear layer has no step mode, so that steps and images cannot be told
            apart.
        RuntimeError: it is run in training mode, where dropout would blur the count, or without a reset between two batches.
    """

    def __init__(self, network: nn.Module) -> None:
        check_network(network)
        own_names = getattr(network, "named_layers", None)
        named: dict[str, nn.Module] = own_names() if own_names else dict(network.named_modules())
        self._nodes = {name: m for name, m in named.items() if is_node(m)}
        if not self._nodes:
            other = {type(module).__name__ for module in named.values() if of_snntorch(module)}
            found = f"snnTorch's {', '.join(sorted(other))}" if other else f"{type(network).__name__} without any"
            raise ValueError(
                f"network must hold spiking neurons of SpikingJelly's kind, such as SingleSpikeLIFNode, got {found}"
            )
        weights = {name: module for name, module in named.items() if isinstance(module, WEIGHTED)}
        for name, module in weights.items():
            if not hasattr(module, "step_mode"):
                kind = type(module).__name__
                raise TypeError(f"{name} ({kind}) must be a layer with a step mode: use spikingjelly's layer.{kind}")
        self._names = {module: name for name, module in named.items()}
        self._calls = read(network).nodes
        self._last_use = {source: at for at, call in enumerate(self._calls) for source in call.inputs}
        own = set(network.modules())
        counted = {*self._nodes.values(), *weights.values()}
        for call in self._calls:
            inside = counted.intersection(call.module.modules()) - {call.module}
            if inside:
                kind, held = type(call.module).__name__, ", ".join(sorted(type(module).__name__ for module in inside))
                raise ValueError(f"{call.name} ({kind}) must hold nothing to be counted, got {held} inside: call them directly")
        self._watched = [call.module for call in self._calls if call.module in own]
        called = [call.module for call in self._calls if call.module in self._nodes.values()]
        if not called:
            raise ValueError(
                f"network must call a spiking neuron to be counted, got {', '.join(self._nodes)} that it never calls"
            )
        self._first_node = called[0]
        self._first_weights = next((call.module for call in self._calls if isinstance(call.module, WEIGHTED)), None)
        self._direct = any(isinstance(module, DirectEncoder) for module in network.modules())
        self._presents = any(isinstance(module, HybridEncoder | DirectEncoder) or emits_spikes(module) for module in own)
        self._at = 0
        self._fresh = True
        self._flows: dict[str, Flow] = {}
        self._frames: dict[str, Tensor] = {}
        self._counting = False
        self._hooks: list[Any] = []
        self.images = 0
        self.layers = {name: Layer() for name in self._nodes}
        self.synapses = {name: Synapses() for name in weights}

    def __enter__(self) -> Self:
        self._at = len(self._calls)
        self._hooks.append(self._watched[0].register_forward_pre_hook(self._begin))
        for module in dict.fromkeys(self._watched):
            self._hooks.append(module.register_forward_hook(self._see))
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._flows.clear()
        self._frames.clear()

    @property
    def zeta(self) -> dict[str, float]:
        """Spikes per neuron and image of each spiking layer, over all steps."""
        self._check_ran()
        idle = [name for name, layer in self.layers.items() if not layer.neurons]
        if idle:
            raise RuntimeError(
                f"every spiking layer must run to be counted, got {', '.join(idle)} that the network never calls"
            )
        return {name: float(layer.spikes) / (layer.neurons * self.images) for name, layer in self.layers.items()}

    @property
    def neurons(self) -> dict[str, int]:
        """Neurons of each spiking layer."""
        return {name: layer.neurons for name, layer in self.layers.items()}

    @property
    def steps(self) -> float:
        """Time steps that each neuron saw of an image."""
        self._check_ran()
        return sum(layer.updates for layer in self.layers.values()) / (sum(self.neurons.values()) * self.images)

    @property
    def mean(self) -> float:
        """Spikes per neuron and image over all spiking layers."""
        self._check_ran()
        spikes = sum(float(layer.spikes) for layer in self.layers.values())
        return spikes / (sum(self.neurons.values()) * self.images)

    @property
    def flop_weighted_mean(self) -> float:
        """Mean of zeta weighted by the FLOPs of the layer's own weights, those that see frames (MACs) left out (eq. 25)."""
        zeta = self.zeta
        own = [(s.macs, zeta[s.target]) for s in self.synapses.values() if not s.framed and s.target is not None]
        return sum(macs * z for macs, z in own) / sum(macs for macs, _ in own) if own else 0.0

    def check_watched(self, network: nn.Module) -> None:
        """Raise unless `network` is the one that was watched, by its weights and neurons."""
        watched = {*self._nodes.values(), *(module for module in self._names if isinstance(module, WEIGHTED))}
        others = {module for module in network.modules() if isinstance(module, WEIGHTED) or is_node(module)} ^ watched
        if others:
            raise ValueError(
                f"network must be the one that activity watched, got {type(network).__name__}, which differs in {len(others)} "
                "layers and neurons"
            )

    def _check_ran(self) -> None:
        if not self.images:
            raise RuntimeError("no image was counted: run the network inside the `with` block")

    def _begin(self, module: nn.Module, inputs: Any) -> None:  # noqa: ARG002
        """Start over at the first module, unless the network is in the middle of a pass that calls it again."""
        if not self._counting and not (self._at < len(self._calls) and self._calls[self._at].module is module):
            self._fresh = not isinstance(self._first_node.v, Tensor)
            self._at, self._flows = 0, {INPUT: Image()}
            self._follow_functions()

    @torch.no_grad()
    def _see(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Count what a module did, and follow its output as far as no other module is called."""
        if self._counting:
            return
        call = self._calls[self._at] if self._at < len(self._calls) else None
        if call is None or call.module is not module:
            name = self._names.get(module, type(module).__name__)
            expected = "the end" if call is None else call.name
            raise RuntimeError(f"the network must run as torch.fx traced it to be counted, got {name} in place of {expected}")
        self._take(call, inputs, output)
        self._follow_functions()

    def _follow_functions(self) -> None:
        while self._at < len(self._calls) and self._calls[self._at].module not in self._watched:
            self._take(self._calls[self._at])

    def _take(self, call: Node, inputs: tuple[Tensor, ...] = (), output: Tensor | None = None) -> None:
        """Find out what runs behind a call, and forget what is not needed any more."""
        module, flows = call.module, [self._flows[source] for source in call.inputs]
        flow = flows[0] if flows else Lost(call.name)
        if output is not None and isinstance(module, WEIGHTED):
            found: Flow = self._through_weights(self._names[module], module, flow, inputs[0], output)
        elif output is not None and module in self._nodes.values():
            found = self._through_neurons(self._names[module], module, flow, ones_of(output))
        elif output is not None and isinstance(module, MAX_POOLS) and isinstance(flow, Spikes) and flow.share == 1:
            ones = ones_of(output)
            found = Spikes(ones, ones, 1, (self._names[module],) if flow.sources else ())  # pooled pixels stay pixels
        elif isinstance(module, Add):
            found = self._through_sum(call.name, flows)
        elif isinstance(module, Concat) and all(isinstance(flow, Spikes) for flow in flows):
            found = side_by_side(module, flows)  # type: ignore[arg-type]
        elif len({type(flow) for flow in flows}) > 1:
            found = Lost(call.name)
        elif isinstance(flow, Current):
            if isinstance(module, Bias) and output is not None:
                synapses = self.synapses[flow.weights[-1]]
                synapses.bias_events = synapses.bias_events + (output != inputs[0]).sum(dtype=torch.float64)
            found = Current(tuple(dict.fromkeys(name for flow in flows for name in flow.weights)))  # type: ignore[union-attr]
        elif isinstance(flow, Spikes):
            found = self._through_layer(call, flow)
        else:
            found = spikes_of_pixels(output) if output is not None and emits_spikes(module) else flow
        self._flows[call.name] = found
        for source in call.inputs:
            if self._last_use[source] == self._at:
                self._flows.pop(source, None)
        self._at += 1

    def _through_neurons(self, name: str, module: nn.Module, flow: Flow, output: Tensor) -> Spikes:
        seen = self.layers[name]
        seen.spikes = seen.spikes + output.sum(dtype=torch.float64)
        seen.updates += output.numel()
        seen.neurons = prod(output.shape[2:] if module.step_mode == "m" else output.shape[1:])
        for weights in flow.weights if isinstance(flow, Current) else ():
            self.synapses[weights].target = name
        return Spikes(output, output, 1, (name,))

    def _through_layer(self, call: Node, spikes: Spikes) -> Flow:
        """Follow spikes through a layer without weights."""
        self._counting = True
        try:
            if isinstance(call.module, POOLS):
                return spikes.through(call.module, pooled_inputs(call.module, spikes.counts, call.module(spikes.counts)))
            known = isinstance(call.module, MOVES)
            return spikes.through(call.module) if known else spikes if isinstance(call.module, Scale) else Lost(call.name)
        finally:
            self._counting = False

    def _through_sum(self, name: str, flows: list[Flow]) -> Flow:
        """Add up spikes; those that are added to currents are events."""
        if all(isinstance(flow, Image) for flow in flows):
            return Image()
        spikes = [flow for flow in flows if isinstance(flow, Spikes)]
        currents = tuple(dict.fromkeys(name for flow in flows if isinstance(flow, Current) for name in flow.weights))
        if len(spikes) == len(flows):
            total = spikes[0]
            for other in spikes[1:]:
                counts, rates = total.counts + other.counts, total.rates + other.rates
                total = Spikes(counts, rates, total.share + other.share, (*total.sources, *other.sources))
            return total
        if len(spikes) + sum(isinstance(flow, Current) for flow in flows) < len(flows):
            return Lost(name)
        for flow in spikes:
            events = flow.counts.sum(dtype=torch.float64)
            shortcut = self.synapses.setdefault(name, Synapses(sources=flow.sources))
            shortcut.spikes, shortcut.events = shortcut.spikes + events, shortcut.events + events
        return Current((*currents, name) if spikes else currents)

    def _through_weights(self, name: str, module: nn.Module, flow: Flow, x: Tensor, y: Tensor) -> Current:
        """Count what arrives at a Conv or Linear layer."""
        if module.training:
            raise RuntimeError("SpikingActivity needs eval mode: call network.eval() first")
        if isinstance(flow, Current | Lost):
            where = flow.where if isinstance(flow, Lost) else ", ".join(flow.weights)
            what = "through which spikes cannot be followed" if isinstance(flow, Lost) else "which gives currents, no spikes"
            raise ValueError(f"{name} must take spikes or the image to be counted, got what comes from {where}, {what}")
        multi_step = module.step_mode == "m"
        x_seq, y_seq = (x, y) if multi_step else (x.unsqueeze(0), y.unsqueeze(0))
        synapses = self.synapses[name]
        if module is self._first_weights:
            if self._fresh:
                self.images += x_seq.shape[1]
                self._frames.clear()
            elif multi_step and self._presents:
                raise RuntimeError(
                    "the network must be reset between batches to be counted, got a second one on neurons that go on from the "
                    "first: call reset_net(network)"
                )
        synapses.positions = prod(x_seq.shape[2:])
        synapses.macs = macs_of(module, prod(y_seq.shape[2:]))
        if not synapses.dense and x_seq.shape[1]:
            synapses.dense = self._events(module, torch.ones_like(x_seq[0, :1])).item()
        if isinstance(module.bias, Tensor):
            of_one = torch.count_nonzero(module.bias) * (y_seq[0].numel() // len(module.bias))
            synapses.bias_events = synapses.bias_events + len(y_seq) * of_one.double()
        if isinstance(flow, Image):
            synapses.framed = True
            synapses.inputs = synapses.positions
            for x_t in x_seq:
                self._count_image(name, module, synapses, x_t)
        else:
            synapses.sources = flow.sources
            synapses.inputs = round(synapses.positions * flow.share)
            synapses.spikes = synapses.spikes + flow.counts.sum(dtype=torch.float64)
            synapses.arrivals = synapses.arrivals + flow.rates.sum(dtype=torch.float64)
            for counts in flow.counts if multi_step else flow.counts.unsqueeze(0):
                synapses.events = synapses.events + self._events(module, counts)
        return Current((name,))

    def _count_image(self, name: str, module: nn.Module, synapses: Synapses, x: Tensor) -> None:
        """Count one step of the encoded image: a frame of analogue values, or spikes."""
        frame = self._frames.get(name)
        if frame is None or self._direct or not ((x == 0) | (x == 1)).all():
            if frame is None or not torch.equal(x, frame):  # shown again, its products are known
                synapses.analogue_events = synapses.analogue_events + self._events(module, torch.ones_like(x) * x.any())
            self._frames[name] = x
        else:
            spikes = x.sum(dtype=torch.float64)
            synapses.spikes, synapses.arrivals = synapses.spikes + spikes, synapses.arrivals + spikes
            synapses.events = synapses.events + self._events(module, x)

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


def check_network(network: nn.Module) -> None:
    """Raise unless `network` is a module."""
    if not isinstance(network, nn.Module):
        raise TypeError(f"network must be a torch.nn.Module, got {type(network).__name__}")


def check_activity(activity: SpikingActivity) -> None:
    """Raise unless `activity` is a monitor."""
    if not isinstance(activity, SpikingActivity):
        raise TypeError(f"activity must be a SpikingActivity, got {type(activity).__name__}")


def is_node(module: nn.Module) -> bool:
    """Whether a module is a spiking neuron of SpikingJelly's kind."""
    return isinstance(module, base.MemoryModule) and "v" in module._memories


def emits_spikes(module: nn.Module) -> bool:
    """Whether a module is an encoder that says of itself that it emits spikes alone."""
    return getattr(module, "emits_spikes", False) is True


def ones_of(output: Tensor) -> Tensor:
    """Return 1 for each spike, whatever its size and sign."""
    return (output != 0).to(output.dtype)


def spikes_of_pixels(output: Tensor) -> Spikes:
    """Return what an encoder that emits spikes alone gives."""
    ones = ones_of(output)
    return Spikes(ones, ones, 1, ())


def side_by_side(concat: nn.Module, flows: list[Spikes]) -> Spikes:
    """Concatenate spikes."""
    counts, rates = concat(*[flow.counts for flow in flows]), concat(*[flow.rates for flow in flows])
    share = sum(flow.share * flow.counts.numel() for flow in flows) / max(1, counts.numel())
    return Spikes(counts, rates, share, tuple(dict.fromkeys(name for flow in flows for name in flow.sources)))


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
