"""Figures of the rows of one setting, each with the table of what it shows."""

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.ticker import FormatStrFormatter, NullFormatter, NullLocator

from cifar.figures import plt, write_figure
from cifar.report.paper import CEILING, VARIANTS
from cifar.report.rows import Row
from cifar.report.tables import Seeds, Table, layer_table, ratio, spikes_of
from onespike.metrics.energy import ACCOUNTINGS, TECHNOLOGIES
from onespike.plots import PALETTE

WIDTH, HEIGHT = 4.6, 3.0
"""In inches: narrow enough that a phone shrinks it by a fifth at most."""
MARKERS = "osD^vP*X"
LINES = ("-", "--", ":", "-.")
HOLLOW = {"markerfacecolor": "white"}


@dataclass(frozen=True)
class Figure:
    """A figure: what it shows, and how it is drawn on Axes; without a drawing, why there is none."""

    table: Table
    draw: Callable[[Any], None] | None
    height: float = HEIGHT
    legend_columns: int = 1

    @property
    def name(self) -> str:
        """The file's name."""
        return self.table.name


def figures_of(rows: list[Row]) -> list[Figure]:
    """Return the figures of the rows of one setting."""
    makers = (activity_figure, spike_figure, energy_figure, operations_figure, accuracy_figure, step_figure, time_figure)
    return [maker(rows) for maker in makers]


def write_all(folder: Path, figures: list[Figure]) -> None:
    """Write the figures as PNG files."""
    for figure in figures:
        if figure.draw is None:
            continue
        picture, ax = plt.subplots(figsize=(WIDTH, figure.height), layout="constrained")
        figure.draw(ax)
        ax.spines[["top", "right"]].set_visible(False)
        picture.suptitle(wrapped(figure.table.title, 58), x=0.01, ha="left", fontsize=10)
        handles, labels = ax.get_legend_handles_labels()
        if labels:
            texts = [wrapped(label, 56) for label in labels]
            picture.legend(handles, texts, loc="outside lower left", frameon=False, fontsize=9, ncols=figure.legend_columns)
        write_figure(folder / f"{figure.name}.png", picture)


def wrapped(text: str, width: int) -> str:
    """Break a text into lines, but not within "T = 5"; none of it is mathematics."""
    return "\n".join(textwrap.wrap(text.replace(" = ", "\u00a0=\u00a0"), width)).replace("$", r"\$")


def styles(rows: list[Row]) -> Callable[[Row], dict[str, Any]]:
    """Return what gives a row its look, the same in all figures: colour and marker by kind, and the line by T."""
    kinds, steps = list(dict.fromkeys(row.kind for row in rows)), list(dict.fromkeys(row.T for row in rows))

    def style(row: Row) -> dict[str, Any]:
        kind = kinds.index(row.kind)
        look = {"color": PALETTE[kind % len(PALETTE)], "marker": MARKERS[kind % len(MARKERS)]}
        return {**look, "linestyle": LINES[steps.index(row.T) % len(LINES)], "markersize": 5, "linewidth": 1.2}

    return style


def with_legend(lines: int) -> float:
    """Return the height of a figure with so many lines of legend below."""
    return HEIGHT + 0.2 * lines


def activity_figure(rows: list[Row]) -> Figure:
    """Fig. 3: spikes per neuron by layer, direct input against hybrid."""
    table = layer_table(rows)
    shown = [row for row in rows if row.config["encoder"] in ("direct", "hybrid") and row.letter and row.T == rows[0].T]
    if len({row.config["encoder"] for row in shown}) < 2:
        shown = rows
    style = styles(rows)

    def draw(ax: Any) -> None:
        for row, (name, *cells) in zip(rows, table.rows, strict=True):
            if row in shown:
                values = [mean(cell.values) if isinstance(cell, Seeds) else float("nan") for cell in cells]
                ax.plot(range(len(values)), values, label=name, **style(row))
        ax.set_xticks(range(len(table.header) - 1), table.header[1:], rotation=90 if len(table.header) > 9 else 0)
        ax.set(xlabel="layer", ylabel="spikes per neuron", ylim=(0, None))
        ax.grid(axis="y", alpha=0.3)

    title = f"Fig. 3: spikes by layer, direct against hybrid input. {rows[0].setting}"
    return Figure(Table(table.name, title, table.header, table.rows), draw, with_legend(len(shown)))


