"""The ANN that a run of recipes/train.py trained, with the run's settings and images."""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))

import train as recipe
from cifar.checkpoint import CheckpointError, Checkpoints
from cifar.config import Config
from cifar.data import Data, load_data
from cifar.identity import ann_identity, identity_of
from cifar.launch import make_fabric
from cifar.pipeline import new_ann
from cifar.reading import load_config

EXPECTED = (CheckpointError, *recipe.EXPECTED)
"""What a run that is not there, or settings that are none, end in."""


class Trained(NamedTuple):
    """An ANN, and what it was trained by and on."""

    ann: nn.Module
    config: Config
    data: Data
    fabric: Any


def trained_ann(run: Path, data_root: Path, overrides: list[str]) -> Trained:
    """Load the ANN from the folder of a run, on the CPU, in eval mode; `overrides` are settings on top of the run's own.

    Raises:
        CheckpointError: the run holds no trained ANN.
        ConfigError, DataError: see `load_config` and `load_data`.
    """
    config = load_config([run / "config.yaml"], overrides)
    fabric = make_fabric("cpu", config)
    data = load_data(config, data_root, fabric.device)
    ann = new_ann(config, data.classes, torch.device("cpu"))
    saved = Checkpoints(run / "ann", ann_identity(identity_of(config))).load(fabric.device)
    if saved is None:
        raise CheckpointError(f"{run} holds no ANN")
    ann.load_state_dict(saved["network"])
    return Trained(ann.eval(), config, data, fabric)
