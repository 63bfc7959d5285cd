"""The recipes through their real scripts, briefly."""

import json
import statistics
import subprocess
import sys

import pytest
import torch
from recipe_runs import RECIPES, call

from onespike.conversion import SpikingNetwork


def run(*arguments):
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False)


def test_quickstart_writes_what_it_says(tmp_path):
    result = run(RECIPES / "quickstart.py", "--epochs", 1, "--seed", 3, "--device", "cpu", "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    assert "epoch" not in result.stderr, "progress bars must be quiet where there is no terminal"
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["seed"] == 3
    assert config["epochs"] == 1
    trained = metrics["results"]["trained"]
    assert metrics["results"]["ann"]["accuracy"] > 95
    assert trained["accuracy"]["potential"] > 80
    assert trained["most_spikes_of_a_neuron"] == 1
    assert 0 < trained["spikes_per_neuron"] < 0.5
    assert len(trained["accuracy_at_step"]) == 5
    assert trained["accuracy_at_step"][-1] == trained["accuracy"]["potential"]
    for technology in ("int32_45nm", "fp32_45nm"):
        for accounting in ("paper", "input", "events"):
            assert f"{technology}, {accounting} accounting" in result.stdout
    network = SpikingNetwork.load(tmp_path / "model")
    assert network(torch.rand(2, 1, 8, 8)).potential.shape == (2, 10)
    for name in ("raster", "membrane", "spike_times", "activity", "energy", "training"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")

    result = run(RECIPES / "report.py", tmp_path, "--out", tmp_path / "report")
    assert result.returncode == 0, result.stderr
    assert "Not in this report" not in result.stdout
    line = next(line for line in result.stdout.splitlines() if ": hybrid input, one spike, T = 5 | 1 |" in line)
    assert line.startswith("| Quickstart CNN, digits: ")
    assert f"| {trained['accuracy']['potential']:.2f} |" in line
    assert line.endswith(f"| {trained['spikes_per_neuron']:.3f} |  |")
    assert "| Quickstart CNN, digits: image, then zeros, one spike, T = 5 | 1 |" in result.stdout
    figures = {path.name.split("-digits")[0] for path in (tmp_path / "report").glob("*.png")}
    assert figures == {"activity", "spikes", "energy", "operations", "networks", "accuracy", "read", "spike-times"}
    assert (tmp_path / "report" / "report.html").exists()


def test_events_writes_what_it_says(tmp_path):
    runs = [run(RECIPES / "events.py", "--epochs", 1, "--seed", 3, "--out", tmp_path / name) for name in "ab"]
    for result in runs:
        assert result.returncode == 0, result.stderr
    assert "epoch" not in runs[0].stderr, "progress bars must be quiet where there is no terminal"
    metrics, again = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in "ab")
    assert metrics["results"] == again["results"], "a seed fixes the result"
    assert json.loads((tmp_path / "a" / "config.json").read_text())["seed"] == 3
    assert list(metrics["results"]) == ["frame + events", "frame only", "events only"]
    for name, result in metrics["results"].items():
        assert result["accuracy"] > 15, "chance is 10 %"
        assert 0.02 < result["spikes_per_neuron"] < 0.95
        assert f"{name:<18}{result['accuracy']:>18.1f}" in runs[0].stdout
    assert metrics["results"]["frame only"]["accuracy"] > 50
    for name in ("input", "activity", "training"):
        assert (tmp_path / "a" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("recipe", "arguments", "message"),
    [
        ("quickstart.py", ("--epochs", -1), "--epochs must be >= 0, got -1"),
        ("events.py", ("--epochs", 0), "--epochs must be >= 1, got 0"),
    ],
)
def test_bad_arguments_are_named(recipe, arguments, message, monkeypatch, capsys):
    status, told = call(monkeypatch, capsys, RECIPES / recipe, *arguments)
    assert status == 2
    assert message in told


def test_the_simulated_camera_times_its_events(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    import events  # noqa: PLC0415

    # A pixel that rises by 2.5 thresholds, one that falls by 1.2, and one that rises by 1.1 and falls back by 0.2.
    there = torch.linspace(0, 1, 11)
    levels = torch.stack([2.5 * there, -1.2 * there, (1.1 * 2 * there).clamp_max(1.1) - (0.4 * (there - 0.5)).clamp_min(0)], 1)
    found = events.record((0.6 * (0.3 * levels.double()).exp() - 0.1).view(11, 1, 3), 1000, 0.3)
    assert found[:, [0, 3]].tolist() == [[0, 1], [2, 1], [0, 1], [1, 0]]
    assert found[:, 2].tolist() == pytest.approx([400, 1000 / 2.2, 800, 1000 / 1.2], abs=1)


def test_the_ablations_in_the_docs_are_what_was_recorded():
    text = (RECIPES.parent / "docs" / "recipes.md").read_text()
    paths = list((RECIPES.parent / "benchmarks" / "results" / "recipes").glob("cifar10_vgg6_all_steps-*-seed1.json"))
    assert paths
    for path in paths:
        trained = json.loads(path.read_text())["results"]["trained"]
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{path.name.split('-')[1]}` |")]
        paper, events = trained["energy"]["int32_45nm"]["paper"], trained["energy"]["fp32_45nm"]["events"]
        numbers = [
            f"{trained['accuracy']['potential']:.2f}",
            f"{trained['accuracy_at_step'][0]:.2f}",
            f"{trained['spikes_per_neuron']:.3f}",
            *(f"{report['ann_pj'] / report['snn_pj']:.1f}" for report in (paper, events)),
        ]
        assert row.split(" | ")[2:] == [*numbers[:-1], f"{numbers[-1]} |"]


@pytest.mark.parametrize("name", ["cifar10_vgg6_small", "cifar10_vgg6_all_steps"])
def test_the_cifar_rows_are_what_was_recorded(name):
    text = (RECIPES.parent / "docs" / "recipes.md").read_text()
    folder = RECIPES.parent / "benchmarks" / "results" / "recipes"
    runs = [json.loads((folder / f"{name}-seed{seed}.json").read_text())["results"] for seed in range(3)]
    trained = [run["trained"] for run in runs]
    rows = {
        "ANN": [f"{run['ann']['accuracy']:.2f}" for run in runs],
        "**trained, T = 5, hybrid input, one spike**": [f"**{one['accuracy']['potential']:.2f}**" for one in trained],
        "the same, read at t = 1": [f"{one['accuracy_at_step'][0]:.2f}" for one in trained],
    }
    for row, cells in rows.items():
        assert f"| {row} | {' | '.join(cells)} |" in text
    spikes = [one["spikes_per_neuron"] for one in trained]
    assert f"| {min(spikes):.3f}-{max(spikes):.3f} |" in text
    control = json.loads((folder / "cifar10_vgg6_all_steps-analogue-seed1.json").read_text())["results"]["trained"]
    assert f"| | {control['accuracy']['potential']:.2f} | | {control['spikes_per_neuron']:.3f} |" in text
    hundred = json.loads((folder / f"{name.replace('cifar10', 'cifar100')}-seed0.json").read_text())["results"]
    accuracy, spikes = hundred["trained"]["accuracy"]["potential"], hundred["trained"]["spikes_per_neuron"]
    assert f"ANN {hundred['ann']['accuracy']:.2f} %, SNN {accuracy:.2f} % at {spikes:.3f} spikes per neuron" in text


def test_table_1_is_what_was_recorded():
    text = (RECIPES.parent / "docs" / "recipes.md").read_text()
    folder = RECIPES.parent / "benchmarks" / "results" / "h100_17deb8f"
    runs = [json.loads((folder / f"cifar10_{name}_fast-seed0.json").read_text())["results"] for name in ("vgg16", "vgg6")]
    paper = {"vgg16": (93.24, 93.16, 91.41), "vgg6": (90.22, 89.98, 88.89)}.values()
    rows = {
        "ANN": [f"{run['ann']['accuracy']:.2f} / {row[0]}" for run, row in zip(runs, paper, strict=True)],
        "converted, T = 200, direct input, any number of spikes (here: 1000 images)": [
            f"{run['plain']['accuracy']:.2f} / {row[1]}" for run, row in zip(runs, paper, strict=True)
        ],
        "**trained, T = 5, hybrid input, one spike**": [
            f"**{run['trained']['accuracy']['potential']:.2f}** / {row[2]}" for run, row in zip(runs, paper, strict=True)
        ],
        "the same, read at t = 1": [f"{run['trained']['accuracy_at_step'][0]:.2f}" for run in runs],
        "spikes per neuron": [f"{run['trained']['spikes_per_neuron']:.3f}" for run in runs],
        "epochs of the ANN / SNN that fitted": [
            epochs(folder / f"cifar10_{name}_fast-seed0.jsonl") for name in ("vgg16", "vgg6")
        ],
    }
    for name, cells in rows.items():
        assert f"| {name} | {' | '.join(cells)} |" in text


def test_the_readmes_results_are_what_was_recorded():
    text = (RECIPES.parent / "README.md").read_text()
    folder = RECIPES.parent / "benchmarks" / "results"
    for name, row, ann, snn in (("vgg16", "VGG-16", 93.24, 91.41), ("vgg6", "VGG-6", 90.22, 88.89)):
        run = json.loads((folder / "h100_17deb8f" / f"cifar10_{name}_fast-seed0.json").read_text())["results"]
        found, trained = run["ann"]["accuracy"], run["trained"]
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {row}, CIFAR-10, ")]
        numbers = f"{found:.2f} / {ann} | {trained['accuracy']['potential']:.2f} / {snn} | {trained['spikes_per_neuron']:.3f} |"
        assert line.endswith(numbers)
    runs = [
        json.loads((folder / "recipes" / f"cifar10_vgg6_small-seed{seed}.json").read_text())["results"] for seed in range(3)
    ]
    columns = zip(
        *(
            (run["ann"]["accuracy"], run["trained"]["accuracy"]["potential"], run["trained"]["spikes_per_neuron"])
            for run in runs
        ),
        strict=True,
    )
    ann, snn, spikes = (statistics.mean(column) for column in columns)
    assert f"3 seeds | {ann:.2f} | {snn:.2f} | {spikes:.3f} |" in text


def test_the_readmes_speed_is_what_was_recorded():
    text = (RECIPES.parent / "README.md").read_text()
    path = RECIPES.parent / "benchmarks" / "results" / "h100_3d049ec" / "network_bf16.json"
    (rows,) = [case["rows"] for case in json.loads(path.read_text())["cases"] if case["phase"] == "train"]
    ours = rows["onespike cupy"]
    assert f"**Speed: {ours['speedup_over_spikingjelly']:.2f} times**" in text
    assert f"{ours['median_ms']:.1f} ms (bf16, batch 128, H100" in text


def epochs(history):
    stages = [json.loads(line)["stage"] for line in history.read_text().splitlines()]
    return f"{stages.count('ann')} / {stages.count('snn')}"
