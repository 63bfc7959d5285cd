"""Saving and loading a `SpikingNetwork`: weights as safetensors, structure as JSON, both checked by SHA-256.

A folder holds `network.json` and the weights file that it names. The weights are written under a new name first and
`network.json` is replaced last, in one step, so that a crash leaves either the old network or the new one.
"""

import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from spikingjelly.activation_based.functional import set_step_mode
from torch import Tensor, nn

from onespike.conversion.rules import ARGUMENTS, NEURON, WEIGHTED, CorruptModelError, Layer, layer_class, wires
from onespike.graph import INPUT
from onespike.spikingjelly import DirectEncoder, HybridEncoder, SingleSpikeLIFNode, SpikeTimeReadout

try:
    import safetensors
    import safetensors.torch
except ImportError as error:
    raise ImportError('saving and loading networks needs safetensors: pip install "onespike[recipes]"') from error

if TYPE_CHECKING:  # it is the network that imports this module, to save itself
    from onespike.conversion.network import SpikingNetwork

Network = TypeVar("Network", bound="SpikingNetwork")

FORMAT = 2
FORMATS = (1, FORMAT)
"""Those that can be read: in the first each layer takes what the one before gives, and none says where its inputs come from."""
FILE = "network.json"
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
    safetensors.SafetensorError,
)
"""What building a network from nonsense raises."""


def save(network: "SpikingNetwork", folder: Path) -> None:
    """Write `network` to `folder`, made if need be; an earlier network there stays whole until the new one is.

    What is written is what the modules are now, whatever became of them since the conversion. It is read back, in memory,
    before the folder is touched.

    Raises:
        TypeError: a part of the network cannot be described: it is not of the very class of a layer that conversion makes, has
            hooks, or weights besides its own; or the network's class has a constructor or attributes of its own that loading
            could not repeat. The message names it, and the folder is as it was.
        RuntimeError: parts of the network are in different step modes.
    """
    structure = describe(network)
    state = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
    require_the_same(network, rebuilt(network, structure), structure, state)
    weights = safetensors.torch.save(state)
    weights_sum = hashlib.sha256(weights).hexdigest()
    file_name = f"weights-{weights_sum[:16]}.safetensors"
    document = {
        "format": FORMAT,
        "structure": structure,
        "structure_sha256": digest(structure),
        "weights": file_name,
        "weights_sha256": weights_sum,
    }
    try:
        before = read_document(folder / FILE)["weights"]
    except CorruptModelError:  # nothing is there, or nothing that says which file is its own
        before = file_name
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / file_name, weights)
    write_atomically(folder / FILE, (json.dumps(document, indent=2) + "\n").encode())
    if before != file_name:
        (folder / before).unlink(missing_ok=True)


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


def load(network_class: type[Network], folder: Path) -> Network:
    """Read the network that `save` wrote to `folder`; nothing in it is executed.

    Raises:
        CorruptModelError: a file is missing, truncated, altered or of an unknown format.
    """
    document = read_document(folder / FILE)
    path = folder / document["weights"]
    weights = read_bytes(path)
    if hashlib.sha256(weights).hexdigest() != document["weights_sha256"]:
        raise CorruptModelError(f"{path} does not have the SHA-256 that {FILE} records: the file was truncated or altered")

    try:
        structure = document["structure"]
        require_kinds(structure)
        network = build(network_class, structure)
        network.load_state_dict(safetensors.torch.load(weights), assign=True)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name not in structure["frozen"])
        if structure.get("step_mode", "m") != "m":  # older files do not say
            set_step_mode(network, structure["step_mode"])
    except MEANINGLESS as error:
        what = " ".join(str(error).split())[:500]
        raise CorruptModelError(
            f"{folder / FILE} does not describe the network of {path.name} ({type(error).__name__}: {what}): "
            "save the network again, or delete the folder"
        ) from error
    return network.eval()


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


def read_document(path: Path) -> dict[str, Any]:
    """Read and check the JSON document."""
    content = read_bytes(path)
    try:
        document = json.loads(content)
        known, whole = document["format"] in FORMATS, document["structure_sha256"] == digest(document["structure"])
        names = document["weights"], document["weights_sha256"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptModelError(f"{path} is not a network description: {error!r}") from error
    if not known:
        raise CorruptModelError(
            f"{path} has format {document['format']!r}, this version of onespike reads formats 1 to {FORMAT}"
        )
    if not whole:
        raise CorruptModelError(f"{path} does not match its own SHA-256: the file was altered")
    if not all(isinstance(name, str) for name in names) or Path(names[0]).name != names[0]:
        raise CorruptModelError(f"{path} names a weights file outside its folder: {names[0]!r}")
    return document


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


def read_bytes(path: Path) -> bytes:
    """Read a file whole; a missing one is a CorruptModelError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise CorruptModelError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # a name that no file can have
        raise CorruptModelError(f"{str(path)!r} cannot be read: {error}") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write, flush to the disk and rename, so that `path` never holds half of `content`.

    Raises:
        OSError: it cannot be written; the error names `path`, which is as it was.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")  # nobody can have put a link of that name there
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:  # writing and flushing do not name the file
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name, too, outlives a power cut
        finally:
            os.close(folder)
