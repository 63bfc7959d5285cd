"""Lay out finished runs as the paper does: Table I, accuracy by step, and the figures of activity, spikes and energy.

    python recipes/report.py runs/cifar10_vgg16_fast runs/cifar10_vgg16_fast-direct --out report

Runs that differ in nothing but their seed make one row, with the mean and the range over the seeds. The report is a Markdown
file with three figures beside it.
"""

import argparse
import json
from dataclasses import dataclass
from functools import partial, reduce
from math import isfinite, isnan, nan
from operator import getitem
from pathlib import Path
from typing import Any

from cifar.checkpoint import CheckpointError
from cifar.figures import write_figures
from cifar.folder import keeping, parse
from cifar.output import conclude, say
from cifar.results import flat
from onespike import plots
from onespike.conversion.storage import write_atomically

PAPER = {
    ("cifar10", "vgg6"): (90.22, 89.98, 88.89),
    ("cifar10", "vgg11"): (91.02, 91.77, 90.66),
    ("cifar10", "vgg16"): (93.24, 93.16, 91.41),
    ("cifar100", "vgg16"): (71.02, 70.38, 66.46),
}
"""Table I: accuracy of the ANN, converted at T = 200, trained at T = 5, in percent, by data set and full-width network."""

NETWORK = {"T": 5, "encoder": "hybrid", "single_spike": True, "width": 1, "hidden": 4096}
"""The settings of the networks in Table I."""


class ReportError(ValueError):
    """A run cannot be reported."""


@dataclass
class Row:
    """Runs that differ in their seed alone."""

    name: str
    config: dict[str, Any]
    results: list[dict[str, Any]]
    provenance: list[dict[str, Any]]
    seconds: list[float]


def read_runs(runs: list[Path]) -> list[Row]:
    """Read finished runs, folders or their metrics.json by whatever name, and gather those of the same settings.

    Raises:
        ReportError: there is no finished run, or a seed comes twice.
    """
    rows: dict[str, Row] = {}
    seeds = set()
    for run in runs:
        path = run / "metrics.json" if run.is_dir() else run
        metrics = read_metrics(run, path)
        if missing := {"name", "config", "results", "provenance", "seconds"} - set(metrics):
            raise ReportError(f"{path} is not what a run of recipes/train.py leaves: it lacks {', '.join(sorted(missing))}")
        try:
            one = row_of(metrics)
            markdown([one]), series([one])  # whatever is missing or no number in it comes to light
            key, seed = json.dumps(one.config, sort_keys=True), int(metrics["config"]["seed"])
        except Exception as error:  # as many as there are kinds of nonsense
            raise ReportError(f"{path} is not what a run of recipes/train.py leaves ({error!r}): delete it") from error
        if (key, seed) in seeds:
            raise ReportError(f"{run} repeats seed {seed} of {one.name}")
        seeds.add((key, seed))
        row = rows.setdefault(key, Row(one.name, one.config, [], [], []))
        row.results += one.results
        row.provenance += one.provenance
        row.seconds += one.seconds
    for row, name in [(row, distinct_name(row, list(rows.values()))) for row in rows.values()]:
        row.name = name
    return list(rows.values())


def read_metrics(run: Path, path: Path) -> dict[str, Any]:
    """Read a metrics.json."""
    try:
        return parse(path, f"{run} holds no finished run")
    except CheckpointError as error:
        raise ReportError(str(error)) from error


def row_of(metrics: dict[str, Any]) -> Row:
    """Make a row of one run."""
    config = {name: value for name, value in metrics["config"].items() if name != "seed"}
    seconds = sum(metrics["seconds"].values())
    return Row(str(metrics["name"]), config, [metrics["results"]], [metrics["provenance"]], [seconds])


def distinct_name(row: Row, rows: list[Row]) -> str:
    """Return the row's name, with the settings in which it differs from others of that name."""
    own, others = flat(row.config), [flat(other.config) for other in rows if other.name == row.name]
    names = dict.fromkeys(key for config in [own, *others] for key in config)  # versions of the recipe have different settings
    differing = [f"{key}={own.get(key)}" for key in names if any(other.get(key) != own.get(key) for other in others)]
    return f"{row.name} ({', '.join(differing)})" if differing else row.name


def spread(values: list[float], digits: int = 2) -> str:
    """Return a mean, and the range where there are several values."""
    mean = f"{sum(values) / len(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def markdown(rows: list[Row]) -> str:
    """Write the tables, and refer to the figures."""
    tables = [*accuracy_table(rows), "", *step_table(rows), "", *energy_table(rows), ""]
    figures = [f"![{name}]({name}.png)" for name in ("activity", "spikes", "energy")]
    return "\n".join([*tables, *provenance_lines(rows), "", *figures, ""])


