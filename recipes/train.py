"""Train a row of Table I, from images to energy table: ANN -> thresholds -> conversion -> SNN -> evaluation.

    python recipes/train.py recipes/configs/cifar10_vgg6_small.yaml --data-root data
    python recipes/train.py recipes/configs/cifar10_vgg16_fast.yaml recipes/configs/ablations/direct.yaml
    torchrun --nproc-per-node 8 recipes/train.py recipes/configs/cifar10_vgg16_fast.yaml

Results, history, figures and the trained network go to --out. A run that was stopped, by whatever, goes on with --resume, and a
stage that is complete is skipped. Every choice is made on images held out of the training set; the test set is read once, at
the end.
"""

import argparse
import gc
import time
from contextlib import nullcontext
from dataclasses import asdict
from math import inf, nan
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from cifar import results as outcome
from cifar.checkpoint import CheckpointError, Checkpoints, differences, require_one_folder
from cifar.config import Config, ConfigError, explain
from cifar.conversion import calibration_images, choose_thresholds, spiking_network
from cifar.data import DataError
from cifar.folder import digest_of_weights, keeping, owned, read_json, understanding, write_json
from cifar.graph import GraphError, why_not_recorded
from cifar.guard import TrainingError
from cifar.identity import (
    PIECES,
    ann_checkpoints,
    begin_piece,
    check_claim,
    claim,
    identity_of,
    identity_of_settings,
    pieces_in,
)
from cifar.launch import load_in_turn, make_fabric
from cifar.loggers import LoggerError, Loggers, require
from cifar.memory import keep_freed_memory
from cifar.output import conclude, say
from cifar.pipeline import evaluate, snn_stage, start_from, train_ann
from cifar.reading import flattened, load_config
from cifar.spent import Spent
from cifar.stage import Runtime
from cifar.termination import Termination
from cifar.training import Trainer
from onespike.conversion import ConversionError, CorruptModelError, SpikingNetwork
from onespike.files import write_atomically
from onespike.functional import BackendUnavailableError

STARTED = time.monotonic()
EXPECTED = (
    BackendUnavailableError,
    CheckpointError,
    ConfigError,
    CorruptModelError,
    ConversionError,
    DataError,
    GraphError,
    LoggerError,
    OSError,
    TrainingError,
)
"""What can go wrong and says all that its user needs to know; anything else shows where it happened."""


def run(arguments: argparse.Namespace, termination: Termination) -> None:
    """Read the settings, take the folder, and carry out in it what is left to do."""
    require(tensorboard=arguments.tensorboard, wandb=arguments.wandb)
    config = load_config(arguments.config, arguments.set)
    settings = identity_of(config)
    name = "-".join(path.stem for path in arguments.config)
    out: Path = arguments.out or Path("runs") / name
    fabric = make_fabric(arguments.device, config)
    why_not_recorded(config, fabric)  # or say now that it cannot be
    with owned(out) if fabric.is_global_zero else nullcontext():
        if fabric.is_global_zero:
            check_claim(out, settings, arguments.resume)
        fabric.barrier()
        finished = out / "metrics.json"
        require_one_folder(fabric, finished.name, finished.exists())
        if finished.exists():
            tell(fabric, table_of(finished, config))
        else:
            carry_out(arguments, name, out, config, fabric, termination)


