"""Exchange of single-spike networks through NIR, the Neuromorphic Intermediate Representation.

NIR has no soft reset and no neuron that fires once, and needs neither. Until its first spike a neuron of eqs. 6-8 is an
ordinary leaky integrator, and afterwards it only has to stay silent: an ordinary `nir.LIF` (`nir.IF` at leak 1) does both when
its spike comes back to it, one step later, through a strong negative weight.

    tau = dt / (1 - leak),   r = tau / dt,   v_leak = v_reset = 0

The graph's input is the encoded sequence, one step at a time, and its output the last layer's currents W_L O^t: the encoder and
the readout are not neurons and stay outside. Dropout is left out.

Other importers: SpikingJelly 2.0's runs such a graph in step mode "s". It fires at U >= V, not U > V, so that a potential
exactly at the threshold differs, and for a leak below 1 it computes v - v / tau, which rounds differently from leak * v.
"""

import copy
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from spikingjelly.activation_based import functional, layer
from torch import nn

from onespike.spikingjelly import DirectEncoder, HybridEncoder, SingleSpikeLIFNode, SpikeTimeReadout

try:
    import nir
except ImportError as error:
    raise ImportError('onespike.nir needs NIR: pip install "onespike[nir]"') from error

INHIBITION = 1e6
"""How strongly a neuron's own spike silences it, beyond what leaks away until the last step."""
IGNORED = (HybridEncoder, DirectEncoder, SpikeTimeReadout, nn.Dropout, layer.Dropout, nn.Identity)


def to_nir(network: nn.Module, input_shape: tuple[int, ...], *, T: int, dt: float = 1e-4) -> nir.NIRGraph:
    """Write a single-spike network as a NIR graph.

    Args:
        network: a `SpikingNetwork`, or an `nn.Sequential` of SpikingJelly's Conv2d, Linear, AvgPool2d and Flatten, Dropout and
            `SingleSpikeLIFNode`. An encoder in front and a readout at the end are left out.
        input_shape: shape of one image, such as (3, 32, 32).
        T: number of steps that the graph will run at most: for so long a neuron that has fired stays silent.
        dt: duration of a step in seconds.

    Returns:
        The graph, from an encoded step to the last layer's currents.

    Raises:
        ValueError: a layer cannot be expressed; the message names it and the remedy.
    """
    body = getattr(network, "body", network)
    if not isinstance(body, nn.Sequential):
        raise ValueError(f"network must be a SpikingNetwork or an nn.Sequential, got {type(network).__name__}")
    kept = [(str(i), module) for i, module in enumerate(body) if not isinstance(module, IGNORED)]
    nodes: dict[str, nir.NIRNode] = {"input": nir.Input({"input": np.array(input_shape)})}
    edges, last, shape = [], "input", tuple(input_shape)
    for name, module in kept:
        label = f"{name}_{type(module).__name__}"
        if isinstance(module, SingleSpikeLIFNode):
            silence = f"{label}_silence"
            nodes[label], nodes[silence] = neuron_to_nir(name, module, shape, T, dt)
            edges += [(last, label), (label, silence), (silence, label)]
        else:
            nodes[label], shape = layer_to_nir(name, module, shape)
            edges.append((last, label))
        last = label
    nodes["output"] = nir.Output({"output": np.array(shape)})
    return nir.NIRGraph(nodes, [*edges, (last, "output")])


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
    strength = INHIBITION * leak**-T
    if strength > 1e30:
        raise ValueError(f"{name}: leak must be above {(INHIBITION / 1e30) ** (1 / T):.3g} for T = {T}, got {leak}")
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


def layer_to_nir(name: str, module: nn.Module, shape: tuple[int, ...]) -> tuple[nir.NIRNode, tuple[int, ...]]:
    """Return a layer without state and the shape of what it gives."""
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        raise ValueError(f"{name}: bias must be None, as everywhere in the method")
    if isinstance(module, nn.Conv2d | nn.Linear):
        weight = module.weight.detach().cpu().numpy().copy()
    if isinstance(module, nn.Conv2d):
        if module.groups != 1 or isinstance(module.padding, str) or module.padding_mode != "zeros":
            raise ValueError(f"{name}: groups must be 1 and padding a number of zeros, got {module}")
        no_bias = np.zeros(len(weight), dtype=np.float32)
        settings = module.stride, module.padding, module.dilation
        node: nir.NIRNode = nir.Conv2d(shape[1:], weight, *settings, 1, no_bias)
    elif isinstance(module, nn.Linear):
        node = nir.Linear(weight)
    elif isinstance(module, nn.AvgPool2d):
        if module.ceil_mode or module.divisor_override or not module.count_include_pad:
            raise ValueError(f"{name}: ceil_mode, divisor_override and count_include_pad must be the defaults, got {module}")
        sizes = (np.broadcast_to(np.array(size), 2).copy() for size in (module.kernel_size, module.stride, module.padding))
        node = nir.AvgPool2d(*sizes)
    elif isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
        node = nir.Flatten({"input": np.array(shape)}, 0, -1)
    else:
        raise ValueError(f"{name}: {type(module).__name__} has no counterpart here: use Conv2d, Linear, AvgPool2d or Flatten")
    twin = copy.deepcopy(module).cpu()
    twin.step_mode = "s"  # type: ignore[assignment]
    with torch.no_grad():
        return node, tuple(twin(torch.zeros(1, *shape)).shape[1:])


