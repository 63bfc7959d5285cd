"""A training that is stopped, killed, and loses or damages its checkpoints in any order ends as one that was left alone."""

import copy
import tempfile
from functools import cache
from pathlib import Path

import pytest
import recipe_runs
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from lightning_fabric import Fabric
from torch import nn

from cifar.checkpoint import CheckpointError, Checkpoints
from cifar.data import Data, Split
from cifar.loss import without_images
from cifar.reading import load_config
from cifar.stage import Runtime, Stage
from cifar.termination import Termination
from cifar.training import Trainer

STEPS = 3 * 4
"""Epochs times batches of one."""


class KilledError(Exception):
    """What stands for SIGKILL here: nothing that runs afterwards saves."""


@cache
def made():
    training = ["ann.epochs=3", "ann.batch_size=4", "ann.lr=0.01", "ann.momentum=0.9", "crop=1"]
    config = load_config([recipe_runs.DIGITS], [*recipe_runs.SMALL, *training])
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (32, 3, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.randint(10, (32,), generator=generator)
    parts = [
        Split(images[part], labels[part], (0.5,) * 3, (0.25,) * 3, crop=1) for part in (slice(14), slice(14, 20), slice(20, 32))
    ]
    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.launch()
    return config, Data(*parts, classes=10, mean=(0.5,) * 3, std=(0.25,) * 3), fabric


class Resumed(RuleBasedStateMachine):
    """One training in pieces."""

    @initialize()
    def begin(self):
        self.folder = tempfile.TemporaryDirectory()
        self.checkpoints = Checkpoints(Path(self.folder.name), {"seed": 0})

    def teardown(self):
        if hasattr(self, "folder"):
            self.folder.cleanup()

    def piece(self, *, steps, save_every, killed):
        """Take up to so many steps, 0 for all, from the latest checkpoint; return network and progress if that was the end."""
        config, data, fabric = made()
        torch.manual_seed(len(self.checkpoints.paths()))  # where there is a checkpoint, the first weights are of no account
        network = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(192, 10))
        taken = 0

        def loss(output, target):
            nonlocal taken
            if killed and taken == steps:
                raise KilledError
            taken += 1
            if not killed and taken == steps:
                termination.ask(143, "SIGTERM")
            return nn.functional.cross_entropy(output, target)

        with Termination() as termination:
            stage = Stage("ann", config.ann, without_images(loss), self.checkpoints, lambda history: None)
            return network, Trainer(stage, network, Runtime(config, data, fabric, termination, save_every, False)).fit()

    @rule(steps=st.integers(1, 2 * STEPS), save_every=st.sampled_from([0, float("inf")]), killed=st.booleans())
    def go_on(self, steps, save_every, killed):
        try:
            result = self.piece(steps=steps, save_every=save_every, killed=killed)
        except (KilledError, SystemExit):
            return
        assert ending(*result) == unbroken()

    @precondition(lambda self: self.checkpoints.paths())
    @rule()
    def lose_the_latest_checkpoint(self):
        self.checkpoints.paths()[-1].unlink()

    @precondition(lambda self: self.checkpoints.paths())
    @rule(where=st.floats(0, 1, exclude_max=True), cut=st.booleans())
    def damage_the_latest_checkpoint(self, where, cut):
        path = self.checkpoints.paths()[-1]
        content = bytearray(path.read_bytes())
        position = int(where * len(content))
        if cut:
            del content[position:]
        else:
            content[position] ^= 1
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=path.name):
            self.piece(steps=1, save_every=0, killed=True)
        path.unlink()  # the remedy of the message

    @rule()
    def leave_a_half_written_file(self):
        (self.checkpoints.folder / ".step-00000099.0000000000000000.pt.tmp").write_bytes(b"half")

    @rule()
    def finish(self):
        assert ending(*self.piece(steps=0, save_every=0, killed=False)) == unbroken()


def ending(network, progress):
    """Weights, and the history without times."""
    history = copy.deepcopy(progress.history)
    for entry in history:
        del entry["seconds"]
    return [parameter.tolist() for parameter in network.parameters()], history


@cache
def unbroken():
    machine = Resumed()
    machine.begin()
    try:
        return ending(*machine.piece(steps=0, save_every=float("inf"), killed=False))
    finally:
        machine.teardown()


TestResumed = Resumed.TestCase
TestResumed.settings = settings(stateful_step_count=8)
