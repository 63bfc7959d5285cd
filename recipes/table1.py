"""Fill Table I within a time limit: measure what steps cost here, choose the epochs that fit, train row by row, evaluate.

    python recipes/table1.py --minutes 50 --data-root data
    python recipes/table1.py --minutes 12 --rows cifar10_vgg16 --export pieces
    python recipes/table1.py --minutes 12 --rows cifar10_vgg16 --import pieces/*.piece

A row is a config of recipes/configs, without its `_fast`, or the path of one. Each row is a run of recipes/train.py in a folder
of its own below --out, and its results are there before the limit: a stage that is slower than it was measured is cut. What is
stopped goes on with --resume. A trained network moves to another machine as pieces (--export), where its training goes on: an
ANN is not trained again, a spiking network starts from what it has learnt.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import report
import train
from cifar import results as outcome
from cifar.checkpoint import CheckpointError
from cifar.config import Config, load_config
from cifar.conversion import spiking_network
from cifar.data import Data, load_data
from cifar.folder import owned, read_json, understanding, write_json
from cifar.graph import why_not_recorded
from cifar.measure import Times, measure, neurons_of
from cifar.optimizer import make_optimizer
from cifar.output import conclude, say
from cifar.pieces import PieceError, named, read_pieces, write_pieces
from cifar.termination import SIGNALS, Termination
from cifar.training import Progress
from onespike.conversion import SpikingNetwork
from onespike.conversion.storage import write_atomically

CONFIGS = Path(__file__).parent / "configs"
ROWS = ("cifar10_vgg16", "cifar100_vgg16", "cifar10_vgg11", "cifar10_vgg6")
SHARES = {"ann": 0.3, "one_step": 0.7}
"""How the time that is left for training is divided: a first guess, not tuned. All steps after the first one did harm."""
OWN = ("ann.epochs", "ann.max_steps")
"""Of the settings that an ANN depends on, those in which an imported one may differ from its row."""
PLANNED = ("ann.epochs", "snn.epochs", "one_step")
MOST_EPOCHS = 300
RESERVE = 0.08
"""Share of a row's time that the plan leaves free, for what was measured too short."""
START, FINISH = 0.25, 0.3
"""Minutes that a process takes to start, and to write figures and model, on two slow cores."""


Networks = dict[str, tuple[dict[str, Any], dict[str, Tensor]]]
"""Imported networks, by stage: what is known about them, and their state."""


class Table1Error(ValueError):
    """The table cannot be filled as asked."""


@dataclass(frozen=True)
class Row:
    """A row of the table: its name, the files of its config, its folder."""

    name: str
    config: Path
    out: Path


def main() -> None:
    arguments = parse_arguments()
    with Termination():
        fill(arguments)


def fill(arguments: argparse.Namespace) -> None:
    """Run the rows one after the other, each in an equal share of the time that is left; a failure does not stop the others."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise Table1Error(f"one process must be started, got WORLD_SIZE={os.environ['WORLD_SIZE']}: torchrun is for train.py")
    if planned := [pair for pair in arguments.set if pair.split("=")[0] in PLANNED]:
        raise Table1Error(f"--set must leave {', '.join(PLANNED)} to the plan, got {', '.join(planned)}")
    deadline = time.monotonic() + 60 * arguments.minutes
    rows = [row_of(name, arguments.out) for name in arguments.rows]
    if len({row.name for row in rows}) < len(rows):
        raise Table1Error(f"--rows must name each row once, got {' '.join(arguments.rows)}")
    imported = networks_of(rows, arguments.imported)
    with owned(arguments.out):
        fill_rows(rows, imported, arguments, deadline)


def fill_rows(rows: list[Row], imported: dict[str, Networks], arguments: argparse.Namespace, deadline: float) -> None:
    """Run the rows in the folder, which is this process's own."""
    failures = []
    for position, row in enumerate(rows):
        minutes = (deadline - time.monotonic()) / 60 / (len(rows) - position)
        try:
            run_row(row, minutes, imported.get(row.name, {}), arguments)
            if arguments.export:
                export(row, arguments.export, arguments.piece_mb)
        except (Table1Error, PieceError, *train.EXPECTED) as error:
            failures.append(f"{row.name}: {error}")
    finished = [row.out for row in rows if (row.out / "metrics.json").exists()]
    if finished:
        runs = report.read_runs(finished)
        table, sources = report.accuracy_table(runs.rows).markdown(), report.provenance_lines(runs.rows)
        text = "\n".join([*report.unread_lines(runs), *table, "", *sources, ""])
        write_atomically(arguments.out / "table1.md", text.encode())
        say(text)
    if failures:
        raise Table1Error("; ".join(failures))


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