def spike_figure(rows: list[Row]) -> Figure:
    """Fig. 4: spikes per neuron against time steps."""
    title = f"Fig. 4: spikes against time steps. {rows[0].setting}"
    table = Table(f"spikes-{rows[0].slug}", title, ["run", "network of Fig. 4", "T", "spikes per neuron", "accuracy, %"])
    for row in rows:
        accuracy = Seeds(row.trained(lambda t: t["accuracy"]["potential"]))
        table.rows.append([row.kind, row.letter, row.T, Seeds(row.trained(spikes_of), 3), accuracy])
    kinds, style = list(dict.fromkeys(row.kind for row in rows)), styles(rows)

    def draw(ax: Any) -> None:
        for kind in kinds:
            alike = sorted((row for row in rows if row.kind == kind), key=lambda row: row.T)
            letter = f"({alike[0].letter}) " if alike[0].letter else ""
            values = [mean(row.trained(spikes_of)) for row in alike]
            ax.plot([row.T for row in alike], values, label=letter + kind, **style(alike[0]) | {"linestyle": "-"})
            if letter:
                ax.annotate(letter, (alike[-1].T, values[-1]), (6, -3), textcoords="offset points", fontsize=8)
        of_steps(ax, [row.T for row in rows], "time steps T")
        values = [mean(row.trained(spikes_of)) for row in rows]
        if min(values) > 0 and max(values) > 8 * min(values):
            ax.set_yscale("log")
        else:
            ax.set_ylim(0, None)
        ax.set_ylabel("spikes per neuron")
        ax.grid(alpha=0.3)

    missing = [f"({letter})" for letter in VARIANTS if not any(row.letter == letter for row in rows)]
    table.note = f"Not run: {', '.join(missing)}." if missing else ""
    return Figure(table, draw, with_legend(len(kinds)))


def of_steps(ax: Any, steps: list[int], label: str) -> None:
    """Lay out an axis of time steps, logarithmic where they differ much."""
    ticks = sorted(set(steps))
    if ticks[-1] > 12:
        ax.set_xscale("log")
        ax.xaxis.set_minor_locator(NullLocator())
        ticks = [t for i, t in enumerate(ticks) if i == len(ticks) - 1 or ticks[i + 1] > 1.15 * t]
    ax.set_xticks(ticks, [str(t) for t in ticks])
    ax.margins(x=0.12)
    ax.set_xlabel(label)


def energy_figure(rows: list[Row]) -> Figure:
    """Fig. 5: energy, three accountings and two technologies, and the ceiling at no spike."""
    title = f"Fig. 5: compute energy per image, against the ANN. {rows[0].setting}"
    kinds = [(technology, accounting) for technology in TECHNOLOGIES for accounting in ACCOUNTINGS]
    header = ["run", *(f"{technology}, {accounting}" for technology, accounting in kinds), "at no spike: int32_45nm, paper"]
    table = Table(f"energy-{rows[0].slug}", title, header)
    for row in rows:
        cells = [Seeds(row.trained(lambda trained, kind=kind: ratio(trained, *kind)), 1) for kind in kinds]
        table.rows.append([row.variant, *cells, row.results[0]["trained"]["energy"]["int32_45nm"]["paper"]["ceiling"]])
    ceilings = [value for *_, value in table.rows if value < float("inf")]  # type: ignore[operator]

    names = [f"{technology.split('_')[0]}, {accounting}" for technology, accounting in kinds]

    def draw(ax: Any) -> None:
        dots(ax, table, range(1, 4), names[:3])
        if ceilings:
            ax.axvline(max(ceilings), color="0.3", linestyle="--", linewidth=1, label=f"at no spike: {max(ceilings):.1f}x")
        dots(ax, table, range(4, 7), names[3:], **HOLLOW)
        ax.axvline(CEILING, color="0.6", linestyle=":", linewidth=1, label=f"of the paper's VGG-16: {CEILING}x")
        ax.axvline(1, color="0.8", linewidth=1)
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(FormatStrFormatter("%gx"))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_xlabel("energy of the ANN / of the SNN")

    return Figure(table, draw, 2.4 + 0.36 * len(rows), 2)


