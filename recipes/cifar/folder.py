"""A run's folder: owned by one run at a time; its JSON files carry their own SHA-256 and name what they were made from."""

import hashlib
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cifar.checkpoint import CheckpointError
from onespike.files import write_atomically

try:
    import fcntl
except ImportError:  # Windows, where nothing keeps two runs apart
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
UNFINISHED = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Own a folder, made if need be, for as long as the context or the process lasts.

    What an earlier owner had begun to write when it was killed is cleared away.

    Raises:
        CheckpointError: another process owns it, which the message names, or the disk cannot lock files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+") as file:
        if fcntl is not None:
            lock(file.fileno(), folder)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        for path in folder.iterdir():
            if UNFINISHED.fullmatch(path.name):
                path.unlink()
        yield


def lock(file: int, folder: Path) -> None:
    """Take the lock of a folder."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = (folder / LOCK).read_text(errors="replace")[:200] or "another process"
        raise CheckpointError(f"{folder} is in use by {owner}: wait for it to end, or name another folder by --out") from error
    except OSError as error:
        raise CheckpointError(f"{folder / LOCK} cannot be locked ({error.strerror}): --out must be on another disk") from error


@contextmanager
def understanding(path: Path) -> Iterator[None]:
    """Say of a file that is not what its reader inside expects that it is damaged.

    Raises:
        CheckpointError: in place of what Python raises where there is no such key, type or number.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error!r}): delete it to have it made again") from error


@contextmanager
def keeping(path: Path) -> Iterator[None]:
    """Say of what cannot be written inside that the numbers are safe in `path`."""
    try:
        yield
    except OSError as error:
        lost = f"{error.filename} cannot be written ({error.strerror})"
        raise CheckpointError(f"{lost}; no number is lost: they are in {path}") from error


def write_json(path: Path, value: dict[str, Any], **made_from: str) -> dict[str, Any]:
    """Write values as JSON in one step, with the SHA-256 of what they were made from and their own; return all of it."""
    document = {**value, "file": path.name, "made_from": made_from}
    document["sha256"] = digest(document)
    write_atomically(path, (json.dumps(document, indent=2) + "\n").encode())
    return document


def read_json(path: Path, **made_from: str) -> dict[str, Any]:
    """Read what `write_json` wrote to this name; what need not be made from anything may be of a version that knew no SHA-256.

    Raises:
        CheckpointError: the file cannot be read, is not as it was written, or was made from something else.
    """
    again = "delete it to have it made again"
    document = parse(path, again)
    if not made_from and "sha256" not in document:
        return document
    if document.get("sha256") != digest(document):
        raise CheckpointError(f"{path} does not have its SHA-256, it was altered or is of an old version: {again}")
    if document.get("file") != path.name:
        raise CheckpointError(f"{path} is another file, {document.get('file')}: {again}")
    for name, now in made_from.items():
        before = document["made_from"].get(name)
        if before != now:
            raise CheckpointError(
                f"{path} was made from another {name} (SHA-256 {str(before)[:16]} -> {now[:16]}): go on with that one, "
                "name another folder by --out, or " + again
            )
    return document


def parse(path: Path, remedy: str) -> dict[str, Any]:
    """Read a JSON object; a CheckpointError that ends with `remedy` where there is none."""
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}): {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged, it is not JSON ({error}): {remedy}") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} is damaged, it must hold values by name, got {type(document).__name__}: {remedy}")
    return document


def digest(document: dict[str, Any]) -> str:
    """Return the SHA-256 of JSON values, their own one left out, in one canonical spelling."""
    values = {name: value for name, value in document.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def digest_of_weights(network: nn.Module) -> str:
    """Return the SHA-256 of a network's state, names and types included."""
    found = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