def row_of(name: str, out: Path) -> Row:
    """Find the config of a row."""
    path = Path(name) if Path(name).suffix == ".yaml" else CONFIGS / f"{name}_fast.yaml"
    if not path.exists():
        known = ", ".join(sorted(path.stem.removesuffix("_fast") for path in CONFIGS.glob("*_fast.yaml")))
        raise Table1Error(f"--rows must name {known}, or the path of a config, got {name!r}")
    stem = path.stem.removesuffix("_fast")
    return Row(stem, path, out / stem)


def run_row(row: Row, minutes: float, imported: Networks, arguments: argparse.Namespace) -> None:
    """Plan a row, unless it was planned before, and have recipes/train.py carry it out."""
    began = time.monotonic()
    path = row.out.parent / f"{row.name}.plan.json"
    if path.exists() and not arguments.resume:
        raise CheckpointError(f"{path} is there already: --resume goes on with it, --out names another folder")
    if path.exists():
        plan = read_plan(path)
        abouts = [about for about, _ in imported.values()]
        if imported and abouts != plan["imported"]:
            raise CheckpointError(f"{path} was made with other pieces than --import names: --out names another folder")
    else:
        plan = make_plan(row, minutes, imported, arguments)
        write_json(path, plan)
    say(f"{row.name}: {minutes:.1f} minutes; {', '.join(plan['settings'])}")
    left = minutes - (time.monotonic() - began) / 60
    end = (1 - RESERVE) * left - START - FINISH - (plan["measured"]["rest"] + plan["measured"]["validation"]) / 60
    if end <= 0 and not (row.out / "metrics.json").exists():
        raise Table1Error(
            f"--minutes must leave the row {left - end:.1f} minutes beside training, got {left:.1f}: --resume with more"
        )
    command = [sys.executable, str(Path(train.__file__)), str(row.config), "--out", str(row.out), "--resume"]
    command += ["--data-root", str(arguments.data_root), "--device", arguments.device]
    if any(about["stage"] == "snn" for about in plan["imported"]):
        command += ["--start", str(start_of(row))]
    command += ["--until", f"ann={max(0, end * plan['ann_share']):.3f}", f"snn={max(0, end):.3f}"]
    if status := carry_out([*command, "--set", *arguments.set, *plan["settings"]]):
        raise Table1Error(
            f"train.py ended with exit status {status}, what it said stands above: --resume goes on with {row.out}"
        )


def read_plan(path: Path) -> dict[str, Any]:
    """Read what `make_plan` returned."""
    plan = read_json(path)
    with understanding(path):
        numbers = [plan["ann_share"], plan["measured"]["rest"], plan["measured"]["validation"]]
        stages = [about["stage"] for about in plan["imported"]]
        if not all(map(isfinite, numbers)) or not all(pair.split("=")[0] in PLANNED for pair in plan["settings"]):
            raise ValueError(f"{numbers}, {plan['settings']}, {stages}")
    return plan


def carry_out(command: list[str]) -> int:
    """Run a command and return its exit status; signals are passed on, and end this process once the command has ended."""
    process = subprocess.Popen(command)
    asked: list[int] = []

    def pass_on(number: int, _: Any) -> None:
        asked.append(number)
        process.send_signal(number)

    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, pass_on) for number in heard}
    try:
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        raise SystemExit(128 + asked[0])
    return status


