"""Table I within a time limit, and networks that travel in pieces."""

import json
import runpy
import signal
import subprocess
import sys
import time

import pytest
import torch
from recipe_runs import CONFIGS, RECIPES, call

import table1
from cifar import plan
from cifar.measure import Times
from cifar.pieces import PieceError, read_pieces, write_pieces
from onespike.conversion import SpikingNetwork

TINY = f"""
base: {CONFIGS}/short.yaml
dataset: digits
validation: 137
flip: false
model: vgg6
width: 0.1
hidden: 32
dropout: 0.0
fc_dropout: 0.0
backend: torch
conversion_images: 0
calibration_images: 64
activity_images: 20
"""
MINUTES = 1.5
ROOT = RECIPES.parent


@pytest.fixture
def state():
    torch.manual_seed(0)
    weights = {"a.weight": torch.randn(50, 30), "b.weight": torch.randn(7, 3, 3, 3)}
    return weights | {"leak": torch.tensor(0.9871234), "low": torch.randn(3, 1, 1)}


ABOUT = {"row": "cifar10_vgg6", "stage": "snn", "network": {"width": 1.0}}


def test_pieces_give_back_a_network(state, tmp_path):
    paths = write_pieces(tmp_path / "net", state, ABOUT, piece_mb=0.002)
    assert len(paths) == 3
    assert all(path.stat().st_size <= 2000 for path in paths)
    [(about, found)] = read_pieces(paths[::-1])
    assert about == ABOUT
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in ("leak", "low")), "few numbers are not rounded"
    for name, tensor in state.items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], tensor.half().float() if tensor.numel() > 64 else tensor)


def test_pieces_of_several_networks_are_told_apart(state, tmp_path):
    one = write_pieces(tmp_path / "one", state, ABOUT, piece_mb=0.002)
    other = write_pieces(tmp_path / "other", {**state, "leak": torch.tensor(1.0)}, ABOUT)
    found = read_pieces([*one, *other])
    assert sorted(network["leak"].item() for _, network in found) == [pytest.approx(0.9871234), 1.0]


def test_fewer_pieces_replace_more(state, tmp_path):
    write_pieces(tmp_path / "net", state, ABOUT, piece_mb=0.002)
    write_pieces(tmp_path / "net", state, ABOUT)
    assert [path.name for path in tmp_path.iterdir()] == ["net-1-of-1.piece"]


def test_faulty_pieces_are_named(state, tmp_path):
    paths = write_pieces(tmp_path / "net", state, ABOUT, piece_mb=0.002)
    with pytest.raises(PieceError, match="cifar10_vgg6 snn: piece 1, 3 of 3 is missing"):
        read_pieces(paths[1:2])
    with pytest.raises(PieceError, match=r"gone.piece cannot be read: No such file"):
        read_pieces([tmp_path / "gone.piece"])
    content = paths[0].read_bytes()
    for position in (30, 120, len(content) - 1):
        paths[0].write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(PieceError, match=r"net-1-of-3.piece is damaged: it does not have the SHA-256 that it names"):
            read_pieces(paths)
    paths[0].write_bytes(content[:-5])
    with pytest.raises(PieceError, match="is damaged"):
        read_pieces(paths)
    paths[0].write_bytes(b"something else")
    with pytest.raises(PieceError, match="is not a piece of an exported network"):
        read_pieces(paths)
    with pytest.raises(PieceError, match=r"a.weight must fit float16 to be exported, got values up to 1e\+06"):
        write_pieces(tmp_path / "net", {"a.weight": torch.full((10, 10), 1e6)}, ABOUT)
    with pytest.raises(PieceError, match="piece_mb must leave room"):
        write_pieces(tmp_path / "net", state, ABOUT, piece_mb=1e-4)


