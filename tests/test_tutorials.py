"""The tutorials, as a reader runs them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import sklearn.datasets
from recipe_runs import call

FOLDER = Path(__file__).parent.parent / "docs" / "tutorials"
TUTORIALS = sorted(FOLDER.glob("*.py"))


def test_there_are_tutorials():
    assert {path.stem for path in TUTORIALS} == {
        "classify_images",
        "convert_resnet",
        "convert_your_own",
        "snntorch_digits",
        "spikingjelly_digits",
    }


def run(path, *arguments):
    command = [sys.executable, str(path), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def fails(path, *arguments):
    command = [sys.executable, str(path), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def test_what_cannot_be_read_is_named(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"no image")
    status, told = fails(FOLDER / "classify_images.py", tmp_path / "photo.jpg")
    assert status == 1
    assert f"{tmp_path / 'photo.jpg'} cannot be read as an image: " in told


@pytest.mark.parametrize("path", [path for path in TUTORIALS if path.stem != "classify_images"], ids=lambda path: path.stem)
def test_no_epochs_and_no_seed_are_named(path, monkeypatch, capsys):
    status, told = call(monkeypatch, capsys, path, "--epochs", 0)
    assert status == 2
    assert "--epochs must be >= 1 and --seed in [0, 2^32), got 0 and 0" in told


@pytest.mark.parametrize("path", [path for path in TUTORIALS if path.stem.endswith("_digits")], ids=lambda path: path.stem)
def test_before_and_after(path):
    found = re.findall(r"(\w+): .*?([\d.]+) +([\d.]+)$", run(path, "--epochs", 4), re.MULTILINE)
    rows = {name: (float(accuracy), float(spikes)) for name, accuracy, spikes in found}
    assert set(rows) == {"before", "after"}
    assert all(accuracy > 80 for accuracy, _ in rows.values())
    assert rows["after"][1] <= 1
    assert rows["after"][1] < rows["before"][1]


def test_convert_your_own(tmp_path):
    told = run(FOLDER / "convert_your_own.py", "--epochs", 4, "--out", tmp_path)
    assert "act1 (GELU), act2 (GELU), act3 (GELU) cannot be converted: use ReLU" in told
    assert re.search(r"^norm1 +folded into conv1$", told, re.MULTILINE)
    assert re.search(r"^act1 +SingleSpikeLIFNode( +[\d.e+-]+){2}( +[\d.]+%){2}$", told, re.MULTILINE)
    validation = dict(re.findall(r"^  ([\d.]+): [\d.]+ % untrained, ([\d.]+) % trained$", told, re.MULTILINE))
    assert len(validation) == 4
    (best,) = re.findall(r"^converted: scale ([\d.]+)", told, re.MULTILINE)
    assert float(validation[best]) == max(map(float, validation.values()))
    rows = dict(re.findall(r"^(\w+): (?:ANN|scale|one spike).*?  ([\d. ]+)$", told, re.MULTILINE))
    own, mended, converted, trained = (
        [float(cell) for cell in rows[name].split()] for name in ("own", "mended", "converted", "trained")
    )
    assert own[0] > 90
    assert mended[0] > 80
    assert trained[0] > max(80, converted[0])
    assert 0 < trained[1] <= 1
    assert "the same potentials: True" in told
    assert (tmp_path / "network.json").exists()


def test_classify_images(tmp_path):
    photographs = sorted((Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg"))
    assert len(photographs) >= 2
    told = run(FOLDER / "classify_images.py", *photographs, "--out", tmp_path / "figure.png")
    guesses = re.findall(r"^(\S+)\s+-> (\w+) +first output spike at t = ([1-5])$", told, re.MULTILINE)
    assert [name for name, _, _ in guesses] == [path.name for path in photographs]
    spikes, most = re.search(r"([\d.]+) spikes per neuron, no neuron more than (\d)", told).groups()
    assert 0 < float(spikes) < 1
    assert most == "1"
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_convert_resnet():
    told = run(FOLDER / "convert_resnet.py", "--epochs", 4)
    rows = {name: float(percent) for name, percent in re.findall(r"^(\w+): .*?([\d.]+) %$", told, re.MULTILINE)}
    assert rows["ann"] > 90
    assert abs(rows["exact"] - rows["ann"]) <= 1
    assert rows["trained"] > max(85, rows["converted"])
    assert re.search(r"^4.downsample.1 +folded into 4.downsample.0$", told, re.MULTILINE)
