"""What of an ANN can be converted, and what has to change in it: the layers of a network, read from its graph."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from spikingjelly.activation_based import layer as sj_layer
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from onespike.functional.checks import check_finite, check_floating
from onespike.graph import INPUT, Node, Unknown, read
from onespike.spikingjelly.pool import AvgPool2d, SpikeMaxPool
from onespike.spikingjelly.wiring import Add, Bias, Concat, Scale

NEURON = "neuron"
MAX_POOL = "SpikeMaxPool"
_CONV = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
_POOL = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
_MAX_POOL = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
ARGUMENTS: dict[str, tuple[str, ...]] = {
    **{f"Conv{d}d": _CONV for d in (1, 2, 3)},
    "AvgPool1d": _POOL,
    **{f"AvgPool{d}d": (*_POOL, "divisor_override") for d in (2, 3)},
    **{f"AdaptiveAvgPool{d}d": ("output_size",) for d in (1, 2, 3)},
    "Linear": ("in_features", "out_features"),
    "Flatten": ("start_dim", "end_dim"),
    "Dropout": ("p",),
    "Dropout2d": ("p",),
    MAX_POOL: _MAX_POOL,
    "Add": (),
    "Concat": ("dim",),
    "Scale": ("channels",),
    "Bias": ("channels", "dims"),
}
"""The layers of a spiking network beside its neurons, and the constructor arguments that describe each."""
OWN = {"AvgPool2d": AvgPool2d, MAX_POOL: SpikeMaxPool, "Add": Add, "Concat": Concat, "Scale": Scale, "Bias": Bias}

WEIGHTED = ("Conv1d", "Conv2d", "Conv3d", "Linear")
NORMS = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d")
MAX_POOLS = ("MaxPool1d", "MaxPool2d", "MaxPool3d")
POOLS = tuple(kind for kind in ARGUMENTS if "AvgPool" in kind)
SILENT_IN_EVAL = ("Dropout", "Dropout2d")
_REMEDIES = (
    (("norm",), "only BatchNorm in eval mode is folded, into the Conv or Linear layer right before it"),
    (("adaptivemaxpool", "adaptive_max_pool"), "use MaxPool with its sizes as numbers"),
    (("softmax",), "remove it: the network's output must be logits"),
    (
        ("gelu", "silu", "relu6", "leakyrelu", "leaky_relu", "prelu", "hard", "sigmoid", "tanh", "elu", "softplus", "mish"),
        "use ReLU: only it is approximated by a spiking neuron's rate",
    ),
    (("mul", "attention", "parameter"), "spikes are added up, not multiplied with what depends on the image"),
    (("chunk", "split", "getitem", "transpose", "permute"), "channels cannot be parted or moved: use convolutions with groups"),
    (("view", "reshape"), "use torch.flatten(x, 1)"),
    (("in place",), "its input, which it changes, is used again: use inplace=False"),
    (("mean",), "take the mean over the dimensions (2, 3) of [N, C, H, W]"),
)


class ConversionError(ValueError):
    """An ANN holds something that has no single-spike counterpart; the message names each such module and the remedy."""


class CorruptModelError(ValueError):
    """A saved network is missing, truncated, altered or of an unknown format; the message names the file."""


@dataclass(frozen=True)
class Layer:
    """One layer of a network.

    Attributes:
        name: its path in the ANN.
        kind: its class name, or "neuron".
        arguments: what its constructor takes.
        inputs: names of the layers whose outputs it takes; `INPUT` for the encoded image.
        unit: what 1.0 of its output stands for in the ANN's activations; None where that differs by channel or is not known.
    """

    name: str
    kind: str
    arguments: dict[str, Any]
    inputs: tuple[str, ...]
    unit: float | None = None

    def build(self, *, bias: bool = False) -> nn.Module:
        """Make the module, multi-step, with fresh weights, with a bias if told so here or by the arguments."""
        arguments: dict[str, Any] = {"bias": bias} if self.kind in WEIGHTED else {}
        module = layer_class(self.kind)(**arguments | self.arguments)
        if hasattr(module, "step_mode"):
            module.step_mode = "m"  # type: ignore[assignment]
        return module


def wires(layers: Iterable[Layer]) -> dict[int, tuple[int, ...]]:
    """Return where each layer's inputs come from, as a `Wiring` has it.

    Raises:
        ValueError: a layer takes what is not before it, or two have one name.
    """
    places, found = {INPUT: 0}, {}
    for at, layer in enumerate(layers):
        missing = [name for name in layer.inputs if name not in places]
        if missing or not layer.inputs or layer.name in places:
            takes = f"takes {', '.join(missing) or 'nothing'}, which is not before it"
            raise ValueError(f"layer {layer.name} " + ("stands there twice" if layer.name in places else takes))
        places[layer.name] = at + 1
        found[at] = tuple(places[name] for name in layer.inputs)
    return {at: sources for at, sources in found.items() if sources != (at,)}


def layer_class(kind: str) -> type[nn.Module]:
    """Return the class of the layer of this kind in a spiking network; not for a neuron."""
    return OWN[kind] if kind in OWN else getattr(sj_layer, kind)


@dataclass(frozen=True)
class Weights:
    """The weight and the bias of a layer, batch norm folded into them."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class Plan:
    """What a spiking network is made of.

    Attributes:
        layers: in an order in which each comes behind those that it takes; the last one gives the logits.
        weights: of each Conv and Linear layer, by name.
        notes: path in the ANN -> what became of a module that is no layer of its own any more.
    """

    layers: tuple[Layer, ...]
    weights: dict[str, Weights]
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(iter(self.weights.values())).weight.device