def test_epochs_fill_the_time():
    times = Times(ann=2.0, one_step=3.0, all_steps=10.0, validation=1.0, rest=7.0)
    found = plan.choose_epochs(1000, times, plan.SHARES)
    spent = {kind: epochs * getattr(times, kind) for kind, epochs in found.items()}
    assert 1000 - 15 < sum(spent.values()) <= 1000
    for kind, share in plan.SHARES.items():
        assert spent[kind] / 1000 == pytest.approx(share, abs=0.01)
    without = plan.choose_epochs(1000, times, {kind: s for kind, s in plan.SHARES.items() if kind != "ann"})
    assert without["ann"] == 1
    assert without["one_step"] > found["one_step"]
    most = plan.MOST_EPOCHS
    assert plan.choose_epochs(1e6, times, plan.SHARES) == {"ann": most, "one_step": most, "all_steps": 0}
    assert plan.choose_epochs(1e6, times, {"all_steps": 0.5}) == {"ann": 1, "one_step": 0, "all_steps": most}
    with pytest.raises(table1.Table1Error, match=r"--minutes must leave 0.08 minutes a row .* got 0.07"):
        plan.choose_epochs(4, times, plan.SHARES)


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["table1.py", "--device", "cpu", *map(str, arguments)])
    runpy.run_path(str(RECIPES / "table1.py"), run_name="__main__")


def test_bad_requests_are_named(monkeypatch, tmp_path, state, capsys):
    with pytest.raises(SystemExit, match=r"--rows must name cifar100_vgg16, .* or the path of a config, got 'resnet'"):
        run(monkeypatch, "--minutes", 1, "--rows", "resnet")
    with pytest.raises(SystemExit, match="--rows must name each row once"):
        run(monkeypatch, "--minutes", 1, "--rows", "cifar10_vgg6", "cifar10_vgg6")
    pieces = write_pieces(tmp_path / "net", state, ABOUT)
    with pytest.raises(SystemExit, match="cifar10_vgg6 snn: its row is not among cifar10_vgg11"):
        run(monkeypatch, "--minutes", 1, "--rows", "cifar10_vgg11", "--import", *pieces)
    twice = [*pieces, *write_pieces(tmp_path / "other", {**state, "leak": torch.tensor(1.0)}, ABOUT)]
    with pytest.raises(SystemExit, match="cifar10_vgg6 snn: --import must hold one network of a row and stage, got two"):
        run(monkeypatch, "--minutes", 1, "--rows", "cifar10_vgg6", "--import", *twice)
    with pytest.raises(SystemExit, match=r"--set must leave ann.epochs, snn.epochs, one_step to the plan, got one_step=0"):
        run(monkeypatch, "--minutes", 1, "--set", "one_step=0", "T=3")
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        with pytest.raises(SystemExit, match="one process must be started, got WORLD_SIZE=2"):
            run(patch, "--minutes", 1)
    for option in ("--minutes", "--piece-mb"):
        with pytest.raises(SystemExit):
            run(monkeypatch, "--minutes", 1, option, 0)
        assert f"argument {option}: must be a number > 0, got '0'" in capsys.readouterr().err


def test_a_failing_row_does_not_stop_the_next(monkeypatch, tmp_path, capsys):
    """The first has too little time, whatever it is; the second is finished."""
    (tmp_path / "out" / "done").mkdir(parents=True)
    metrics = json.loads((ROOT / "benchmarks" / "results" / "recipes" / "cifar10_vgg6_all_steps-seed0.json").read_text())
    (tmp_path / "out" / "done" / "metrics.json").write_text(json.dumps(metrics))
    plan = {"settings": [], "ann_share": 0.5, "measured": {"rest": 1.0, "validation": 1.0}, "imported": []}
    for name in ("slow", "done"):
        (tmp_path / f"{name}.yaml").write_text(TINY)
        (tmp_path / "out" / f"{name}.plan.json").write_text(json.dumps(plan))
    monkeypatch.setattr("table1.carry_out", lambda command: 0)
    arguments = ["--minutes", "0.5", "--rows", *(str(tmp_path / f"{name}.yaml") for name in ("slow", "done"))]
    arguments = table1.parse_arguments([*arguments, "--out", str(tmp_path / "out"), "--resume"])
    with pytest.raises(table1.Table1Error, match=r"^slow: --minutes must leave the row .* got 0.2: --resume with more$"):
        table1.fill(arguments)
    line = "| VGG-6 at 0.25 of its width, CIFAR-10: hybrid input, one spike, T = 5 | 1 |"
    assert line in (tmp_path / "out" / "table1.md").read_text()
    assert line in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_run(number, tmp_path):
    told = tmp_path / "told"
    child = (
        f"import pathlib, signal, sys, time; told = pathlib.Path({str(told)!r})\n"
        f"signal.signal({number}, lambda *_: (told.touch(), sys.exit(1))); print('up', flush=True); time.sleep(60)"
    )
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)  # however the tests were started\n"
        f"sys.path.insert(0, {str(RECIPES)!r}); import table1; table1.carry_out([sys.executable, '-c', {child!r}])"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "up\n"
    process.send_signal(number)
    assert process.wait(timeout=30) == 128 + number
    assert told.exists(), "the run was asked, and waited for"