def operations_figure(rows: list[Row]) -> Figure:
    """Fig. 5: operations, as shares of the ANN's."""
    title = f"Fig. 5: operations per image, against the ANN. {rows[0].setting}"
    header = ["run", *(f"{kind}, {accounting}" for kind in ("MACs", "accumulates") for accounting in ACCOUNTINGS)]
    table = Table(f"operations-{rows[0].slug}", title, header)
    for row in rows:
        counts = [row.trained(lambda t, a=a, m=macs: operations(t, a)[m]) for macs in (0, 1) for a in ACCOUNTINGS]
        table.rows.append([row.variant, *(Seeds([100 * share for share in values], 1) for values in counts)])
    table.note = "In percent of the ANN's MACs."

    def draw(ax: Any) -> None:
        dots(ax, table, range(1, 4), header[1:4])
        ax.axvline(100, color="0.3", linestyle="--", linewidth=1, label="the ANN")
        dots(ax, table, range(4, 7), header[4:], **HOLLOW)
        ax.set_xlabel("operations, % of the ANN's MACs")
        ax.set_xlim(0, None)

    return Figure(table, draw, 2.4 + 0.36 * len(rows), 2)


def operations(trained: dict[str, Any], accounting: str) -> tuple[float, float]:
    """Return MACs and accumulates of a trained network as shares of the ANN's MACs."""
    report, cost = trained["energy"]["int32_45nm"][accounting], TECHNOLOGIES["int32_45nm"]
    other = trained["energy"]["fp32_45nm"][accounting], TECHNOLOGIES["fp32_45nm"]
    # Two technologies price the same counts: two equations for two numbers.
    det = cost.mac_pj * other[1].ac_pj - cost.ac_pj * other[1].mac_pj
    macs = (report["snn_pj"] * other[1].ac_pj - cost.ac_pj * other[0]["snn_pj"]) / det
    accumulates = (cost.mac_pj * other[0]["snn_pj"] - report["snn_pj"] * other[1].mac_pj) / det
    ann = report["ann_pj"] / cost.mac_pj
    return max(0.0, macs / ann), max(0.0, accumulates / ann)


def dots(ax: Any, table: Table, columns: range, labels: list[str], **look: Any) -> None:
    """Draw some columns of a table as dots, a line for each of its rows."""
    for position, (column, label) in enumerate(zip(columns, labels, strict=True)):
        values = [mean(row[column].values) for row in table.rows]  # type: ignore[union-attr]
        ax.plot(values, range(len(values)), PALETTE[position], marker=MARKERS[position], linestyle="", label=label, **look)
    ax.set_yticks(range(len(table.rows)), [wrapped(str(row[0]), 24) for row in table.rows], fontsize=8.5)
    ax.set_ylim(len(table.rows) - 0.5, -0.5)
    ax.grid(axis="y", alpha=0.3)


def accuracy_figure(rows: list[Row]) -> Figure:
    """Accuracy against T, by variant, each at its last step."""
    title = f"Accuracy against time steps. {rows[0].setting}"
    table = Table(f"accuracy-{rows[0].slug}", title, ["run", "T", "accuracy, %", "ANN, %"])
    for row in rows:
        accuracy, ann = row.trained(lambda t: t["accuracy"]["potential"]), [result["ann"]["accuracy"] for result in row.results]
        table.rows.append([row.kind, row.T, Seeds(accuracy), Seeds(ann)])
    kinds, style = list(dict.fromkeys(row.kind for row in rows)), styles(rows)

    def draw(ax: Any) -> None:
        for kind in kinds:
            first = next(row for row in rows if row.kind == kind)
            alike = sorted((line for line in table.rows if line[0] == kind), key=lambda line: line[1])  # type: ignore
            values = [line[2].values for line in alike]  # type: ignore[union-attr]
            means = [mean(seeds) for seeds in values]
            spread = [(m - min(seeds), max(seeds) - m) for m, seeds in zip(means, values, strict=True)]
            steps, bars = [line[1] for line in alike], list(zip(*spread, strict=True))
            ax.errorbar(steps, means, bars, label=kind, capsize=2, **style(first) | {"linestyle": "-"})
        of_ann(ax, rows)
        of_steps(ax, [row.T for row in rows], "time steps T of training and test")
        ax.set_ylabel("test accuracy, %")

    table.note = "Bars: range over seeds."
    return Figure(table, draw, with_legend(len(kinds) + 1))


