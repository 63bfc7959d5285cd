"""What of an ANN can be converted, and what has to change in it: the layers of a network, read from its graph."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from onespike.conversion.layers import ARGUMENTS, MAX_POOL, MAX_POOL_ARGUMENTS, NEURON, POOLS, WEIGHTED, Layer
from onespike.graph import INPUT, Node, Unknown, read

NORMS = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d")
MAX_POOLS = ("MaxPool1d", "MaxPool2d", "MaxPool3d")
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
        arguments = {key: getattr(module, key) for key in MAX_POOL_ARGUMENTS}
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
