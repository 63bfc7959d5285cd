"""How figures are drawn: their size, looks, axes of time steps, and which rows a crowded one shows."""

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from matplotlib.ticker import NullLocator

from cifar.figures import plt, write_figure
from cifar.reporting.rows import Row
from cifar.reporting.table import Table
from onespike.plots import PALETTE

WIDTH, HEIGHT = 4.6, 3.0
"""Of a figure without its legend, in inches: narrow enough that a phone shrinks it by a fifth at most."""
LINE = 0.17
"""Height of a line of text, in inches."""
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


def write_all(folder: Path, figures: list[Figure]) -> None:
    """Write the figures as PNG files, each with its legend below."""
    for figure in figures:
        if figure.draw is None:
            continue
        picture, ax = plt.subplots(figsize=(WIDTH, figure.height), layout="constrained")
        figure.draw(ax)
        ax.spines[["top", "right"]].set_visible(False)
        picture.suptitle(wrapped(figure.table.title, 58), x=0.01, ha="left", fontsize=10)
        handles, labels = ax.get_legend_handles_labels()
        texts, columns = [wrapped(label, 56) for label in labels], figure.legend_columns
        picture.legend(handles, texts, loc="outside lower left", frameon=False, fontsize=9, ncols=columns)
        picture.set_size_inches(WIDTH, figure.height + LINE * ceil(sum(map(lines_of, texts)) / columns))
        write_figure(folder / f"{figure.name}.png", picture)


def wrapped(text: str, width: int) -> str:
    """Break a text into lines, but not within "T = 5"; none of it is mathematics."""
    return "\n".join(textwrap.wrap(text.replace(" = ", "\u00a0=\u00a0"), width)).replace("$", r"\$")


def lines_of(text: str) -> int:
    """Count the lines of a wrapped text."""
    return text.count("\n") + 1


def styles(rows: list[Row], drawn: list[Row]) -> Callable[[Row], dict[str, Any]]:
    """Return what gives a row its look: colour and marker by kind, the same in all figures, and the line by T."""
    kinds, steps = list(dict.fromkeys(row.kind for row in rows)), list(dict.fromkeys(row.T for row in drawn))

    def style(row: Row) -> dict[str, Any]:
        kind = kinds.index(row.kind)
        look = {"color": PALETTE[kind % len(PALETTE)], "marker": MARKERS[kind % len(MARKERS)]}
        return {**look, "linestyle": LINES[steps.index(row.T) % len(LINES)], "markersize": 5, "linewidth": 1.2}

    return style


def chosen(rows: list[Row], most: int) -> list[Row]:
    """Return the rows that a figure for so many can show: where there are more, Fig. 4's networks about T = 5 before others."""
    if len(rows) <= most:
        return rows
    nearest: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: abs(row.T - 5)):
        if row.letter:
            nearest.setdefault(row.letter, row)
    others = sorted((row for row in rows if not row.letter), key=lambda row: bool(row.remark or row.how))
    return [*(nearest[letter] for letter in sorted(nearest, reverse=True)), *others][:most]


def shown(count: int, rows: list[Row]) -> str:
    """Say of how many rows a figure shows some."""
    return f"Shown: {count} of {len(rows)} networks; the others are in the CSV." if count < len(rows) else ""


def of_steps(ax: Any, steps: list[int], label: str) -> None:
    """Lay out an axis of time steps, logarithmic where they differ much."""
    ticks = sorted(set(steps))
    if ticks[-1] > 12:
        ax.set_xscale("log")
        ax.xaxis.set_minor_locator(NullLocator())
        apart = [ticks[-1]]
        for tick in reversed(ticks):
            if apart[0] >= 1.4 * tick:
                apart.insert(0, tick)
        ticks = apart
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.margins(x=0.12)
    ax.set_xlabel(label)
    ax.grid(alpha=0.3)
