"""The files of a run: whoever reads one names it and says what to delete, whatever is in it."""

import copy
import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from mutations import NONSENSE, examples, json_values, mutated, replaced
from recipe_runs import DIGITS, RECIPES

import report
import table1
import train
from cifar.checkpoint import CheckpointError, Checkpoints
from cifar.config import Config, ConfigError, Training, named_settings
from cifar.folder import digest, owned, read_json, write_json
from cifar.identity import check_claim, pieces_in
from cifar.pieces import MAGIC, PieceError, read_pieces, write_pieces
from cifar.plan import read_plan
from cifar.reading import load_config
from onespike.files import write_atomically

OWN = (
    "import sys, time; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from cifar.folder import owned\n"
    "with owned(Path(sys.argv[2])):\n    print('owned', flush=True); time.sleep(600)"
)


def test_a_folder_has_one_owner_and_its_death_frees_it(tmp_path):
    with (
        owned(tmp_path),
        pytest.raises(CheckpointError, match=rf"is in use by process {os.getpid()} on .*: wait for it"),
        owned(tmp_path),
    ):
        pass
    process = subprocess.Popen([sys.executable, "-c", OWN, RECIPES, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "owned\n"
    with pytest.raises(CheckpointError, match=f"{tmp_path} is in use by process {process.pid} on"), owned(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (tmp_path / ".results.json.0123456789abcdef.tmp").touch()
    (tmp_path / ".mine.tmp").touch()
    with owned(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", ".mine.tmp"], "what the dead had begun is gone"


def test_a_table_has_one_owner(tmp_path):
    arguments = table1.parse_arguments(["--minutes", "1", "--rows", "cifar10_vgg6", "--out", str(tmp_path)])
    with owned(tmp_path), pytest.raises(CheckpointError, match=f"in use by process {os.getpid()}"):
        table1.fill(arguments)


def test_what_is_written_goes_through_a_name_that_nobody_knows(tmp_path, monkeypatch):
    """Nor through a link that somebody has put there."""
    seen = []
    monkeypatch.setattr(os, "fsync", lambda _: seen.append([path.name for path in tmp_path.glob(".*")]))
    for _ in range(2):
        write_atomically(tmp_path / "file", b"content")
    names = {name for found in seen for name in found}
    assert len(names) == 2
    assert not any(str(os.getpid()) == name.split(".")[2] for name in names)
    monkeypatch.setattr("secrets.token_hex", lambda _: "guessed")
    (tmp_path / "victim").write_text("safe")
    (tmp_path / ".file.guessed.tmp").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="File exists"):
        write_atomically(tmp_path / "file", b"other")
    assert (tmp_path / "victim").read_text() == "safe"


def test_a_file_is_bound_to_what_it_was_made_from(tmp_path):
    path = tmp_path / "conversion.json"
    written = write_json(path, {"scale": 0.4}, ANN="a" * 64)
    assert read_json(path, ANN="a" * 64) == written
    with pytest.raises(
        CheckpointError, match=r"conversion.json was made from another ANN \(SHA-256 a{16} -> b{16}\): .*delete it"
    ):
        read_json(path, ANN="b" * 64)
    path.write_text(path.read_text().replace("0.4", "0.5"))
    with pytest.raises(
        CheckpointError, match=r"conversion.json does not have its SHA-256, .*: delete it to have it made again"
    ):
        read_json(path, ANN="a" * 64)
    write_json(path, {}, ANN="a" * 64)
    path.rename(tmp_path / "results.json")
    with pytest.raises(CheckpointError, match=r"results.json is another file, conversion.json: delete it"):
        read_json(tmp_path / "results.json", ANN="a" * 64)


@examples(40)
@given(st.data())
def test_no_byte_of_a_json_file_changes_unseen(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("run") / "results.json"
    write_json(path, {"thresholds": {"1": 0.25}, "scale": 0.4}, ANN="a")
    before = path.read_bytes()
    path.write_bytes(data.draw(mutated(before)))
    try:
        found = read_json(path, ANN="a")
    except CheckpointError as error:
        assert str(path) in str(error)
        assert "delete it" in str(error)
    else:
        assert found == json.loads(before), "white space"


@pytest.mark.parametrize(
    "content", [*NONSENSE, b'{"thresholds": 3}', b'{"sha256": null}'], ids=lambda content: repr(content[:12])
)
def test_nonsense_in_the_files_of_a_run_is_named(content, tmp_path):
    for name in ("config.yaml", "results.json", "metrics.json", "pieces.json"):
        (tmp_path / name).write_bytes(content)
    readers = {
        "config.yaml": lambda path: check_claim(tmp_path, {"seed": 0}, True),
        "results.json": lambda path: read_json(path, ANN="a"),
        "metrics.json": lambda path: train.table_of(path, Config()),
        "pieces.json": pieces_in,
    }
    for name, read in readers.items():
        with pytest.raises(CheckpointError, match=rf"{tmp_path / name} .*(delete it|has other settings)"):
            read(tmp_path / name)


METRICS = json.loads((RECIPES.parent / "benchmarks/results/recipes/cifar10_vgg6_small-seed0.json").read_text())


@examples(60)
@given(st.data())
def test_the_report_names_what_is_no_run(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("run") / "metrics.json"
    metrics = copy.deepcopy(METRICS)
    replaced(metrics, data.draw(json_values()), data.draw)
    path.write_text(json.dumps(metrics))
    runs = report.read_runs([path])
    assert len(runs.rows) + len(runs.unread) == 1
    assert all(str(path) in line for line in runs.unread)
    assert report.markdown(runs)
    assert report.csvs(runs) or runs.unread


@examples(40)
@given(st.data())
def test_a_finished_run_of_other_numbers_is_not_shown(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("run") / "metrics.json"
    metrics = copy.deepcopy(METRICS)
    replaced(metrics, data.draw(json_values()), data.draw)
    path.write_text(json.dumps(metrics))
    with pytest.raises(CheckpointError, match="delete it"):
        train.table_of(path, Config(seed=77))


class Evil:
    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return os.mkdir, (str(self.victim),)


def forge(checkpoints, content, step=7):
    """Put content under a checkpoint's name, with its SHA-256."""
    path = checkpoints.folder / f"step-{step:08d}.{hashlib.sha256(content).hexdigest()[:16]}.pt"
    path.write_bytes(content)
    return path


def saved(value, tmp_path):
    torch.save(value, tmp_path / "saved")
    return (tmp_path / "saved").read_bytes()


def test_a_foreign_file_under_a_checkpoints_name_is_named_and_never_run(tmp_path):
    checkpoints = Checkpoints(tmp_path / "ann", {"seed": 1})
    good = checkpoints.save(1, {"weights": 1})
    evil = pickle.dumps(Evil(tmp_path / "executed"))
    others = [
        [],
        {"format": 1},
        {"format": 1, "identity": None, "state": 0},
        {"format": 9, "identity": {}, "state": 0},
        Evil(tmp_path / "executed"),
    ]
    for content in [*NONSENSE, evil, *(saved(value, tmp_path) for value in others)]:
        path = forge(checkpoints, content)
        with pytest.raises(CheckpointError, match=rf"{path.name} is .*: delete it to go on from {good.name}"):
            checkpoints.load(torch.device("cpu"))
        path.unlink()
    assert not (tmp_path / "executed").exists()
    (tmp_path / "ann" / f"step-00000009.{'0' * 16}.pt").mkdir()
    with pytest.raises(CheckpointError, match=r"step-00000009.* cannot be read \(Is a directory\): delete it to go on"):
        checkpoints.load(torch.device("cpu"))


@examples(40)
@given(st.data())
def test_a_mutated_checkpoint_is_named(tmp_path_factory, data):
    checkpoints = Checkpoints(tmp_path_factory.mktemp("ann"), {"seed": 1})
    good = checkpoints.save(1, {"weights": torch.arange(4.0)})
    path = forge(checkpoints, data.draw(mutated(good.read_bytes())))
    try:
        checkpoints.load(torch.device("cpu"))
    except CheckpointError as error:
        assert str(path) in str(error)


@examples(40)
@given(st.data())
def test_pieces_that_describe_nonsense_are_named(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("pieces")
    about = {"row": "cifar10_vgg6", "stage": "snn", "network": {"width": 1.0}}
    (path,) = write_pieces(folder / "net", {"a.weight": torch.ones(10, 10), "leak": torch.tensor(1.0)}, about)
    piece = path.read_bytes().removeprefix(MAGIC).split(b"\n", 1)[1]
    header, _, numbers = piece.partition(b"\n")
    document = json.loads(header)
    replaced(document, data.draw(json_values()), data.draw)
    piece = json.dumps(document).encode() + b"\n" + numbers
    path.write_bytes(MAGIC + hashlib.sha256(piece).hexdigest().encode() + b"\n" + piece)
    try:
        read_pieces([path])
    except PieceError as error:
        assert str(error)
    path.write_bytes(data.draw(mutated(path.read_bytes())))
    try:
        read_pieces([path])
    except PieceError as error:
        assert str(error)


PLAN = {"settings": ["ann.epochs=1"], "ann_share": 0.5, "measured": {"rest": 1.0, "validation": 1.0}, "imported": []}


@examples(40)
@given(st.data())
def test_a_plan_that_is_none_is_named(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("table") / "row.plan.json"
    plan = copy.deepcopy(PLAN)
    replaced(plan, data.draw(json_values()), data.draw)
    path.write_text(json.dumps(plan))
    try:
        read_plan(path)
    except CheckpointError as error:
        assert str(path) in str(error)
        assert "delete it" in str(error)


@examples(60)
@given(st.data())
def test_a_config_is_read_or_refused_by_name(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("config") / "run.yaml"
    path.write_bytes(data.draw(mutated(DIGITS.read_bytes().replace(b"base: short.yaml\n", b""))))
    try:
        load_config([path])
    except ConfigError as error:
        assert str(error)


def numbers():
    """The names of all settings that are numbers, or lists of numbers."""
    for name, entry in named_settings(Config):
        value = getattr(Training() if "." in name else Config(), entry.name)
        if isinstance(value, int | float | list) and not isinstance(value, bool):
            yield name


OPTIONAL = ("test_images", "ann.max_steps", "snn.max_steps")
NUMBERS = [*numbers(), *OPTIONAL]


def test_the_numbers_are_those_of_the_help():
    assert len(NUMBERS) > 40
    assert {"T", "gamma", "snn.lr", "ann.batch_size", "threshold_scales"} <= set(NUMBERS)


@pytest.mark.parametrize("value", ["nan", "inf", "1e308", "text"])
def test_nonsense_in_every_number_is_refused_by_its_name(value):
    """Before anything is loaded or trained."""
    for name in NUMBERS:
        listed = name.rpartition(".")[2] in ("threshold_scales", "milestones")
        with pytest.raises(ConfigError) as error:
            load_config([], [f"{name}=[{value}]" if listed else f"{name}={value}"])
        assert name in str(error.value), "by its dotted name"


def test_zero_is_refused_where_it_means_nothing():
    for name in NUMBERS:
        if name.rpartition(".")[2] in (
            "T",
            "width",
            "lr",
            "batch_size",
            "accumulate",
            "gamma",
            "beta",
            "hidden",
            "temperature",
        ):
            with pytest.raises(ConfigError, match=f"{name} must be .*, got 0"):
                load_config([], [f"{name}=0"])


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["snn.batch_size=10", "snn.accumulate=11"], r"snn.accumulate must be at most snn.batch_size, 10, got 11"),
        (["threshold_scales=[1e-44]"], r"threshold_scales must be a number from 1e-06 to 1e\+06, got \[1e-44\]"),
        (["snn.lr=1e-300"], r"snn.lr must be a number from 1.2e-38 to 3.4e\+38, got 1e-300"),
        (["flip=7"], "--set: flip: Value '7' is not a valid bool"),
        (["T=???"], r"--set: T must have a value, got \?\?\?"),
        (["snn.lr={"], "--set 'snn.lr={' is not YAML"),
    ],
)
def test_contradictions_and_nonsense_are_named(pairs, message):
    with pytest.raises(ConfigError, match=message):
        load_config([DIGITS], pairs)


def test_a_base_that_names_no_file_is_named(tmp_path):
    for base in ("5", "{a: 1}", "[1]", "[null]"):
        (tmp_path / "run.yaml").write_text(f"base: {base}\n")
        with pytest.raises(ConfigError, match=r"run.yaml: base must name files, got"):
            load_config([tmp_path / "run.yaml"])


@examples(60)
@given(st.sampled_from(NUMBERS), json_values())
@example("threshold_scales", {})
def test_any_setting_is_taken_or_refused_by_name(name, value):
    try:
        load_config([], [f"{name}={json.dumps(value)}"])
    except ConfigError as error:
        assert name.split(".")[0] in str(error)


def test_the_sum_knows_every_key():
    document = {"a": 1, "made_from": {}, "sha256": "x"}
    assert digest(document) == digest({**document, "sha256": "y"})
    assert digest(document) != digest({**document, "b": 1})
