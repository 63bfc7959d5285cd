"""Exchange of single-spike networks through NIR, the Neuromorphic Intermediate Representation.

NIR has no soft reset and no neuron that fires once, and needs neither. Until its first spike a neuron of eqs. 6-8 is an
ordinary leaky integrator, and afterwards it only has to stay silent: an ordinary `nir.LIF` (`nir.IF` at leak 1) does both when
its spike comes back to it, one step later, through a strong negative weight.

    tau = dt / (1 - leak),   r = tau / dt,   v_leak = v_reset = 0

The negative weight decays with the potential, by leak^(T-2) until step T: a graph serves the number of steps that it was
written for, which it carries as the metadatum T.

The graph's input is the encoded sequence, one step at a time, and its output the last layer's currents W_L O^t: the encoder and
the readout are not neurons and stay outside. Dropout is left out.

Other importers: SpikingJelly 2.0's runs such a graph in step mode "s". It fires at U >= V, not U > V, so that a potential
exactly at the threshold differs, and for a leak below 1 it computes v - v / tau, which rounds differently from leak * v.
"""

import onespike.spikingjelly  # noqa: F401  (first, for it names the remedy where SpikingJelly is missing)

# isort: split
import copy
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from spikingjelly.activation_based import functional, layer
from torch import nn
from torch.nn.utils import parametrize

from onespike.functional.checks import check_positive, check_T
from onespike.graph import INPUT, Unknown, read
from onespike.spikingjelly import DirectEncoder, HybridEncoder, SingleSpikeLIFNode, SpikeTimeReadout
from onespike.spikingjelly.pool import AvgPool2d
from onespike.spikingjelly.wiring import Add, Bias, Scale, Wiring

try:
    import nir
except ImportError as error:
    raise ImportError('onespike.nir needs NIR: pip install "onespike[nir]"') from error

INHIBITION = 1e6
"""How strongly a neuron's own spike silences it, in units of its threshold, beyond what leaks away until the last step."""
STRONGEST = 1e30
"""Limit on the inhibition: float32 ends at 3e38."""
CONVOLUTIONS, LINEARS = (nn.Conv2d, layer.Conv2d), (nn.Linear, layer.Linear)
ADAPTIVE = (nn.AdaptiveAvgPool2d, layer.AdaptiveAvgPool2d)
LEFT_OUT = (nn.Dropout, layer.Dropout, nn.Dropout2d, layer.Dropout2d, nn.Identity)
ENCODERS, READOUTS = (HybridEncoder, DirectEncoder), (SpikeTimeReadout,)


def to_nir(network: nn.Module, input_shape: tuple[int, ...], *, T: int, dt: float = 1e-4) -> nir.NIRGraph:
    """Write a single-spike network as a NIR graph.

    Args:
        network: a `SpikingNetwork`, or an `nn.Sequential` of SpikingJelly's (or torch's) Conv2d, Linear, AvgPool2d and Flatten,
            Dropout and `SingleSpikeLIFNode`; branches may add up. Max pools, concatenations, and biases that act once, as
            behind a `HybridEncoder`, have no counterpart in NIR. An encoder in front and a readout at the end are left out. Of
            weights under `torch.nn.utils.parametrize` the graph holds the values that they have in eval mode.
        input_shape: shape of one image, such as (3, 32, 32).
        T: number of steps that the graph will run at most: for so long a neuron that has fired stays silent.
        dt: duration of a step in seconds.

    Returns:
        The graph, from an encoded step to the last layer's currents.

    Raises:
        ValueError: a layer cannot be expressed; the message names it and the remedy.
    """
    check_T(T)
    check_positive("dt", dt)
    is_converted = {name for name, _ in network.named_children()} == {"encoder", "body", "readout"}
    body = network.body if is_converted else network
    if not isinstance(body, nn.Sequential):
        parts = ", ".join(name for name, _ in network.named_children()) or "no modules"
        raise ValueError(
            "network must be a SpikingNetwork, of nothing but its three parts, or an nn.Sequential, "
            f"got {type(network).__name__} of {parts}"
        )
    graph = read(network)
    nodes: dict[str, nir.NIRNode] = {"input": nir.Input({"input": np.array(input_shape)})}
    edges: list[tuple[str, str]] = []
    feeds: dict[str, tuple[str, ...]] = {INPUT: ("input",)}  # call -> nodes whose sum it gives
    shapes = {INPUT: tuple(input_shape)}
    last = INPUT
    for call in graph.nodes:
        name, module, shape = call.name.removeprefix("body."), call.module, shapes[call.inputs[0] if call.inputs else INPUT]
        sources = [label for source in call.inputs for label in feeds[source]]
        last = call.name
        feeds[last], shapes[last] = tuple(sources), shape
        if type(module) in LEFT_OUT:
            continue
        if isinstance(module, ENCODERS + READOUTS):
            if sources != ["input"] if isinstance(module, ENCODERS) else call.name != graph.output:
                raise ValueError(f"{name}: {type(module).__name__} must stand {at_which_end(module)}: a graph has none inside")
            continue
        if isinstance(module, Add):
            if len(set(sources)) < len(sources) or len({shapes[source] for source in call.inputs}) > 1:
                raise ValueError(f"{name}: a sum must be of different branches of one shape, got {', '.join(sources)}")
            continue
        label = f"{name}_{type(module).__name__}"
        edges += [(source, label) for source in sources]
        feeds[last] = (label,)
        if type(module) is SingleSpikeLIFNode:
            silence = f"{label}_silence"
            nodes[label], nodes[silence] = neuron_to_nir(name, module, shape, T, dt)
            edges += [(label, silence), (silence, label)]
        else:
            nodes[label], shapes[last] = layer_to_nir(name, module, shape)
    nodes["output"] = nir.Output({"output": np.array(shapes[last])})
    return nir.NIRGraph(nodes, [*edges, *((label, "output") for label in feeds[last])], {"T": T})


