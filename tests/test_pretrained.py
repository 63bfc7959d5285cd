"""The trained networks that come with the package."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from onespike import pretrained
from onespike.conversion import CorruptModelError
from onespike.pretrained import PRETRAINED, load_pretrained, model_card


@pytest.mark.parametrize("name", PRETRAINED)
def test_it_loads_and_fires_once(name):
    network = load_pretrained(name)
    counts = []
    for node in network.nodes().values():
        node.register_forward_hook(lambda *call: counts.append(call[-1].sum(0).max().item()))
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        readout = network(x)
    assert readout.potential.shape == (4, 10)
    assert counts == [1] * len(network.nodes())
    assert len(set(map(tuple, readout.potential.tolist()))) == 4
    files = [path for path in pretrained.folder_of(name).iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 15e6
    assert "| this network, by potential | " in model_card(name)


def test_names_and_damage_are_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="name must be one of cifar10_vgg6_small, got 'vgg'"):
        load_pretrained("vgg")
    copied = tmp_path / "cifar10_vgg6_small"
    shutil.copytree(pretrained.folder_of(copied.name), copied)
    monkeypatch.setattr(pretrained, "folder_of", lambda name: tmp_path / name)
    load_pretrained(copied.name)
    (weights,) = copied.glob("weights-*.safetensors")
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CorruptModelError, match="truncated or altered"):
        load_pretrained(copied.name)
    weights.write_bytes(content)
    description = copied / "network.json"
    description.write_text(description.read_text().replace('"T": 5', '"T": 6'))
    with pytest.raises(CorruptModelError, match=r"network.json must have the SHA-256 .*, got .*: install onespike again"):
        load_pretrained(copied.name)


def test_a_clone_with_other_line_ends_keeps_every_byte(tmp_path, monkeypatch):
    """As git for Windows makes it by default."""
    (name,) = PRETRAINED
    folder, root = pretrained.folder_of(name), Path(__file__).parents[1]
    place = tmp_path / "origin" / folder.relative_to(root)
    shutil.copytree(folder, place)
    shutil.copy(root / ".gitattributes", tmp_path / "origin")
    shutil.copy(root / "pyproject.toml", tmp_path / "origin")

    def git(*arguments):
        quiet = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
        subprocess.run([*quiet, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init", "origin")
    git("-C", "origin", "add", "-A")
    git("-C", "origin", "commit", "-m", "All")
    git("clone", "-c", "core.autocrlf=true", "-c", "core.eol=crlf", "origin", "clone")
    assert b"\r\n" in (tmp_path / "clone" / "pyproject.toml").read_bytes(), "line ends are changed where they may be"
    cloned = tmp_path / "clone" / folder.relative_to(root)
    monkeypatch.setattr(pretrained, "folder_of", lambda _: cloned)
    load_pretrained(name)
    assert all((cloned / path.name).read_bytes() == path.read_bytes() for path in folder.iterdir() if path.is_file())
