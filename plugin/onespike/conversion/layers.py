"""The layers that a spiking network is made of, by name, kind and arguments, and how they are wired."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from spikingjelly.activation_based import layer as sj_layer
from torch import Tensor, nn

from onespike.functional.checks import check_finite, check_floating
from onespike.graph import INPUT
from onespike.spikingjelly.pool import AvgPool2d, SpikeMaxPool
from onespike.spikingjelly.wiring import Add, Bias, Concat, Scale

NEURON = "neuron"
MAX_POOL = "SpikeMaxPool"
_CONV = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
_POOL = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
MAX_POOL_ARGUMENTS = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
ARGUMENTS: dict[str, tuple[str, ...]] = {
    **{f"Conv{d}d": _CONV for d in (1, 2, 3)},
    "AvgPool1d": _POOL,
    **{f"AvgPool{d}d": (*_POOL, "divisor_override") for d in (2, 3)},
    **{f"AdaptiveAvgPool{d}d": ("output_size",) for d in (1, 2, 3)},
    "Linear": ("in_features", "out_features"),
    "Flatten": ("start_dim", "end_dim"),
    "Dropout": ("p",),
    "Dropout2d": ("p",),
    MAX_POOL: MAX_POOL_ARGUMENTS,
    "Add": (),
    "Concat": ("dim",),
    "Scale": ("channels",),
    "Bias": ("channels", "dims"),
}
"""The layers of a spiking network beside its neurons, and the constructor arguments that describe each."""
OWN = {"AvgPool2d": AvgPool2d, MAX_POOL: SpikeMaxPool, "Add": Add, "Concat": Concat, "Scale": Scale, "Bias": Bias}

WEIGHTED = ("Conv1d", "Conv2d", "Conv3d", "Linear")
POOLS = tuple(kind for kind in ARGUMENTS if "AvgPool" in kind)
SILENT_IN_EVAL = ("Dropout", "Dropout2d")


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
