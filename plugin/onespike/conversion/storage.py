"""Saving and loading a `SpikingNetwork`: weights as safetensors, structure as JSON, both checked by SHA-256.

A folder holds `network.json` and the weights file that it names. The weights are written under a new name first and
`network.json` is replaced last, in one step, so that a crash leaves either the old network or the new one.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from onespike.conversion.chain import ARGUMENTS, NEURON, Layer
from onespike.conversion.network import CorruptModelError, SpikingNetwork
from onespike.spikingjelly import DirectEncoder, HybridEncoder, SingleSpikeLIFNode, SpikeTimeReadout

try:
    import safetensors.torch
except ImportError as error:
    raise ImportError('saving and loading networks needs safetensors: pip install "onespike[recipes]"') from error

Network = TypeVar("Network", bound=SpikingNetwork)

FORMAT = 1
FILE = "network.json"
NODE_SETTINGS = ("gamma", "single_spike", "grad_after_spike", "temporal_gradient", "per_channel", "backend")
READOUT_SETTINGS = ("beta", "time_gradient")


def save(network: SpikingNetwork, folder: Path) -> None:
    """Write `network` to `folder`, made if need be; an earlier network there stays whole until the new one is.

    Raises:
        TypeError: the network holds an encoder, neuron or readout that is none of onespike's.
    """
    structure = {
        "encoder": describe_encoder(network.encoder),
        "layers": [
            {
                "name": layer.name,
                "kind": layer.kind,
                "arguments": describe_node(module) if layer.kind == NEURON else layer.arguments,
            }
            for layer, module in zip(network.layers, network.body, strict=True)
        ],
        "readout": describe_readout(network.readout),
        "frozen": [name for name, parameter in network.named_parameters() if not parameter.requires_grad],
    }
    weights = safetensors.torch.save({name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()})
    weights_sum = hashlib.sha256(weights).hexdigest()
    file_name = f"weights-{weights_sum[:16]}.safetensors"
    document = {
        "format": FORMAT,
        "structure": structure,
        "structure_sha256": digest(structure),
        "weights": file_name,
        "weights_sha256": weights_sum,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / file_name, weights)
    write_atomically(folder / FILE, (json.dumps(document, indent=2) + "\n").encode())
    for stale in folder.glob("weights-*.safetensors"):
        if stale.name != file_name:
            stale.unlink()


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
        network = build(network_class, document["structure"])
        network.load_state_dict(safetensors.torch.load(weights), assign=True)
    except (KeyError, TypeError, RuntimeError) as error:
        raise CorruptModelError(f"{folder / FILE} does not describe the network of {path.name}: {error!r}") from error
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in document["structure"]["frozen"])
    return network.eval()


def build(network_class: type[Network], structure: dict[str, Any]) -> Network:
    """Make the network that a structure describes, with fresh weights."""
    layers: list[Layer] = []
    modules: list[nn.Module] = []
    for entry in structure["layers"]:
        kind, arguments = entry["kind"], entry["arguments"]
        if kind == NEURON:
            layers.append(Layer(entry["name"], kind, {}))
            modules.append(SingleSpikeLIFNode(**arguments))
        elif kind in ARGUMENTS:
            layers.append(Layer(entry["name"], kind, {name: as_tuple(value) for name, value in arguments.items()}))
            modules.append(layers[-1].build())
        else:
            raise TypeError(f"layer {entry['name']} is of the unknown kind {kind!r}")
    return network_class(build_encoder(structure["encoder"]), layers, modules, SpikeTimeReadout(**structure["readout"]))


def read_document(path: Path) -> dict[str, Any]:
    """Read and check the JSON document."""
    content = read_bytes(path)
    try:
        document = json.loads(content)
        known, whole = document["format"] == FORMAT, document["structure_sha256"] == digest(document["structure"])
        names = document["weights"], document["weights_sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptModelError(f"{path} is not a network description: {error!r}") from error
    if not known:
        raise CorruptModelError(f"{path} has format {document['format']!r}, this version of onespike reads format {FORMAT}")
    if not whole:
        raise CorruptModelError(f"{path} does not match its own SHA-256: the file was altered")
    if not all(isinstance(name, str) for name in names) or Path(names[0]).name != names[0]:
        raise CorruptModelError(f"{path} names a weights file outside its folder: {names[0]!r}")
    return document


def describe_encoder(encoder: nn.Module) -> dict[str, Any]:
    """Return what `build_encoder` needs."""
    if isinstance(encoder, DirectEncoder):
        return {"kind": "DirectEncoder", "T": encoder.T}
    if isinstance(encoder, HybridEncoder):
        bounds = encoder.own_range or [encoder.low.tolist(), encoder.high.tolist()]
        return {
            "kind": "HybridEncoder",
            "T": encoder.T,
            "intensity_range": bounds,
            "analogue": encoder.analogue,
            "temporal": encoder.temporal,
        }
    raise TypeError(f"encoder must be a HybridEncoder or a DirectEncoder to be saved, got {type(encoder).__name__}")


def build_encoder(values: dict[str, Any]) -> nn.Module:
    """Make the encoder that `describe_encoder` described."""
    arguments = {name: value for name, value in values.items() if name != "kind"}
    if values["kind"] == "DirectEncoder":
        return DirectEncoder(**arguments)
    if not isinstance(arguments["intensity_range"], str):
        low, high = arguments["intensity_range"]
        arguments["intensity_range"] = torch.tensor(low), torch.tensor(high)
    return HybridEncoder(**arguments)


def describe_node(node: nn.Module) -> dict[str, Any]:
    """Return the constructor arguments of a node; its parameters are among the weights."""
    if not isinstance(node, SingleSpikeLIFNode):
        raise TypeError(f"neurons must be SingleSpikeLIFNode to be saved, got {type(node).__name__}")
    return {name: getattr(node, name) for name in NODE_SETTINGS}


def describe_readout(readout: nn.Module) -> dict[str, Any]:
    """Return the constructor arguments of a readout; its threshold is among the weights."""
    if not isinstance(readout, SpikeTimeReadout):
        raise TypeError(f"readout must be a SpikeTimeReadout to be saved, got {type(readout).__name__}")
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


def write_atomically(path: Path, content: bytes) -> None:
    """Write, flush to the disk and rename, so that `path` never holds half of `content`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
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
