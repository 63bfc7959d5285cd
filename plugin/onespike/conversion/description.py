"""A `SpikingNetwork` as JSON: what its parts' constructors took, and the network built from that again, with fresh weights."""

import hashlib
import json
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from spikingjelly.activation_based.functional import set_step_mode
from torch import Tensor, nn

from onespike.conversion.layers import ARGUMENTS, NEURON, WEIGHTED, Layer, layer_class, wires
from onespike.graph import INPUT
from onespike.spikingjelly import DirectEncoder, HybridEncoder, SingleSpikeLIFNode, SpikeTimeReadout

if TYPE_CHECKING:  # it is the network that imports `storage`, and so this module, to save itself
    from onespike.conversion.network import SpikingNetwork

Network = TypeVar("Network", bound="SpikingNetwork")

NODE_SETTINGS = ("gamma", "single_spike", "grad_after_spike", "temporal_gradient", "per_channel", "backend")
READOUT_SETTINGS = ("beta", "time_gradient")
FLAGS = (
    *("single_spike", "grad_after_spike", "temporal_gradient", "ceil_mode", "count_include_pad", "bias"),
    *("analogue", "temporal"),
)
REALS = ("gamma", "beta", "p")
SPATIAL = ("kernel_size", "stride", "padding", "dilation", "output_size")
OPTIONAL = ("channels", "per_channel", "divisor_override", "output_size")
CHECKED = ("kind", "intensity_range", "backend", "padding_mode", "time_gradient")
"""Kinds of constructor arguments: flags, numbers, integers, one for each axis or None, and what constructors check."""
OWN = ("layers", "step_mode", "training")
"""Attributes of a network that its description holds, or that are not saved."""
MEANINGLESS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What building a network from nonsense raises."""


class CorruptModelError(ValueError):
    """A saved network is missing, truncated, altered or of an unknown format; the message names the file."""


def describe(network: "SpikingNetwork") -> dict[str, Any]:
    """Return what `build` needs, and which parameters are frozen."""
    if len(network.body) != len(network.layers):
        raise TypeError(f"body must hold its {len(network.layers)} modules to be saved, got {len(network.body)}")
    if getattr(network.body, "inputs", {}) != wires(network.layers):
        raise TypeError("body must be wired as its layers say to be saved: keep the Wiring that conversion made")
    network.check_step_modes()
    names = ["encoder", *(layer.name for layer in network.layers), "readout"]
    for name, module in zip(names, [network.encoder, *network.body, network.readout], strict=True):
        require_plain(name, module)
    return {
        "encoder": describe_encoder(network.encoder),
        "layers": [describe_layer(layer, module) for layer, module in zip(network.layers, network.body, strict=True)],
        "readout": describe_readout(network.readout),
        "step_mode": network.step_mode,
        "frozen": [name for name, parameter in network.named_parameters() if not parameter.requires_grad],
    }


def rebuilt(network: "SpikingNetwork", structure: dict[str, Any]) -> "SpikingNetwork":
    """Build the network that will be loaded, or raise a TypeError if its class makes of its structure another one or none."""
    kind = type(network)
    try:
        built = build(kind, structure)
    except MEANINGLESS as error:
        rule = "must be made of encoder, layers, modules and readout, as SpikingNetwork is, to be loaded again"
        raise TypeError(f"{kind.__name__} {rule}: {error}") from error
    for name, made in vars(built).items():
        found = getattr(network, name, None)
        if not name.startswith("_") and name not in OWN and repr(found) != repr(made):
            raise TypeError(
                f"{name} must be what the constructor of {kind.__name__} makes it, {made}, to be saved, got {found}"
            )
    return built


def require_plain(name: str, module: nn.Module) -> None:
    """Raise a TypeError if a module does more than its class and its constructor's arguments say."""
    kind = f"{name} ({type(module).__name__})"
    if module._forward_hooks or module._forward_pre_hooks:
        raise TypeError(f"{kind} must have no forward hooks to be saved: remove them, or what keeps them, and save again")
    if "forward" in vars(module) or list(module.children()):
        raise TypeError(f"{kind} must be a plain module to be saved, got one with a forward or with modules of its own")


def require_the_same(
    network: "SpikingNetwork", built: "SpikingNetwork", structure: dict[str, Any], state: dict[str, Tensor]
) -> None:
    """Raise a TypeError unless the network that was built from the structure is the same, given the weights."""
    try:
        built.load_state_dict(state, assign=True)
    except RuntimeError as error:
        what = " ".join(str(error).split())
        raise TypeError(f"network must hold the weights of its layers and no others to be saved: {what}") from error
    set_step_mode(built, structure["step_mode"])
    if digest(describe(built) | {"frozen": []}) != digest(structure | {"frozen": []}):
        raise TypeError(f"network must be what its layers' arguments say to be saved, got {network}")