def read_ann(ann: nn.Module) -> Plan:
    """Read an ANN as the layers of a spiking network; weights are the ANN's own where nothing was folded into them.

    Raises:
        ConversionError: it cannot be traced, or holds what cannot be converted: the message names all of it.
    """
    try:
        graph = read(ann)
    except ValueError as error:
        raise ConversionError(str(error)) from error
    if graph.output is None:
        raise ConversionError(f"{type(ann).__name__} must return logits alone, as a tensor of its own making")
    reader = Reader(graph.needed())
    for node in reader.nodes:
        reader.take(node)
    reader.check_end(graph.output)
    if reader.obstacles:
        raise ConversionError(listed(reader.obstacles))
    return Plan(tuple(reader.layers), reader.weights, reader.notes)


def listed(obstacles: dict[str, list[str]]) -> str:
    """Lay out what cannot be converted, a line for each kind of obstacle; names that share one stand together."""
    lines = []
    for text, names in obstacles.items():
        many = f"{', '.join(names[:3])} and {len(names) - 3} more" if len(names) > 4 else ", ".join(names)
        lines.append(f"{many}{text}")
    return lines[0] if len(lines) == 1 else f"{len(lines)} obstacles:\n" + "\n".join(f"  {line}" for line in lines)


@dataclass(frozen=True)
class Flow:
    """What runs along an edge, "image", "spikes", "graded" (spikes averaged or added), "current" or "unknown", and of whom."""

    form: str
    origin: str


