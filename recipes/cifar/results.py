"""What a run leaves behind: history, test results with where they come from, a table and figures."""

import csv
import io
import json
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from cifar.config import Config
from cifar.counts import counts_of, spike_time_counts, spike_times
from cifar.data import CLASSES, STATISTICS, Split
from cifar.evaluation import evaluation_batch
from cifar.figures import write_figures
from cifar.output import say
from cifar.reading import flattened
from cifar.seeds import seed_of
from onespike import plots
from onespike.conversion import SpikingNetwork
from onespike.files import write_atomically
from onespike.functional import Readout, predict
from onespike.functional.readout import RULES
from onespike.machine import commit, processor, versions
from onespike.metrics import SpikingActivity

MODULES = ("onespike", "torch", "torchvision", "spikingjelly", "lightning_fabric", "triton", "cupy")
SHOWN_IMAGES = 500


@torch.no_grad()
def evaluate(network: SpikingNetwork, test: Split, fabric: Fabric, activity_images: int) -> dict[str, Any]:
    """Measure accuracy and spike times over all test images, spikes and energy over the first `activity_images`."""
    network.eval()
    torch.manual_seed(seed_of("evaluation"))  # encoders may draw
    hits = torch.zeros(len(RULES) + network.T, device=fabric.device, dtype=torch.float64)
    times = torch.zeros(2, network.T, device=fabric.device, dtype=torch.float64)
    size = evaluation_batch(network, fabric.device)
    for first in range(fabric.global_rank * size, len(test), fabric.world_size * size):
        x, y = test.plain(slice(first, first + size))
        currents = network.currents(x)
        readout = network.readout(currents)
        guesses = [predict(readout, rule) for rule in RULES] + list(currents.cumsum(0).argmax(2))
        hits += torch.stack([(guess == y).sum() for guess in guesses])
        times += spike_times(readout.spike_time, y, network.T)
    shares = (100 * fabric.all_reduce(hits, reduce_op="sum") / len(test)).tolist()
    return {
        "accuracy": dict(zip(RULES, shares, strict=False)),
        "accuracy_at_step": shares[len(RULES) :],
        "spike_times": spike_time_counts(fabric.all_reduce(times, reduce_op="sum")),
        **counts_of(network, watch(network, test, activity_images)),
    }


@torch.no_grad()
def watch(network: SpikingNetwork, split: Split, images: int) -> SpikingActivity:
    """Count the spikes of a network over the first images of a split."""
    network.eval()
    torch.manual_seed(seed_of("evaluation"))
    images, size = min(images, len(split)), evaluation_batch(network, split.labels.device)
    with SpikingActivity(network) as activity:
        for first in range(0, images, size):
            network(split.plain(slice(first, min(first + size, images)))[0])
    return activity


def save(network: SpikingNetwork, folder: Path) -> bool:
    """Save a network; say so where it is made of parts that have no file format, and return whether it was saved."""
    try:
        network.to(memory_format=torch.contiguous_format).save(folder)
    except TypeError as error:
        say(f"no {folder} is written, the weights are in the checkpoint of the SNN alone: {error}")
        return False
    return True


def provenance(fabric: Fabric) -> dict[str, Any]:
    """Return machine, versions and commit of this run."""
    clone = commit(Path(__file__).parent, "..", "../../plugin")
    return {
        "device": torch.cuda.get_device_name(fabric.device) if fabric.device.type == "cuda" else processor(),
        "processes": fabric.world_size,
        "threads": torch.get_num_threads(),
        "precision": fabric.strategy.precision.precision,
        "python": platform.python_version(),
        "versions": versions(*MODULES),
        "commit": clone.sha,
        "changed": clone.changed,
    }


def write_history(folder: Path, history: list[dict[str, Any]]) -> None:
    """Write the epochs as JSON lines and, a column for each layer, as CSV."""
    write_atomically(folder / "history.jsonl", "".join(json.dumps(entry) + "\n" for entry in history).encode())
    rows = [flattened(entry) for entry in history]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(folder / "history.csv", text.getvalue().encode())


def table(results: dict[str, Any], config: Config) -> str:
    """Lay out the closing table."""
    T = config.T

    def row(label: str, *cells: float | str | None) -> str:
        texts = ["" if cell is None else cell if isinstance(cell, str) else f"{cell:.2f}" for cell in cells]
        return f"{label:<52}" + "".join(f"{text:>11}" for text in texts)

    def spiking(label: str, result: dict[str, Any]) -> str:
        return row(label, *result["accuracy"].values(), result["spikes_per_neuron"])

    lines = [row("test accuracy, %", *RULES, "spikes"), row("ANN", results["ann"]["accuracy"])]
    if "plain" in results:
        images = f"{config.conversion_images} images"
        lines.append(row(f"converted, T = {config.conversion_T}, direct, multi-spike, {images}", results["plain"]["accuracy"]))
    lines += [spiking(f"converted, T = {T}, untrained", results["converted"]), spiking(f"trained, T = {T}", results["trained"])]
    lines += ["  (potential: argmax U; combined: argmax U - T; time: argmin T; spikes per neuron and image)", ""]
    lines.append(row("test accuracy, %, by potential, when read at", *(f"t = {t + 1}" for t in range(T))))
    lines.append(row("trained", *results["trained"]["accuracy_at_step"]))
    lines += ["", row("compute energy per image", "ANN, mJ", "SNN, mJ", "ratio")]
    for technology, reports in results["trained"]["energy"].items():
        for accounting, report in reports.items():
            ann, snn = report["ann_pj"] / 1e9, report["snn_pj"] / 1e9
            lines.append(row(f"{technology}, {accounting} accounting", f"{ann:.4f}", f"{snn:.4f}", f"{ann / snn:.1f}x"))
    return "\n".join(lines)


