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
from pathlib import Path
from typing import Any

import report
import train
from cifar.checkpoint import CheckpointError
from cifar.folder import owned, write_json
from cifar.output import conclude, say
from cifar.pieces import PieceError
from cifar.plan import FINISH, PLANNED, RESERVE, START, Table1Error, make_plan, read_plan
from cifar.termination import SIGNALS, Termination
from cifar.transfer import Networks, Row, export, networks_of, start_of
from onespike.files import write_atomically

CONFIGS = Path(__file__).parent / "configs"
ROWS = ("cifar10_vgg16", "cifar100_vgg16", "cifar10_vgg11", "cifar10_vgg6")


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
