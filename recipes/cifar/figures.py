"""Figures as PNG files, each written in one step."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

from onespike.files import write_atomically

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def write_figures(folder: Path, figures: dict[str, Callable[..., Any]], size: tuple[float, float] = (7, 4.2)) -> None:
    """Write figures by name, each drawn by a function of `ax`, in inches."""
    for name, plot in figures.items():
        figure, ax = plt.subplots(figsize=size, layout="constrained")
        plot(ax=ax)
        write_figure(folder / f"{name}.png", figure)


def write_figure(path: Path, figure: Any) -> None:
    """Write a figure and close it."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    plt.close(figure)
    write_atomically(path, content.getvalue())
