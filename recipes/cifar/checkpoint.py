"""Checkpoints that a crash cannot spoil: written beside, flushed, renamed; the last two kept; their SHA-256 in their names."""

import hashlib
import io
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from onespike.files import write_atomically

FORMAT = 1
KEPT = 2
NAME = re.compile(r"step-(\d{8})\.([0-9a-f]{16})\.pt")


class CheckpointError(RuntimeError):
    """A file of a run is damaged, belongs to another run, or cannot be written."""


class Checkpoints:
    """The checkpoints of one stage of a run.

    Args:
        folder: where they lie; made if need be.
        identity: the settings that the stage depends on, by name; a checkpoint with others is refused.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder = folder
        self.identity = identity

    def require_space(self, size: int) -> None:
        """Raise a CheckpointError unless the disk holds the checkpoints of this many bytes that are there at one time."""
        require_space(self.folder, (KEPT + 1) * size, "checkpoints")

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write a checkpoint, then drop the older ones.

        Raises:
            CheckpointError: it cannot be written, such as on a full disk; the earlier ones stay as they were.
        """
        buffer = io.BytesIO()
        torch.save({"format": FORMAT, "identity": self.identity, "state": state}, buffer)
        content = buffer.getvalue()
        path = self.folder / f"step-{step:08d}.{hashlib.sha256(content).hexdigest()[:16]}.pt"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for stale in self.folder.glob(".*.tmp"):  # of a process that was killed while it wrote
                stale.unlink()
            write_atomically(path, content)
        except OSError as error:
            size = f"{len(content) / 2**20:.0f} MiB"
            raise CheckpointError(f"{path}, of {size}, cannot be written: {error.strerror}; {self.last()}") from error
        for old in [other for other in self.paths() if other != path][: -(KEPT - 1)]:
            old.unlink()
        return path

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """Return the state of the latest checkpoint, or None where there is none.

        Raises:
            CheckpointError: it was truncated, altered or renamed, or other settings made it.
        """
        if renamed := sorted(set(self.folder.glob("step-*.pt")) - set(self.paths())):
            raise CheckpointError(f"{renamed[0]} was renamed: give it back the name that it was saved by, or delete it")
        paths = self.paths()
        if not paths:
            return None
        path = paths[-1]
        match = NAME.fullmatch(path.name)
        assert match is not None
        try:
            content = path.read_bytes()
        except OSError as error:
            raise self.unusable(f"cannot be read ({error.strerror})") from error
        if hashlib.sha256(content).hexdigest()[:16] != match[2]:
            raise self.unusable("does not have the SHA-256 in its name, it was truncated or altered")
        try:
            document = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
            known, identity, state = document["format"] == FORMAT, document["identity"], document["state"]
            different = differences(identity, self.identity)
        except Exception as error:  # of unpickling, of archives, of tensors, of what is found in the place of a dictionary
            reason = (str(error).splitlines() or [""])[0][:200]
            raise self.unusable(f"is no checkpoint, whatever its name says ({type(error).__name__}: {reason})") from error
        if not known:
            raise self.unusable(f"is not a checkpoint of this version of the recipe (format {FORMAT})")
        if different:
            raise CheckpointError(
                f"{path} was made with other settings: {different}; go on by those, or in another folder (--out)"
            )
        return state

    def unusable(self, why: str) -> CheckpointError:
        """Return the error about the latest checkpoint, with what to delete."""
        *earlier, path = self.paths()
        remedy = f"delete it to go on from {earlier[-1].name}" if earlier else "delete it to start this stage again"
        return CheckpointError(f"{path} {why}: {remedy}")

    def last(self) -> str:
        """Say what is left when something has gone wrong."""
        return f"{self.paths()[-1]} is the last good checkpoint" if self.paths() else "there is no checkpoint yet"

    def paths(self) -> list[Path]:
        """Return the checkpoints, latest last."""
        return sorted(path for path in self.folder.glob("step-*.pt") if NAME.fullmatch(path.name))


def require_space(folder: Path, needed: int, purpose: str) -> None:
    """Raise a CheckpointError unless the disk of a folder, made if need be, has so many bytes free."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(f"{folder} needs {needed / 2**20:.0f} MiB for {purpose}, got {free / 2**20:.0f} MiB free")


def require_one_folder(fabric: Fabric, what: str, found: int) -> None:
    """Wait until all processes have looked; raise a CheckpointError on all of them unless they found the same."""
    everywhere = fabric.all_gather(torch.tensor(found, device=fabric.device)).flatten().tolist()
    if len(set(everywhere)) > 1:
        raise CheckpointError(f"--out must be one folder that all processes see, got {what} = {everywhere} by process")


def differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Return the settings that differ, as "name: old -> new"; "" where none does."""
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return ", ".join(f"{name}: {old.get(name)} -> {new.get(name)}" for name in names)
