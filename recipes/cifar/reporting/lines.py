"""Figures of lines: spikes by layer and against T, accuracy against T and by step, spike times."""

from statistics import mean
from typing import Any

from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from cifar.reporting.drawing import HOLLOW, Figure, chosen, of_steps, shown, styles
from cifar.reporting.paper import VARIANTS
from cifar.reporting.rows import Row
from cifar.reporting.table import Seeds, Table
from cifar.reporting.tables import layer_table, spikes_of

MOST = 8
"""Lines that can be told apart at a glance."""


def activity_figure(rows: list[Row]) -> Figure:
    """Fig. 3: spikes per neuron by layer, direct input against hybrid."""
    table = layer_table(rows)
    drawn = [row for row in chosen(rows, MOST) if row.letter and row.config["encoder"] in ("direct", "hybrid")]
    drawn = drawn if len({row.config["encoder"] for row in drawn}) == 2 else chosen(rows, MOST)
    style = styles(rows, drawn)

    def draw(ax: Any) -> None:
        for row, (name, *cells) in zip(rows, table.rows, strict=True):
            if row in drawn:
                values = [mean(cell.values) if isinstance(cell, Seeds) else float("nan") for cell in cells]
                ax.plot(range(len(values)), values, label=name, **style(row))
        ax.set_xticks(range(len(table.header) - 1), table.header[1:], rotation=90 if len(table.header) > 9 else 0)
        ax.set(xlabel="layer", ylabel="spikes per neuron", ylim=(0, None))
        ax.grid(axis="y", alpha=0.3)

    title = f"Fig. 3: spikes by layer, direct against hybrid input. {rows[0].setting}"
    return Figure(Table(table.name, title, table.header, table.rows, shown(len(drawn), rows)), draw)


def spike_figure(rows: list[Row]) -> Figure:
    """Fig. 4: spikes per neuron against time steps, of the six networks at every T."""
    title = f"Fig. 4: spikes against time steps. {rows[0].setting}"
    table = Table(f"spikes-{rows[0].slug}", title, ["run", "network of Fig. 4", "T", "spikes per neuron", "accuracy, %"])
    for row in rows:
        accuracy = Seeds(row.trained(lambda t: t["accuracy"]["potential"]))
        table.rows.append([row.kind, row.letter, row.T, Seeds(row.trained(spikes_of), 3), accuracy])
    drawn = [row for row in rows if row.letter or row in chosen(rows, MOST)]
    style = styles(rows, drawn)

    def draw(ax: Any) -> None:
        for kind in dict.fromkeys(row.kind for row in drawn):
            alike = sorted((row for row in drawn if row.kind == kind), key=lambda row: row.T)
            letter = f"({alike[0].letter}) " if alike[0].letter else ""
            values = [mean(row.trained(spikes_of)) for row in alike]
            ax.plot([row.T for row in alike], values, label=letter + kind, **style(alike[0]) | {"linestyle": "-"})
            ax.annotate(letter, (alike[-1].T, values[-1]), (6, -3), textcoords="offset points", fontsize=8)
        of_steps(ax, [row.T for row in drawn], "time steps T")
        values = [mean(row.trained(spikes_of)) for row in drawn]
        if min(values) > 0 and max(values) > 8 * min(values):
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter(FormatStrFormatter("%g"))
            ax.yaxis.set_minor_formatter(NullFormatter())
        else:
            ax.set_ylim(0, None)
        ax.set_ylabel("spikes per neuron")

    absent = ", ".join(f"({letter})" for letter in VARIANTS if not any(row.letter == letter for row in rows))
    table.note = (f"Not run: {absent}. " if absent else "") + shown(len(drawn), rows)
    return Figure(table, draw)


