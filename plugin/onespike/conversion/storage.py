"""Saving and loading a `SpikingNetwork`: weights as safetensors, structure as JSON, both checked by SHA-256.

A folder holds `network.json` and the weights file that it names. The weights are written under a new name first and
`network.json` is replaced last, in one step, so that a crash leaves either the old network or the new one.
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikingjelly.activation_based.functional import set_step_mode

from onespike.conversion.description import (
    MEANINGLESS,
    CorruptModelError,
    Network,
    build,
    describe,
    digest,
    rebuilt,
    require_kinds,
    require_the_same,
)
from onespike.files import write_atomically

try:
    import safetensors
    import safetensors.torch
except ImportError as error:
    raise ImportError('saving and loading networks needs safetensors: pip install "onespike[recipes]"') from error

if TYPE_CHECKING:  # it is the network that imports this module, to save itself
    from onespike.conversion.network import SpikingNetwork

FORMAT = 2
FORMATS = (1, FORMAT)
"""Those that can be read: in the first each layer takes what the one before gives, and none says where its inputs come from."""
FILE = "network.json"


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
    except (*MEANINGLESS, safetensors.SafetensorError) as error:
        what = " ".join(str(error).split())[:500]
        raise CorruptModelError(
            f"{folder / FILE} does not describe the network of {path.name} ({type(error).__name__}: {what}): "
            "save the network again, or delete the folder"
        ) from error
    return network.eval()


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


def read_bytes(path: Path) -> bytes:
    """Read a file whole; a missing one is a CorruptModelError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise CorruptModelError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # a name that no file can have
        raise CorruptModelError(f"{str(path)!r} cannot be read: {error}") from error
