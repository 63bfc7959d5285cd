"""What ends a run, or meets it when it goes on: nothing is lost, and one line says what to do."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from recipe_runs import DIGITS, RECIPES, SHORT, checkpoints_of, outcome, popen, train, wait_for_steps

from cifar.checkpoint import CheckpointError, Checkpoints
from cifar.output import OutputError
from cifar.training import Trainer
from onespike.conversion import SpikingNetwork

ONE = [*SHORT, "ann.max_steps=1", "snn.max_steps=1"]
CLOSED_PIPE = 128 + 13


def begin(folder, **options):
    """Start a run in a process that hears every signal, however the tests were started."""

    def listen():
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)

    settings = [*SHORT, "ann.epochs=500"]
    command = [sys.executable, RECIPES / "train.py", DIGITS, "--out", folder, "--device", "cpu", "--set", *settings]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(list(map(str, command)), preexec_fn=listen, **{**pipes, **options})  # noqa: PLW1509


def last_step(folder):
    return max(int(name[5:13]) for name in checkpoints_of(folder))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_first_and_the_folder_is_the_runs_own(number, monkeypatch, tmp_path):
    process = begin(tmp_path)
    wait_for_steps(process, tmp_path, set())
    while "ANN epoch 1" not in process.stdout.readline():
        assert process.poll() is None, process.stderr.read()
    config = (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(SystemExit, match=rf"{tmp_path} is in use by process {process.pid} on .*: wait for it to end, or"):
        train(monkeypatch, DIGITS, "--out", tmp_path, "--resume", "--set", *ONE, "seed=5")
    assert (tmp_path / "config.yaml").read_bytes() == config, "before anything is written"
    assert last_step(tmp_path) == 0, "the next checkpoint is due in five minutes"
    process.send_signal(number)
    told, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"stopped by {number.name} after step {last_step(tmp_path)} of ann: --resume goes on from there" in told
    assert last_step(tmp_path) >= 13
    assert "Traceback" not in errors


def test_a_closed_pipe_saves_first(tmp_path):
    process = begin(tmp_path)
    while "ANN epoch 1" not in process.stdout.readline():
        assert process.poll() is None, process.stderr.read()
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(timeout=60) == CLOSED_PIPE
    assert f"train.py: stopped by a closed output after step {last_step(tmp_path)} of ann: --resume goes on" in errors
    assert last_step(tmp_path) >= 26
    assert len(errors.splitlines()) == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_under_the_log_is_named(tmp_path):
    with open("/dev/full", "w") as full:
        process = begin(tmp_path, stdout=full)
        errors = process.stderr.read()
    assert process.wait(timeout=60) == 1
    assert "train.py: stopped by an output that cannot be written (No space left on device): --resume goes on" in errors
    assert len(errors.splitlines()) == 1


def test_a_log_that_fails_in_the_middle_saves_first(monkeypatch, tmp_path, capfd):
    def full(text):
        if "epoch 1" in text:
            raise OutputError(OSError(28, "No space left on device"))

    monkeypatch.setattr("cifar.training.say", full)
    with pytest.raises(SystemExit) as ended:
        train(monkeypatch, DIGITS, "--out", tmp_path, "--set", *SHORT)
    assert ended.value.code == 1
    assert last_step(tmp_path) == 13
    assert "cannot be written (No space left on device) after step 13 of ann: --resume goes on" in capfd.readouterr().err


def test_a_signal_between_the_stages_ends_at_once_with_a_line(monkeypatch, tmp_path, capfd):
    def interrupt(*_):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("cifar.results.draw", interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as ended:
            train(monkeypatch, DIGITS, "--out", tmp_path, "--set", *ONE)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "handlers are given back"
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.value.code == 130
    assert "stopped by SIGINT: --resume goes on from there" in capfd.readouterr().err


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that is over."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    process = popen([sys.executable, RECIPES / "train.py", DIGITS, "--out", folder, "--device", "cpu", "--set", *ONE])
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it, whose last file is gone: it goes on at the evaluation."""
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()
    return tmp_path / "run"


def go_on(monkeypatch, folder, *more):
    train(monkeypatch, DIGITS, "--out", folder, "--device", "cpu", "--resume", *more, "--set", *ONE)