def make_plan(row: Row, minutes: float, imported: Networks, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure, choose the epochs, and put imported networks where the run finds them."""
    began = time.monotonic()
    config = load_config([row.config], arguments.set)
    fabric = train.make_fabric(arguments.device, config)
    data = load_data(config, arguments.data_root, fabric.device)
    loading = time.monotonic() - began
    times = measure(
        config,
        data,
        fabric,
        train.new_ann(config, data.classes, fabric.device),
        train.ann_loss(config),
        recorded=why_not_recorded(config, fabric) is None,
    )
    measuring = time.monotonic() - began
    left = 60 * minutes - measuring - loading - times.rest - 60 * (START + FINISH)
    shares = {kind: share for kind, share in SHARES.items() if kind not in imported}
    if config.encoder == "temporal":  # has nothing to learn from its first step
        shares["all_steps"] = shares.pop("one_step")
    epochs = choose_epochs((1 - RESERVE) * left, times, shares)
    settings = [f"ann.epochs={epochs['ann']}", f"snn.epochs={epochs['one_step'] + epochs['all_steps']}"]
    settings.append(f"one_step={epochs['one_step'] / (epochs['one_step'] + epochs['all_steps'])}")
    seconds = {"ANN": times.ann, "SNN at T = 1": times.one_step, f"SNN at T = {config.T}": times.all_steps}
    costs = ", ".join(f"{kind} {spent:.1f} s" for kind, spent in seconds.items())
    say(
        f"{row.name}: data loaded in {loading:.1f} s, measured in {measuring - loading:.1f} s; an epoch of the {costs}; "
        f"all that is not training {times.rest:.1f} s"
    )
    if imported:
        with owned(row.out):
            plant(row, load_config([row.config], [*arguments.set, *settings]), imported, data)
    spent = {kind: epochs[kind] * getattr(times, kind) for kind in shares}
    if fabric.device.type == "cuda":
        torch.cuda.empty_cache()  # the run is another process
    return {
        "settings": settings,
        "ann_share": spent.get("ann", 0) / sum(spent.values()),
        "measured": asdict(times),
        "imported": [about for about, _ in imported.values()],
    }


def choose_epochs(seconds: float, times: Times, shares: dict[str, float]) -> dict[str, int]:
    """Divide seconds of training among the epochs of each kind; at least one of each; an ANN that is there counts as one.

    Raises:
        Table1Error: one epoch of each kind does not fit.
    """
    least = sum(getattr(times, kind) for kind in shares)
    if seconds < least:
        raise Table1Error(
            f"--minutes must leave {least / 60:.2f} minutes a row for an epoch of each kind, got {seconds / 60:.2f}"
        )
    spare, total = seconds - least, sum(shares.values())
    chosen = {kind: 1 + int(spare * share / total / getattr(times, kind)) for kind, share in shares.items()}
    least_epochs = {"ann": 1, "one_step": 0, "all_steps": 0}
    return least_epochs | {kind: min(MOST_EPOCHS, epochs) for kind, epochs in chosen.items()}


def plant(row: Row, config: Config, imported: Networks, data: Data) -> None:
    """Put imported networks where a run finds them: the ANN as its last checkpoint, the spiking one as what to start from."""
    if "ann" not in imported:
        raise PieceError(f"{row.name}: a spiking network needs its ANN beside it: give the pieces of both to --import")
    settings = train.identity_of(config)
    for about, _ in imported.values():
        differing = [f"{name}={value}" for name, value in about["network"].items() if settings.get(name) != value]
        if differing:
            raise PieceError(f"{named(about)} is of another network than the row's: {', '.join(differing)}")
    about, state = imported["ann"]
    ann = train.new_ann(config, data.classes, torch.device("cpu"))
    fill_in(ann, state, about)
    progress = Progress(step=about["step"], seconds=about["seconds"], history=about["history"], cut=True)
    saved = {
        "network": ann.state_dict(),
        "optimizer": make_optimizer(ann, config.ann).state_dict(),
        "progress": asdict(progress),
    }
    train.ann_checkpoints(None, row.out, settings).save(progress.step, saved)
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
    settings = outcome.flat(metrics["config"])
    about = {
        "row": row.name,
        "network": {name: value for name, value in train.ann_identity(settings).items() if name not in OWN},
    }
    saved = train.ann_checkpoints(None, row.out, train.identity_of_settings(settings)).load(torch.device("cpu"))
    assert saved is not None, "the row is finished"
    progress = {name: saved["progress"][name] for name in ("step", "seconds", "history")}
    snn = SpikingNetwork.load(row.out / "model").state_dict()
    for stage, state, more in (("ann", saved["network"], progress), ("snn", snn, {})):
        for path in write_pieces(folder / f"{row.name}-{stage}", state, {**about, "stage": stage, **more}, piece_mb):
            say(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=positive, required=True, help="for all rows, from the first measurement to the table")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), help="in this order (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/table1"), help="folder for the runs (default %(default)s)")
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="folder of the data sets (default %(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU when there is one")
    parser.add_argument("--resume", action="store_true", help="go on with what is in --out; finished rows are kept")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="settings on top of each row's"
    )
    parser.add_argument("--export", type=Path, metavar="DIR", help="write each row's networks there, as float16 pieces")
    parser.add_argument(
        "--import", nargs="+", type=Path, default=[], dest="imported", metavar="FILE", help="pieces to begin with"
    )
    parser.add_argument(
        "--piece-mb", type=positive, default=16, help="largest size of a piece, in 10^6 bytes (default %(default)s)"
    )
    return parser.parse_args(arguments)


def positive(text: str) -> float:
    """Read a number > 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number > 0, got {text!r}")
    return number


if __name__ == "__main__":
    conclude(main, Table1Error, PieceError, *train.EXPECTED, lost="--resume goes on from there")
