"""What a run is: the settings and the machines by which its folder knows it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from cifar.checkpoint import CheckpointError, Checkpoints, differences
from cifar.config import Config
from cifar.folder import LOCK, read_json, understanding, write_json
from cifar.reading import first_line, flattened
from onespike.files import write_atomically

ANN_SETTINGS = (
    "dataset",
    "validation",
    "crop",
    "flip",
    "cutout",
    "seed",
    "model",
    "width",
    "hidden",
    "dropout",
    "fc_dropout",
    "init",
    "ann",
)
"""What the ANN depends on: runs that agree in them can share it."""
SAME_NUMBERS = ("cuda_graph",)
"""Settings that a run may change when it goes on."""
LATER = {"neuron": "lif"}
"""Settings that there were not always, and what stood in their place: runs from before go on."""
PIECES = "pieces.json"
"""Where a run says on what machine each of its pieces ran."""
BEGIN_AGAIN = "delete it to go on by the settings given now, which the checkpoints know"


def identity_of(config: Config) -> dict[str, Any]:
    """Return the settings that a run's numbers depend on, by dotted name."""
    return identity_of_settings(flattened(asdict(config)))


def identity_of_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Leave out of a config's settings those that change no number, or nothing of what was always so."""
    return {name: value for name, value in settings.items() if name not in SAME_NUMBERS and LATER.get(name) != value}


def check_claim(out: Path, settings: dict[str, Any], resume: bool) -> None:
    """Make sure that the run in the folder, if there is one, is this one."""
    path = out / "config.yaml"
    if not path.exists() or {found.name for found in out.iterdir()} <= {path.name, PIECES, LOCK}:  # it ended before it began
        return
    if not resume:
        raise CheckpointError(f"{out} holds a run already: --resume goes on with it, --out names another folder")
    damaged = f"{path} is damaged, and with it what the run's settings were"
    try:
        before: Any = OmegaConf.to_container(OmegaConf.load(path))
    except Exception as error:  # YAML's errors have no common base that OmegaConf exports
        raise CheckpointError(f"{damaged}: {first_line(error)}; {BEGIN_AGAIN}") from error
    if not isinstance(before, dict) or not before:
        raise CheckpointError(f"{damaged}: it holds no settings; {BEGIN_AGAIN}")
    if different := differences(before, settings):
        raise CheckpointError(f"{path} has other settings than this run: {different}; --out names another folder")


def claim(out: Path, settings: dict[str, Any]) -> None:
    """Make the run's folder."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(settings)).encode())


def ann_checkpoints(other: Path | None, out: Path, settings: dict[str, Any]) -> Checkpoints:
    """Return where the ANN is kept: in this run's folder, or in that of another run."""
    identity = ann_identity(settings)
    own = Checkpoints(out / "ann", identity)
    begun = (out / "conversion.json").exists()
    if other is None:
        if begun and not own.paths():
            raise CheckpointError(f"{out} was begun with the ANN of another run: name that run again by --ann")
        return own
    if own.paths() and begun:
        raise CheckpointError(f"{out} was begun with an ANN of its own: go on without --ann")
    checkpoints = Checkpoints(other / "ann", identity)
    if not checkpoints.paths():
        raise CheckpointError(
            f"--ann must be the folder of a run that trained its ANN, got {other} without {checkpoints.folder}"
        )
    return checkpoints


def ann_identity(settings: dict[str, Any]) -> dict[str, Any]:
    """Return those of a run's settings that its ANN depends on, with the encoder if that lays images out in its own way."""
    own = {name: value for name, value in settings.items() if name.split(".")[0] in ANN_SETTINGS}
    return own | ({"encoder": "dct"} if settings["encoder"] == "dct" else {})


def pieces_in(path: Path) -> list[dict[str, Any]]:
    """Return on what the pieces of a run ran."""
    document = read_json(path)
    with understanding(path):
        return [dict(piece) for piece in document["pieces"]]


def begin_piece(path: Path, machine: dict[str, Any]) -> str:
    """Note on what a piece of a run runs; return what of it is other than in the piece before, as "name: old -> new"."""
    before = pieces_in(path) if path.exists() else []
    now = {name: machine[name] for name in ("threads", "processes", "device", "precision", "versions", "commit", "changed")}
    write_json(path, {"pieces": [*before, now]})
    return differences(flattened(before[-1]), flattened(now)) if before else ""
