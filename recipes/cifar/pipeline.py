"""The stages of a run: how the ANN and the spiking network are built, trained and evaluated."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cifar import results as outcome
from cifar.checkpoint import CheckpointError, Checkpoints, require_one_folder
from cifar.config import Config
from cifar.conversion import blocked, describe, health, plain_accuracy
from cifar.data import IMAGE
from cifar.evaluation import accuracy
from cifar.folder import digest_of_weights, read_json, write_json
from cifar.loss import Loss, snn_loss, without_images
from cifar.seeds import seed_of
from cifar.stage import Progress, Runtime, Stage
from cifar.training import Trainer
from onespike.conversion import SpikingNetwork
from onespike.models import resnet, vgg
from onespike.models.resnet import BLOCKS


def train_ann(
    checkpoints: Checkpoints, runtime: Runtime, log: Callable[[list[dict[str, Any]]], None], *, borrowed: bool
) -> tuple[nn.Sequential, Progress]:
    """Build and train the ANN, as far as its checkpoints do not hold it already; one of another run must be complete."""
    ann = new_ann(runtime.config, runtime.data.classes, runtime.fabric.device)
    stage = Stage("ann", runtime.config.ann, ann_loss(runtime.config), checkpoints, log)
    trainer = Trainer(stage, ann, runtime)
    if borrowed and trainer.progress.step < trainer.total:
        taken = f"{trainer.progress.step} of {trainer.total} steps taken"
        raise CheckpointError(f"--ann must name a run whose ANN is trained, got {checkpoints.folder} with {taken}")
    return ann, trainer.fit()


def new_ann(config: Config, classes: int, device: torch.device) -> nn.Sequential:
    """Build the ANN, untrained."""
    torch.manual_seed(seed_of(config.seed, "ann", "weights"))
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    if config.model in BLOCKS:
        ann = resnet(config.model, classes, width=config.width)
    else:
        sizes = {name: getattr(config, name) for name in ("width", "hidden", "dropout", "fc_dropout", "init")}
        ann = vgg(config.model, classes, image_size=IMAGE * (2 if config.encoder == "dct" else 1), **sizes)
    return ann.to(device, memory_format=layout)  # type: ignore[call-overload]


def ann_loss(config: Config) -> Loss:
    """Return what the ANN minimises."""
    return without_images(nn.CrossEntropyLoss(label_smoothing=config.ann.label_smoothing))


def snn_stage(
    ann: nn.Module,
    conversion: dict[str, Any],
    runtime: Runtime,
    checkpoints: Checkpoints,
    log: Callable[[list[dict[str, Any]]], None],
) -> Stage:
    """Say how the spiking network is trained."""
    config, validation = runtime.config, runtime.data.validation
    return Stage(
        "snn",
        config.snn,
        snn_loss(config, ann, runtime.fabric),
        checkpoints,
        log,
        describe=partial(describe, validation=validation),
        dead_layers=lambda network: blocked(health(network, validation)),
        lr_factor=lambda T: (
            1 / sum(config.leak**k for k in range(T)) if config.snn.relative else 1.0
        ),  # a potential is such a sum
        timesteps=lambda epoch: 1 if epoch < round(config.one_step * config.snn.epochs) else config.T,
        accuracy=conversion["validation_accuracy"][str(conversion["scale"])],
    )


def start_from(other: SpikingNetwork, network: SpikingNetwork) -> None:
    """Give the network the weights, leaks and thresholds of another one."""
    if broken := [name for name, tensor in other.state_dict().items() if not tensor.isfinite().all()]:
        raise CheckpointError(f"--start must be a network of finite numbers, got NaN or infinity in {', '.join(broken)}")
    try:  # how images are encoded is the run's own
        network.body.load_state_dict(other.body.state_dict())
        network.readout.load_state_dict(other.readout.state_dict())
    except RuntimeError as error:
        raise CheckpointError(f"--start must be a network of the same layers: {error}") from error


def evaluate(
    path: Path,
    ann: nn.Module,
    conversion: dict[str, Any],
    untrained: SpikingNetwork,
    trained: SpikingNetwork,
    runtime: Runtime,
    made_from: dict[str, str],
) -> dict[str, Any]:
    """Read the test set, once: the results are kept in the file `path`, and read from there where they were found before."""
    config, test, fabric = runtime.config, runtime.data.test, runtime.fabric
    found = path.exists()
    require_one_folder(fabric, path.name, found)
    if found:
        return read_json(path, **made_from)
    results: dict[str, Any] = {"ann": {"accuracy": accuracy(ann, test, fabric)}}
    if config.conversion_images:
        results["plain"] = {"accuracy": plain_accuracy(ann, conversion, runtime)}
    results["converted"] = results["trained"] = outcome.evaluate(untrained, test, fabric, config.activity_images)
    if digest_of_weights(trained) != digest_of_weights(untrained):
        results["trained"] = outcome.evaluate(trained, test, fabric, config.activity_images)
    return write_json(path, results, **made_from) if fabric.is_global_zero else results
