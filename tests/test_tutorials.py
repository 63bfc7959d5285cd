"""The tutorials, as a reader runs them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIALS = sorted((Path(__file__).parent.parent / "docs" / "tutorials").glob("*.py"))


def test_there_are_tutorials():
    assert {path.stem for path in TUTORIALS} == {"convert_your_own", "snntorch_digits", "spikingjelly_digits"}


def run(path, *arguments):
    command = [sys.executable, str(path), "--epochs", "4", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("path", [path for path in TUTORIALS if path.stem.endswith("_digits")], ids=lambda path: path.stem)
def test_before_and_after(path):
    found = re.findall(r"(\w+): .*?([\d.]+) +([\d.]+)$", run(path), re.MULTILINE)
    rows = {name: (float(accuracy), float(spikes)) for name, accuracy, spikes in found}
    assert set(rows) == {"before", "after"}
    assert all(accuracy > 80 for accuracy, _ in rows.values())
    assert rows["after"][1] <= 1
    assert rows["after"][1] < rows["before"][1]


def test_convert_your_own(tmp_path):
    told = run(TUTORIALS[0], "--out", tmp_path)
    assert "conv1 (Conv2d) has a bias: train the ANN with bias=False" in told
    assert "norm1 (BatchNorm2d) cannot be converted: train the ANN without batch norm" in told
    assert "pool1 (MaxPool2d) cannot be converted: use average pooling" in told
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
