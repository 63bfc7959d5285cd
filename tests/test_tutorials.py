"""The tutorials, as a reader runs them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIALS = sorted((Path(__file__).parent.parent / "docs" / "tutorials").glob("*.py"))


def test_there_are_tutorials():
    assert {path.stem for path in TUTORIALS} == {"snntorch_digits", "spikingjelly_digits"}


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_runs_and_learns(path):
    command = [sys.executable, str(path), "--epochs", "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    found = re.findall(r"(\w+): .*?([\d.]+) +([\d.]+)$", done.stdout, re.MULTILINE)
    rows = {name: (float(accuracy), float(spikes)) for name, accuracy, spikes in found}
    assert set(rows) == {"before", "after"}
    assert all(accuracy > 80 for accuracy, _ in rows.values())
    assert rows["after"][1] <= 1
    assert rows["after"][1] < rows["before"][1]