def alter(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_an_altered_digit_is_found(monkeypatch, run):
    for name in ("results.json", "conversion.json"):
        before = (run / name).read_text()
        number = next(word.strip(",") for word in before.split() if word.strip(",").replace(".", "").isdigit() and "." in word)
        alter(run / name, number, str((int(number[0]) + 1) % 10) + number[1:])
        with pytest.raises(SystemExit, match=rf"{run / name} does not have its SHA-256, .*: delete it to have it made again"):
            go_on(monkeypatch, run)
        (run / name).write_text(before)
    go_on(monkeypatch, run)


def other_weights(folder):
    """Move the weights of an ANN, and save it as its run would have."""
    (path,) = (path for path in (folder / "ann").glob("step-00000001.*"))
    document = torch.load(path, weights_only=True)
    for weight in document["state"]["network"].values():
        weight.add_(1e-3)
    for old in (folder / "ann").iterdir():
        old.unlink()
    Checkpoints(folder / "ann", document["identity"]).save(1, document["state"])


def test_another_ann_under_thresholds_and_network_is_found(monkeypatch, run, finished, tmp_path):
    borrowed = tmp_path / "borrowed"
    train(monkeypatch, DIGITS, "--out", borrowed, "--device", "cpu", "--ann", finished, "--set", *ONE)
    (borrowed / "metrics.json").unlink()
    go_on(monkeypatch, borrowed, "--ann", run)  # of the same weights
    (borrowed / "metrics.json").unlink()
    other_weights(run)
    with pytest.raises(SystemExit, match=r"conversion.json was made from another ANN \(SHA-256 .*\): go on with that one"):
        go_on(monkeypatch, borrowed, "--ann", run)
    (borrowed / "conversion.json").unlink()
    with pytest.raises(SystemExit, match=r"snn/step-00000001.* was made with other settings: sha256 of ANN: "):
        go_on(monkeypatch, borrowed, "--ann", run)
    shutil.rmtree(borrowed / "snn")
    with pytest.raises(SystemExit, match=r"results.json was made from another ANN"):
        go_on(monkeypatch, borrowed, "--ann", run)
    (borrowed / "results.json").unlink()
    go_on(monkeypatch, borrowed, "--ann", run)


def test_a_spiking_network_that_began_elsewhere_is_found(monkeypatch, run, finished):
    with pytest.raises(SystemExit, match=r"was made with other settings: sha256 of start: none -> "):
        go_on(monkeypatch, run, "--start", finished / "model")


def test_every_piece_names_its_threads(monkeypatch, run, capsys):
    before = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: before + 2)
    go_on(monkeypatch, run)
    told = capsys.readouterr().out
    assert (
        f"warning: other than in the last piece, so that numbers may differ in the last digits: threads: {before} -> " in told
    )
    pieces = json.loads((run / "metrics.json").read_text())["pieces"]
    assert [piece["threads"] for piece in pieces] == [before, before + 2]
    (run / "metrics.json").unlink()
    go_on(monkeypatch, run)
    assert "warning" not in capsys.readouterr().out, "it is as it was"


def test_a_run_that_goes_on_writes_its_history_again(monkeypatch, run, finished):
    (run / "history.jsonl").write_text('null\n{"stage": "ann"')
    go_on(monkeypatch, run)
    assert outcome(run) == outcome(finished)


@pytest.mark.parametrize("setting", ["gamma=1e20", "snn.lr=1e30", "snn.neuron_lr=3e38", "snn.weight_decay=1e30"])
def test_every_way_to_nan_names_the_last_good_checkpoint(setting, monkeypatch, finished, tmp_path):
    stage = setting.split(".")[0] if "." in setting else "snn"
    arguments = [DIGITS, "--out", tmp_path, "--device", "cpu", "--ann", finished, "--set", *ONE, "snn.max_steps=26", setting]
    with pytest.raises(SystemExit) as ended:
        train(monkeypatch, *arguments)
    message = str(ended.value.code)
    assert f"{tmp_path}/{stage}/step-00000000." in message
    assert "is the last good checkpoint" in message
    assert "NaN" in message or "can learn no more" in message


def test_weights_that_turn_nan_are_named_where_they_are_measured(monkeypatch, finished, tmp_path):
    """After the last step of an epoch no step follows that could stumble over them."""
    advance = Trainer.advance

    def spoil(trainer, batch):
        advance(trainer, batch)
        if trainer.stage.name == "snn":
            with torch.no_grad():
                next(trainer.network.parameters()).fill_(float("nan"))

    monkeypatch.setattr(Trainer, "advance", spoil)
    with pytest.raises(
        SystemExit, match=r"the weights body.0.weight became NaN or infinite by step 1: .*snn/step-00000000.* is the last"
    ):
        train(monkeypatch, DIGITS, "--out", tmp_path, "--device", "cpu", "--ann", finished, "--set", *ONE)