class Reader:
    """Turns the calls of a graph into layers, one by one, and collects what stands in the way."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = nodes
        self.layers: list[Layer] = []
        self.weights: dict[str, Weights] = {}
        self.notes: dict[str, str] = {}
        self.obstacles: dict[str, list[str]] = {}
        self.edges = {INPUT: INPUT}  # call -> layer whose output it is
        self.flows = {INPUT: Flow("image", INPUT)}
        self.owners: dict[int, str] = {}
        self.modules: dict[str, nn.Module] = {}
        self.users: dict[str, int] = {}
        for node in nodes:
            for source in node.inputs:
                self.users[source] = self.users.get(source, 0) + 1

    def object_to(self, name: str, text: str) -> None:
        """Note an obstacle."""
        self.obstacles.setdefault(text, []).append(name)

    def take(self, node: Node) -> None:
        """Make a layer of a call, or note why that cannot be."""
        kind = kind_of(node.module)
        inputs = tuple(self.edges[source] for source in node.inputs) or (INPUT,)
        flow = self.flows[inputs[0]]
        if kind in NORMS:
            self.edges[node.name] = inputs[0]
            self.fold(node, kind, inputs[0])
            return
        self.edges[node.name] = node.name
        if kind == "ReLU":
            if flow.form in ("image", "spikes"):
                self.object_to(f"{node.name} (ReLU)", " does not follow a Conv or Linear layer: remove it")
            self.append(node.name, NEURON, {}, inputs, Flow("spikes", node.name))
        elif kind in MAX_POOLS:
            self.take_max_pool(node, kind, inputs, flow)
        elif kind in ARGUMENTS:
            self.take_layer(node, kind, inputs, flow)
        else:
            called = node.module.called if isinstance(node.module, Unknown) else type(node.module).__name__
            shown = node.name if called == node.name else f"{node.name} ({called})"
            self.object_to(shown, f" cannot be converted: {remedy(called)}")
            self.flows[node.name] = Flow("unknown", node.name)

    def take_layer(self, node: Node, kind: str, inputs: tuple[str, ...], flow: Flow) -> None:
        """Take a layer that a spiking network has as well."""
        module: Any = node.module
        name, origin = f"{node.name} ({kind})", flow.origin
        form = {"spikes": "graded"}.get(flow.form, flow.form) if kind in POOLS else flow.form
        if kind in WEIGHTED:
            if flow.form == "current":
                before = f"{origin} ({kind_of(self.modules[origin])})"
                self.object_to(f"{before} has no ReLU before {node.name}", ": add one or merge the two")
            if id(module.weight) in self.owners:
                self.object_to(name, " is used twice: give each use a layer of its own")
            self.owners[id(module.weight)] = node.name
            self.weights[node.name] = Weights(module.weight, module.bias)
            self.modules[node.name] = module
            form, origin = "current", node.name
        elif kind == "Flatten" and int(module.start_dim) < 1:
            self.object_to(name, f" flattens the batch: use start_dim=1, got {module.start_dim}")
        elif kind in ("Add", "Concat"):
            form = self.joined(node, kind, [self.flows[source].form for source in inputs])
        self.append(node.name, kind, {key: getattr(module, key) for key in ARGUMENTS[kind]}, inputs, Flow(form, origin))

    def joined(self, node: Node, kind: str, forms: list[str]) -> str:
        """Return what runs behind a sum or a concatenation."""
        if kind == "Concat" and node.module.dim != 1:
            self.object_to(f"{node.name} (cat)", f" must be along the channels, dim=1, got {node.module.dim}")
        if "unknown" in forms:
            return "unknown"
        if kind == "Concat" and "current" in forms and set(forms) != {"current"}:
            self.object_to(f"{node.name} (cat)", " holds currents beside spikes or images: put a ReLU in every branch")
        if kind == "Add":
            return "current" if "current" in forms else "image" if set(forms) == {"image"} else "graded"
        return forms[0] if len(set(forms)) == 1 else "graded"

    def take_max_pool(self, node: Node, kind: str, inputs: tuple[str, ...], flow: Flow) -> None:
        """Take a maximum pool, of spikes alone."""
        module: Any = node.module
        if module.return_indices:
            self.object_to(f"{node.name} ({kind})", " returns indices, which spikes do not have: use return_indices=False")
        if flow.form == "current":
            self.object_to(f"{node.name} ({kind})", " stands before the ReLU: put it behind, where the maximum is the same")
        elif flow.form == "image":
            self.object_to(f"{node.name} ({kind})", " pools the image itself: pool images before they are encoded")
        elif flow.form == "graded":
            self.object_to(f"{node.name} ({kind})", " pools averages or sums of spikes: only spikes have an earliest one")
        arguments = {key: getattr(module, key) for key in _MAX_POOL}
        self.append(node.name, MAX_POOL, arguments, inputs, flow)

    def append(self, name: str, kind: str, arguments: dict[str, Any], inputs: tuple[str, ...], flow: Flow) -> None:
        self.layers.append(Layer(name, kind, arguments, inputs))
        self.flows[name] = flow

    def fold(self, node: Node, kind: str, source: str) -> None:
        """Fold a batch norm into the layer before it."""
        norm: Any = node.module
        shown = f"{node.name} ({kind})"
        if self.flows[source].form == "unknown":
            return
        if source not in self.weights:
            self.object_to(shown, " does not follow a Conv or Linear layer, into which it could be folded: put it behind one")
        elif self.users[node.inputs[0]] > 1:
            self.object_to(shown, f" cannot be folded into {source}, whose output is used elsewhere too")
        elif norm.running_mean is None:
            self.object_to(shown, " has no running statistics to fold: train it with track_running_stats=True")
        else:
            module, modes = self.modules[source], (self.modules[source].training, norm.training)
            fuse: Any = fuse_linear_bn_eval if isinstance(module, nn.Linear) else fuse_conv_bn_eval
            try:
                fused = fuse(module.eval(), norm.eval())
            finally:
                module.train(modes[0])
                norm.train(modes[1])
            self.modules[source] = fused
            self.weights[source] = Weights(fused.weight.detach(), fused.bias.detach())
            self.notes[node.name] = f"folded into {source}"

    def check_end(self, output: str) -> None:
        """Object to an end that gives no logits."""
        end = self.edges[output]
        flow = self.flows[end]
        if flow.form in ("current", "graded", "unknown"):
            return
        kind = {layer.name: layer.kind for layer in self.layers}.get(end)
        shown = "nothing" if kind is None else f"{end} ({'ReLU' if kind == NEURON else kind})"
        self.object_to("", f"the ANN must end in the Conv or Linear layer that gives the logits, it ends in {shown}")


def kind_of(module: nn.Module) -> str:
    """Return the class name of a layer of torch's, or of SpikingJelly's under the same name; "" for any other."""
    kind = type(module).__name__
    if kind in ("Add", "Concat"):
        return kind
    if kind in (*ARGUMENTS, *NORMS, *MAX_POOLS, "ReLU") and isinstance(module, getattr(nn, kind, ())):
        of_hosts = type(module).__module__.startswith(("torch.nn.", "spikingjelly.", "onespike."))
        return kind if of_hosts else ""
    return ""


def remedy(kind: str) -> str:
    """Say what to do about a module that cannot be converted."""
    for names, text in _REMEDIES:
        if any(name in kind.lower() for name in names):
            return text
    return "only Conv, Linear, BatchNorm, ReLU, pools, Flatten, Dropout, sums and concatenations are"


def with_dropout(layers: Iterable[Layer], p: float) -> tuple[Layer, ...]:
    """Return layers with this probability at every dropout."""
    return tuple(replace(layer, arguments={"p": p}) if layer.kind in SILENT_IN_EVAL else layer for layer in layers)


def check_images(layers: Sequence[Layer], images: Tensor, name: str = "images") -> None:
    """Raise unless `images` are finite floating-point numbers of the dimensions that the first layer takes."""
    check_floating(name, images, 2, "[N, *]")
    check_finite(name, images)
    kind = layers[0].kind
    if kind.startswith("Conv") and kind in WEIGHTED and images.dim() != int(kind[4]) + 2:
        raise ValueError(f"{name} must have {int(kind[4]) + 2} dimensions, [N, C, *], for {kind}, got {tuple(images.shape)}")
