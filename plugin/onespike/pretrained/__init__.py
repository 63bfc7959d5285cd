"""Trained networks by name, each pinned by SHA-256; a model card lies beside each."""

import hashlib
from pathlib import Path

from onespike.conversion import CorruptModelError, SpikingNetwork
from onespike.conversion.storage import FILE

PRETRAINED = {"cifar10_vgg6_small": "ad6cace047331132b84a7aceeea2c5477c3939ce2557f8fa30dad3ee70491d43"}
"""Name of each network -> SHA-256 of its description, which holds that of its weights."""


def load_pretrained(name: str) -> SpikingNetwork:
    """Load a trained network that comes with onespike, on the CPU and in eval mode.

    Args:
        name: a name in `PRETRAINED`.

    Returns:
        The network. How images have to be normalised, and what it was measured to do, stands in `model_card(name)`.

    Raises:
        ValueError: there is no network of this name.
        CorruptModelError: its files are missing or are not those that were released.
    """
    folder = folder_of(name)
    path = folder / FILE
    found = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "none"
    if found != PRETRAINED[name]:
        raise CorruptModelError(f"{path} must have the SHA-256 {PRETRAINED[name]}, got {found}: install onespike again")
    return SpikingNetwork.load(folder)


def model_card(name: str) -> str:
    """Return the model card of a network, in Markdown.

    Raises:
        ValueError: there is no network of this name.
    """
    return (folder_of(name) / "README.md").read_text()


def folder_of(name: str) -> Path:
    """Return where a network lies."""
    if name not in PRETRAINED:
        raise ValueError(f"name must be one of {', '.join(PRETRAINED)}, got {name!r}")
    return Path(__file__).parent / name
