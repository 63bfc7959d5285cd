"""The report as Markdown, CSV and one HTML page that holds its images."""

from base64 import b64encode
from dataclasses import dataclass
from html import escape
from pathlib import Path

from cifar.reporting.dots import energy_figure, networks_figure, operations_figure
from cifar.reporting.drawing import Figure
from cifar.reporting.lines import accuracy_figure, activity_figure, spike_figure, step_figure, time_figure
from cifar.reporting.rows import Runs
from cifar.reporting.table import Table
from cifar.reporting.tables import layer_table, provenance_lines, switch_table, tables_of, variant_table

TITLE = "Single-spike, hybrid-encoded SNNs: measured runs"
STYLE = """
body { margin: 0 auto; max-width: 75rem; padding: 0 1rem 3rem; font: 16px/1.5 system-ui, sans-serif; color: #1b1b1b; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.5rem; } h3 { font-size: 1rem; }
h1, h2, h3, p, li, figcaption { overflow-wrap: anywhere; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.85rem; }
th, td { padding: 0.3rem 0.6rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
td { font-variant-numeric: tabular-nums; min-width: 3.5rem; } td:first-child { min-width: 11rem; }
thead th { border-bottom: 2px solid #888; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); gap: 1.5rem; }
figure { margin: 0; } img { width: 100%; max-width: 34rem; height: auto; } .note { color: #555; font-size: 0.85rem; }
.unread li { color: #a40000; } a { color: #0b5cad; }
"""
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><link rel="icon" href="data:,"><style>{style}</style></head>
<body>{body}</body></html>
"""


FIGURES = (
    activity_figure,
    spike_figure,
    energy_figure,
    operations_figure,
    networks_figure,
    accuracy_figure,
    step_figure,
    time_figure,
)


@dataclass(frozen=True)
class Section:
    """Tables and figures under one heading."""

    title: str
    tables: list[Table]
    figures: list[Figure]


def sections_of(runs: Runs) -> list[Section]:
    """Lay out the tables over all rows, and the tables and figures of each setting."""
    found = [Section("All runs", tables_of(runs), [])] if runs.rows else []
    for setting, rows in runs.of_setting().items():
        switches = switch_table(rows)
        tables = [variant_table(rows), *([switches] if switches.rows else []), layer_table(rows)]
        found.append(Section(setting, tables, [maker(rows) for maker in FIGURES]))
    return found


def unread_lines(runs: Runs) -> list[str]:
    """What is not in the report, and why."""
    return [f"- {line}" for line in runs.unread]


def markdown(runs: Runs) -> str:
    """Write the tables, and refer to the figures."""
    lines = []
    if runs.unread:
        lines += ["Not in this report:", "", *unread_lines(runs), ""]
    for section in sections_of(runs):
        lines += [f"## {section.title}", ""]
        for table in section.tables:
            lines += [f"### {table.title}", "", *(table.markdown() if table.rows else []), ""]
            lines += [table.note, ""] if table.note else []
        for figure in section.figures:
            lines += [f"![{figure.table.title}]({figure.name}.png)" if figure.draw else f"{figure.table.title}:", ""]
            lines += [figure.table.note, ""] if figure.table.note else []
    if runs.rows:
        lines += ["## Where the numbers come from", "", *(f"- {line}" for line in provenance_lines(runs.rows)), ""]
    return "\n".join(lines)


def csvs(runs: Runs) -> dict[str, str]:
    """Return the numbers of every table and figure, by the file's name."""
    found = {}
    for section in sections_of(runs):
        for table in (*section.tables, *(figure.table for figure in section.figures)):
            found[f"{table.name}.csv"] = table.csv()
    return found


def html(runs: Runs, folder: Path) -> str:
    """Write the page; the images, drawn before, are in the folder."""
    body = [f"<h1>{TITLE}</h1>"]
    if runs.unread:
        items = "".join(f"<li>{escape(line)}</li>" for line in runs.unread)
        body.append(f'<section class="unread"><h2>Not in this report</h2><ul>{items}</ul></section>')
    for section in sections_of(runs):
        body.append(f"<section><h2>{escape(section.title)}</h2>")
        body += [html_of_table(table) for table in section.tables]
        body += ['<div class="figures">', *(html_of_figure(figure, folder) for figure in section.figures), "</div></section>"]
    if runs.rows:
        items = "".join(f"<li>{escape(line)}</li>" for line in provenance_lines(runs.rows))
        body.append(f"<section><h2>Where the numbers come from</h2><ul>{items}</ul></section>")
    return PAGE.format(title=TITLE, style=STYLE, body="".join(body))


def html_of_table(table: Table) -> str:
    """Return a table that scrolls by itself, with its numbers to be had as CSV."""
    rows = ["".join(f"<td>{escape(cell).replace(' = ', '&nbsp;=&nbsp;')}</td>" for cell in row) for row in table.texts()]
    header = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    grid = f"<table><thead><tr>{header}</tr></thead><tbody>{''.join(f'<tr>{row}</tr>' for row in rows)}</tbody></table>"
    label = f'class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}"'
    scrolling = f"<div {label}>{grid}</div>" if rows else ""
    return f"<h3>{escape(table.title)}</h3>{scrolling}{note_of(table)}"


def html_of_figure(figure: Figure, folder: Path) -> str:
    """Return an image with its data in it, or why there is none."""
    if figure.draw is None:
        return f"<figure><h3>{escape(figure.table.title)}</h3>{note_of(figure.table)}</figure>"
    image = b64encode((folder / f"{figure.name}.png").read_bytes()).decode()
    tag = f'<img alt="{escape(figure.table.title)}" src="data:image/png;base64,{image}">'
    return f"<figure>{tag}<figcaption>{note_of(figure.table)}</figcaption></figure>"


def note_of(table: Table) -> str:
    """Return what is said below, and a link to the numbers."""
    data = b64encode(table.csv().encode()).decode()
    link = f'<a download="{escape(table.name)}.csv" href="data:text/csv;base64,{data}">{escape(table.name)}.csv</a>'
    return f'<p class="note">{escape(table.note)} {link if table.rows else ""}</p>'