def at_which_end(module: nn.Module) -> str:
    """Say where an encoder or a readout belongs."""
    return "first" if isinstance(module, ENCODERS) else "last"


def neuron_to_nir(
    name: str, node: SingleSpikeLIFNode, shape: tuple[int, ...], T: int, dt: float
) -> tuple[nir.NIRNode, nir.NIRNode]:
    """Return a neuron and the connection by which it silences itself."""
    if not node.single_spike:
        raise ValueError(f"{name}: single_spike must be True, the reset of neurons that fire again has no counterpart in NIR")
    if node.per_channel is not None:
        raise ValueError(
            f"{name}: per_channel must be None, got {node.per_channel}: importers take one leak and threshold a layer"
        )
    if len(shape) not in (1, 3):
        raise ValueError(f"{name}: neurons must be [K] or [C, H, W], got {list(shape)}")
    leak, threshold = node.leak.item(), np.full(shape, node.v_threshold.item(), dtype=np.float32)
    if not 0 < leak <= 1:
        raise ValueError(f"{name}: leak must be in (0, 1], got {leak}: a neuron without memory cannot stay silent")
    strength = needed_inhibition(leak, float(threshold.flat[0]), T)
    if strength > STRONGEST:
        lowest = (needed_inhibition(1.0, float(threshold.flat[0]), T) / STRONGEST) ** (1 / T)
        raise ValueError(f"{name}: leak must be above {lowest:.3g} for T = {T}, got {leak}")
    zeros = np.zeros(shape)
    if leak == 1:
        neuron: nir.NIRNode = nir.IF(r=zeros + 1 / dt, v_threshold=threshold, v_reset=zeros)
    else:
        tau = zeros + dt / (1 - leak)
        neuron = nir.LIF(tau=tau, r=tau / dt, v_leak=zeros, v_threshold=threshold, v_reset=zeros)
    weight = -strength * np.eye(shape[0], dtype=np.float32)
    if len(shape) == 1:
        return neuron, nir.Linear(weight)
    no_bias = np.zeros(shape[0], dtype=np.float32)
    return neuron, nir.Conv2d(shape[1:], weight[:, :, None, None], 1, 0, 1, 1, no_bias)


def needed_inhibition(leak: float, threshold: float, T: int) -> float:
    """Return how strong a neuron's own spike must be to silence it until step T."""
    left = leak**T
    return INHIBITION * max(1.0, threshold) / left if left else math.inf


