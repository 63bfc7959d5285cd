"""How long the parts of a run take on the device at hand, by doing a little of each."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning_fabric import Fabric

from cifar.checkpoint import Checkpoints
from cifar.config import Config
from cifar.conversion import spiking_network
from cifar.data import Data, Split
from cifar.evaluation import accuracy
from cifar.graph import FIRST_STEPS
from cifar.loss import Loss, snn_loss
from cifar.stage import Runtime, Stage
from cifar.termination import Termination
from cifar.training import Trainer

STEPS = 8
"""Steps that are timed, after those in which kernels are compiled and a step is recorded."""
IMAGES = 1000
"""Images, at most, by which evaluation is timed."""


@dataclass(frozen=True)
class Times:
    """Seconds of an epoch of each kind, its validation included, of that validation alone, and of all that is not training."""

    ann: float
    one_step: float
    all_steps: float
    validation: float
    rest: float


def measure(config: Config, data: Data, fabric: Fabric, ann: torch.nn.Module, ann_loss: Loss, *, recorded: bool) -> Times:
    """Time training steps and evaluation with an untrained network; weights change, files are not left behind.

    Args:
        config: settings of the run.
        data: of the run, loaded.
        fabric: launched.
        ann: the untrained ANN.
        ann_loss: what it minimises.
        recorded: whether steps are replayed as CUDA graphs.
    """
    scale = config.threshold_scales[0]
    began = time.monotonic()
    network = spiking_network(ann.eval(), {"thresholds": dict.fromkeys(neurons_of(ann), 1.0), "scale": scale}, data, config)
    converting = time.monotonic() - began
    loss = snn_loss(config, ann, fabric)
    with tempfile.TemporaryDirectory() as folder, Termination() as termination:
        runtime = Runtime(config, data, fabric, termination, float("inf"), recorded)

        def epoch(stage: Stage, model: torch.nn.Module) -> float:
            trainer = Trainer(stage, model, runtime)
            return trainer.steps_per_epoch * step_time(trainer)

        snn = [
            Stage("snn", config.snn, loss, Checkpoints(Path(folder) / str(T), {}), lambda _: None, timesteps=lambda _, T=T: T)
            for T in (1, config.T)
        ]
        one_step, all_steps = (epoch(stage, network) for stage in snn)
        network.T = config.T
        looking = image_time(lambda part: accuracy(network, part, fabric), data.validation)
        ann_epoch = epoch(Stage("ann", config.ann, ann_loss, Checkpoints(Path(folder) / "ann", {}), lambda _: None), ann)
        ann_looking = image_time(lambda part: accuracy(ann, part, fabric), data.validation)
    held_out, tested = len(data.validation), len(data.test)
    validation = 1.5 * looking * held_out  # with spikes and health
    plain = config.conversion_images * config.conversion_T + config.calibration_images * config.calibration_T
    return Times(
        ann=ann_epoch + ann_looking * held_out,
        one_step=one_step + validation,
        all_steps=all_steps + validation,
        validation=validation,
        rest=3 * converting + looking * (len(config.threshold_scales) * held_out + 3 * tested) + ann_looking * (tested + plain),
    )


def neurons_of(ann: torch.nn.Module) -> list[str]:
    """Return the names of the ReLUs."""
    return [name for name, module in ann.named_modules() if isinstance(module, torch.nn.ReLU)]


def step_time(trainer: Trainer) -> float:
    """Return the seconds that a training step takes."""
    order = trainer.draw(0)
    size = trainer.stage.settings.batch_size
    trainer.network.train()
    trainer.set_timesteps(0)
    for step in range(FIRST_STEPS + 2 + STEPS):
        if step == FIRST_STEPS + 2:
            wait(trainer.fabric.device)
            began = time.monotonic()
        first = step % max(1, len(order.index) // size) * size
        trainer.advance(order.take(slice(first, first + size)))
    wait(trainer.fabric.device)
    trainer.replayed = None
    return (time.monotonic() - began) / STEPS


def image_time(evaluate: Callable[[Split], float], split: Split) -> float:
    """Return the seconds that evaluation takes an image."""
    part = split.head(IMAGES)
    evaluate(part)
    began = time.monotonic()
    evaluate(part)
    return (time.monotonic() - began) / len(part)


def wait(device: torch.device) -> None:
    """Wait for the device to have done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