def require_kinds(structure: dict[str, Any]) -> None:
    """Raise a TypeError for an argument of another kind than `describe` gives it: some layers would say so only when called."""
    arguments = [entry["arguments"] for entry in structure["layers"]]
    for values in (structure["encoder"], *arguments, structure["readout"]):
        for name, value in values.items():
            if not fits(name, value):
                raise TypeError(f"{name} = {str(value)[:100]}")
    if not all(isinstance(entry["name"], str) for entry in structure["layers"]) or not isinstance(structure["frozen"], list):
        raise TypeError("layers must have names, and frozen must be a list of them")


def fits(name: str, value: Any) -> bool:
    """Whether a value is of the kind that the constructor's argument of this name has."""
    if name in CHECKED or (name == "padding" and value in ("same", "valid")):
        return True
    if name in FLAGS:
        return isinstance(value, bool)
    if name in REALS:
        return type(value) in (int, float)
    if value is None:
        return name in OPTIONAL
    numbers = value if isinstance(value, list) and value and name in SPATIAL else [value]
    low, high = {"padding": (0, 2**16), "start_dim": (-8, 8), "end_dim": (-8, 8), "dims": (0, 4)}.get(name, (1, 2**31))
    return all(
        (type(number) is int and low <= number < high) or (number is None and name == "output_size") for number in numbers
    )


def build(network_class: type[Network], structure: dict[str, Any]) -> Network:
    """Make the network that a structure describes, with fresh weights."""
    layers: list[Layer] = []
    modules: list[nn.Module] = []
    for entry in structure["layers"]:
        kind, arguments = entry["kind"], {name: as_tuple(value) for name, value in entry["arguments"].items()}
        inputs = entry.get("inputs", [layers[-1].name if layers else INPUT])
        layers.append(Layer(entry["name"], kind, {} if kind == NEURON else arguments, tuple(inputs), entry.get("unit")))
        if kind == NEURON:
            modules.append(SingleSpikeLIFNode(**arguments))
        elif kind in ARGUMENTS:
            modules.append(layers[-1].build())
        else:
            raise TypeError(f"layer {entry['name']} is of the unknown kind {kind!r}")
    return network_class(build_encoder(structure["encoder"]), layers, modules, SpikeTimeReadout(**structure["readout"]))


def describe_layer(layer: Layer, module: nn.Module) -> dict[str, Any]:
    """Return the kind and the constructor arguments of a module of the body, as it is now, and what it takes."""
    entry = {"name": layer.name, "inputs": list(layer.inputs), "unit": layer.unit}
    if type(module) is SingleSpikeLIFNode:
        return entry | {"kind": NEURON, "arguments": {setting: getattr(module, setting) for setting in NODE_SETTINGS}}
    kind = type(module).__name__
    if kind not in ARGUMENTS or type(module) is not layer_class(kind):
        raise TypeError(
            f"{layer.name} must be a SingleSpikeLIFNode or a layer that conversion makes to be saved, got {type(module)}"
        )
    arguments = {argument: getattr(module, argument) for argument in ARGUMENTS[kind]}
    if kind in WEIGHTED and module.bias is not None:
        arguments["bias"] = True
    return entry | {"kind": kind, "arguments": arguments}


def describe_encoder(encoder: nn.Module) -> dict[str, Any]:
    """Return what `build_encoder` needs."""
    if type(encoder) is DirectEncoder:
        return {"kind": "DirectEncoder", "T": encoder.T}
    if type(encoder) is HybridEncoder:
        bounds = encoder.own_range or [encoder.low.tolist(), encoder.high.tolist()]
        return {
            "kind": "HybridEncoder",
            "T": encoder.T,
            "intensity_range": bounds,
            "analogue": encoder.analogue,
            "temporal": encoder.temporal,
        }
    raise TypeError(f"encoder must be a HybridEncoder or a DirectEncoder to be saved, got {type(encoder)}")


def build_encoder(values: dict[str, Any]) -> nn.Module:
    """Make the encoder that `describe_encoder` described."""
    arguments = {name: value for name, value in values.items() if name != "kind"}
    if values["kind"] == "DirectEncoder":
        return DirectEncoder(**arguments)
    if not isinstance(arguments["intensity_range"], str):
        low, high = arguments["intensity_range"]
        arguments["intensity_range"] = torch.tensor(low), torch.tensor(high)
    return HybridEncoder(**arguments)


def describe_readout(readout: nn.Module) -> dict[str, Any]:
    """Return the constructor arguments of a readout; its threshold is among the weights."""
    if type(readout) is not SpikeTimeReadout:
        raise TypeError(f"readout must be a SpikeTimeReadout to be saved, got {type(readout)}")
    return {name: getattr(readout, name) for name in READOUT_SETTINGS}


def digest(structure: Any) -> str:
    """Return the SHA-256 of a JSON value in one canonical spelling."""
    return hashlib.sha256(json.dumps(structure, sort_keys=True).encode()).hexdigest()


def as_tuple(value: Any) -> Any:
    """Undo JSON's turning of tuples into lists."""
    return tuple(value) if isinstance(value, list) else value
