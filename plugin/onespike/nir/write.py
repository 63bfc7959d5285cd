"""From a network to a graph."""

import copy
from collections.abc import Sequence
from typing import Any

import nir
import numpy as np
import torch
from spikingjelly.activation_based import layer
from torch import nn
from torch.nn.utils import parametrize

from onespike.functional.checks import check_positive, check_T
from onespike.graph import INPUT, Unknown, read
from onespike.nir.common import STRONGEST, needed_inhibition, pair
from onespike.spikingjelly import DirectEncoder, HybridEncoder, SingleSpikeLIFNode, SpikeTimeReadout
from onespike.spikingjelly.pool import AvgPool2d
from onespike.spikingjelly.wiring import Add, Bias, Scale

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
        TypeError: `T` or a part of `input_shape` is no whole number.
    """
    check_T(T)
    if not isinstance(input_shape, Sequence):
        raise TypeError(f"input_shape must be the shape of one image, such as (3, 32, 32), got {input_shape!r}")
    for size in input_shape:
        check_T(size, name="input_shape's sizes")
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
