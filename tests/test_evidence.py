"""docs/peers.md says what `benchmarks/results/evidence` holds, and the report there is that of today's recipes/report.py."""

import json
import re

import pytest
from recipe_runs import RECIPES

import report as script
from cifar.reporting.paper import PEERS
from cifar.reporting.tables import switch_table

RECORDED = RECIPES.parent / "benchmarks" / "results" / "evidence"
TEXT = (RECIPES.parent / "docs" / "peers.md").read_text()
VARIANTS = ("poisson", "dct", "direct_multi_spike", "hybrid_multi_spike", "direct", "hybrid", "analogue", "temporal")


@pytest.fixture(scope="module")
def runs():
    return script.read_runs(sorted(RECORDED.glob("*.json")))


def cells(config):
    """Return the cells of the one row of a table that names a config."""
    (row,) = [line for line in TEXT.splitlines() if line.startswith("| ") and f"`{config}.yaml`" in line]
    return [cell.strip() for cell in row[1:-1].split("|")]


def recorded(name, T):
    """Return accuracy and spikes as the page has them, of a run at T steps; nothing where there was none."""
    path = RECORDED / f"{name}.json"
    if not path.exists():
        return ""
    metrics = json.loads(path.read_text())
    assert metrics["config"]["T"] == T
    trained = metrics["results"]["trained"]
    return f"{trained['accuracy']['potential']:.2f} / {trained['spikes_per_neuron']:.3f}"


@pytest.mark.parametrize("name", [name for name in PEERS if name])
def test_peers_are_told_as_recorded(name):
    row = cells(name)
    assert row[-1] == recorded(name, int(re.search(r"T = (\d+)", row[2])[1]))


def test_this_method_is_told_as_recorded():
    (row,) = [line for line in TEXT.splitlines() if line.startswith("| this method, ten epochs")]
    assert row.endswith(f"| {recorded('hybrid-T5-s0', 5)} |")
    assert cells("cifar10_vgg6_small")[-1] == recorded("short-T5-s0", 5)


@pytest.mark.parametrize("name", VARIANTS)
def test_inputs_are_told_as_recorded(name):
    row = cells("evidence" if name == "hybrid" else name)
    assert row[2:] == [recorded(f"{name}-T{T}-s0", T) for T in (1, 2, 3, 5, 10)]


def test_switches_are_told_as_recorded(runs):
    (setting,) = runs.of_setting().values()
    table = switch_table(setting)
    assert {row[1] for row in table.rows} == {1}, "the page speaks of one seed"
    moved = {str(row[0]).rsplit(", ", 1)[-1]: row[2].values[0] for row in table.rows}
    text = " ".join(TEXT.split())
    assert f"no gradient behind the spike costs {-moved['no gradient after the spike']:.1f} points" in text
    assert f"leaks that are not trained are {moved['leak fixed']:.1f} up" in text
    assert f"thresholds that are not {moved['threshold fixed']:.1f} up" in text
    assert moved["no time loss"] == 0
    assert "the time loss off makes no difference at all" in text


def test_spoilt_images_are_told_as_recorded():
    hybrid, analogue = json.loads((RECORDED.parent / "degraded_frames.json").read_text())["results"].values()
    table = TEXT[TEXT.index("| the image at t = 1 |") :].split("\n\n")[0].splitlines()[2:]
    assert len(table) == len(hybrid)
    for line, own, control in zip(table, hybrid.values(), analogue.values(), strict=True):
        numbers = (own["before"][-1], own["after"][0], own["after"][-1], control["before"][-1], control["after"][-1])
        assert line.endswith(f"| {' | '.join(f'{number:.2f}' for number in numbers)} |")


def test_the_recorded_runs_make_the_recorded_report(runs):
    assert not runs.unread
    assert not [row.name for row in runs.rows if any(one["changed"] for one in row.provenance)], "only commits can be repeated"
    text = script.markdown(runs)
    assert text == (RECORDED / "report.md").read_text()
    assert set(re.findall(r"\(([^()]+\.png)\)", text)) == {path.name for path in RECORDED.glob("*.png")}