def accuracy_figure(rows: list[Row]) -> Figure:
    """Accuracy against T, of the six networks and of what was run at several T."""
    title = f"Accuracy against time steps. {rows[0].setting}"
    table = Table(f"accuracy-{rows[0].slug}", title, ["run", "T", "accuracy, %", "ANN, %"])
    found = {id(row): row.trained(lambda t: t["accuracy"]["potential"]) for row in rows}
    for row in rows:
        ann = Seeds(row.ann()) if row.ann() else None
        table.rows.append([row.kind, row.T, Seeds(found[id(row)]), ann])
    steps = {kind: {row.T for row in rows if row.kind == kind} for kind in dict.fromkeys(row.kind for row in rows)}
    drawn = [row for row in rows if row.letter or len(steps[row.kind]) > 1 or row in chosen(rows, MOST)]
    style = styles(rows, drawn)

    def draw(ax: Any) -> None:
        for kind in dict.fromkeys(row.kind for row in drawn):
            alike = sorted((row for row in drawn if row.kind == kind), key=lambda row: row.T)
            seeds = [found[id(row)] for row in alike]
            means = [mean(values) for values in seeds]
            bars = [[m - min(v) for m, v in zip(means, seeds, strict=True)]]
            bars.append([max(v) - m for m, v in zip(means, seeds, strict=True)])
            look = style(alike[0]) | {"linestyle": "-"}
            ax.errorbar([row.T for row in alike], means, bars, label=kind, capsize=2, **look)
        of_steps(ax, [row.T for row in drawn], "time steps T of training and test")
        of_ann(ax, rows)

    table.note = f"Bars: range over seeds. {shown(len(drawn), rows)}"
    return Figure(table, draw)


def of_ann(ax: Any, rows: list[Row]) -> None:
    """Draw the ANN's accuracy across."""
    if accuracies := [accuracy for row in rows for accuracy in row.ann()]:
        ann = mean(accuracies)
        ax.axhline(ann, color="0.3", linestyle="--", linewidth=1, label=f"ANN: {ann:.1f} %")
    ax.set_ylabel("test accuracy, %")


def step_figure(rows: list[Row]) -> Figure:
    """Accuracy of each network read before its last step."""
    steps = max(row.T for row in rows)
    title = f"Accuracy, read at each step. {rows[0].setting}"
    table = Table(f"read-{rows[0].slug}", title, ["run", *(f"t = {t}" for t in range(1, steps + 1))])
    for row in rows:
        by_step = [Seeds(row.trained(lambda trained, t=t: trained["accuracy_at_step"][t])) for t in range(row.T)]
        table.rows.append([row.variant, *by_step, *[None] * (steps - row.T)])
    drawn = chosen(rows, MOST)
    style = styles(rows, drawn)

    def draw(ax: Any) -> None:
        for row, (name, *cells) in zip(rows, table.rows, strict=True):
            if row in drawn:
                values = [mean(cell.values) for cell in cells if isinstance(cell, Seeds)]
                ax.plot(range(1, len(values) + 1), values, label=name, **style(row))
        of_steps(ax, list(range(1, max(row.T for row in drawn) + 1)), "time step t at which the potentials are read")
        of_ann(ax, rows)

    table.note = shown(len(drawn), rows)
    return Figure(table, draw)


def time_figure(rows: list[Row]) -> Figure:
    """When output neurons reach their threshold: those of the true class, and the others."""
    title = f"Spike times of the output neurons. {rows[0].setting}"
    steps = max(row.T for row in rows)
    table = Table(f"spike-times-{rows[0].slug}", title, ["run", "neurons", *(f"t = {t}, %" for t in range(1, steps + 1))])
    kept = [row for row in rows if row.recorded(lambda t: share(t, "true class", 0))]
    drawn = chosen(kept, MOST // 2)
    style = styles(rows, drawn)
    series = []
    for row in kept:
        for which in ("true class", "other classes"):
            cells = [Seeds(row.recorded(lambda trained, t=t, w=which: share(trained, w, t)), 1) for t in range(row.T)]
            table.rows.append([row.variant, which, *cells, *[None] * (steps - row.T)])
            if row in drawn:
                look = {"linestyle": "-"} if which == "true class" else {"linestyle": ":", **HOLLOW}
                series.append(([mean(cell.values) for cell in cells], f"{row.variant}: {which}", style(row) | look))
    if not kept:
        table.note = "Not recorded by these runs."
        return Figure(table, None)

    def draw(ax: Any) -> None:
        for values, label, look in series:
            ax.plot(range(1, len(values) + 1), values, label=label, **look)
        of_steps(ax, list(range(1, max(row.T for row in drawn) + 1)), "spike time, time steps")
        ax.set(ylabel="share of output neurons, %", ylim=(0, None))

    absent = len(rows) - len(kept)
    missing = f" {absent} of the networks did not record them." if absent else ""
    table.note = f"A neuron that never reaches its threshold counts at the last step.{missing} {shown(len(drawn), kept)}"
    return Figure(table, draw)


def share(trained: dict[str, Any], which: str, t: int) -> float | None:
    """Return which share of the neurons spike at a step, in percent, where that was recorded."""
    counts = trained.get("spike_times", {}).get(which)
    return 100 * counts[t] / sum(counts) if counts else None
