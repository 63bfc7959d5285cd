"""The CIFAR recipe's training: killed, stopped and resumed, shared between processes."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from recipe_runs import DIGITS, GROWN, RECIPES, SHORT, checkpoints_of, outcome, start, torchrun, train, wait_for_steps

from cifar.data import load_data
from cifar.reading import load_config
from cifar.termination import Termination
from onespike.conversion import SpikingNetwork


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    command = [sys.executable, RECIPES / "train.py", DIGITS, "--out", folder, "--device", "cpu", "--set", *SHORT]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "step/s" not in done.stderr, "progress bars must be quiet where there is no terminal"
    lines = [line for line in done.stdout.splitlines() if " epoch " in line]
    assert [line.split(":")[0] for line in lines] == ["ANN epoch 1", "ANN epoch 2", "SNN epoch 1", "SNN epoch 2"]
    assert all("validation_accuracy" in line and "left" in line for line in lines)
    assert "spikes" in lines[-1]
    return folder


def test_results_are_those_of_the_saved_network(unbroken):
    data = load_data(load_config([DIGITS], SHORT), Path("nowhere"), torch.device("cpu"))
    network = SpikingNetwork.load(unbroken / "model")
    x, y = data.test.plain(slice(0, None))
    with torch.no_grad():
        hits = (network.eval()(x).potential.argmax(1) == y).double().mean().item()
    results = outcome(unbroken)[1]
    assert results["trained"]["accuracy"]["potential"] == pytest.approx(100 * hits)
    assert results["trained"] != results["converted"]


@pytest.mark.timeout(900)
def test_ten_kills_change_nothing(unbroken, tmp_path):
    moments = random.Random(0)
    for _ in range(10):
        before = checkpoints_of(tmp_path)
        process = start(tmp_path)
        wait_for_steps(process, tmp_path, before)
        time.sleep(moments.uniform(0, 0.04))
        process.kill()
        process.communicate()
        assert not (tmp_path / "metrics.json").exists(), "it ended before it could be killed"
    process = start(tmp_path)
    process.communicate()
    assert process.returncode == 0
    assert outcome(tmp_path) == outcome(unbroken)


def test_sigterm_saves_and_ends(unbroken, tmp_path):
    process = start(tmp_path)
    wait_for_steps(process, tmp_path, set())
    process.terminate()
    told, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM after step" in told
    assert "Traceback" not in errors
    process = start(tmp_path)
    process.communicate()
    assert outcome(tmp_path) == outcome(unbroken)


def test_a_signal_during_the_last_save_is_heard():
    handler, finished = signal.getsignal(signal.SIGTERM), []

    def save(termination):
        with termination.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            finished.append(True)

    try:
        with pytest.raises(SystemExit) as ended:
            save(Termination())
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert finished
    assert ended.value.code == 128 + signal.SIGTERM


def test_two_processes_take_the_steps_of_one(monkeypatch, tmp_path):
    # 33 images in batches of 16, 16 and 1, whose second share is empty. Rounding can move a spike, so both start alike.
    settings = [*SHORT, "validation=1404", "dropout=0", "fc_dropout=0", "snn_dropout=0", "conversion_images=7"]
    settings += ["ann.batch_size=16", "snn.batch_size=16", "ann.epochs=7", "snn.epochs=7", "calibration_images=33"]
    settings += ["snn.optimizer=sgd", "snn.lr=0.001"]  # Adam turns rounding errors of gradients near 0 into steps
    one, ann, snn = (tmp_path / name for name in ("one", "ann", "snn"))
    train(monkeypatch, DIGITS, "--out", one, "--device", "cpu", "--set", *settings)
    for folder, arguments in ((ann, ["--set", *settings, "snn.max_steps=0"]), (snn, ["--ann", one, "--set", *settings])):
        process = torchrun(folder, *arguments)
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    losses = {folder.name: [entry["loss"] for entry in outcome(folder)[2]] for folder in (one, ann, snn)}
    assert len(losses["one"]) == 14
    assert losses["ann"] == pytest.approx(losses["one"][:7], abs=1e-5)
    assert losses["snn"] == pytest.approx(losses["one"], abs=1e-5)
    results, expected = outcome(snn)[1], outcome(one)[1]
    for name in ("ann", "plain", "converted", "trained"):
        assert results[name]["accuracy"] == pytest.approx(expected[name]["accuracy"], abs=1e-9), "every image counts once"


def test_a_killed_process_ends_the_job_and_the_run_goes_on(tmp_path):
    settings = ["--set", *SHORT, "ann.epochs=8"]
    whole = torchrun(tmp_path / "whole", *settings)
    _, errors = whole.communicate(timeout=200)
    assert whole.returncode == 0, errors
    tmp_path /= "killed"
    process = torchrun(tmp_path, *settings)
    for _ in range(3):
        wait_for_steps(process, tmp_path, checkpoints_of(tmp_path))
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True)
    os.kill(int(listed.stdout.split()[-1]), signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "Signal 9 (SIGKILL)" in errors
    assert not (tmp_path / "conversion.json").exists(), "it ended before it could be killed"
    process = torchrun(tmp_path, "--resume", *settings)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert outcome(tmp_path) == outcome(tmp_path.parent / "whole")


def test_two_processes_grow_their_steps_as_one(monkeypatch, tmp_path):
    settings = ["--set", *SHORT, *GROWN, "snn.max_steps=14", "snn_dropout=0", "dropout=0", "fc_dropout=0", "ann.epochs=1"]
    train(monkeypatch, DIGITS, "--out", tmp_path / "one", "--device", "cpu", *settings)
    process = torchrun(tmp_path / "two", *settings)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    losses = [[entry["loss"] for entry in outcome(tmp_path / name)[2]] for name in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], rel=0.02), "rounding moves spikes"