def model_card(metrics: dict[str, Any]) -> str:
    """Describe a trained network for those who load it, in Markdown."""
    config, trained, source = metrics["config"], metrics["results"]["trained"], metrics["provenance"]
    mean, std = STATISTICS[config["dataset"]]
    report = trained["energy"]["int32_45nm"]["paper"]
    minutes = sum(metrics["seconds"].values()) / 60
    versions = ", ".join(f"{name} {version}" for name, version in source["versions"].items())
    accuracy, spikes = trained["accuracy"]["potential"], trained["spikes_per_neuron"]
    return "\n".join(
        [
            f"# {metrics['name']}",
            "",
            f"{config['model']} at {config['width']:g} times its width, {config['dataset']}, T = {config['T']}, "
            f"encoder={config['encoder']}, single_spike={config['single_spike']}; `recipes/train.py`, seed {config['seed']}.",
            "",
            "| on the test images | accuracy, % | spikes per neuron |",
            "|---|---|---|",
            f"| ANN | {metrics['results']['ann']['accuracy']:.2f} | |",
            f"| this network, by potential | {accuracy:.2f} | {spikes:.3f} |",
            f"| the same, read at t = 1 | {trained['accuracy_at_step'][0]:.2f} | |",
            "",
            f"- Compute energy: {report['ann_pj'] / report['snn_pj']:.1f} times less than the ANN's, by the paper's accounting "
            "(32-bit integers, 45 nm, without memory access).",
            f"- Input: images [N, 3, 32, 32] in [0, 1], normalised by mean {mean} and standard deviation {std}.",
            f"- Data: the training images of {config['dataset']}, {config['validation']} of them held out for choices. "
            "The test set was read once.",
            f"- For research: it knows {CLASSES[config['dataset']]} classes and nothing else; shifted images were not tried.",
            f"- {minutes:.0f} minutes on {source['device']}, {source['threads']} threads, {source['precision']}; {versions}; "
            f"commit {source['commit']}.",
            "- Licence of the weights: Apache-2.0.",
            "",
        ]
    )


def draw(folder: Path, network: SpikingNetwork, test: Split, results: dict[str, Any], history: list[dict[str, Any]]) -> None:
    """Write the figures as PNG files."""
    x, y = test.plain(slice(0, SHOWN_IMAGES))
    layer = list(network.nodes())[-1]
    s_seq, readout = spikes_of(network, x, layer)
    trained = results["trained"]
    energies = {
        technology: {"ANN": reports["paper"]["ann_pj"], **{f"SNN, {a}": report["snn_pj"] for a, report in reports.items()}}
        for technology, reports in trained["energy"].items()
    }
    figures: dict[str, Callable[..., Any]] = {
        "raster": partial(plots.raster, s_seq),
        "spike_times": partial(plots.spike_time_histogram, readout.spike_time, T=network.T, correct=y),
        "activity": partial(
            plots.activity_bars, {"converted": results["converted"]["activity"], "trained": trained["activity"]}
        ),
        "energy": partial(plots.energy_bars, energies),
    }
    by_stage = {stage: [entry for entry in history if entry["stage"] == stage] for stage in ("ann", "snn")}
    for stage, entries in by_stage.items():
        if entries:
            curves = {part: [entry[f"{part}_accuracy"] for entry in entries] for part in ("training", "validation")}
            figures[f"{stage}_accuracy"] = partial(plots.training_curves, curves)
            figures[f"{stage}_loss"] = partial(curve, {"training": [entry["loss"] for entry in entries]}, "loss")
    if snn := by_stage["snn"]:
        for name in ("activity", "leak", "threshold"):
            layers = {layer: [entry[name][layer] for entry in snn] for layer in snn[0][name]}
            figures[f"{name}_by_epoch"] = partial(curve, layers, {"activity": "spikes per neuron"}.get(name, name))
    write_figures(folder, figures)


def curve(series: dict[str, list[float]], label: str, *, ax: Any) -> None:
    """Draw values over the epochs, a line for each series."""
    for name, values in series.items():
        ax.plot(range(1, len(values) + 1), values, marker=".", label=name)
    ax.set(xlabel="epoch", ylabel=label)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.ticklabel_format(axis="y", useOffset=False)  # leaks differ from 1 in the fourth digit
    ax.spines[["top", "right"]].set_visible(False)
    if len(series) > 1:
        ax.legend(frameon=False, title="layer", loc="upper left", bbox_to_anchor=(1, 1))


@torch.no_grad()
def spikes_of(network: SpikingNetwork, x: Tensor, layer: str) -> tuple[Tensor, Readout]:
    """Return the spikes of one layer, [T, N, *], whatever their size as 1, and the readout."""
    seen: list[Tensor] = []
    handle = network.nodes()[layer].register_forward_hook(lambda *call: seen.append(call[-1]))
    readout = network.eval()(x)
    handle.remove()
    return (seen[0] != 0).to(seen[0].dtype), readout