def of_ann(ax: Any, rows: list[Row]) -> None:
    """Draw the ANN's accuracy across."""
    accuracy = mean(result["ann"]["accuracy"] for row in rows for result in row.results)
    ax.axhline(accuracy, color="0.3", linestyle="--", linewidth=1, label=f"ANN: {accuracy:.1f} %")
    ax.grid(alpha=0.3)


def step_figure(rows: list[Row]) -> Figure:
    """Accuracy of each network read before its last step."""
    steps = max(row.T for row in rows)
    title = f"Accuracy, read at each step. {rows[0].setting}"
    table = Table(f"read-{rows[0].slug}", title, ["run", *(f"t = {t}" for t in range(1, steps + 1))])
    for row in rows:
        by_step = [Seeds(row.trained(lambda trained, t=t: trained["accuracy_at_step"][t])) for t in range(row.T)]
        table.rows.append([row.variant, *by_step, *[None] * (steps - row.T)])

    def draw(ax: Any) -> None:
        for row, (name, *cells) in zip(rows, table.rows, strict=True):
            values = [mean(cell.values) for cell in cells if isinstance(cell, Seeds)]
            ax.plot(range(1, len(values) + 1), values, label=name, **styles(rows)(row))
        of_ann(ax, rows)
        of_steps(ax, list(range(1, steps + 1)), "time step t at which the potentials are read")
        ax.set_ylabel("test accuracy, %")

    return Figure(table, draw, with_legend(len(rows) + 1))


def time_figure(rows: list[Row]) -> Figure:
    """When output neurons reach their threshold: those of the true class, and the others."""
    title = f"Spike times of the output neurons. {rows[0].setting}"
    steps = max(row.T for row in rows)
    table = Table(f"spike-times-{rows[0].slug}", title, ["run", "neurons", *(f"t = {t}, %" for t in range(1, steps + 1))])
    kept = [row for row in rows if row.recorded(lambda t: share(t, "true class", 0))]
    for row in kept:
        for which in ("true class", "other classes"):
            cells = [Seeds(row.recorded(lambda trained, t=t, w=which: share(trained, w, t)), 1) for t in range(row.T)]
            table.rows.append([row.variant, which, *cells, *[None] * (steps - row.T)])
    if not kept:
        table.note = "Not recorded by these runs."
        return Figure(table, None)

    def draw(ax: Any) -> None:
        for position, (name, which, *cells) in enumerate(table.rows):
            values = [mean(cell.values) for cell in cells if isinstance(cell, Seeds)]
            look = styles(rows)(kept[position // 2]) | ({"linestyle": ":"} | HOLLOW if position % 2 else {"linestyle": "-"})
            ax.plot(range(1, len(values) + 1), values, label=f"{name}: {which}", **look)
        of_steps(ax, list(range(1, steps + 1)), "spike time, time steps")
        ax.set(ylabel="share of output neurons, %", ylim=(0, None))
        ax.grid(alpha=0.3)

    table.note = f"A neuron that never reaches its threshold counts at the last step.{missing(len(rows) - len(kept))}"
    return Figure(table, draw, with_legend(len(table.rows)))


def missing(count: int) -> str:
    """Say how many rows recorded nothing."""
    return f" {count} of the rows did not record them." if count else ""


def share(trained: dict[str, Any], which: str, t: int) -> float | None:
    """Return which share of the neurons spike at a step, in percent, where that was recorded."""
    counts = trained.get("spike_times", {}).get(which)
    return 100 * counts[t] / sum(counts) if counts else None
