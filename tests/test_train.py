"""The CIFAR recipe: its settings, its data, its loop, and what it does when something goes wrong."""

import errno
import json
import os
import random
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torchvision.transforms.functional as transforms
from torch import nn

RECIPES = Path(__file__).parents[1] / "recipes"
CONFIGS = RECIPES / "configs"
DIGITS = CONFIGS / "digits.yaml"
sys.path.insert(0, str(RECIPES))

from cifar.checkpoint import CheckpointError, Checkpoints  # noqa: E402
from cifar.config import Config, ConfigError, Training, explain, load_config, named_settings  # noqa: E402
from cifar.data import DataError, Epoch, Split, load_data, read_digits  # noqa: E402
from cifar.training import make_optimizer, rate  # noqa: E402

SMALL = [
    "dataset=digits",
    "validation=137",
    "width=0.05",
    "hidden=16",
    "backend=torch",
    "calibration_images=32",
    "calibration_T=3",
]
TINY = [*SMALL, "threshold_scales=[0.4]", "conversion_T=3", "conversion_images=20", "activity_images=20"]


def train(monkeypatch, *arguments):
    """Run the script in this process."""
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
    handler = signal.getsignal(signal.SIGTERM)
    try:
        runpy.run_path(str(RECIPES / "train.py"), run_name="__main__")
    finally:
        signal.signal(signal.SIGTERM, handler)


def outcome(folder):
    """What a run ended with: the network's digest, the results and the history, without times."""
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    for entry in history:
        del entry["seconds"]
    network = json.loads((folder / "model" / "network.json").read_text())
    return network["weights_sha256"], json.loads((folder / "metrics.json").read_text())["results"], history


# Settings


def test_settings_are_read_typed_and_layered(tmp_path):
    (tmp_path / "base.yaml").write_text("width: 0.5\nsnn: {lr: 1e-4, epochs: 3}\n")
    (tmp_path / "run.yaml").write_text("base: base.yaml\nT: 3\n")
    (tmp_path / "more.yaml").write_text("encoder: direct\n")
    config = load_config([tmp_path / "run.yaml", tmp_path / "more.yaml"], ["snn.neuron_lr=1e-1", "threshold_scales=[0.2,0.4]"])
    snn = Training(**{**vars(Config().snn), "lr": 1e-4, "epochs": 3, "neuron_lr": 0.1})
    assert config == Config(width=0.5, T=3, encoder="direct", threshold_scales=[0.2, 0.4], snn=snn)
    assert isinstance(config.snn.lr, float)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("snn.learning_rat=1", "--set: unknown setting snn.learning_rat"),
        ("snn.epoch=1", r"unknown setting snn.epoch: did you mean snn.epochs\?"),
        ("threshold_scale=[1]", r"did you mean threshold_scales\?"),
        ("xyzzy=1", "unknown setting xyzzy: --help lists them all"),
        ("snn.epochs=few", "snn.epochs: Value 'few' of type 'str' could not be converted to Integer"),
        ("encoder=rate", r"encoder: Invalid value 'rate', expected one of \['hybrid', 'direct', 'analogue', 'temporal'\]"),
        ("T=0", "T must be >= 1, got 0"),
        ("ann.momentum=1", r"ann.momentum must be in \[0, 1\), got 1.0"),
        ("threshold_scales=[]", r"threshold_scales must be one or more numbers > 0, got \[\]"),
        ("snn.milestones=[3,2]", r"snn.milestones must be rising epochs >= 0, got \[3.0, 2.0\]"),
        ("snn=4", "--set: settings: Merge error"),
        ("T", "--set takes key=value, got 'T'"),
    ],
)
def test_bad_settings_are_named(pair, message):
    with pytest.raises(ConfigError, match=message):
        load_config([DIGITS], [pair])


