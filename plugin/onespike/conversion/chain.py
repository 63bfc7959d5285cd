"""Read an ANN as the chain of layers that it is, and name what cannot be converted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import layer as sj_layer
from torch import Tensor, fx, nn

from onespike.functional.checks import check_finite, check_floating
from onespike.spikingjelly.pool import AvgPool2d

NEURON = "neuron"
_CONV = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
_POOL = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
ARGUMENTS: dict[str, tuple[str, ...]] = {
    **{f"Conv{d}d": _CONV for d in (1, 2, 3)},
    "AvgPool1d": _POOL,
    **{f"AvgPool{d}d": (*_POOL, "divisor_override") for d in (2, 3)},
    **{f"AdaptiveAvgPool{d}d": ("output_size",) for d in (1, 2, 3)},
    "Linear": ("in_features", "out_features"),
    "Flatten": ("start_dim", "end_dim"),
    "Dropout": ("p",),
    "Dropout2d": ("p",),
}
"""The layers that can be converted and the constructor arguments that describe each."""

WEIGHTED = ("Conv1d", "Conv2d", "Conv3d", "Linear")
_FUNCTIONS: dict[Any, Callable[..., nn.Module]] = {
    torch.flatten: lambda start_dim=0, end_dim=-1: nn.Flatten(start_dim, end_dim),
    "flatten": lambda start_dim=0, end_dim=-1: nn.Flatten(start_dim, end_dim),
    F.relu: lambda *_, **__: nn.ReLU(),
    F.dropout: lambda p=0.5, *_, **__: nn.Dropout(p),
    F.avg_pool2d: nn.AvgPool2d,
    F.avg_pool1d: nn.AvgPool1d,
    F.avg_pool3d: nn.AvgPool3d,
    F.adaptive_avg_pool1d: nn.AdaptiveAvgPool1d,
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    F.adaptive_avg_pool3d: nn.AdaptiveAvgPool3d,
    "contiguous": nn.Identity,
    **dict.fromkeys((torch.relu, torch.relu_, "relu", "relu_"), nn.ReLU),
}
_REMEDIES = (
    (("BatchNorm", "batch_norm"), "train the ANN without batch norm: folding it would leave a bias"),
    (("MaxPool", "max_pool"), "use average pooling: the maximum of binary spikes loses the rate"),
    (("Softmax", "softmax"), "remove it: the network's output must be logits"),
    (
        (
            "GELU",
            "gelu",
            "SiLU",
            "silu",
            "ReLU6",
            "LeakyReLU",
            "leaky_relu",
            "Sigmoid",
            "sigmoid",
            "Tanh",
            "tanh",
            "ELU",
            "elu",
        ),
        "use ReLU: only it is approximated by a spiking neuron's rate",
    ),
)


class ConversionError(ValueError):
    """An ANN holds something that has no single-spike counterpart; the message names the module and the remedy."""


@dataclass(frozen=True)
class Layer:
    """One layer of a chain: its path in the ANN, its class name (or "neuron") and its constructor arguments."""

    name: str
    kind: str
    arguments: dict[str, Any]

    def build(self) -> nn.Module:
        """Make the SpikingJelly layer, multi-step, with fresh weights, without a bias unless it is among the arguments."""
        bias = {"bias": False} if self.kind in WEIGHTED else {}
        return layer_class(self.kind)(**{**bias, **self.arguments}, step_mode="m")


def layer_class(kind: str) -> type[nn.Module]:
    """Return the class of the layer that stands for this kind in a spiking network; not for a neuron."""
    return AvgPool2d if kind == "AvgPool2d" else getattr(sj_layer, kind)


def read_chain(ann: nn.Module) -> tuple[list[Layer], dict[str, Tensor]]:
    """Trace `ann` and return its layers in order and the weight of each weighted one, by name.

    Raises:
        ConversionError: it cannot be traced, is not a chain, or holds what cannot be converted.
    """
    try:
        graph = fx.Tracer().trace(ann)
    except Exception as error:
        raise ConversionError(f"{type(ann).__name__} cannot be traced by torch.fx: {error}") from error
    layers: list[Layer] = []
    weights: dict[str, Tensor] = {}
    current: fx.Node | None = None
    for node in graph.nodes:
        if node.op == "placeholder" and current is None:
            current = node
        elif not _is_shape(node):
            sources = [source for source in node.all_input_nodes if not _is_shape(source)]
            if sources != [current]:
                raise ConversionError(
                    f"{_name(node)} ({node.target}) is not one link of a chain: only feed-forward chains convert"
                )
            if node.op == "output":
                break
            current = node
            name, module = _name(node), _as_module(node, ann)
            if isinstance(module, nn.Identity):
                continue
            if any(layer.name == name for layer in layers):
                name = node.name
            layer = _describe(name, module)
            if layer.kind in WEIGHTED:
                assert isinstance(module.weight, Tensor)
                if any(module.weight is weight for weight in weights.values()):
                    raise ConversionError(f"{name} ({layer.kind}) is used twice: give each use a layer of its own")
                weights[name] = module.weight
            layers.append(layer)
    _check_order(layers)
    return layers, weights


def _describe(name: str, module: nn.Module) -> Layer:
    kind = type(module).__name__
    if type(module) is nn.ReLU:
        return Layer(name, NEURON, {})
    if kind not in ARGUMENTS or not isinstance(module, getattr(nn, kind)):
        raise ConversionError(f"{name} ({kind}) cannot be converted: {_remedy(kind)}")
    if getattr(module, "bias", None) is not None:
        raise ConversionError(f"{name} ({kind}) has a bias: train the ANN with bias=False")
    if kind == "Flatten" and int(module.start_dim) < 1:
        raise ConversionError(f"{name} (Flatten) flattens the batch: use start_dim=1, got {module.start_dim}")
    return Layer(name, kind, {argument: getattr(module, argument) for argument in ARGUMENTS[kind]})


def _as_module(node: fx.Node, ann: nn.Module) -> nn.Module:
    """Return the module that a call in the graph stands for; a functional call is given the module of the same meaning."""
    if node.op == "call_module":
        return ann.get_submodule(str(node.target))
    if node.target in ("view", "reshape", torch.reshape):
        first, *shape = node.args[1:] if len(node.args) == 3 else tuple(node.args[1])  # type: ignore[arg-type]
        if isinstance(first, fx.Node) and _is_shape(first) and shape == [-1]:
            return nn.Flatten()
        raise ConversionError(f"{_name(node)} cannot be converted: use torch.flatten(x, 1)")
    if node.target not in _FUNCTIONS:
        called = getattr(node.target, "__name__", str(node.target))
        raise ConversionError(f"{_name(node)} ({called}) cannot be converted: {_remedy(called)}")
    return _FUNCTIONS[node.target](*node.args[1:], **{k: v for k, v in node.kwargs.items() if k != "input"})


def _is_shape(node: fx.Node) -> bool:
    """Whether the node reads the shape of a tensor, as in x.view(x.size(0), -1), x.shape[0]."""
    if node.op == "call_method" and node.target == "size":
        return True
    called = getattr(node.target, "__name__", "")
    if node.op != "call_function":
        return False
    return bool(called == "getattr" and node.args[1] == "shape") or (called == "getitem" and _is_shape(node.all_input_nodes[0]))


def _name(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_module" else node.name


def _remedy(kind: str) -> str:
    for names, remedy in _REMEDIES:
        if any(name in kind for name in names):
            return remedy
    return "only Conv, Linear, ReLU, AvgPool, Flatten and Dropout are"


def _check_order(layers: list[Layer]) -> None:
    """Check that weighted layers and neurons alternate and that a weighted layer comes last."""
    pattern = [layer for layer in layers if layer.kind in (*WEIGHTED, NEURON)]
    if not pattern or pattern[-1].kind == NEURON or layers[-1] is not pattern[-1]:
        end = layers[-1].name + (" (ReLU)" if layers[-1].kind == NEURON else f" ({layers[-1].kind})") if layers else "nothing"
        raise ConversionError(f"the ANN must end in the Conv or Linear layer that gives the logits, it ends in {end}")
    for before, after in zip([None, *pattern], pattern, strict=False):
        if after.kind == NEURON and (before is None or before.kind == NEURON):
            raise ConversionError(f"{after.name} (ReLU) does not follow a Conv or Linear layer: remove it")
        if after.kind != NEURON and before is not None and before.kind != NEURON:
            raise ConversionError(f"{before.name} ({before.kind}) has no ReLU before {after.name}: add one or merge the two")


def check_images(layers: Sequence[Layer], images: Tensor, name: str = "images") -> None:
    """Raise unless `images` are finite floating-point numbers of the dimensions that the first layer takes."""
    check_floating(name, images, 2, "[N, *]")
    check_finite(name, images)
    kind = layers[0].kind
    if kind.startswith("Conv") and images.dim() != int(kind[4]) + 2:
        raise ValueError(f"{name} must have {int(kind[4]) + 2} dimensions, [N, C, *], for {kind}, got {tuple(images.shape)}")
