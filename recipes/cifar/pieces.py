"""A trained network as float16 files of a few megabytes: where only so much may travel at once, work adds up over short runs.

Each piece carries its own SHA-256, says what it belongs to and which part of it it is, and the SHA-256 of the whole.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onespike.files import write_atomically

MAGIC = b"onespike piece 1\n"
MOST = 10_000
"""Pieces of a network, at most."""
FEW = 64
"""So many numbers, at most, are kept as they are: leaks, thresholds, an encoder's range."""


class PieceError(RuntimeError):
    """A piece is missing, damaged, or of another network."""


def write_pieces(stem: Path, state: Mapping[str, Tensor], about: dict[str, Any], piece_mb: float = 16) -> list[Path]:
    """Write the tensors of a network as `stem`-1-of-n.piece and so on; earlier pieces of that stem are removed.

    Matrices and filters are rounded to float16; leaks, thresholds and ranges, which are few numbers each, are kept as they are.

    Args:
        stem: folder and first part of the names.
        state: what `state_dict` returns.
        about: what the network is, as JSON can say it; `read_pieces` returns it.
        piece_mb: largest size of a piece, in 10^6 bytes.

    Raises:
        PieceError: a number does not fit float16, or `piece_mb` leaves no room beside a piece's description.
    """
    arrays = {name: tensor.detach().cpu().half().contiguous() for name, tensor in state.items() if tensor.numel() > FEW}
    for name, array in arrays.items():
        if not array.isfinite().all():
            raise PieceError(f"{name} must fit float16 to be exported, got values up to {state[name].abs().max().item():.3g}")
    content = b"".join(array.numpy().tobytes() for array in arrays.values())
    whole = {
        "about": about,
        "shapes": {name: list(array.shape) for name, array in arrays.items()},
        "numbers": {name: tensor.tolist() for name, tensor in state.items() if tensor.numel() <= FEW},
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    room = int(piece_mb * 1e6) - len(MAGIC) - len(json.dumps(whole)) - 200
    if room < 1:
        raise PieceError(
            f"piece_mb must leave room for numbers beside {len(json.dumps(whole))} bytes about them, got {piece_mb}"
        )
    parts = [content[start : start + room] for start in range(0, max(1, len(content)), room)]
    stem.parent.mkdir(parents=True, exist_ok=True)
    for old in stem.parent.glob(f"{stem.name}-*-of-*.piece"):
        old.unlink()
    paths = []
    for index, part in enumerate(parts, 1):
        header = {"whole": whole, "index": index, "count": len(parts)}
        piece = json.dumps(header).encode() + b"\n" + part
        paths.append(stem.parent / f"{stem.name}-{index}-of-{len(parts)}.piece")
        write_atomically(paths[-1], MAGIC + hashlib.sha256(piece).hexdigest().encode() + b"\n" + piece)
    return paths


def read_pieces(paths: Sequence[Path]) -> list[tuple[dict[str, Any], dict[str, Tensor]]]:
    """Return (about, state) of every network whose pieces are among the files, in any order; numbers are float32.

    Raises:
        PieceError: a piece cannot be read, is damaged, is none, or one of its network is missing.
    """
    networks: dict[str, dict[int, tuple[dict[str, Any], bytes]]] = {}
    for path in paths:
        try:
            header, part = read_piece(path)
            identity = json.dumps([header["whole"], header["count"]])
            networks.setdefault(identity, {})[header["index"]] = header, part
            require_description(header)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise PieceError(f"{path} does not describe a network ({error!r}): export it again") from error
    found = []
    for pieces in networks.values():
        try:
            found.append(assemble(pieces))
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, PieceError):
                raise
            raise PieceError(f"a network's pieces do not describe it ({error!r}): export it again") from error
    return found


def assemble(pieces: dict[int, tuple[dict[str, Any], bytes]]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return (about, state) of the network that these are the pieces of."""
    header, _ = next(iter(pieces.values()))
    whole, count = header["whole"], header["count"]
    missing = [str(index) for index in range(1, count + 1) if index not in pieces]
    if missing:
        raise PieceError(f"{named(whole['about'])}: piece {', '.join(missing)} of {count} is missing")
    content = b"".join(pieces[index][1] for index in range(1, count + 1))
    if hashlib.sha256(content).hexdigest() != whole["sha256"]:
        raise PieceError(f"{named(whole['about'])}: its pieces do not have its SHA-256 together")
    sizes = [prod(shape) for shape in whole["shapes"].values()]
    if 2 * sum(sizes) != len(content):
        raise PieceError(f"{named(whole['about'])}: its pieces do not hold the numbers that they describe: export it again")
    flat = torch.frombuffer(bytearray(content), dtype=torch.float16).float()
    state = {name: values.view(shape) for (name, shape), values in zip(whole["shapes"].items(), flat.split(sizes), strict=True)}
    numbers = {name: torch.tensor(number, dtype=torch.float32) for name, number in whole["numbers"].items()}
    return whole["about"], state | numbers


def require_description(header: dict[str, Any]) -> None:
    """Raise a ValueError, or what Python does, unless a piece says which of how many it is, and of what network."""
    whole = header["whole"]
    stage, row, network = (whole["about"][name] for name in ("stage", "row", "network"))
    if not isinstance(header["index"], int) or not 1 <= header["index"] <= header["count"] or header["count"] > MOST:
        raise ValueError(f"piece {header['index']} of {header['count']}")
    if stage not in ("ann", "snn") or not isinstance(row, str) or not isinstance(network, dict):
        raise ValueError(f"stage {stage} of row {row}")


def read_piece(path: Path) -> tuple[dict[str, Any], bytes]:
    """Return a piece's description and numbers."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PieceError(f"{path} cannot be read: {error.strerror}") from error
    if not content.startswith(MAGIC):
        raise PieceError(f"{path} is not a piece of an exported network of this version")
    digest, _, piece = content.removeprefix(MAGIC).partition(b"\n")
    if hashlib.sha256(piece).hexdigest().encode() != digest:
        raise PieceError(f"{path} is damaged: it does not have the SHA-256 that it names")
    header, _, part = piece.partition(b"\n")
    return json.loads(header), part


def named(about: dict[str, Any]) -> str:
    """Say which network pieces are of."""
    return " ".join(str(value) for value in about.values() if isinstance(value, str)) or "the network"