def accuracy_table(rows: list[Row]) -> list[str]:
    """Table I, with the paper's numbers beside those of the same network."""
    lines = [
        "| run | seeds | ANN, % | converted, % | trained, %: potential | combined | time | spikes per neuron | paper, % |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        trained = [result["trained"] for result in row.results]
        plain = [result["plain"]["accuracy"] for result in row.results if "plain" in result]
        how = f"at T = {row.config['conversion_T']}, {row.config['conversion_images']} images"
        converted = f"{spread(plain)} {how}" if plain else ""
        paper = PAPER.get((row.config["dataset"], row.config["model"])) if row.config.items() >= NETWORK.items() else None
        cells = [
            row.name,
            str(len(row.results)),
            spread([result["ann"]["accuracy"] for result in row.results]),
            converted,
            *(spread([result["accuracy"][rule] for result in trained]) for rule in ("potential", "combined", "time")),
            spread([result["spikes_per_neuron"] for result in trained], 3),
            " / ".join(f"{value:.2f}" for value in paper) if paper else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def step_table(rows: list[Row]) -> list[str]:
    """Accuracy of the trained networks when they are read before the last step."""
    steps = max(len(result["trained"]["accuracy_at_step"]) for row in rows for result in row.results)
    lines = [
        f"| accuracy, %, read at | {' | '.join(f't = {t + 1}' for t in range(steps))} |",
        "|---" * (steps + 1) + "|",
    ]
    for row in rows:
        by_step = zip(*(result["trained"]["accuracy_at_step"] for result in row.results), strict=True)
        cells = [spread(list(values)) for values in by_step]
        lines.append(f"| {' | '.join([row.name, *cells, *[''] * (steps - len(cells))])} |")
    return lines


def energy_table(rows: list[Row]) -> list[str]:
    """How many times less compute energy than the ANN the trained networks take."""
    energy = rows[0].results[0]["trained"]["energy"]
    kinds = [(technology, accounting) for technology, by in energy.items() for accounting in by]
    lines = [
        f"| energy of the ANN / of the SNN | {' | '.join(f'{technology}, {accounting}' for technology, accounting in kinds)} |",
        "|---" * (len(kinds) + 1) + "|",
    ]
    for row in rows:
        cells = []
        for technology, accounting in kinds:
            reports = [result["trained"]["energy"][technology][accounting] for result in row.results]
            cells.append(spread([report["ann_pj"] / report["snn_pj"] for report in reports], 1))
        lines.append(f"| {' | '.join([row.name, *cells])} |")
    return lines


def provenance_lines(rows: list[Row]) -> list[str]:
    """Where the numbers come from, a line for each row."""
    lines = []
    for row in rows:
        machine = row.provenance[0]
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        commits = ", ".join(
            sorted({f"{one['commit'] or 'unknown'}"[:7] + ("+" if one["changed"] else "") for one in row.provenance})
        )
        minutes = spread([seconds / 60 for seconds in row.seconds], 1)
        lines.append(
            f"{row.name}: {machine['device']}, {machine['processes']} x {machine['threads']} threads, "
            f"{machine['precision']}, {minutes} minutes a seed; {versions}; commit {commits}.  "
        )
    return lines


def draw(folder: Path, rows: list[Row]) -> None:
    """Write the figures after the paper's Figs. 3 to 5: spikes by layer, spikes and energy."""
    activity, spikes, ratios = series(rows)
    figures = {
        "activity": partial(grid, activity, "spikes per neuron and image, by layer"),
        "spikes": partial(bars, spikes, "spikes per neuron and image", "%.3f"),
        "energy": partial(bars, ratios, "compute energy of the ANN / of the SNN, paper's accounting, int32, 45 nm", "%.1f"),
    }
    write_figures(folder, figures, (9, 1 + 0.4 * len(rows)))


def series(rows: list[Row]) -> tuple[dict[str, dict[str, float]], dict[str, float], dict[str, float]]:
    """Return by row what the figures show, each the mean over the seeds: spikes by layer, spikes, and the energy's ratio."""
    layers = {row.name: list(row.results[0]["trained"]["activity"]) for row in rows}
    activity = {row.name: {layer: mean(row, "activity", layer) for layer in layers[row.name]} for row in rows}
    spikes = {row.name: mean(row, "spikes_per_neuron") for row in rows}
    report = ("energy", "int32_45nm", "paper")
    ratios = {row.name: mean(row, *report, "ann_pj") / mean(row, *report, "snn_pj") for row in rows}
    return activity, spikes, ratios


def mean(row: Row, *path: str) -> float:
    """Return the mean over a row's seeds of the finite number that lies at this path in the results of the trained network."""
    found = sum(reduce(getitem, path, result["trained"]) for result in row.results) / len(row.results)
    if not isfinite(found):
        raise ValueError(f"{'.'.join(path)} must be finite, got {found}")
    return found


def grid(values: dict[str, dict[str, float]], label: str, *, ax: Any) -> None:
    """Draw a line of cells for each run, a cell for each layer, the darker the higher its value."""
    named = dict.fromkeys(layer for line in values.values() for layer in line)
    layers = sorted(named, key=lambda name: int(name) if name.isdigit() else 0)  # forward order in networks of any depth
    cells = [[line.get(layer, nan) for layer in layers] for line in values.values()]
    image = ax.imshow(cells, cmap="Blues", vmin=0, aspect="auto")
    for y, line in enumerate(cells):
        for x, value in enumerate(line):
            if not isnan(value):
                ax.text(x, y, f"{value:.2f}", ha="center", va="center", color="white" if image.norm(value) > 0.6 else "black")
    ax.set_xticks(range(len(layers)), layers)
    ax.set_yticks(range(len(values)), list(values))
    ax.set_xlabel(label)


def bars(values: dict[str, float], label: str, form: str, *, ax: Any) -> None:
    """Draw a bar for each run, the first on top."""
    drawn = ax.barh(list(values), list(values.values()), color=plots.PALETTE[0], height=0.6)
    ax.bar_label(drawn, fmt=form, padding=2)
    ax.invert_yaxis()
    ax.set_xlabel(label)
    ax.margins(x=0.1)
    ax.spines[["top", "right"]].set_visible(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs, or copies of their metrics.json")
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder for the report (default %(default)s)")
    arguments = parser.parse_args()
    rows = read_runs(arguments.runs)
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = markdown(rows)
    write_atomically(arguments.out / "report.md", text.encode())
    try:
        with keeping(arguments.out / "report.md"):
            draw(arguments.out, rows)
    finally:
        say(text)


if __name__ == "__main__":
    conclude(main, ReportError, CheckpointError, lost="the report is in --out")
