"""Lay out finished runs as the paper does: Tables I and II, Figs. 3 to 5, accuracy by T and by step, and spike times.

    python recipes/report.py runs/* --out report

Runs are folders of `recipes/train.py` and of `recipes/quickstart.py`, or copies of their metrics.json. Those that differ in
nothing but their seed make one row. What is no finished run becomes a line of the report. It leaves report.md, a PNG and a CSV
for each figure, a CSV for each table, and report.html, which holds all of them and can be sent as it is.
"""

import argparse
from pathlib import Path

from cifar.checkpoint import CheckpointError
from cifar.folder import keeping
from cifar.output import conclude, say
from cifar.reporting.drawing import write_all
from cifar.reporting.page import csvs, html, markdown, sections_of, unread_lines
from cifar.reporting.rows import Runs
from cifar.reporting.rows import read_runs as read
from cifar.reporting.tables import accuracy_table, provenance_lines
from onespike.files import write_atomically

__all__ = ["accuracy_table", "csvs", "markdown", "provenance_lines", "read_runs", "unread_lines"]


class ReportError(ValueError):
    """There is no run to report."""


def read_runs(runs: list[Path]) -> Runs:
    """Read finished runs; each alone has to bear every table and figure, or else it becomes a line."""
    return read(runs, lambda rows: (sections_of(Runs(rows)), csvs(Runs(rows)), provenance_lines(rows)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs, or copies of their metrics.json")
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder for the report (default %(default)s)")
    arguments = parser.parse_args()
    runs, out = read_runs(arguments.runs), arguments.out
    text = markdown(runs)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "report.md", text.encode())
    try:
        with keeping(out / "report.md"):
            for name, content in csvs(runs).items():
                write_atomically(out / name, content.encode())
            for section in sections_of(runs):
                write_all(out, section.figures)
            write_atomically(out / "report.html", html(runs, out).encode())
    finally:
        say(text)
    if not runs.rows:
        raise ReportError(f"no finished run was found: {'; '.join(runs.unread)}")


if __name__ == "__main__":
    conclude(main, ReportError, CheckpointError, lost="the report is in --out")