def layer_to_nir(name: str, module: nn.Module, shape: tuple[int, ...]) -> tuple[nir.NIRNode, tuple[int, ...]]:
    """Return a layer without state and the shape of what it gives."""
    twin = single_step_twin(name, module)
    kind = parametrize.type_before_parametrizations(twin)  # a subclass may compute anything else from the same settings
    require_image(name, kind, shape)
    if kind in (*CONVOLUTIONS, *LINEARS):
        node: nir.NIRNode = weights_to_nir(name, twin, kind, shape)
    elif kind is Scale:
        rows = 1 if twin.channels is None else shape[0] // twin.channels
        factors = twin.weight.detach().repeat_interleave(rows).view(-1, *[1] * (len(shape) - 1))
        node = nir.Scale(factors.expand(shape).numpy().copy())
    elif kind in (nn.AvgPool2d, layer.AvgPool2d, AvgPool2d):
        if twin.ceil_mode or twin.divisor_override or not twin.count_include_pad:
            raise ValueError(f"{name}: ceil_mode, divisor_override and count_include_pad must be the defaults, got {twin}")
        node = nir.AvgPool2d(*(np.array(pair(size)) for size in (twin.kernel_size, twin.stride, twin.padding)))
    elif kind in ADAPTIVE and not np.any(np.remainder(shape[1:], pair(twin.output_size))):
        window = np.array(shape[1:]) // pair(twin.output_size)
        node = nir.AvgPool2d(window, window, np.zeros(2, dtype=int))
    elif kind in (nn.Flatten, layer.Flatten) and (twin.start_dim, twin.end_dim) == (1, -1):
        node = nir.Flatten({"input": np.array(shape)}, 0, -1)
    else:
        called = twin.called if kind is Unknown else kind.__name__
        remedy = "; an encoder that shows the image at every step needs none" if kind is Bias else ""
        raise ValueError(
            f"{name}: {called} has no counterpart here: use Conv2d, Linear, AvgPool2d, Flatten, sums and SingleSpikeLIFNode, "
            f"no subclasses of them{remedy}"
        )
    with torch.no_grad():
        try:
            return node, tuple(twin(torch.zeros(1, *shape)).shape[1:])
        except (RuntimeError, IndexError) as error:
            raise ValueError(f"{name}: {kind.__name__} does not take inputs of shape {list(shape)}: {error}") from error


def require_image(name: str, kind: type, shape: tuple[int, ...]) -> None:
    """Raise unless a layer that wants images gets one."""
    if kind.__name__ in ("Conv2d", "AvgPool2d", "AdaptiveAvgPool2d") and len(shape) != 3:
        raise ValueError(f"{name}: {kind.__name__} takes [C, H, W], got {list(shape)}: input_shape is that of one image")


def weights_to_nir(name: str, twin: Any, kind: type[nn.Module], shape: tuple[int, ...]) -> nir.NIRNode:
    """Return a Conv2d or Linear layer."""
    if twin.weight.dtype != torch.float32:
        raise ValueError(f"{name}: weight must be float32, got {twin.weight.dtype}: call network.float()")
    weight = twin.weight.detach().numpy().copy()
    bias = np.zeros(len(weight), dtype=np.float32) if twin.bias is None else twin.bias.detach().numpy().copy()
    if kind in LINEARS:
        return nir.Linear(weight) if twin.bias is None else nir.Affine(weight, bias)
    if twin.groups != 1 or isinstance(twin.padding, str) or twin.padding_mode != "zeros":
        raise ValueError(f"{name}: groups must be 1 and padding a number of zeros, got {twin}")
    if twin.kernel_size[0] != twin.kernel_size[1]:
        # NIR's shape inference takes the first size for both, and refuses the graph that follows from it.
        raise ValueError(f"{name}: kernel_size must be square, got {twin.kernel_size}: fill the kernel up with zeros")
    return nir.Conv2d(shape[1:], weight, twin.stride, twin.padding, twin.dilation, 1, bias)


def single_step_twin(name: str, module: nn.Module) -> Any:
    """Copy a layer to the CPU, in eval mode and stepped, so that looking at its weight changes nothing of the network's."""
    if isinstance(vars(module).get("weight"), torch.Tensor):  # as prune and the older weight_norm leave it
        raise ValueError(f"{name}: weight must be a parameter, got one that a hook computes: make it permanent (prune.remove)")
    twin: Any = copy.deepcopy(module).cpu().eval()
    twin.step_mode = "s"
    return twin


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
    """
    check_positive("dt", dt)
    if T is None and "T" in graph.metadata:
        T = int(graph.metadata["T"])
    if T is not None:
        check_T(T)
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


def pair(size: Iterable[int] | int) -> tuple[int, int]:
    """Return a size along both dimensions."""
    height, width = np.broadcast_to(np.array(size), 2).tolist()
    return height, width


def with_weight(module: nn.Module, weight: np.ndarray, bias: np.ndarray | None = None) -> nn.Module:
    """Give a layer copies of this weight and bias."""
    module.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float32))
    if bias is not None:
        module.bias = nn.Parameter(torch.tensor(bias, dtype=torch.float32))
    return module
