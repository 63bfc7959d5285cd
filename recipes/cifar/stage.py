"""What a training is told, what all trainings of a run share, and how far one is."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lightning_fabric import Fabric

from cifar.checkpoint import Checkpoints
from cifar.config import Config, Training
from cifar.data import Data
from cifar.loss import Loss
from cifar.termination import Termination


@dataclass
class Progress:
    """How far a stage is."""

    step: int = 0
    seconds: float = 0.0
    loss: float = 0.0  # sums over the images of the running epoch
    hits: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    cut: bool = False  # ended before its last epoch, when its time was up


@dataclass(frozen=True)
class Stage:
    """One training: the ANN's or the SNN's.

    Attributes:
        name: "ann" or "snn".
        settings: how to train.
        loss: maps (output, target, images) to the mean over a batch.
        describe: what else an epoch's line of the history should say about the network.
        dead_layers: names of the layers through which no gradient gets any more.
        timesteps: by how many time steps an epoch, counted from 0, trains; None of a network that has none. Where their number
            changes, the optimiser begins afresh and so does its schedule: Adam's averages are of gradients of another size.
        lr_factor: on the learning rate, by the number of time steps.
        accuracy: on the validation split before training, in percent; 0 where that is chance.
        checkpoints: where the stage is kept.
        log: is called with the history when it has grown.
    """

    name: str
    settings: Training
    loss: Loss
    checkpoints: Checkpoints
    log: Callable[[list[dict[str, Any]]], None]
    describe: Callable[[Any], dict[str, Any]] = lambda _: {}
    dead_layers: Callable[[Any], list[str]] = lambda _: []
    timesteps: Callable[[int], int] | None = None
    lr_factor: Callable[[int], float] = lambda _: 1.0
    accuracy: float = 0.0


@dataclass(frozen=True)
class Runtime:
    """What all stages of a run share.

    Attributes:
        config: settings of the run.
        data: the training split is learnt, the validation split measured after each epoch.
        fabric: launched.
        termination: what SIGTERM and the like do; while a network is trained they save a checkpoint and end the process.
        save_every: seconds between checkpoints, beside the first, the last and that of a signal.
        recorded: replay steps as a CUDA graph.
        until: name of a stage -> time.monotonic() at which it ends, wherever it is.
    """

    config: Config
    data: Data
    fabric: Fabric
    termination: Termination
    save_every: float
    recorded: bool
    until: dict[str, float] = field(default_factory=dict)


def require_progress(progress: Progress) -> None:
    """Raise a ValueError unless the progress of a checkpoint is made of finite numbers and of epochs."""
    numbers = (progress.step, progress.seconds, progress.loss, progress.hits)
    if progress.step < 0 or not all(map(math.isfinite, numbers)):
        raise ValueError(f"progress must be finite numbers >= 0, got {numbers}")
    if not all(math.isfinite(entry["validation_accuracy"]) and entry["stage"] for entry in progress.history):
        raise ValueError("history must hold epochs")


def phase_of(epoch: int, epochs: int, timesteps: Callable[[int], int] | None) -> tuple[int, int]:
    """Return the first epoch, and the one after the last, of those around `epoch` that train the same number of time steps."""
    if timesteps is None:
        return 0, epochs
    first, last, T = epoch, epoch + 1, timesteps(epoch)
    while first > 0 and timesteps(first - 1) == T:
        first -= 1
    while last < epochs and timesteps(last) == T:
        last += 1
    return first, last
