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
from onespike.spikingjelly import DirectEncoder, HybridEncoder, SingleSpikeLIFNode, SpikeTimeReadout
from onespike.spikingjelly.pool import AvgPool2d

try:
    import nir
except ImportError as error:
    raise ImportError('onespike.nir needs NIR: pip install "onespike[nir]"') from error

INHIBITION = 1e6
"""How strongly a neuron's own spike silences it, in units of its threshold, beyond what leaks away until the last step."""
STRONGEST = 1e30
"""Limit on the inhibition: float32 ends at 3e38."""
LEFT_OUT = (nn.Dropout, layer.Dropout, nn.Dropout2d, layer.Dropout2d, nn.Identity)
ENCODERS, READOUTS = (HybridEncoder, DirectEncoder), (SpikeTimeReadout,)


def to_nir(network: nn.Module, input_shape: tuple[int, ...], *, T: int, dt: float = 1e-4) -> nir.NIRGraph:
    """Write a single-spike network as a NIR graph.

    Args:
        network: a `SpikingNetwork`, or an `nn.Sequential` of SpikingJelly's (or torch's) Conv2d, Linear, AvgPool2d and Flatten,
            Dropout and `SingleSpikeLIFNode`. An encoder in front and a readout at the end are left out. Of weights under
            `torch.nn.utils.parametrize` the graph holds the values that they have in eval mode.
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
    kept = [(str(i), module) for i, module in enumerate(body) if type(module) not in LEFT_OUT]
    if kept and isinstance(kept[0][1], ENCODERS):
        kept = kept[1:]
    if kept and isinstance(kept[-1][1], READOUTS):
        kept = kept[:-1]
    nodes: dict[str, nir.NIRNode] = {"input": nir.Input({"input": np.array(input_shape)})}
    edges, last, shape = [], "input", tuple(input_shape)
    for name, module in kept:
        label = f"{name}_{type(module).__name__}"
        if isinstance(module, ENCODERS + READOUTS):
            raise ValueError(f"{name}: {type(module).__name__} must stand {at_which_end(module)}: a graph has none inside")
        if type(module) is SingleSpikeLIFNode:
            silence = f"{label}_silence"
            nodes[label], nodes[silence] = neuron_to_nir(name, module, shape, T, dt)
            edges += [(last, label), (label, silence), (silence, label)]
        else:
            nodes[label], shape = layer_to_nir(name, module, shape)
            edges.append((last, label))
        last = label
    nodes["output"] = nir.Output({"output": np.array(shape)})
    return nir.NIRGraph(nodes, [*edges, (last, "output")], {"T": T})


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
    if kind in (nn.Conv2d, layer.Conv2d, nn.Linear, layer.Linear):
        if twin.bias is not None:
            raise ValueError(f"{name}: bias must be None, as everywhere in the method")
        if twin.weight.dtype != torch.float32:
            raise ValueError(f"{name}: weight must be float32, got {twin.weight.dtype}: call network.float()")
        weight = twin.weight.detach().numpy().copy()
    if kind in (nn.Conv2d, layer.Conv2d):
        if twin.groups != 1 or isinstance(twin.padding, str) or twin.padding_mode != "zeros":
            raise ValueError(f"{name}: groups must be 1 and padding a number of zeros, got {twin}")
        if twin.kernel_size[0] != twin.kernel_size[1]:
            # NIR's shape inference takes the first size for both, and refuses the graph that follows from it.
            raise ValueError(f"{name}: kernel_size must be square, got {twin.kernel_size}: fill the kernel up with zeros")
        no_bias = np.zeros(len(weight), dtype=np.float32)
        node: nir.NIRNode = nir.Conv2d(shape[1:], weight, twin.stride, twin.padding, twin.dilation, 1, no_bias)
    elif kind in (nn.Linear, layer.Linear):
        node = nir.Linear(weight)
    elif kind in (nn.AvgPool2d, layer.AvgPool2d, AvgPool2d):
        if twin.ceil_mode or twin.divisor_override or not twin.count_include_pad:
            raise ValueError(f"{name}: ceil_mode, divisor_override and count_include_pad must be the defaults, got {twin}")
        node = nir.AvgPool2d(*(np.array(pair(size)) for size in (twin.kernel_size, twin.stride, twin.padding)))
    elif kind in (nn.Flatten, layer.Flatten) and (twin.start_dim, twin.end_dim) == (1, -1):
        node = nir.Flatten({"input": np.array(shape)}, 0, -1)
    else:
        raise ValueError(
            f"{name}: {kind.__name__} has no counterpart here: use Conv2d, Linear, AvgPool2d, Flatten and SingleSpikeLIFNode, "
            "no subclasses of them"
        )
    with torch.no_grad():
        try:
            return node, tuple(twin(torch.zeros(1, *shape)).shape[1:])
        except (RuntimeError, IndexError) as error:
            raise ValueError(f"{name}: {kind.__name__} does not take inputs of shape {list(shape)}: {error}") from error


def require_image(name: str, kind: type, shape: tuple[int, ...]) -> None:
    """Raise unless a layer that wants images gets one."""
    if kind.__name__ in ("Conv2d", "AvgPool2d") and len(shape) != 3:
        raise ValueError(f"{name}: {kind.__name__} takes [C, H, W], got {list(shape)}: input_shape is that of one image")


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
        graph: a chain of layers, whose neurons are IF or LIF that silence themselves.
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
    following: dict[str, list[str]] = {}
    for source, target in graph.edges:
        following.setdefault(source, []).append(target)
    inputs = [label for label, node in graph.nodes.items() if isinstance(node, nir.Input)]
    if len(inputs) != 1:
        raise ValueError(f"the graph must have one input, got {len(inputs)}: {inputs}")
    (name,), seen = inputs, set(inputs)
    modules: list[nn.Module] = []
    while not isinstance(graph.nodes[name], nir.Output):
        targets = following.get(name, [])
        if modules and isinstance(modules[-1], SingleSpikeLIFNode):
            loops = [target for target in targets if following.get(target) == [name]]
            if len(loops) != 1:
                raise ValueError(f"{name}: a neuron must silence itself through one connection back, got {len(loops)}")
            check_silence(loops[0], graph.nodes[loops[0]], modules[-1], T)
            seen.update(loops)
            targets = [target for target in targets if target not in loops]
        if len(targets) != 1:
            raise ValueError(f"{name}: the graph must be a chain, got {len(targets)} successors {targets}")
        (name,) = targets
        if name in seen:
            raise ValueError(f"{name}: the graph must be a chain, got a cycle")
        seen.add(name)
        if not isinstance(graph.nodes[name], nir.Output):
            modules.append(module_of(name, graph.nodes[name], dt))
    if name in following:
        raise ValueError(f"{name}: the output must be the end of the graph, got successors {following[name]}")
    if set(graph.nodes) != seen:
        off = ", ".join(sorted(set(graph.nodes) - seen))
        raise ValueError(f"{off}: every node must lie on the chain from input to output, got nodes off it")
    net = nn.Sequential(*modules)
    functional.set_step_mode(net, "m")
    return net


def check_silence(name: str, node: nir.NIRNode, neuron: SingleSpikeLIFNode, T: int | None) -> None:
    """Raise unless a connection leads from each neuron to itself alone, strongly enough for T steps."""
    if not isinstance(node, nir.Linear | nir.Conv2d):
        raise ValueError(f"{name}: what silences neurons must be a Linear or a Conv2d, got {type(node).__name__}")
    if isinstance(node, nir.Conv2d):
        check_convolution(name, node)
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
    """Raise unless a convolution is one of the method's: without bias and groups, its padding given in numbers."""
    if np.any(node.bias):
        raise ValueError(f"{name}: bias must be 0, as everywhere in the method, got up to {np.abs(node.bias).max():.4g}")
    if node.groups != 1:
        raise ValueError(f"{name}: groups must be 1, got {node.groups}")
    if isinstance(node.padding, str):
        raise ValueError(f"{name}: padding must be given in numbers, got {node.padding!r}")


def module_of(name: str, node: nir.NIRNode, dt: float) -> nn.Module:
    """Return the SpikingJelly layer or neuron for a node."""
    if isinstance(node, nir.IF | nir.LIF):
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
            raise ValueError(
                f"{name}: r must be tau / dt (1 / dt for IF), so that currents add up unscaled, got a gain of {gain}"
            )
        return SingleSpikeLIFNode(leak, threshold)
    if isinstance(node, nir.Conv2d):
        check_convolution(name, node)
        outputs, inputs, *kernel = node.weight.shape
        settings: dict[str, Any] = {key: pair(getattr(node, key)) for key in ("stride", "padding", "dilation")}
        return with_weight(layer.Conv2d(inputs, outputs, kernel, bias=False, **settings), node.weight)
    if isinstance(node, nir.Linear):
        return with_weight(layer.Linear(*node.weight.shape[::-1], bias=False), node.weight)
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


def with_weight(module: nn.Module, weight: np.ndarray) -> nn.Module:
    """Give a layer a copy of this weight."""
    module.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float32))
    return module
