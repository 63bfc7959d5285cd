"""From a graph to a network."""

import math
from typing import Any

import nir
import numpy as np
import torch
from spikingjelly.activation_based import functional, layer
from torch import nn

from onespike.functional.checks import check_positive, check_T
from onespike.nir.common import needed_inhibition, pair
from onespike.spikingjelly import SingleSpikeLIFNode
from onespike.spikingjelly.wiring import Add, Scale, Wiring


def from_nir(graph: nir.NIRGraph, *, T: int | None = None, dt: float = 1e-4) -> nn.Sequential:
    """Read a graph of the form that `to_nir` writes.

    Args:
        graph: layers between one input and one output, whose neurons are IF or LIF that silence themselves. What several edges
            bring to a node is added up.
        T: number of steps that will be run at most; None for the number that the graph carries. Neurons with a leak below 1
            need one: their inhibition decays.
        dt: duration of a step in seconds, as it was written.

    Returns:
        SpikingJelly layers in step mode "m": encoded sequences [T, N, *] -> the last layer's currents [T, N, K]. Put an encoder
        in front and a `SpikeTimeReadout` behind.

    Raises:
        ValueError: the graph has another form; the message names the node.
        TypeError: it is no graph, or `T` or the graph's T no whole number.
    """
    if not isinstance(graph, nir.NIRGraph):
        raise TypeError(f"graph must be a nir.NIRGraph, got {type(graph).__name__}")
    check_positive("dt", dt)
    if T is not None:
        T = check_T(T)
    elif "T" in graph.metadata:
        T = check_T(graph.metadata["T"], name="the graph's metadatum T")
    inputs = [label for label, node in graph.nodes.items() if isinstance(node, nir.Input)]
    if len(inputs) != 1:
        raise ValueError(f"the graph must have one input, got {len(inputs)}: {inputs}")
    following: dict[str, list[str]] = {label: [] for label in graph.nodes}
    for source, target in graph.edges:
        following[source].append(target)
    made = {label: neuron_of(label, node, dt) for label, node in graph.nodes.items() if isinstance(node, nir.IF | nir.LIF)}
    silences: set[str] = set()
    for label, neuron in made.items():
        loops = [target for target in following[label] if following[target] == [label]]
        if len(loops) != 1:
            raise ValueError(f"{label}: a neuron must silence itself through one connection back, got {len(loops)}")
        check_silence(loops[0], graph.nodes[loops[0]], neuron, T)
        silences.update(loops)
    preceding: dict[str, list[str]] = {label: [] for label in graph.nodes if label not in silences}
    for source, target in graph.edges:
        if not silences & {source, target}:
            preceding[target].append(source)
    modules: list[nn.Module] = []
    sources: dict[int, tuple[int, ...]] = {}
    places = {inputs[0]: 0}
    for label in in_order(graph, preceding):
        node = graph.nodes[label]
        place, *others = (places[source] for source in preceding[label])
        for other in others:
            sources[len(modules)] = place, other
            modules.append(Add())
            place = len(modules)
        if not isinstance(node, nir.Output):
            sources[len(modules)] = (place,)
            modules.append(made[label] if label in made else module_of(label, node))
            places[label] = len(modules)
    net = Wiring(modules, sources)
    functional.set_step_mode(net, "m")
    return net


def in_order(graph: nir.NIRGraph, preceding: dict[str, list[str]]) -> list[str]:
    """Return all nodes but the input, each behind those before it; raise unless they lie between the input and one output."""
    outputs = [label for label in preceding if isinstance(graph.nodes[label], nir.Output)]
    sources = {source for before in preceding.values() for source in before}
    for label in outputs:
        if label in sources:
            beyond = [target for target, before in preceding.items() if label in before]
            raise ValueError(f"{label}: the output must be the end of the graph, got successors {beyond}")
    if len(outputs) != 1:
        raise ValueError(f"the graph must have one output, got {len(outputs)}: {outputs}")
    off = [
        label
        for label, before in preceding.items()
        if (not before and not isinstance(graph.nodes[label], nir.Input)) or (label not in sources and label not in outputs)
    ]
    if off:
        raise ValueError(f"{', '.join(sorted(off))}: every node must lie between input and output, got nodes off the way")
    order: list[str] = []
    waiting = {label: set(before) for label, before in preceding.items()}
    while ready := [label for label, before in waiting.items() if not before]:
        order += ready
        for label in ready:
            del waiting[label]
        for before in waiting.values():
            before.difference_update(ready)
    if waiting:
        raise ValueError(f"{', '.join(sorted(waiting))}: the graph must have no cycle but neurons that silence themselves")
    return order[1:]