def test_nan_is_not_borrowed(monkeypatch, run, finished, tmp_path):
    (path,) = (run / "ann").glob("step-00000001.*")
    document = torch.load(path, weights_only=True)
    document["state"]["network"]["0.weight"].fill_(float("nan"))
    path.unlink()
    Checkpoints(run / "ann", document["identity"]).save(1, document["state"])
    with pytest.raises(SystemExit, match=r"step-00000001.* holds NaN or infinite weights, 0.weight: delete it to go on from"):
        train(monkeypatch, DIGITS, "--out", tmp_path / "new", "--device", "cpu", "--ann", run, "--set", *ONE)
    network = SpikingNetwork.load(finished / "model")
    next(network.parameters()).data.fill_(float("nan"))
    network.save(tmp_path / "start")
    with pytest.raises(SystemExit, match=r"--start must be a network of finite numbers, got NaN or infinity in body.0.weight"):
        train(
            monkeypatch,
            DIGITS,
            "--out",
            tmp_path / "n",
            "--device",
            "cpu",
            "--ann",
            finished,
            "--start",
            tmp_path / "start",
            "--set",
            *ONE,
        )


def test_a_checkpoint_of_another_network_is_named(monkeypatch, run):
    (path,) = (run / "snn").glob("step-00000001.*")
    document = torch.load(path, weights_only=True)
    for key, value in (("network", {}), ("progress", {"step": "many"}), ("optimizer", {})):
        path.unlink(missing_ok=True)
        path = Checkpoints(run / "snn", document["identity"]).save(1, {**document["state"], key: value})
        with pytest.raises(SystemExit, match=rf"{path.name} is not of this network .*: delete it to go on from step-00000000"):
            go_on(monkeypatch, run)


def test_a_silent_layer_is_named_with_settings_of_the_recipe(monkeypatch, finished, tmp_path):
    arguments = [DIGITS, "--device", "cpu", "--ann", finished, "--set", *ONE]
    with pytest.raises(
        SystemExit, match=r"silent on these images: begin again with more than calibration_T=3, percentile=0.001 or ann.e"
    ):
        train(monkeypatch, *arguments, "percentile=0.001", "--out", tmp_path / "a")
    with pytest.raises(SystemExit, match=r"calibration=one_spike, threshold_scales=\[1000000.0\]: .*must leave spikes"):
        train(monkeypatch, *arguments, "calibration=one_spike", "threshold_scales=[1e6]", "--out", tmp_path / "b")


def test_a_disk_that_fills_up_at_the_end_keeps_the_numbers(monkeypatch, run):
    results = (run / "results.json").read_text()

    def full(*_):
        raise OSError(28, "No space left on device", "raster.png")

    with monkeypatch.context() as broken:
        broken.setattr("cifar.results.draw", full)
        with pytest.raises(
            SystemExit, match=r"raster.png cannot be written \(No space left on device\); no number is lost: .*results"
        ):
            go_on(broken, run)
    go_on(monkeypatch, run)
    assert (run / "results.json").read_text() == results


@pytest.fixture
def short_recipes(monkeypatch):
    """Quickstart and events, made shorter still."""
    monkeypatch.syspath_prepend(str(RECIPES))
    import events  # noqa: PLC0415
    import quickstart  # noqa: PLC0415

    def few(*_):
        images, labels = torch.rand(5, 20, 3, events.SIDE, events.SIDE), torch.arange(20) % 10
        return (images, labels), (images, labels), (images, labels), 3.0

    @dataclass(frozen=True)
    class Shorter(quickstart.Config):
        ann_epochs: int = 1
        conversion_T: int = 3

    monkeypatch.setattr(quickstart, "Config", Shorter)
    monkeypatch.setattr(events, "load_data", few)
    monkeypatch.setattr(events, "SingleSpikeLIFNode", partial(events.SingleSpikeLIFNode, backend="torch"))
    return {"quickstart": quickstart, "events": events}


@pytest.mark.parametrize(("name", "largest"), [("quickstart", 100_000), ("events", 20_000)])
def test_a_short_recipe_writes_its_numbers_before_what_does_not_fit(
    name, largest, short_recipes, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(sys, "argv", [name, "--epochs", "1", "--out", str(tmp_path)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, hard))
    try:
        with pytest.raises(
            CheckpointError, match=r"cannot be written \(File too large\); no number is lost: they are in .*metrics"
        ):
            short_recipes[name].main()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert json.loads((tmp_path / "metrics.json").read_text())["results"]
    assert "test accuracy, %" in capsys.readouterr().out
    assert not list(tmp_path.glob(".*.tmp"))


def test_short_recipes_look_for_space_first(short_recipes, monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    for script in short_recipes.values():
        monkeypatch.setattr(sys, "argv", ["script", "--out", str(tmp_path)])
        with pytest.raises(CheckpointError, match=r"needs \d MiB for results, got 0 MiB free"):
            script.main()


def test_bad_numbers_on_the_command_line_are_named(monkeypatch, tmp_path, capsys):
    for text in ("nan", "-1", "inf", "soon"):
        with pytest.raises(SystemExit):
            train(monkeypatch, DIGITS, "--out", tmp_path, "--save-every", text)
        assert f"argument --save-every: must be seconds >= 0, got '{text}'" in capsys.readouterr().err
