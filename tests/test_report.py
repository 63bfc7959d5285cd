"""The report of finished runs."""

import json
import runpy
import sys

import pytest
from recipe_runs import CONFIGS, DIGITS, RECIPES, SHORT, outcome, train

STEPS = [*SHORT, "conversion_images=20", "ann.max_steps=2", "snn.max_steps=2"]


def report(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["report.py", *map(str, arguments)])
    runpy.run_path(str(RECIPES / "report.py"), run_name="__main__")


def test_seeds_share_a_row(monkeypatch, tmp_path, capsys):
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for seed, folder in enumerate(folders[:2]):
        train(monkeypatch, DIGITS, "--out", folder, "--set", *STEPS, f"seed={seed}")
    train(monkeypatch, DIGITS, CONFIGS / "ablations" / "one_step.yaml", "--out", folders[2], "--set", *STEPS)
    capsys.readouterr()
    report(monkeypatch, *folders, "--out", tmp_path / "report")
    told = capsys.readouterr().out
    assert told.strip() == (tmp_path / "report" / "report.md").read_text().strip()
    accuracies = [outcome(folder)[1]["trained"]["accuracy"]["potential"] for folder in folders]
    mean, low, high = sum(accuracies[:2]) / 2, min(accuracies[:2]), max(accuracies[:2])
    first, second = (line for line in told.splitlines() if line.startswith("| digits") and " at T = " in line)
    assert first.startswith("| digits | 2 |")
    assert f"| {mean:.2f} ({low:.2f} to {high:.2f}) |" in first
    assert second.startswith("| digits-one_step | 1 |")
    assert f"| {accuracies[2]:.2f} |" in second
    assert "digits: " in told
    for name in ("activity", "spikes", "energy"):
        assert (tmp_path / "report" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match=r"repeats seed 0 of digits"):
        report(monkeypatch, folders[0], folders[0], "--out", tmp_path / "report")


def test_runs_of_one_name_are_told_apart(monkeypatch, tmp_path, capsys):
    train(monkeypatch, DIGITS, "--out", tmp_path / "a", "--set", *STEPS)
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    metrics["config"]["T"], metrics["config"]["snn"]["lr"] = 7, 0.25
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "metrics.json").write_text(json.dumps(metrics))
    script = runpy.run_path(str(RECIPES / "report.py"))
    rows = script["read_runs"]([tmp_path / "a", tmp_path / "b"])
    assert [row.name for row in rows] == ["digits (T=5, snn.lr=0.001)", "digits (T=7, snn.lr=0.25)"]
    for run in ("a", "b"):
        kept = json.loads((tmp_path / run / "metrics.json").read_text())
        kept["config"] |= {"dataset": "cifar10", "model": "vgg6", "width": 1, "hidden": 4096, "T": 5}
        if run == "b":
            kept["config"] |= {"encoder": "direct", "setting_of_later_versions": 1}
        (tmp_path / run / "metrics.json").write_text(json.dumps(kept))
    rows = script["read_runs"]([tmp_path / "a", tmp_path / "b"])
    assert rows[1].name == "digits (encoder=direct, snn.lr=0.25, setting_of_later_versions=1)"
    first, second = script["accuracy_table"](rows)[2:]
    assert first.endswith("| 90.22 / 89.98 / 88.89 |")
    assert second.endswith("|  |"), "the paper's row is not of this network"
    assert " at T = 3, 20 images |" in first
    report(monkeypatch, tmp_path / "a", tmp_path / "b", "--out", tmp_path / "report")
    assert "| digits (encoder=direct, snn.lr=0.25, setting_of_later_versions=1) | 1 |" in capsys.readouterr().out


def test_the_recorded_runs_make_the_recorded_report():
    folder = RECIPES.parent / "benchmarks" / "results" / "recipes"
    script = runpy.run_path(str(RECIPES / "report.py"))
    rows = script["read_runs"](sorted(folder.glob("*.json")))
    assert not [row.name for row in rows if any(one["changed"] for one in row.provenance)], "only commits can be repeated"
    assert script["markdown"](rows) == (folder / "report.md").read_text()


def test_unfinished_runs_are_named(monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match=r"metrics.json cannot be read .*holds no finished run"):
        report(monkeypatch, tmp_path)
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"is not what a run of recipes/train.py leaves: it lacks config, name, prov"):
        report(monkeypatch, tmp_path)
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(SystemExit, match=r"metrics.json is damaged, it is not JSON"):
        report(monkeypatch, tmp_path)
