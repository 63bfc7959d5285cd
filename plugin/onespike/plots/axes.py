"""The common look: colours, titles, axes of steps, and bars side by side."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7")
"""Colours of Okabe and Ito, apart under every common colour blindness; a seventh series starts over."""
INK = "0.25"
POINTS_PER_CHARACTER = 7.0


def styled(ax: Axes | None) -> Axes:
    """Give `ax`, or the Axes of a new figure, the common look."""
    if ax is None:
        _, ax = plt.subplots(layout="constrained")
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="0.9")
    ax.set_axisbelow(True)
    return ax


def colour(i: int) -> str:
    """Return the colour of the i-th series."""
    return PALETTE[i % len(PALETTE)]


def finished(ax: Axes, title: str, y_label: str, columns: int = 1) -> Axes:
    """Give `ax` its label, a legend where there is something to tell apart, and the title unless it has one."""
    ax.set_title(ax.get_title() or title)
    ax.set_ylabel(y_label)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(ncols=columns, fontsize="small", framealpha=0.85, edgecolor="none")
    return ax


def step_axis(ax: Axes, steps: int, name: str = "time step t") -> None:
    """Let x run over the steps 1..T, or over epochs."""
    ax.set_xlim(0.5, steps + 0.5)
    ax.xaxis.set_major_locator(integers())
    ax.set_xlabel(name)


def integers() -> MaxNLocator:
    """Return what puts ticks at whole numbers alone."""
    return MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)


def draw_bars(ax: Axes, positions: NDArray[Any], series: Mapping[str, NDArray[Any]]) -> list[BarContainer]:
    """Draw the bars of the series side by side around each position."""
    width = 0.8 / len(series)
    ax.margins(y=0.2)  # room for the legend
    offsets = (np.arange(len(series)) - (len(series) - 1) / 2) * width
    return [
        ax.bar(positions + offset, heights, 0.95 * width, color=colour(i), label=name)
        for i, (offset, (name, heights)) in enumerate(zip(offsets, series.items(), strict=True))
    ]


def draw_category_bars(ax: Axes, groups: Mapping[str, Mapping[str, float]]) -> list[BarContainer]:
    """Draw a group of bars per label; the labels slant where they would touch."""
    labels = list(dict.fromkeys(label for series in groups.values() for label in series))
    positions = np.arange(len(labels))
    ax.set_xticks(positions, labels)
    points = ax.get_window_extent().width * 72 / ax.figure.dpi
    if max(map(len, labels)) * POINTS_PER_CHARACTER > points / len(labels):
        plt.setp(ax.get_xticklabels(), rotation=45, ha="right", rotation_mode="anchor")
    return draw_bars(
        ax, positions, {name: np.array([series.get(x, np.nan) for x in labels]) for name, series in groups.items()}
    )
