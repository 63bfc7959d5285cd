"""Train a single-spike, hybrid-encoded SNN on real handwritten digits, from ANN to energy table, in a minute on two cores.

    python recipes/quickstart.py [--seed 0] [--device auto] [--epochs 20] [--out runs/quickstart]

The data are scikit-learn's bundled digits (1,797 images of 8 x 8 pixels; no download). Steps: train a bias-free ANN, find its
thresholds, convert it, train the spiking network at T = 5, and read the held-out test split once, at the end. Beside it a
control is trained that sees the analogue image at t = 1 and then nothing: the difference is what the input spikes contribute.
"""

import argparse
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from tqdm import tqdm

import onespike
from cifar.checkpoint import CheckpointError, require_space
from cifar.counts import counts_of, spike_time_counts, spike_times
from cifar.figures import write_figures
from cifar.folder import keeping, owned, write_json
from cifar.memory import keep_freed_memory
from cifar.output import conclude, say
from cifar.termination import Termination
from onespike import plots
from onespike.conversion import SpikingNetwork, calibrate_thresholds, convert
from onespike.functional import predict
from onespike.metrics import SpikingActivity
from onespike.spikingjelly import DirectEncoder, HybridCrossEntropyLoss, HybridEncoder, SingleSpikeLIFNode, project_net

RULES = ("potential", "combined", "time")
SPACE = 2 * 2**20
"""Bytes that the results take, at most."""
Split = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Config:
    """Every setting of a run."""

    seed: int = 0
    T: int = 5  # time steps
    epochs: int = 20  # of each spiking network
    ann_epochs: int = 30
    batch_size: int = 32  # images
    lr: float = 3e-3  # Adam at its start, falling to 0 along a cosine
    dropout: float = 0.1  # after the hidden fully-connected layer
    threshold_scale: float = 0.4
    beta: float = 0.2  # half-width of the spike time's surrogate, as a share of V_L
    conversion_T: int = 200  # steps of the plain conversion


def load_data(device: torch.device) -> tuple[Split, Split, Split, float, float]:
    """Return training, validation and test images [N, 1, 8, 8] and labels [N], normalised by the training mean and std.

    The split is the same for every seed.
    """
    pixels, digits = load_digits(return_X_y=True)
    x = torch.tensor(pixels, dtype=torch.float32, device=device).view(-1, 1, 8, 8) / 16
    y = torch.tensor(digits, dtype=torch.int64, device=device)
    rest, test = train_test_split(range(len(y)), test_size=360, stratify=digits, random_state=0)
    train, validation = train_test_split(rest, test_size=137, stratify=digits[rest], random_state=0)
    mean, std = x[train].mean().item(), x[train].std().item()
    x = (x - mean) / std
    return (x[train], y[train]), (x[validation], y[validation]), (x[test], y[test]), mean, std


