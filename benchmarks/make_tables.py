"""Write the tables of docs/benchmarks.md from the JSON files in benchmarks/results and its folders, between two HTML comments.

python benchmarks/make_tables.py            (--check only says whether the page is up to date)
"""

import argparse
import json
from pathlib import Path
from typing import Any

import bench_loader
import bench_network
import bench_neuron
import bench_overhead

ROOT = Path(__file__).parent.parent
LAYOUTS = {
    "neuron": bench_neuron.markdown,
    "network": bench_network.markdown,
    "overhead": bench_overhead.markdown,
    "loader": bench_loader.markdown,
}
BEGIN, END = "<!-- speed: begin -->", "<!-- speed: end -->"


def is_shown(case: dict[str, Any]) -> bool:
    """Whether a case goes into the page; all stand in the Markdown files beside the results."""
    if "phase" in case:
        return case["phase"] == "train"
    if "kind" not in case:
        return True
    return (case["kind"], case["shape"][0]) in {("conv", 5), ("fc", 20)}


def section(record: dict[str, Any]) -> str:
    """Lay out one result file: a table per case, then where and how it was measured."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items() if version)
    machine = f"{record['cpu']}, {record['threads']} threads" if record["device"] == "cpu" else record["device"]
    if "driver" in record:
        versions += f", CUDA {record['cuda']}, driver {record['driver']}"
    heap = f"heap {record['heap']}; " if record["device"] == "cpu" else ""
    note = f" ({record['note']})" if "note" in record else ""
    source = f"{machine}; {heap}{versions}; commit {record['commit'][:7]}{note}; `{record['command']}`; {record['date']}."
    return "\n".join([*map(LAYOUTS[record["benchmark"]], filter(is_shown, record["cases"])), source, ""])


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Read the benchmarks' results in `folder` and below, in the order of the page: as users have the heap, first.

    Other files lie there, too, and results that later ones superseded.
    """
    files = [json.loads(path.read_text()) for path in sorted(folder.rglob("*.json"))]
    order = list(LAYOUTS)
    records = [record for record in files if record.get("benchmark") in order and not record.get("superseded")]
    return sorted(
        records,
        key=lambda record: (order.index(record["benchmark"]), record["device"] != "cpu", record["heap"].startswith("warm")),
    )


def main() -> None:
    """Replace what stands between the markers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "benchmarks.md")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the page is out of date")
    args = parser.parse_args()

    text = args.page.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise SystemExit(f"{args.page} must hold the lines {BEGIN} and {END} once each, in this order")
    sections = [section(record) for record in read_records(args.results)]
    if not sections:
        raise SystemExit(f"{args.results} holds no results: run bench_neuron.py and bench_network.py first")
    new = text[: text.index(BEGIN) + len(BEGIN)] + "\n\n" + "\n".join(sections) + text[text.index(END) :]
    if args.check and new != text:
        raise SystemExit(f"{args.page} is out of date: run benchmarks/make_tables.py")
    args.page.write_text(new)


if __name__ == "__main__":
    main()