@pytest.mark.timeout(900)
def test_a_row_is_there_in_time_resumes_and_travels(monkeypatch, capsys, tmp_path):
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY)

    def command(out, *arguments):
        return RECIPES / "table1.py", "--device", "cpu", "--rows", config, "--out", tmp_path / out, *arguments

    def fill(out, *arguments):
        began = time.monotonic()
        line = [sys.executable, *command(out, *arguments)]
        done = subprocess.run(list(map(str, line)), capture_output=True, text=True, check=False)
        return done, time.monotonic() - began

    pieces = tmp_path / "pieces"
    done, seconds = fill("first", "--minutes", MINUTES, "--export", pieces, "--piece-mb", 0.02)
    assert done.returncode == 0, done.stderr
    assert seconds < 60 * MINUTES
    assert (
        "| VGG-6 at 0.1 of its width, digits: hybrid input, one spike, T = 5 | 1 |"
        in (tmp_path / "first" / "table1.md").read_text()
    )
    first = json.loads((tmp_path / "first" / "tiny" / "metrics.json").read_text())
    assert first["results"]["trained"]["accuracy"]["potential"] > 20

    status, told = call(monkeypatch, capsys, *command("first", "--minutes", MINUTES))
    assert status == 1
    assert "is there already: --resume goes on with it" in told
    done, seconds = fill("first", "--minutes", MINUTES, "--resume")
    assert done.returncode == 0, done.stderr
    assert seconds < 45, "it is finished"
    assert json.loads((tmp_path / "first" / "tiny" / "metrics.json").read_text()) == first

    files = sorted(pieces.iterdir())
    assert all(path.stat().st_size <= 20_000 for path in files)
    snn_alone = [path for path in files if "-snn-" in path.name]
    _, told = call(monkeypatch, capsys, *command("alone", "--minutes", MINUTES, "--import", *snn_alone))
    assert "a spiking network needs its ANN beside it" in told
    _, told = call(monkeypatch, capsys, *command("foreign", "--minutes", MINUTES, "--import", *files, "--set", "width=0.2"))
    assert "tiny ann is of another network than the row's: width=0.1" in told

    done, seconds = fill("second", "--minutes", 1, "--import", *files)
    assert done.returncode == 0, done.stderr
    assert seconds < 60
    second = json.loads((tmp_path / "second" / "tiny" / "metrics.json").read_text())
    assert second["results"]["ann"]["accuracy"] == pytest.approx(first["results"]["ann"]["accuracy"], abs=1)
    history = [json.loads(line) for line in (tmp_path / "second" / "tiny" / "history.jsonl").read_text().splitlines()]
    earlier = [json.loads(line) for line in (tmp_path / "first" / "tiny" / "history.jsonl").read_text().splitlines()]
    assert [entry for entry in history if entry["stage"] == "ann"] == [entry for entry in earlier if entry["stage"] == "ann"]
    begun = SpikingNetwork.load(tmp_path / "second" / "tiny.start").state_dict()
    trained = SpikingNetwork.load(tmp_path / "first" / "tiny" / "model").state_dict()
    assert all(
        torch.equal(begun[name], value.half().float() if value.numel() > 64 else value) for name, value in trained.items()
    )
    losses = [[entry["loss"] for entry in entries if entry["stage"] == "snn"] for entries in (earlier, history)]
    assert losses[1][0] < losses[0][0], "it starts from what it had learnt"