def build_ann(dropout: float) -> nn.Sequential:
    """Build a bias-free convolutional network for images of 8 x 8 pixels."""
    ann = nn.Sequential(
        nn.Conv2d(1, 48, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(48, 96, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(96 * 4, 192, bias=False),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(192, 10, bias=False),
    )
    for module in ann:
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return ann


def shift(x: Tensor) -> Tensor:
    """Move each image by up to one pixel up or down and left or right, filling with background."""
    padded = F.pad(x, (1, 1, 1, 1), value=x.min().item())
    rows, columns = torch.randint(3, (2, len(x), 1)).to(x.device) + torch.arange(8, device=x.device)
    image = torch.arange(len(x), device=x.device).view(-1, 1, 1, 1)
    return padded[image, 0, rows[:, None, :, None], columns[:, None, None, :]]


def train(
    model: nn.Module,
    loss_function: Callable[[Any, Tensor], Tensor],
    epochs: int,
    config: Config,
    training: Split,
    validation: Split,
    label: str,
) -> list[float]:
    """Train `model` in place; return the validation accuracy after each epoch, in percent."""
    x, y = training
    optimizer = torch.optim.Adam(model.parameters(), config.lr)
    steps = epochs * -(-len(y) // config.batch_size)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    history: list[float] = []
    bar = tqdm(range(epochs), desc=label, unit="epoch", disable=None)
    for _ in bar:
        model.train()
        for batch in torch.randperm(len(y)).to(y.device).split(config.batch_size):
            loss = loss_function(model(shift(x[batch])), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            project_net(model)
        history.append(accuracy(model, validation))
        bar.set_postfix(loss=f"{loss.item():.3f}", validation=f"{history[-1]:.1f} %")
    return history


@torch.no_grad()
def accuracy(model: nn.Module, split: Split) -> float:
    """Return the accuracy of an ANN, or of a spiking network by its potential, in percent."""
    x, y = split
    output = model.eval()(x)
    return percent((output if isinstance(output, Tensor) else output.potential).argmax(1) == y)


@torch.no_grad()
def evaluate(network: SpikingNetwork, test: Split) -> dict[str, Any]:
    """Measure accuracy by rule and by step, spikes and energy of a spiking network."""
    x, y = test
    network.eval()
    with SpikingActivity(network) as activity:
        x_seq = torch.cat([network.currents(batch) for batch in x.split(60)], 1)
    readout = network.readout(x_seq)
    return {
        "accuracy": {rule: percent(predict(readout, rule) == y) for rule in RULES},
        "accuracy_at_step": [percent(v.argmax(1) == y) for v in x_seq.cumsum(0)],
        "spike_times": spike_time_counts(spike_times(readout.spike_time, y, network.T)),
        **counts_of(network, activity),
    }


@torch.no_grad()
def record(network: SpikingNetwork, x: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Return the spikes and the membrane potentials of one layer, each [T, N, *]."""
    node, spikes = network.nodes()[name], []
    handle = node.register_forward_hook(lambda *call: spikes.append(call[-1]))
    node.store_v_seq = True
    network.eval()(x)
    v_seq, node.store_v_seq = node.v_seq, False
    handle.remove()
    return spikes[0], v_seq


def percent(hits: Tensor) -> float:
    """Return the share of True, in percent."""
    return 100 * hits.double().mean().item()


def table(results: dict[str, Any], config: Config) -> str:
    """Lay out the closing table."""

    def row(label: str, *cells: float | str, form: str = ".1f") -> str:
        return f"{label:<56}" + "".join(f"{cell if isinstance(cell, str) else format(cell, form):>11}" for cell in cells)

    spiking = {
        "plain": f"converted, T = {config.conversion_T}, direct input, any number of spikes",
        "converted": f"converted, T = {config.T}, hybrid input, one spike, untrained",
        "trained": f"trained, T = {config.T}, hybrid input, one spike",
        "control": "control: trained, analogue at t = 1, then zeros",
    }
    lines = ["", row("test accuracy, %", *RULES, "spikes"), row("ANN", results["ann"]["accuracy"])]
    for key, label in spiking.items():
        result = results[key]
        lines.append(row(label, *result["accuracy"].values(), f"{result['spikes_per_neuron']:.2f}"))
    lines += ["  (potential: argmax U; combined: argmax U - T; time: argmin T; spikes per neuron and image)", ""]
    lines.append(row("test accuracy, %, by potential, when read at", *(f"t = {t + 1}" for t in range(config.T))))
    lines += [row(spiking[key], *results[key]["accuracy_at_step"]) for key in ("converted", "trained", "control")]
    lines += ["", row("compute energy per image, trained network", "ANN, nJ", "SNN, nJ", "ratio")]
    for technology, reports in results["trained"]["energy"].items():
        for accounting, report in reports.items():
            ann, snn = report["ann_pj"] / 1e3, report["snn_pj"] / 1e3
            lines.append(row(f"{technology}, {accounting} accounting", ann, snn, f"{ann / snn:.1f}x"))
    lines += ["", f"most spikes of any hidden neuron: {results['trained']['most_spikes_of_a_neuron']}"]
    return "\n".join(lines)


def draw(folder: Path, network: SpikingNetwork, test: Split, results: dict[str, Any], curves: dict[str, list[float]]) -> None:
    """Write the figures as PNG files."""
    x, y = test
    layer = next(iter(network.nodes()))
    s_seq, v_seq = record(network, x[:1], layer)
    one_per_step = [int(spikes.argmax()) for spikes in s_seq if spikes.any()]
    with torch.no_grad():
        spike_time = network(x).spike_time
    energies = {
        technology: {"ANN": reports["paper"]["ann_pj"], **{f"SNN, {a}": r["snn_pj"] for a, r in reports.items()}}
        for technology, reports in results["trained"]["energy"].items()
    }
    activities = {"hybrid": results["trained"]["activity"], "analogue, then zeros": results["control"]["activity"]}
    threshold = network.nodes()[layer].v_threshold
    figures = {
        "raster": partial(plots.raster, s_seq),
        "membrane": partial(plots.membrane_traces, v_seq, threshold, s_seq=s_seq, neurons=one_per_step),
        "spike_times": partial(plots.spike_time_histogram, spike_time, T=network.T, correct=y),
        "activity": partial(plots.activity_bars, activities),
        "energy": partial(plots.energy_bars, energies),
        "training": partial(plots.training_curves, curves),
    }
    write_figures(folder, figures)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=Config.seed, help="of weights, batches and dropout (default %(default)s)")
    parser.add_argument("--device", default="auto", help='"auto" (a GPU when there is one), "cpu", "cuda", "cuda:1" ...')
    parser.add_argument("--epochs", type=int, default=Config.epochs, help="of each spiking network (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="folder for results (default %(default)s)")
    arguments = parser.parse_args()
    if arguments.epochs < 0:
        parser.error(f"--epochs must be >= 0, got {arguments.epochs}")
    if not 0 <= arguments.seed < 2**63:
        parser.error(f"--seed must be in [0, 2^63), got {arguments.seed}")
    if arguments.device == "auto":
        arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=arguments.device).item()
    except (RuntimeError, AssertionError) as error:  # as torch says that it was built without CUDA
        parser.error(f"--device must be one that torch can use here, got {arguments.device!r}: {str(error).splitlines()[0]}")
    return arguments


def run(arguments: argparse.Namespace) -> None:
    """Train, measure, and write the numbers before all else."""
    config, device, started = Config(seed=arguments.seed, epochs=arguments.epochs), torch.device(arguments.device), time.time()
    keep_freed_memory()
    torch.set_num_threads(1)  # such small layers gain nothing from more, and the result does not depend on the number of cores
    training, validation, test, mean, std = load_data(device)
    calibration = training[0][:256]
    backend = "auto" if device.type == "cuda" else "torch"  # so short a run does not earn back what compiling takes

    torch.manual_seed(config.seed)
    ann = build_ann(config.dropout).to(device)
    curves = {"ANN": train(ann, F.cross_entropy, config.ann_epochs, config, training, validation, "ANN")}
    thresholds = calibrate_thresholds(ann, calibration)

    def hybrid(temporal: bool) -> SpikingNetwork:
        encoder = HybridEncoder.for_normalized(config.T, mean, std, temporal=temporal)
        network = convert(
            ann,
            calibration,
            threshold_scale=config.threshold_scale,
            thresholds=thresholds,
            encoder=encoder,
            neuron=partial(SingleSpikeLIFNode, backend=backend),
        )
        network.readout.beta = config.beta * network.readout.v_threshold.item()
        return network

    plain = convert(
        ann,
        calibration[:64],
        threshold_scale=1,
        thresholds=thresholds,
        encoder=DirectEncoder(config.conversion_T),
        neuron=partial(SingleSpikeLIFNode, single_spike=False, backend=backend),
    )
    networks = {"plain": plain, "converted": hybrid(True), "trained": hybrid(True), "control": hybrid(False)}
    for key, label in (("trained", "SNN"), ("control", "control")):
        torch.manual_seed(config.seed)
        loss = HybridCrossEntropyLoss()
        curves[label] = train(networks[key], loss, config.epochs, config, training, validation, label)

    trained = networks["trained"]
    results: dict[str, Any] = {"ann": {"accuracy": accuracy(ann, test)}}
    results |= {key: evaluate(network, test) for key, network in networks.items()}
    layers = trained.nodes()
    results["trained"]["most_spikes_of_a_neuron"] = max(int(record(trained, test[0], n)[0].sum(0).max()) for n in layers)
    environment = {"onespike": onespike.__version__, "torch": torch.__version__, "python": platform.python_version()}
    environment |= {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()}
    metrics = {"results": results, "validation_accuracy": curves, "environment": environment, "seconds": time.time() - started}
    write_json(arguments.out / "config.json", asdict(config))
    write_json(arguments.out / "metrics.json", metrics)
    try:
        with keeping(arguments.out / "metrics.json"):
            trained.save(arguments.out / "model")
            draw(arguments.out, trained, test, results, curves)
    finally:
        say(table(results, config))
    say(f"results, figures and the trained network are in {arguments.out} ({metrics['seconds']:.0f} s)")


def main() -> None:
    arguments = parse_arguments()
    with Termination("begin again, the run was not over"), owned(arguments.out):
        require_space(arguments.out, SPACE, "results")
        run(arguments)


if __name__ == "__main__":
    conclude(main, CheckpointError, lost="what it found is in --out")
