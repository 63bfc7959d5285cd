"""The recipes through their real scripts, briefly."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from onespike.conversion import SpikingNetwork

RECIPES = Path(__file__).parents[1] / "recipes"


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
    assert network(torch.zeros(2, 1, 8, 8)).potential.shape == (2, 10)
    for name in ("raster", "membrane", "spike_times", "activity", "energy", "training"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("arguments", "message"), [(("--epochs", -1), "--epochs must be >= 0, got -1")])
def test_bad_arguments_are_named(arguments, message):
    result = run(RECIPES / "quickstart.py", *arguments)
    assert result.returncode == 2
    assert message in result.stderr


def test_events_writes_what_it_says(tmp_path):
    result = run(RECIPES / "events.py", "--epochs", 2, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert set(metrics["results"]) == {"frame and events", "frame alone", "events alone"}
    for view, found in metrics["results"].items():
        assert found["accuracy"] > 30, f"{view} learned nothing in two epochs"
        assert 0 < found["spikes_per_neuron"] <= 1
        assert f"{view:22s}{found['accuracy']:12.1f}" in result.stdout
    assert 0.1 < metrics["input_spikes_per_pixel_and_polarity"] < 1
    assert (tmp_path / "recording.png").read_bytes().startswith(b"\x89PNG")
    assert "--epochs must be >= 0, got -1" in run(RECIPES / "events.py", "--epochs", -1).stderr


def test_the_simulated_camera_times_its_crossings(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    import events  # noqa: PLC0415

    # One pixel whose log intensity rises by 2.5 thresholds over the whole film, and one that falls by 1.2.
    rise = torch.linspace(0, 1, events.FRAMES)
    logs = torch.stack([2.5 * events.CONTRAST * rise, -1.2 * events.CONTRAST * rise], 1) + torch.log(torch.tensor(0.6))
    found = events.camera((logs.exp() - events.DARKNESS).view(-1, 1, 2))
    assert sorted((int(e["x"]), int(e["p"])) for e in found) == [(0, 1), (0, 1), (1, -1)]
    moments = sorted(int(e["t"]) for e in found)
    assert moments == pytest.approx([events.DURATION * share for share in (1 / 2.5, 2 / 2.5, 1 / 1.2)], abs=50)
