"""Figures with a line of dots for each row: accuracy over seeds, energy and operations."""

from statistics import mean
from typing import Any

from matplotlib.ticker import FormatStrFormatter, NullFormatter

from cifar.reporting.drawing import HOLLOW, LINE, MARKERS, Figure, lines_of, wrapped
from cifar.reporting.paper import CEILING
from cifar.reporting.rows import Row
from cifar.reporting.table import Seeds, Table, half_width
from cifar.reporting.tables import ceiling, ratio, spikes_of
from onespike.metrics.energy import ACCOUNTINGS, TECHNOLOGIES
from onespike.plots import PALETTE

LABEL = 34
"""Characters in a line of a row's label."""
FAR = 500
"""Percent beyond which small shares need a logarithmic axis to be told apart."""


def networks_figure(rows: list[Row]) -> Figure:
    """Accuracy of each network: every seed, the mean and its confidence interval."""
    title = f"Accuracy of each network, by seed. {rows[0].setting}"
    table = Table(f"networks-{rows[0].slug}", title, ["run", "seeds", "accuracy, %", "± (95 %)", "spikes per neuron"])
    found = [row.trained(lambda t: t["accuracy"]["potential"]) for row in rows]
    for row, values in zip(rows, found, strict=True):
        table.rows.append([row.variant, len(values), Seeds(values), half_width(values), Seeds(row.trained(spikes_of), 3)])
    table.note = "Bars: 95 % confidence interval of the mean, from three seeds on."

    def draw(ax: Any) -> None:
        for y, values in enumerate(found):
            ax.plot(values, [y] * len(values), PALETTE[4], marker="o", linestyle="", markersize=4, label="" if y else "a seed")
            bar = {"capsize": 3, "color": PALETTE[0], "marker": "D", "markersize": 5, "label": "" if y else "mean"}
            ax.errorbar(mean(values), y, xerr=half_width(values), **bar)
        if accuracies := [accuracy for row in rows for accuracy in row.ann()]:
            ann = mean(accuracies)
            ax.axvline(ann, color="0.3", linestyle="--", linewidth=1, label=f"ANN: {ann:.1f} %")
        name_rows(ax, table)
        ax.set_xlabel("test accuracy, %")

    return Figure(table, draw, height_of(table), 3)


def energy_figure(rows: list[Row]) -> Figure:
    """Fig. 5: energy, three accountings and two technologies, and the ceiling at no spike."""
    title = f"Fig. 5: compute energy per image, against the ANN. {rows[0].setting}"
    kinds = [(technology, accounting) for technology in TECHNOLOGIES for accounting in ACCOUNTINGS]
    header = ["run", *(f"{technology}, {accounting}" for technology, accounting in kinds), "at no spike: int32_45nm, paper"]
    table = Table(f"energy-{rows[0].slug}", title, header)
    for row in rows:
        cells = [Seeds(row.trained(lambda trained, kind=kind: ratio(trained, *kind)), 1) for kind in kinds]
        table.rows.append([row.variant, *cells, ceiling(row.results[0]) or "no limit"])
    ceilings = [value for *_, value in table.rows if isinstance(value, float)]
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
        name_rows(ax, table)
        ax.set_xlabel("energy of the ANN / of the SNN")

    return Figure(table, draw, height_of(table), 2)


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
        name_rows(ax, table)
        ax.set_xlabel("operations, % of the ANN's MACs")
        ax.set_xlim(0, None)
        if (most := ax.dataLim.xmax) > FAR:
            ax.set_xscale("symlog", linthresh=1)
            ax.xaxis.set_major_formatter(FormatStrFormatter("%g"))
            ax.set_xlim(0, 2 * most)

    return Figure(table, draw, height_of(table), 2)


def operations(trained: dict[str, Any], accounting: str) -> tuple[float, float]:
    """Return MACs and accumulates of a trained network as shares of the ANN's MACs.

    Two technologies price the same counts: two equations for two numbers.
    """
    (e, one), (f, other) = (
        (trained["energy"][technology][accounting], cost) for technology, cost in list(TECHNOLOGIES.items())[:2]
    )
    determinant = one.mac_pj * other.ac_pj - one.ac_pj * other.mac_pj
    macs = (e["snn_pj"] * other.ac_pj - one.ac_pj * f["snn_pj"]) / determinant
    accumulates = (one.mac_pj * f["snn_pj"] - e["snn_pj"] * other.mac_pj) / determinant
    dense = e["ann_pj"] / one.mac_pj
    return max(0.0, macs / dense), max(0.0, accumulates / dense)


def dots(ax: Any, table: Table, columns: range, labels: list[str], **look: Any) -> None:
    """Draw some columns of a table as dots, a line for each of its rows."""
    for position, (column, label) in enumerate(zip(columns, labels, strict=True)):
        values = [mean(row[column].values) for row in table.rows]  # type: ignore[union-attr]
        ax.plot(values, range(len(values)), PALETTE[position], marker=MARKERS[position], linestyle="", label=label, **look)


def name_rows(ax: Any, table: Table) -> None:
    """Write the rows' names, the first on top."""
    ax.set_yticks(range(len(table.rows)), [wrapped(str(row[0]), LABEL) for row in table.rows], fontsize=8)
    ax.set_ylim(len(table.rows) - 0.5, -0.5)
    ax.grid(axis="y", alpha=0.3)


def height_of(table: Table) -> float:
    """Return the height of a figure with a line of dots for each row of a table."""
    longest = max(lines_of(wrapped(str(row[0]), LABEL)) for row in table.rows)
    return 1.2 + (0.12 + 0.8 * LINE * longest) * len(table.rows)