def test_bad_files_are_named(tmp_path):
    loop, text, broken = (tmp_path / f"{name}.yaml" for name in ("loop", "text", "broken"))
    loop.write_text("base: loop.yaml\n")
    text.write_text("- 1\n")
    broken.write_text("a: [\n")
    for path, message in (
        (loop, "is based on itself"),
        (text, "must hold settings by name"),
        (broken, "is not YAML"),
        (tmp_path / "none.yaml", "cannot be read: No such file"),
    ):
        with pytest.raises(ConfigError, match=f"{path.name} {message}"):
            load_config([path])


def test_help_explains_every_setting():
    told = explain()
    for name, entry in named_settings(Config):
        assert entry.metadata["help"]
        assert name.rpartition(".")[2] in told


@pytest.mark.parametrize("config", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_runs(config, monkeypatch, tmp_path, capsys):
    steps = ["ann.max_steps=2", "snn.max_steps=2", "ann.batch_size=8", "snn.batch_size=8"]
    train(monkeypatch, config, "--out", tmp_path, "--device", "cpu", "--set", *TINY, *steps)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    own = load_config([config])
    for name in ("model", "encoder", "T", "single_spike", "time_gradient"):
        assert metrics["config"][name] == getattr(own, name)
    assert len(metrics["results"]["trained"]["accuracy_at_step"]) == own.T
    assert [entry["stage"] for entry in outcome(tmp_path)[2]] == ["ann", "snn"]
    assert "int32_45nm, paper accounting" in capsys.readouterr().out


def test_the_rows_of_the_paper_are_there():
    paper = {path.stem: load_config([path]) for path in CONFIGS.glob("*.yaml")}
    for name in ("cifar10_vgg6", "cifar10_vgg9", "cifar10_vgg11", "cifar10_vgg16", "cifar100_vgg16"):
        config = paper[name]
        assert (config.dataset, config.model) == tuple(name.split("_"))
        assert (config.ann.epochs, config.ann.lr, config.ann.milestones) == (200, 0.01, [120, 160, 180])
        assert (config.snn.epochs, config.snn.lr, config.snn.milestones[:2]) == (150, 1e-4, [10, 20])
        assert f"{name}_fast" in paper


def test_rates():
    steps = Training(milestones=[2, 3], decay=0.1, warmup=1)
    found = [rate(steps, step, 2, 10) for step in range(10)]
    assert found == pytest.approx([0.5, 1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.01])
    cosine = [rate(Training(schedule="cosine"), step, 2, 10) for step in range(10)]
    assert cosine[0] == 1
    assert cosine[5] == pytest.approx(0.5)
    assert cosine == sorted(cosine, reverse=True)


def test_leaks_and_thresholds_never_decay():
    network = nn.Sequential(nn.Linear(3, 3, bias=False))
    network.register_parameter("leak", nn.Parameter(torch.tensor(1.0)))
    weights, neurons = make_optimizer(network, Training(weight_decay=0.1, neuron_lr=0.5)).param_groups
    assert [p.dim() for p in weights["params"]] == [2]
    assert weights["weight_decay"] == 0.1
    assert [p.dim() for p in neurons["params"]] == [0]
    assert neurons["weight_decay"] == 0
    assert neurons["factor"] == 0.5


# Data


@pytest.fixture
def split():
    images = torch.randint(256, (40, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return images, Split(images, torch.arange(40), (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), crop=4)


def test_batches_equal_torchvisions(split):
    images, ours = split
    epoch = Epoch.draw(40, torch.Generator().manual_seed(1), crop=4, flip=True)
    x, labels = ours.augmented(epoch)
    plain, _ = ours.plain(slice(0, 40))
    for position, (index, top, left, mirrored) in enumerate(zip(*(values.tolist() for values in epoch), strict=True)):
        image = transforms.to_pil_image(images[index])
        whole = transforms.normalize(transforms.to_tensor(image), (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
        torch.testing.assert_close(plain[index], whole)
        image = transforms.crop(transforms.pad(image, 4), top, left, 32, 32)
        image = transforms.hflip(image) if mirrored else image
        expected = transforms.normalize(transforms.to_tensor(image), (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
        torch.testing.assert_close(x[position], expected)
        assert labels[position] == index


def test_augmentation_is_spread_as_torchvisions():
    epoch = Epoch.draw(40_000, torch.Generator().manual_seed(2), crop=4, flip=True)
    assert torch.equal(epoch.index.sort().values, torch.arange(40_000))
    counts = torch.zeros(9, 9).index_put_((epoch.top, epoch.left), torch.ones(40_000), accumulate=True)
    expected = 40_000 / 81
    assert ((counts - expected) ** 2 / expected).sum() < 130  # chi-squared, 80 degrees of freedom: 1 in 4000 by chance
    assert abs(epoch.mirrored.double().mean() - 0.5) < 0.01
    still = Epoch.draw(100, torch.Generator().manual_seed(2), crop=0, flip=False)
    assert not still.top.any()
    assert not still.left.any()
    assert not still.mirrored.any()


def test_every_image_is_in_one_part():
    data = load_data(load_config([DIGITS]), Path("nowhere"), torch.device("cpu"))
    parts = [split.plain(slice(0, None))[0] for split in (data.train, data.validation, data.test)]
    assert [len(part) for part in parts] == [1300, 137, 360]
    whole = Split(torch.cat([images for images, _ in read_digits()]), torch.zeros(1797), data.mean, data.std)
    prints = [x.flatten(1).double().mv(torch.arange(3072).double()) for x in (torch.cat(parts), whole.plain(slice(0, None))[0])]
    torch.testing.assert_close(prints[0].sort().values, prints[1].sort().values)


def test_missing_and_damaged_images_are_named(tmp_path, monkeypatch):
    config = load_config([DIGITS], ["dataset=cifar10"])
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"cifar10 in .* is missing or damaged .*--data-root, or delete .*cifar-10-batches-py"):
        load_data(config, tmp_path, torch.device("cpu"))

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.CIFAR100.download", offline)
    with pytest.raises(DataError, match=r"cifar100 in .* \(no network\)"):
        load_data(load_config([DIGITS], ["dataset=cifar100"]), tmp_path, torch.device("cpu"))


# Checkpoints


def test_two_checkpoints_are_kept_and_the_latest_is_read(tmp_path):
    checkpoints = Checkpoints(tmp_path, {"seed": 1})
    assert checkpoints.load(torch.device("cpu")) is None
    for step in (0, 5, 10):
        checkpoints.save(step, {"weights": torch.full((2,), float(step))})
    assert [path.name[:13] for path in checkpoints.paths()] == ["step-00000005", "step-00000010"]
    assert checkpoints.load(torch.device("cpu"))["weights"].tolist() == [10, 10]


def test_a_damaged_checkpoint_is_named(tmp_path):
    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.save(1, {})
    path = checkpoints.save(2, {"weights": torch.zeros(100)})
    content = path.read_bytes()
    for damaged in (content[:-1], content[:50] + bytes([content[50] ^ 1]) + content[51:], b""):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"step-00000002.*: delete it to go on from step-00000001"):
            checkpoints.load(torch.device("cpu"))


def test_a_foreign_checkpoint_is_named(tmp_path):
    Checkpoints(tmp_path, {"seed": 1, "T": 5}).save(1, {})
    with pytest.raises(CheckpointError, match="was made with other settings: seed: 1 -> 2"):
        Checkpoints(tmp_path, {"seed": 2, "T": 5}).load(torch.device("cpu"))


def test_a_full_disk_keeps_the_earlier_checkpoint(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, {})
    good = checkpoints.save(1, {})

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=f"cannot be written: No space left on device; {good} is the last"):
        checkpoints.save(2, {})
    assert [path.name for path in tmp_path.iterdir()] == [good.name]


def test_a_kill_in_the_middle_of_a_save_keeps_the_earlier_checkpoint(tmp_path):
    script = (
        f"import os, signal, sys; sys.path.insert(0, {str(RECIPES)!r})\n"
        "from pathlib import Path; from cifar.checkpoint import Checkpoints\n"
        f"checkpoints = Checkpoints(Path({str(tmp_path)!r}), {{}}); checkpoints.save(1, {{'kept': 1}})\n"
        "os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)\n"
        "checkpoints.save(2, {})\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2, "half a file was left"
    checkpoints = Checkpoints(tmp_path, {})
    assert checkpoints.load(torch.device("cpu")) == {"kept": 1}
    checkpoints.save(3, {})
    assert len(list(tmp_path.iterdir())) == 2, "and cleared away"


# The loop

SHORT = [*TINY, "conversion_images=0", "ann.epochs=2", "snn.epochs=2", "ann.batch_size=100", "snn.batch_size=100"]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    command = [sys.executable, RECIPES / "train.py", DIGITS, "--out", folder, "--device", "cpu", "--set", *SHORT]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "step/s" not in done.stderr, "progress bars must be quiet where there is no terminal"
    return outcome(folder)


def start(folder):
    command = [sys.executable, RECIPES / "train.py", DIGITS, "--out", folder, "--device", "cpu", "--resume", "--save-every", 0]
    return popen([*command, "--set", *SHORT])


def popen(command):
    return subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def checkpoints_of(folder):
    return {path.name for path in folder.glob("*/step-*.pt")}


def wait_for_steps(process, folder, before):
    while checkpoints_of(folder) <= before:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)


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
    assert outcome(tmp_path) == unbroken


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
    assert outcome(tmp_path) == unbroken


def test_another_run_is_left_alone(monkeypatch, tmp_path):
    settings = [*SHORT, "ann.max_steps=1", "snn.max_steps=1"]
    train(monkeypatch, DIGITS, "--out", tmp_path, "--set", *settings)
    with pytest.raises(SystemExit, match=r"holds a run already: --resume goes on with it, --out names another folder"):
        train(monkeypatch, DIGITS, "--out", tmp_path, "--set", *settings)
    with pytest.raises(SystemExit, match=r"config.yaml has other settings than this run: seed: 0 -> 1; --out"):
        train(monkeypatch, DIGITS, "--out", tmp_path, "--resume", "--set", *settings, "seed=1")
    with pytest.raises(SystemExit, match=r"--ann must be the folder of a run that trained its ANN"):
        train(monkeypatch, DIGITS, "--out", tmp_path / "b", "--ann", tmp_path / "none", "--set", *settings)
    first = outcome(tmp_path)
    train(monkeypatch, DIGITS, "--out", tmp_path / "b", "--ann", tmp_path, "--set", *settings, "snn.lr=1e-2")
    assert not (tmp_path / "b" / "ann").exists()
    assert outcome(tmp_path / "b")[1]["ann"] == first[1]["ann"]


def test_a_loss_that_is_not_finite_ends_the_run(monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match=r"became NaN or infinite by step \d+: .*ann/step-00000000.* is the last"):
        train(monkeypatch, DIGITS, "--out", tmp_path, "--set", *SHORT, "ann.lr=1e30", "ann.warmup=0")


def test_accumulated_parts_make_the_same_step(monkeypatch, tmp_path):
    still = [*SHORT, "dropout=0", "fc_dropout=0", "snn_dropout=0", "ann.max_steps=5", "snn.max_steps=5"]
    train(monkeypatch, DIGITS, "--out", tmp_path / "whole", "--set", *still)
    train(monkeypatch, DIGITS, "--out", tmp_path / "parts", "--set", *still, "ann.accumulate=3", "snn.accumulate=3")
    whole, parts = outcome(tmp_path / "whole")[2], outcome(tmp_path / "parts")[2]
    assert [entry["loss"] for entry in parts] == pytest.approx([entry["loss"] for entry in whole], rel=1e-6)


def test_loggers(monkeypatch, tmp_path):
    short = [*SHORT, "ann.max_steps=1", "snn.max_steps=1"]
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SystemExit, match=r"--wandb needs Weights & Biases: pip install wandb"):
        train(monkeypatch, DIGITS, "--out", tmp_path / "none", "--wandb", "project", "--set", *short)
    calls = []

    class Service:
        @staticmethod
        def init(**settings):
            calls.append(settings)
            return Service

        @staticmethod
        def log(values, step):
            calls.append((step, values))

        @staticmethod
        def finish():
            calls.append("finished")

    monkeypatch.setitem(sys.modules, "wandb", Service)
    train(monkeypatch, DIGITS, "--out", tmp_path / "run", "--wandb", "project", "--tensorboard", "--set", *short)
    assert calls[0]["project"] == "project"
    assert [call[0] for call in calls[1:-1]] == [0, 1]
    assert "snn/leak.1" in calls[2][1]
    assert calls[-1] == "finished"

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: PLC0415

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    history = outcome(tmp_path / "run")[2]
    assert events.Scalars("ann/loss")[0].value == pytest.approx(history[0]["loss"])
    header = (tmp_path / "run" / "history.csv").read_text().splitlines()[0].split(",")
    assert {"stage", "loss", "validation_accuracy", "activity.1", "leak.1", "threshold.1"} <= set(header)
    for name in ("ann_accuracy", "snn_loss", "activity_by_epoch", "leak_by_epoch", "threshold_by_epoch", "raster", "energy"):
        assert (tmp_path / "run" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


# Several processes


def torchrun(folder, *arguments):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    recipe = [RECIPES / "train.py", DIGITS, "--out", folder, "--device", "cpu", "--save-every", 0]
    return popen([*launcher, *recipe, *arguments])


def test_two_processes_take_the_steps_of_one(monkeypatch, tmp_path):
    # 33 images in batches of 18 and 15: shares of 9 and 9, then of 8 and 7. Rounding can move a spike, so both start alike.
    settings = [*SHORT, "validation=1404", "dropout=0", "fc_dropout=0", "snn_dropout=0", "conversion_images=7"]
    settings += ["ann.batch_size=18", "snn.batch_size=18", "ann.epochs=10", "snn.epochs=10", "calibration_images=33"]
    settings += ["snn.optimizer=sgd", "snn.lr=0.1"]  # Adam turns rounding errors of gradients near 0 into steps
    one, ann, snn = (tmp_path / name for name in ("one", "ann", "snn"))
    train(monkeypatch, DIGITS, "--out", one, "--device", "cpu", "--set", *settings)
    for folder, arguments in ((ann, ["--set", *settings, "snn.max_steps=0"]), (snn, ["--ann", one, "--set", *settings])):
        process = torchrun(folder, *arguments)
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    losses = {folder.name: [entry["loss"] for entry in outcome(folder)[2]] for folder in (one, ann, snn)}
    assert len(losses["one"]) == 20
    assert losses["ann"] == pytest.approx(losses["one"][:10], abs=1e-5)
    assert losses["snn"] == pytest.approx(losses["one"], abs=1e-5)
    results, expected = outcome(snn)[1], outcome(one)[1]
    for name in ("ann", "plain", "converted", "trained"):
        assert results[name]["accuracy"] == pytest.approx(expected[name]["accuracy"], abs=1e-9), "every image counts once"


def test_a_killed_process_ends_the_job(tmp_path):
    settings = [*SHORT, "ann.epochs=50"]
    process = torchrun(tmp_path, "--set", *settings)
    wait_for_steps(process, tmp_path, set())
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True)
    ranks = listed.stdout.split()
    os.kill(int(ranks[-1]), signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "Signal 9 (SIGKILL)" in errors
    usable = Checkpoints(tmp_path / "ann", json.loads("null"))
    assert usable.paths()
    single = start(tmp_path)
    told, errors = single.communicate(timeout=120)
    assert single.returncode != 0, "the settings differ: ann.epochs"
    assert "ann.epochs: 50 -> 2" in errors + told
