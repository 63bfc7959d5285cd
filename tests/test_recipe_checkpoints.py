"""The CIFAR recipe's checkpoints, and what spoils them."""

import errno
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from recipe_runs import RECIPES

from cifar.checkpoint import CheckpointError, Checkpoints, require_one_folder


def test_two_checkpoints_are_kept_and_the_latest_is_read(tmp_path):
    checkpoints = Checkpoints(tmp_path, {"seed": 1})
    assert checkpoints.load(torch.device("cpu")) is None
    for step in (0, 5, 10):
        checkpoints.save(step, {"weights": torch.full((2,), float(step))})
    assert [path.name[:13] for path in checkpoints.paths()] == ["step-00000005", "step-00000010"]
    assert checkpoints.load(torch.device("cpu"))["weights"].tolist() == [10, 10]


def test_a_damaged_checkpoint_is_named(tmp_path):
    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.save(1, {})
    path = checkpoints.save(2, {"weights": torch.zeros(100)})
    content = path.read_bytes()
    for damaged in (content[:-1], content[:50] + bytes([content[50] ^ 1]) + content[51:], b""):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"step-00000002.*: delete it to go on from step-00000001"):
            checkpoints.load(torch.device("cpu"))


def test_a_foreign_checkpoint_is_named(tmp_path):
    Checkpoints(tmp_path, {"seed": 1, "T": 5}).save(1, {})
    with pytest.raises(CheckpointError, match="was made with other settings: seed: 1 -> 2"):
        Checkpoints(tmp_path, {"seed": 2, "T": 5}).load(torch.device("cpu"))


def test_a_renamed_checkpoint_is_named(tmp_path):
    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.save(1, {}).rename(tmp_path / "step-1.pt")
    with pytest.raises(CheckpointError, match=r"step-1.pt was renamed: give it back"):
        checkpoints.load(torch.device("cpu"))


def test_processes_that_see_different_folders_are_told():
    class Fabric:
        device = torch.device("cpu")

        @staticmethod
        def all_gather(found):
            return torch.stack([found, torch.tensor(7)])

    require_one_folder(Fabric, "the step of ann", 7)
    with pytest.raises(
        CheckpointError, match=r"--out must be one folder that all processes see, got the step of ann = \[5, 7\] by process"
    ):
        require_one_folder(Fabric, "the step of ann", 5)


def test_a_full_disk_keeps_the_earlier_checkpoint(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, {})
    good = checkpoints.save(1, {})

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=f"cannot be written: No space left on device; {good} is the last"):
        checkpoints.save(2, {})
    assert [path.name for path in tmp_path.iterdir()] == [good.name]


def test_a_disk_that_is_too_small_is_named(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    checkpoints = Checkpoints(tmp_path / "ann", {})
    checkpoints.require_space(33 * 2**20)
    with pytest.raises(CheckpointError, match=r"ann needs 102 MiB for checkpoints, got 100 MiB free"):
        checkpoints.require_space(34 * 2**20)


def test_a_kill_in_the_middle_of_a_save_keeps_the_earlier_checkpoint(tmp_path):
    script = (
        f"import os, signal, sys; sys.path.insert(0, {str(RECIPES)!r})\n"
        "from pathlib import Path; from cifar.checkpoint import Checkpoints\n"
        f"checkpoints = Checkpoints(Path({str(tmp_path)!r}), {{}}); checkpoints.save(1, {{'kept': 1}})\n"
        "os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)\n"
        "checkpoints.save(2, {})\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2, "half a file was left"
    checkpoints = Checkpoints(tmp_path, {})
    assert checkpoints.load(torch.device("cpu")) == {"kept": 1}
    checkpoints.save(3, {})
    assert len(list(tmp_path.iterdir())) == 2, "and cleared away"
