"""Trained networks of Table I's rows, which move from one run to another as pieces."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cifar.config import Config
from cifar.conversion import spiking_network
from cifar.data import Data
from cifar.folder import read_json
from cifar.identity import ann_checkpoints, ann_identity, identity_of, identity_of_settings
from cifar.measure import neurons_of
from cifar.optimizer import make_optimizer
from cifar.output import say
from cifar.pieces import PieceError, named, read_pieces, write_pieces
from cifar.pipeline import new_ann
from cifar.reading import flattened
from cifar.stage import Progress
from onespike.conversion import SpikingNetwork

OWN = ("ann.epochs", "ann.max_steps")
"""Of the settings that an ANN depends on, those in which an imported one may differ from its row."""
Networks = dict[str, tuple[dict[str, Any], dict[str, Tensor]]]
"""Imported networks, by stage: what is known about them, and their state."""


@dataclass(frozen=True)
class Row:
    """A row of the table: its name, the files of its config, its folder."""

    name: str
    config: Path
    out: Path


def networks_of(rows: list[Row], files: list[Path]) -> dict[str, Networks]:
    """Read imported networks, by row and stage."""
    found: dict[str, Networks] = {}
    for about, state in read_pieces(files):
        if about.get("row") not in [row.name for row in rows]:
            raise PieceError(f"{named(about)}: its row is not among {', '.join(row.name for row in rows)}")
        networks = found.setdefault(about["row"], {})
        if about["stage"] in networks:
            raise PieceError(f"{named(about)}: --import must hold one network of a row and stage, got two")
        networks[about["stage"]] = about, state
    return found


def plant(row: Row, config: Config, imported: Networks, data: Data) -> None:
    """Put imported networks where a run finds them: the ANN as its last checkpoint, the spiking one as what to start from."""
    if "ann" not in imported:
        raise PieceError(f"{row.name}: a spiking network needs its ANN beside it: give the pieces of both to --import")
    settings = identity_of(config)
    for about, _ in imported.values():
        differing = [f"{name}={value}" for name, value in about["network"].items() if settings.get(name) != value]
        if differing:
            raise PieceError(f"{named(about)} is of another network than the row's: {', '.join(differing)}")
    about, state = imported["ann"]
    ann = new_ann(config, data.classes, torch.device("cpu"))
    fill_in(ann, state, about)
    progress = Progress(step=about["step"], seconds=about["seconds"], history=about["history"], cut=True)
    saved = {
        "network": ann.state_dict(),
        "optimizer": make_optimizer(ann, config.ann).state_dict(),
        "progress": asdict(progress),
    }
    ann_checkpoints(None, row.out, settings).save(progress.step, saved)
    if "snn" in imported:
        unit = {"thresholds": dict.fromkeys(neurons_of(ann), 1.0), "scale": config.threshold_scales[0]}
        network = spiking_network(ann.to(data.test.labels.device), unit, data, config)
        fill_in(network, imported["snn"][1], imported["snn"][0])
        network.save(start_of(row))


def fill_in(network: nn.Module, state: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Give a network an imported state."""
    if broken := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
        raise PieceError(f"{named(about)} must hold finite numbers, got NaN or infinity in {', '.join(broken)}")
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise PieceError(
            f"{named(about)} is of another network than the row's: {' '.join(str(error).split())[:300]}"
        ) from error


def start_of(row: Row) -> Path:
    """Return where the spiking network lies that a row starts from, if it was imported."""
    return row.out.parent / f"{row.name}.start"


def export(row: Row, folder: Path, piece_mb: float) -> None:
    """Write a finished row's ANN and spiking network as pieces."""
    metrics = read_json(row.out / "metrics.json")
    settings = flattened(metrics["config"])
    about = {
        "row": row.name,
        "network": {name: value for name, value in ann_identity(settings).items() if name not in OWN},
    }
    saved = ann_checkpoints(None, row.out, identity_of_settings(settings)).load(torch.device("cpu"))
    assert saved is not None, "the row is finished"
    progress = {name: saved["progress"][name] for name in ("step", "seconds", "history")}
    snn = SpikingNetwork.load(row.out / "model").state_dict()
    for stage, state, more in (("ann", saved["network"], progress), ("snn", snn, {})):
        for path in write_pieces(folder / f"{row.name}-{stage}", state, {**about, "stage": stage, **more}, piece_mb):
            say(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