def from_nir(graph: nir.NIRGraph, *, dt: float = 1e-4) -> nn.Sequential:
    """Read a graph of the form that `to_nir` writes.

    Args:
        graph: a chain of layers, whose neurons are IF or LIF that silence themselves.
        dt: duration of a step in seconds, as it was written.

    Returns:
        SpikingJelly layers in step mode "m": encoded sequences [T, N, *] -> the last layer's currents [T, N, K]. Put an encoder
        in front and a `SpikeTimeReadout` behind.

    Raises:
        ValueError: the graph has another form; the message names the node.
    """
    following: dict[str, list[str]] = {}
    for source, target in graph.edges:
        following.setdefault(source, []).append(target)
    modules: list[nn.Module] = []
    inputs = [label for label, node in graph.nodes.items() if isinstance(node, nir.Input)]
    if len(inputs) != 1:
        raise ValueError(f"the graph must have one input, got {len(inputs)}: {inputs}")
    (name,), seen = inputs, set()
    while True:
        if name in seen:
            raise ValueError(f"{name}: the graph must be a chain, got a cycle")
        seen.add(name)
        targets = following.get(name, [])
        if isinstance(graph.nodes[name], nir.IF | nir.LIF):
            back = [target for target in targets if following.get(target) == [name]]
            if len(back) != 1 or not silences(graph.nodes[back[0]]):
                raise ValueError(f"{name}: a neuron must silence itself through one strong negative diagonal connection")
            targets = [target for target in targets if target != back[0]]
        if len(targets) != 1:
            raise ValueError(f"{name}: the graph must be a chain, got {len(targets)} successors {targets}")
        (name,) = targets
        node = graph.nodes[name]
        if isinstance(node, nir.Output):
            break
        modules.append(module_of(name, node, dt))
    net = nn.Sequential(*modules)
    functional.set_step_mode(net, "m")
    return net


def silences(node: nir.NIRNode) -> bool:
    """Whether a connection leads from each neuron to itself alone, with one weight of at most -`INHIBITION`."""
    if not isinstance(node, nir.Linear | nir.Conv2d) or (isinstance(node, nir.Conv2d) and node.weight.shape[2:] != (1, 1)):
        return False
    weight = node.weight.reshape(node.weight.shape[:2])
    diagonal = np.unique(np.diagonal(weight))
    return (
        weight.shape[0] == weight.shape[1] and np.count_nonzero(weight) == len(weight) and bool((diagonal <= -INHIBITION).all())
    )


def module_of(name: str, node: nir.NIRNode, dt: float) -> nn.Module:
    """Return the SpikingJelly layer or neuron for a node."""
    if isinstance(node, nir.IF | nir.LIF):
        threshold, gain = uniform(name, "v_threshold", node.v_threshold), uniform(name, "r", node.r) * dt
        leak = 1.0
        if isinstance(node, nir.LIF):
            decay = dt / uniform(name, "tau", node.tau)
            leak, gain = 1 - decay, uniform(name, "r", node.r) * decay
            if uniform(name, "v_leak", node.v_leak) != 0:
                raise ValueError(f"{name}: v_leak must be 0, got {node.v_leak.flat[0]}")
        if not np.isclose(gain, 1, rtol=1e-5):
            raise ValueError(
                f"{name}: r must be tau / dt (1 / dt for IF), so that currents add up unscaled, got a gain of {gain}"
            )
        return SingleSpikeLIFNode(leak, threshold)
    if isinstance(node, nir.Conv2d):
        if np.any(node.bias):
            raise ValueError(f"{name}: bias must be 0, as everywhere in the method")
        outputs, inputs, *kernel = node.weight.shape
        settings: dict[str, Any] = {key: pair(getattr(node, key)) for key in ("stride", "padding", "dilation")}
        return with_weight(layer.Conv2d(inputs, outputs, kernel, bias=False, **settings), node.weight)
    if isinstance(node, nir.Linear):
        return with_weight(layer.Linear(*node.weight.shape[::-1], bias=False), node.weight)
    if isinstance(node, nir.AvgPool2d):
        return layer.AvgPool2d(pair(node.kernel_size), pair(node.stride), pair(node.padding))
    if isinstance(node, nir.Flatten):
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
    module.weight = nn.Parameter(torch.tensor(weight))
    return module
