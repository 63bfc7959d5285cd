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
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from math import inf, nan
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from omegaconf import OmegaConf
from torch import nn

from cifar import results as outcome
from cifar.checkpoint import CheckpointError, Checkpoints, differences, require_one_folder
from cifar.config import Config, ConfigError, explain, first_line, load_config
from cifar.conversion import blocked, calibration_images, choose_thresholds, describe, health, plain_accuracy, spiking_network
from cifar.data import IMAGE, Data, DataError, load_data
from cifar.folder import LOCK, digest_of_weights, keeping, owned, read_json, understanding, write_json
from cifar.graph import GraphError, why_not_recorded
from cifar.guard import TrainingError
from cifar.loggers import LoggerError, Loggers, require
from cifar.loss import Loss, snn_loss, without_images
from cifar.memory import keep_freed_memory
from cifar.output import conclude, say
from cifar.spent import Spent
from cifar.termination import Termination
from cifar.training import Progress, Runtime, Stage, Trainer, accuracy, seed_of
from onespike.conversion import ConversionError, CorruptModelError, SpikingNetwork
from onespike.conversion.storage import write_atomically
from onespike.functional import BackendUnavailableError
from onespike.functional.backends import resolve_backend
from onespike.models import resnet, vgg
from onespike.models.resnet import BLOCKS

STARTED = time.monotonic()
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
        different = differences(identity_of_settings(outcome.flat(metrics["config"])), identity_of(config))
        table = outcome.table(metrics["results"], config)
    if different:
        raise CheckpointError(f"{finished} is of a run with other settings: {different}; delete it to have it made again")
    return table


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
    return differences(outcome.flat(before[-1]), outcome.flat(now)) if before else ""


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


def identity_of(config: Config) -> dict[str, Any]:
    """Return the settings that a run's numbers depend on, by dotted name."""
    return identity_of_settings(outcome.flat(asdict(config)))


def identity_of_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Leave out of a config's settings those that change no number, or nothing of what was always so."""
    return {name: value for name, value in settings.items() if name not in SAME_NUMBERS and LATER.get(name) != value}


def make_fabric(device: str, config: Config) -> Fabric:
    """Launch Fabric on this process, or on all that torchrun started, once it is clear that the device can do its part."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailableError("--device cuda needs a CUDA device: torch.cuda.is_available() is False")
    resolve_backend(config.backend, device)  # or say now why it cannot run
    precision: Any = config.precision
    if precision == "auto":
        precision = "bf16-mixed" if has_bf16_units(device) else "32-true"
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and "WORLD_SIZE" not in os.environ:
        raise ConfigError("srun must start torchrun, once on each node: several tasks of train.py do not know each other")
    processes, local = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    fabric = Fabric(
        accelerator=device,
        devices=local,
        num_nodes=processes // local,
        strategy="ddp" if processes > 1 else "auto",
        precision=precision,
    )
    fabric.launch()
    torch.backends.cudnn.deterministic = not config.cudnn_benchmark  # so that a run can go on to the last bit
    torch.backends.cudnn.benchmark = config.cudnn_benchmark
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = config.tf32
    return fabric


def has_bf16_units(device: str) -> bool:
    """Whether bfloat16 is fast: on GPUs that compute with it, and on processors with matrix units (AMX)."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()


def load_in_turn(config: Config, root: Path, fabric: Fabric) -> Data:
    """Load the data: first one process, then one on each machine, then the others, as they may have to be downloaded."""
    own = 0 if fabric.is_global_zero else 1 if fabric.local_rank == 0 else 2
    for turn in range(3):
        if turn == own:
            data = load_data(config, root, fabric.device)
        fabric.barrier()
    return data


BEGIN_AGAIN = "delete it to go on by the settings given now, which the checkpoints know"


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
