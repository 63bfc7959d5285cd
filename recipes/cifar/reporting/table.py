"""A table of numbers, several seeds in one cell, as Markdown and as CSV."""

import csv
import io
from dataclasses import dataclass, field
from math import sqrt
from statistics import mean, stdev
from typing import Any

from cifar.reporting.rows import numbers

STUDENT = {3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""97.5 % quantile of Student's t, by the number of seeds."""


@dataclass(frozen=True)
class Seeds:
    """One number for each seed.

    Raises:
        ValueError: one is not finite.
    """

    values: list[float]
    digits: int = 2
    unit: str = ""

    def __post_init__(self) -> None:
        numbers(self.values)

    def __str__(self) -> str:
        """Return the mean; of several seeds the range too, and of three and more the 95 % confidence interval."""
        if not self.values:
            return "not recorded"
        shown = [f"{value:.{self.digits}f}" for value in (mean(self.values), min(self.values), max(self.values))]
        half = half_width(self.values)
        interval = f" ± {half:.{self.digits}f}" if half is not None else ""
        return shown[0] + interval + (f" ({shown[1]} to {shown[2]})" if len(self.values) > 1 else "") + self.unit


def half_width(values: list[float]) -> float | None:
    """Return half the 95 % confidence interval of the mean of three seeds and more, by Student's t."""
    n = len(values)
    return STUDENT.get(n, 2.0) * stdev(values) / sqrt(n) if n > 2 else None


Cell = str | int | float | Seeds | None


@dataclass
class Table:
    """A table of cells; the file's name is `name`."""

    name: str
    title: str
    header: list[str]
    rows: list[list[Cell]] = field(default_factory=list)
    note: str = ""

    def texts(self) -> list[list[str]]:
        """Return the cells as a reader sees them."""
        return [["" if cell is None else str(cell) for cell in row] for row in self.rows]

    def markdown(self) -> list[str]:
        """Return the lines of a Markdown table."""
        lines = [self.header, ["---"] * len(self.header), *self.texts()]
        return [f"| {' | '.join(line)} |" for line in lines]

    def csv(self) -> str:
        """Return the numbers: for seeds the mean, the lowest and the highest, with all digits."""
        wide = [any(isinstance(row[i], Seeds) for row in self.rows) for i in range(len(self.header))]
        header: list[str] = []
        for name, of_seeds in zip(self.header, wide, strict=True):
            header += [name, f"{name}: lowest", f"{name}: highest"] if of_seeds else [name]
        lines = []
        for row in self.rows:
            line: list[Any] = []
            for cell, of_seeds in zip(row, wide, strict=True):
                if isinstance(cell, Seeds):
                    line += [mean(cell.values), min(cell.values), max(cell.values)] if cell.values else ["", "", ""]
                else:
                    line += [cell, "", ""] if of_seeds else [cell]
            lines.append(line)
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([header, *lines])
        return text.getvalue()