def carry_out(  # noqa: PLR0915  (the pipeline, in its order)
    arguments: argparse.Namespace, name: str, out: Path, config: Config, fabric: Fabric, termination: Termination
) -> None:
    """Carry out the stages, each from where it was left."""
    settings, not_recorded = identity_of(config), why_not_recorded(config, fabric)
    start = None if arguments.start is None else SpikingNetwork.load(arguments.start)
    ann_kept = ann_checkpoints(arguments.ann, out, settings)
    began = time.monotonic()
    data = load_in_turn(config, arguments.data_root, fabric)
    loading = time.monotonic() - began
    machine = outcome.provenance(fabric)
    if fabric.is_global_zero:
        claim(out, settings)
        if changed := begin_piece(out / PIECES, machine):
            say(f"warning: other than in the last piece, so that numbers may differ in the last digits: {changed}")
    fabric.barrier()
    if not_recorded and config.cuda_graph == "auto":
        tell(fabric, f"training steps are launched kernel by kernel: {not_recorded}")
    tell(fabric, f"ready after {time.monotonic() - STARTED:.1f} s, the images loaded in {loading:.1f} s of them")
    until = {name: STARTED + 60 * minutes for name, minutes in arguments.until}
    runtime = Runtime(config, data, fabric, termination, arguments.save_every, not_recorded is None, until)
    loggers = (
        Loggers(out, settings, tensorboard=arguments.tensorboard, wandb=arguments.wandb) if fabric.is_global_zero else None
    )
    spent = Spent(fabric)

    def log(history: list[dict[str, Any]]) -> None:
        if loggers is not None:
            loggers.write(history)

    with spent("ann"):
        ann, ann_progress = train_ann(ann_kept, runtime, log, borrowed=arguments.ann is not None)
    with spent("conversion"):
        conversion = choose_thresholds(out / "conversion.json", ann, runtime)
        untrained = spiking_network(ann, conversion, runtime.data, config)
    with spent("snn"):
        network = spiking_network(ann, conversion, runtime.data, config)
        if start is not None:
            start_from(start, network)
        made_from = {"ANN": conversion["made_from"]["ANN"], "thresholds": conversion["sha256"]}
        made_from["start"] = "none" if start is None else digest_of_weights(start)
        checkpoints = Checkpoints(out / "snn", settings | {f"sha256 of {part}": value for part, value in made_from.items()})
        stage = snn_stage(ann, conversion, runtime, checkpoints, lambda history: log(ann_progress.history + history))
        snn_progress = Trainer(stage, network, runtime).fit()
        made_from["SNN"] = fabric.broadcast(digest_of_weights(network))
        if config.one_step == 1:  # of leaks and spike times it has learnt nothing
            images = calibration_images(data, config)
            if config.learn_leak:
                network.calibrate_leaks(images)
            network.calibrate_readout(images)
    with spent("evaluation"):
        results = evaluate(out / "results.json", ann, conversion, untrained, network, runtime, made_from)
    if loggers is None:
        return

    with keeping(out / "results.json"):
        saved = outcome.save(network, out / "model")
        outcome.draw(out, network, data.test, results, ann_progress.history + snn_progress.history)
    seconds = {**spent.seconds, "ann": ann_progress.seconds, "snn": snn_progress.seconds}
    about = {"name": name, "config": asdict(config), "threshold_scale": conversion["scale"]}
    cost = {"seconds": seconds, "joules": spent.joules, "provenance": machine, "pieces": pieces_in(out / PIECES)}
    metrics = {**about, "results": results, **cost}
    with keeping(out / "results.json"):
        if saved:
            write_atomically(out / "model" / "README.md", outcome.model_card(metrics).encode())
        write_json(out / "metrics.json", metrics, **made_from)
    loggers.close()
    say(outcome.table(results, config))
    say(f"\nresults, history, figures and the trained network are in {out}")


def tell(fabric: Fabric, text: str) -> None:
    """Print a line, on one process."""
    if fabric.is_global_zero:
        say(text)


def table_of(finished: Path, config: Config) -> str:
    """Return the closing table of a finished run of this config."""
    metrics = read_json(finished)
    with understanding(finished):
        different = differences(identity_of_settings(flattened(metrics["config"])), identity_of(config))
        table = outcome.table(metrics["results"], config)
    if different:
        raise CheckpointError(f"{finished} is of a run with other settings: {different}; delete it to have it made again")
    return table


def interval(text: str) -> float:
    """Read a number >= 0."""
    try:
        number = float(text)
    except ValueError:
        number = nan
    if not 0 <= number < inf:
        raise argparse.ArgumentTypeError(f"must be seconds >= 0, got {text!r}")
    return number


def minutes_of_a_stage(text: str) -> tuple[str, float]:
    """Read STAGE=MINUTES."""
    name, _, number = text.partition("=")
    try:
        minutes = float(number)
    except ValueError:
        minutes = nan
    if name not in ("ann", "snn") or not 0 <= minutes < inf:
        raise argparse.ArgumentTypeError(f"must be ann=MINUTES or snn=MINUTES, MINUTES >= 0, got {text!r}")
    return name, minutes


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=explain(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", nargs="+", type=Path, help="files of settings, each on top of those before it")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="settings on top of the file's"
    )
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="folder of the data set (default %(default)s)")
    parser.add_argument("--out", type=Path, help="folder for results (default: runs/ and the configs' names)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, if there is one")
    parser.add_argument("--ann", type=Path, metavar="RUN", help="take the ANN that another run trained by the same settings")
    parser.add_argument(
        "--start", type=Path, metavar="MODEL", help="let the SNN start from a saved one, such as the model/ of another run"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU when there is one")
    parser.add_argument(
        "--save-every", type=interval, default=300, metavar="SECONDS", help="between checkpoints (default %(default)s)"
    )
    parser.add_argument(
        "--until",
        nargs="+",
        type=minutes_of_a_stage,
        default=[],
        metavar="STAGE=MINUTES",
        help="end ann or snn so many minutes after the start, wherever it is, for good, and go on with what it has learnt",
    )
    parser.add_argument("--tensorboard", action="store_true", help="also log for TensorBoard")
    parser.add_argument("--wandb", metavar="PROJECT", help="also log to this project at Weights & Biases")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    keep_freed_memory()
    with Termination() as termination:
        run(arguments, termination)
    if torch.distributed.is_initialized():
        gc.collect()  # DDP's wrappers, which lie in cycles, hold the process group
        torch.distributed.destroy_process_group()  # its threads must not outlive the interpreter: that is a SIGABRT


if __name__ == "__main__":
    conclude(main, *EXPECTED, lost="--resume goes on from there")