def check_silence(name: str, node: nir.NIRNode, neuron: SingleSpikeLIFNode, T: int | None) -> None:
    """Raise unless a connection leads from each neuron to itself alone, strongly enough for T steps."""
    if not isinstance(node, nir.Linear | nir.Conv2d):
        raise ValueError(f"{name}: what silences neurons must be a Linear or a Conv2d, got {type(node).__name__}")
    if isinstance(node, nir.Conv2d):
        check_convolution(name, node)
        if np.any(node.bias):
            raise ValueError(
                f"{name}: bias must be 0 where neurons silence themselves, got up to {np.abs(node.bias).max():.4g}"
            )
        for field, value in {"kernel_size": node.weight.shape[2:], "stride": node.stride, "dilation": node.dilation}.items():
            if pair(value) != (1, 1):
                raise ValueError(f"{name}: {field} must be 1 where neurons silence themselves, got {pair(value)}")
        if pair(node.padding) != (0, 0):
            raise ValueError(f"{name}: padding must be 0 where neurons silence themselves, got {pair(node.padding)}")
    weight = node.weight.reshape(node.weight.shape[:2])
    if weight.shape[0] != weight.shape[1] or np.count_nonzero(weight - np.diag(np.diagonal(weight))):
        raise ValueError(f"{name}: weight must be diagonal, each neuron silencing itself alone, got shape {weight.shape}")
    leak, weakest = neuron.leak.item(), float(np.diagonal(weight).max())
    if T is None and leak < 1:
        raise ValueError(f"{name}: T must be given, as the graph names none: at a leak of {leak:.4g} the inhibition decays")
    needed = needed_inhibition(leak, neuron.v_threshold.item(), T or 1)
    if not weakest <= -0.999 * needed:  # float32 rounds leak and weight
        steps = "" if leak == 1 else f" for {T} steps at a leak of {leak:.4g}"
        raise ValueError(f"{name}: weight must be at most {-needed:.4g} to keep neurons silent{steps}, got {weakest:.4g}")


def check_convolution(name: str, node: nir.Conv2d) -> None:
    """Raise unless a convolution is one that we write: without groups, its padding given in numbers."""
    if node.groups != 1:
        raise ValueError(f"{name}: groups must be 1, got {node.groups}")
    if isinstance(node.padding, str):
        raise ValueError(f"{name}: padding must be given in numbers, got {node.padding!r}")


def neuron_of(name: str, node: nir.IF | nir.LIF, dt: float) -> SingleSpikeLIFNode:
    """Return the neuron for a node."""
    threshold, gain = uniform(name, "v_threshold", node.v_threshold), uniform(name, "r", node.r) * dt
    leak, at_rest = 1.0, {"v_reset": node.v_reset}
    if isinstance(node, nir.LIF):
        decay = dt / uniform(name, "tau", node.tau)
        leak, gain = 1 - decay, uniform(name, "r", node.r) * decay
        at_rest["v_leak"] = node.v_leak
    for field, values in at_rest.items():
        if uniform(name, field, values) != 0:
            raise ValueError(f"{name}: {field} must be 0, got {values.flat[0]}")
    if not 0 < leak <= 1:
        raise ValueError(f"{name}: tau must be above dt = {dt}, got {node.tau.flat[0]}")
    if not 0 < threshold < math.inf:
        raise ValueError(f"{name}: v_threshold must be > 0 and finite, got {threshold}")
    if not np.isclose(gain, 1, rtol=1e-5):
        raise ValueError(f"{name}: r must be tau / dt (1 / dt for IF), so that currents add up unscaled, got a gain of {gain}")
    return SingleSpikeLIFNode(leak, threshold)


def module_of(name: str, node: nir.NIRNode) -> nn.Module:
    """Return the SpikingJelly layer for a node."""
    if isinstance(node, nir.Conv2d):
        check_convolution(name, node)
        outputs, inputs, *kernel = node.weight.shape
        settings: dict[str, Any] = {key: pair(getattr(node, key)) for key in ("stride", "padding", "dilation")}
        bias = node.bias if np.any(node.bias) else None
        return with_weight(layer.Conv2d(inputs, outputs, kernel, bias=bias is not None, **settings), node.weight, bias)
    if isinstance(node, nir.Linear | nir.Affine):
        bias = getattr(node, "bias", None)
        return with_weight(layer.Linear(*node.weight.shape[::-1], bias=bias is not None), node.weight, bias)
    if isinstance(node, nir.Scale):
        rows = node.scale.reshape(len(node.scale), -1)
        if np.ptp(rows, axis=1).any():
            raise ValueError(f"{name}: scale must be one value by channel, got others in shape {node.scale.shape}")
        one = np.ptp(rows) == 0
        return with_weight(Scale(None if one else len(rows)), rows[0, 0] if one else rows[:, 0])
    if isinstance(node, nir.AvgPool2d):
        return layer.AvgPool2d(pair(node.kernel_size), pair(node.stride), pair(node.padding))
    if isinstance(node, nir.Flatten):
        if (node.start_dim, node.end_dim) != (0, -1):
            raise ValueError(f"{name}: start_dim and end_dim must be 0 and -1, got {node.start_dim} and {node.end_dim}")
        return layer.Flatten()
    raise ValueError(f"{name}: {type(node).__name__} has no counterpart in a single-spike network")


def uniform(name: str, field: str, values: np.ndarray) -> float:
    """Return the one value of a neuron's parameter."""
    if np.ptp(values) != 0:
        raise ValueError(f"{name}: {field} must be one value for the layer, got {np.min(values)} to {np.max(values)}")
    return float(values.flat[0])


def with_weight(module: nn.Module, weight: np.ndarray, bias: np.ndarray | None = None) -> nn.Module:
    """Give a layer copies of this weight and bias."""
    module.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float32))
    if bias is not None:
        module.bias = nn.Parameter(torch.tensor(bias, dtype=torch.float32))
    return module
