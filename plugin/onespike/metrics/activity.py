"""Count the spikes and the synaptic events of a running network (Section VI.A)."""

from math import prod
from typing import Any, Self

import torch
from torch import Tensor, nn

from onespike.graph import INPUT, Node
from onespike.metrics.counts import PLAIN, Layer, Synapses, events_of, total
from onespike.metrics.flows import (
    MAX_POOLS,
    Current,
    Flow,
    Image,
    Lost,
    Spikes,
    added,
    currents_of,
    side_by_side,
    spikes_of,
    through_layer,
)
from onespike.metrics.macs import WEIGHTED, macs_of
from onespike.metrics.watched import emits_spikes, is_node, parts_of
from onespike.spikingjelly import DirectEncoder, HybridEncoder
from onespike.spikingjelly.wiring import Add, Bias, Concat


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
        self._names, nodes, weights, self._calls = parts_of(network)
        self._nodes = set(nodes.values())
        self._counted = {*self._nodes, *weights.values()}
        self._last_use = {source: at for at, call in enumerate(self._calls) for source in call.inputs}
        own = set(network.modules())
        called = [call.module for call in self._calls]
        self._watched = [module for module in called if module in own]
        self._first_node = next(module for module in called if module in self._nodes)
        self._first_weights = next((module for module in called if isinstance(module, WEIGHTED)), None)
        self._direct = any(isinstance(module, DirectEncoder) for module in own)
        self._presents = any(isinstance(module, HybridEncoder | DirectEncoder) or emits_spikes(module) for module in own)
        self._at = 0
        self._fresh = True
        self._flows: dict[str, Flow] = {}
        self._frames: dict[str, Tensor] = {}
        self._counting = False
        self._hooks: list[Any] = []
        self.images = 0
        self.layers = {name: Layer() for name in nodes}
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
        others = {module for module in network.modules() if isinstance(module, WEIGHTED) or is_node(module)} ^ self._counted
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
        self._counting = True
        try:
            self._take(call, inputs, output)
            self._follow_functions()
        finally:
            self._counting = False

    def _follow_functions(self) -> None:
        while self._at < len(self._calls) and self._calls[self._at].module not in self._watched:
            self._take(self._calls[self._at])

    def _take(self, call: Node, inputs: tuple[Tensor, ...] = (), output: Tensor | None = None) -> None:
        """Note what runs behind a call, and forget what is not needed any more."""
        self._flows[call.name] = self._behind(call, [self._flows[source] for source in call.inputs], inputs, output)
        for source in call.inputs:
            if self._last_use[source] == self._at:
                self._flows.pop(source, None)
        self._at += 1

    def _behind(self, call: Node, flows: list[Flow], inputs: tuple[Tensor, ...], output: Tensor | None) -> Flow:
        """Count what a call did, and find out what runs behind it."""
        module, flow = call.module, flows[0] if flows else Lost(call.name)
        if output is not None and isinstance(module, WEIGHTED):
            return self._through_weights(self._names[module], module, flow, inputs[0], output)
        if output is not None and module in self._nodes:
            return self._through_neurons(self._names[module], module, flow, output)
        if output is not None and isinstance(module, MAX_POOLS) and isinstance(flow, Spikes) and flow.share == 1:
            return spikes_of(output, (self._names[module],) if flow.sources else ())  # pooled pixels stay pixels
        if isinstance(module, Add):
            return self._through_sum(call.name, flows)
        if isinstance(module, Concat) and all(isinstance(flow, Spikes) for flow in flows):
            return side_by_side(module, flows)  # type: ignore[arg-type]
        if len({type(flow) for flow in flows}) > 1:
            return Lost(call.name)
        if isinstance(flow, Current):
            if isinstance(module, Bias) and output is not None:
                synapses = self.synapses[flow.weights[-1]]
                synapses.bias_events = synapses.bias_events + total(output != inputs[0])
            return currents_of(flows)
        if isinstance(flow, Spikes):
            return through_layer(call, flow)
        return spikes_of(output, ()) if output is not None and emits_spikes(module) else flow

    def _through_neurons(self, name: str, module: nn.Module, flow: Flow, output: Tensor) -> Spikes:
        """Count a layer's spikes."""
        spikes, seen = spikes_of(output, (name,)), self.layers[name]
        seen.spikes = seen.spikes + total(spikes.counts)
        seen.updates += output.numel()
        seen.neurons = prod(output.shape[2:] if module.step_mode == "m" else output.shape[1:])
        for weights in flow.weights if isinstance(flow, Current) else ():
            self.synapses[weights].target = name
        return spikes

    def _through_sum(self, name: str, flows: list[Flow]) -> Flow:
        """Add up spikes; those that are added to currents are events."""
        if all(isinstance(flow, Image) for flow in flows):
            return Image()
        spikes = [flow for flow in flows if isinstance(flow, Spikes)]
        if len(spikes) == len(flows):
            return added(spikes)
        if any(isinstance(flow, Image | Lost) for flow in flows):
            return Lost(name)
        for flow in spikes:
            events = total(flow.counts)
            shortcut = self.synapses.setdefault(name, Synapses(sources=flow.sources))
            shortcut.spikes, shortcut.events = shortcut.spikes + events, shortcut.events + events
        weights = currents_of(flows).weights
        return Current((*weights, name) if spikes else weights)

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
            synapses.dense = events_of(module, torch.ones_like(x_seq[0, :1])).item()
            if not synapses.dense and type(module) not in PLAIN:
                kind = type(module).__name__
                raise ValueError(f"{name} ({kind}) must use its weights as they are to be counted, got none where all are 1")
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
            synapses.spikes = synapses.spikes + total(flow.counts)
            synapses.arrivals = synapses.arrivals + total(flow.rates)
            for counts in flow.counts if multi_step else flow.counts.unsqueeze(0):
                synapses.events = synapses.events + events_of(module, counts)
        return Current((name,))

    def _count_image(self, name: str, module: nn.Module, synapses: Synapses, x: Tensor) -> None:
        """Count one step of the encoded image: a frame of analogue values, or spikes."""
        frame = self._frames.get(name)
        if frame is None or self._direct or not ((x == 0) | (x == 1)).all():
            if frame is None or not torch.equal(x, frame):  # shown again, its products are known
                synapses.analogue_events = synapses.analogue_events + events_of(module, torch.ones_like(x) * x.any())
            self._frames[name] = x
        else:
            spikes = total(x)
            synapses.spikes, synapses.arrivals = synapses.spikes + spikes, synapses.arrivals + spikes
            synapses.events = synapses.events + events_of(module, x)


def check_activity(activity: SpikingActivity) -> None:
    """Raise unless `activity` is a monitor."""
    if not isinstance(activity, SpikingActivity):
        raise TypeError(f"activity must be a SpikingActivity, got {type(activity).__name__}")
