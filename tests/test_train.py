"""The CIFAR recipe's training, in this process: its settings, phases, faults and logs."""

import errno
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning_fabric import Fabric
from recipe_runs import DIGITS, GROWN, RECIPES, SHORT, outcome, start, train, wait_for_steps
from torch import nn

from cifar.config import Training
from cifar.conversion import choose_thresholds
from cifar.data import load_data
from cifar.loss import distilled
from cifar.optimizer import make_optimizer, rate
from cifar.reading import load_config
from cifar.spent import joules_used
from cifar.stage import phase_of
from cifar.training import Trainer
from onespike.conversion import SpikingNetwork
from onespike.conversion.network import LEAKS
from onespike.functional import Readout
from onespike.models import vgg


def test_rates():
    steps = Training(milestones=[2, 3], decay=0.1, warmup=1)
    found = [rate(steps, step, 2, 10) for step in range(10)]
    assert found == pytest.approx([0.5, 1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.01])
    cosine = [rate(Training(schedule="cosine"), step, 2, 10) for step in range(10)]
    assert cosine[0] == 1
    assert cosine[5] == pytest.approx(0.5)
    assert cosine == sorted(cosine, reverse=True)
    warm = [rate(Training(schedule="cosine", warmup=1), step, 2, 10) for step in range(10)]
    assert warm[:3] == [0.5, 1, 1]
    assert warm[6] == pytest.approx(0.5)
    fractional = [rate(Training(warmup=0.25), step, 21, 210) for step in range(10)]
    assert max(fractional) == 1, "21 steps and a quarter of an epoch end between two steps"


def test_leaks_and_thresholds_never_decay():
    network = nn.Sequential(nn.Linear(3, 3, bias=False))
    network.register_parameter("leak", nn.Parameter(torch.tensor(1.0)))
    weights, neurons = make_optimizer(network, Training(weight_decay=0.1, neuron_lr=0.5)).param_groups
    assert [p.dim() for p in weights["params"]] == [2]
    assert weights["weight_decay"] == 0.1
    assert [p.dim() for p in neurons["params"]] == [0]
    assert neurons["weight_decay"] == 0
    assert neurons["factor"] == 0.5


def test_optimizers_are_as_asked():
    network = nn.Linear(3, 3)
    adam = make_optimizer(network, Training(optimizer="adam", amsgrad=True, lr=0.1))
    assert isinstance(adam, torch.optim.AdamW)
    assert (adam.defaults["amsgrad"], adam.defaults["lr"]) == (True, 0.1)
    sgd = make_optimizer(network, Training(momentum=0.8))
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (0.8, True)


def test_a_figure_that_fails_loses_no_result(monkeypatch, tmp_path):
    settings = [*SHORT, "ann.max_steps=1", "snn.max_steps=1"]

    def fail(*_):
        raise ZeroDivisionError

    with monkeypatch.context() as broken:
        broken.setattr("cifar.results.draw", fail)
        with pytest.raises(ZeroDivisionError):
            train(broken, DIGITS, "--out", tmp_path, "--set", *settings)
    results = json.loads((tmp_path / "results.json").read_text())
    monkeypatch.setattr("cifar.results.evaluate", fail)
    train(monkeypatch, DIGITS, "--out", tmp_path, "--resume", "--set", *settings)
    assert outcome(tmp_path)[1] == results
    assert (tmp_path / "raster.png").exists()


def test_a_finished_run_is_not_evaluated_again(monkeypatch, tmp_path, capsys):
    train(monkeypatch, DIGITS, "--out", tmp_path, "--set", *SHORT, "ann.max_steps=1", "snn.max_steps=1")
    metrics, told = (tmp_path / "metrics.json").read_bytes(), capsys.readouterr().out

    def evaluated(*_):
        raise AssertionError("the test set was read again")

    monkeypatch.setattr("cifar.results.evaluate", evaluated)
    train(monkeypatch, DIGITS, "--out", tmp_path, "--resume", "--set", *SHORT, "ann.max_steps=1", "snn.max_steps=1")
    again = capsys.readouterr().out.strip()
    assert again.startswith("test accuracy, %")
    assert again in told
    assert (tmp_path / "metrics.json").read_bytes() == metrics


def test_energy_is_the_drivers(monkeypatch):
    class Driver:
        class NVMLError(Exception):
            pass

        nvmlInit = staticmethod(lambda: None)
        nvmlDeviceGetHandleByUUID = staticmethod({"GPU-1234": "handle"}.__getitem__)
        nvmlDeviceGetTotalEnergyConsumption = staticmethod({"handle": 2500}.__getitem__)

    def refuse(_):
        raise Driver.NVMLError

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="1234"))
    monkeypatch.setitem(sys.modules, "pynvml", Driver)
    assert joules_used(torch.device("cuda")) == 2.5
    assert math.isnan(joules_used(torch.device("cpu")))
    monkeypatch.setattr(Driver, "nvmlDeviceGetTotalEnergyConsumption", refuse)
    assert math.isnan(joules_used(torch.device("cuda")))
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert math.isnan(joules_used(torch.device("cuda")))


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
    (tmp_path / "b" / "metrics.json").unlink()
    (tmp_path / "metrics.json").unlink()
    with pytest.raises(SystemExit, match=r"b was begun with the ANN of another run: name that run again by --ann"):
        train(monkeypatch, DIGITS, "--out", tmp_path / "b", "--resume", "--set", *settings, "snn.lr=1e-2")
    with pytest.raises(SystemExit, match=r"was begun with an ANN of its own: go on without --ann"):
        train(monkeypatch, DIGITS, "--out", tmp_path, "--resume", "--ann", tmp_path / "b", "--set", *settings)
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(SystemExit, match=r"config.yaml is damaged"):
        train(monkeypatch, DIGITS, "--out", tmp_path, "--resume", "--set", *settings)


def test_a_run_that_never_began_leaves_its_folder_free(monkeypatch, tmp_path):
    settings = [*SHORT, "ann.max_steps=1", "snn.max_steps=0"]
    train(monkeypatch, DIGITS, "--out", tmp_path / "a", "--set", *settings)
    borrow = [DIGITS, "--out", tmp_path / "b", "--ann", tmp_path / "a", "--set", *settings]
    with pytest.raises(SystemExit, match="was made with other settings: seed: 0 -> 1"):
        train(monkeypatch, *borrow, "seed=1")
    train(monkeypatch, *borrow)
    assert (tmp_path / "b" / "metrics.json").exists()


def test_thresholds_are_chosen_on_the_validation_images(monkeypatch, tmp_path):
    config = load_config([DIGITS], [*SHORT, "threshold_scales=[0.1,0.2,0.3]"])
    data = load_data(config, Path("nowhere"), torch.device("cpu"))
    accuracies = {0.1: 20.0, 0.2: 30.0, 0.3: 10.0}
    given = iter(accuracies.values())

    def measured(network, split, fabric):
        assert split is data.validation
        return next(given)

    monkeypatch.setattr("cifar.conversion.accuracy", measured)
    ann = vgg(config.model, 10, width=config.width, hidden=config.hidden)
    chosen = choose_thresholds(
        tmp_path / "conversion.json", ann, SimpleNamespace(config=config, data=data, fabric=Fabric(accelerator="cpu"))
    )
    assert chosen["scale"] == 0.2
    assert chosen["validation_accuracy"] == {str(scale): percent for scale, percent in accuracies.items()}
    assert json.loads((tmp_path / "conversion.json").read_text()) == chosen


def test_what_the_device_cannot_do_is_named_first(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="--device cuda needs a CUDA device"):
        train(monkeypatch, DIGITS, "--out", tmp_path / "run", "--device", "cuda")
    with pytest.raises(SystemExit, match=r'backend "cupy" cannot run on "cpu": backend "cupy" runs on CUDA'):
        train(monkeypatch, DIGITS, "--out", tmp_path / "run", "--set", "backend=cupy")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    with pytest.raises(SystemExit, match="srun must start torchrun, once on each node"):
        train(monkeypatch, DIGITS, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_untrained_ann_is_not_borrowed(monkeypatch, tmp_path):
    process = start(tmp_path / "other")
    wait_for_steps(process, tmp_path / "other", set())
    process.kill()
    process.communicate()
    with pytest.raises(
        SystemExit, match=r"--ann must name a run whose ANN is trained, got .*other/ann with \d+ of 26 steps taken"
    ):
        train(monkeypatch, DIGITS, "--out", tmp_path / "run", "--ann", tmp_path / "other", "--set", *SHORT)


@pytest.mark.parametrize("clip", [0, 1])
def test_a_loss_that_is_not_finite_ends_the_run(clip, monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match=r"became NaN or infinite by step \d+: .*ann/step-00000000.* is the last"):
        train(monkeypatch, DIGITS, "--out", tmp_path, "--set", *SHORT, "ann.lr=1e30", "ann.warmup=0", f"ann.clip={clip}")


def test_weights_that_are_not_finite_are_not_saved(monkeypatch, tmp_path):
    advance = Trainer.advance

    def spoil(trainer, batch):
        advance(trainer, batch)
        if trainer.progress.step == trainer.total:
            trainer.network[0].weight.data[0] = math.nan

    monkeypatch.setattr(Trainer, "advance", spoil)
    with pytest.raises(
        SystemExit, match=r"the weights 0.weight became NaN or infinite by step 2: .*step-00000000.* is the last"
    ):
        train(monkeypatch, DIGITS, "--out", tmp_path, "--set", *SHORT, "ann.max_steps=2")


def test_a_history_that_cannot_be_written_names_file_and_checkpoint(monkeypatch, tmp_path):
    def full(folder, history):
        if history:
            raise OSError(errno.ENOSPC, "No space left on device", str(folder / "history.jsonl"))

    monkeypatch.setattr("cifar.loggers.write_history", full)
    with pytest.raises(
        SystemExit, match=r"history.jsonl cannot be written: No space left on device; .*step-00000000.* is the last"
    ):
        train(monkeypatch, DIGITS, "--out", tmp_path, "--set", *SHORT, "ann.max_steps=2")


def test_steps_are_clipped_and_taken_in_training_mode(monkeypatch, tmp_path):
    advance, modes = Trainer.advance, []

    def watch(trainer, batch):
        modes.append((trainer.stage.name, trainer.network.training))
        advance(trainer, batch)

    monkeypatch.setattr(Trainer, "advance", watch)
    plain = ["ann.lr=1", "ann.momentum=0", "ann.weight_decay=0", "ann.warmup=0", "ann.schedule=cosine", "ann.clip=1e-4"]
    settings = [*SHORT, *plain, "ann.max_steps=14", "snn.max_steps=14", "precision=bf16-mixed"]
    train(monkeypatch, DIGITS, "--out", tmp_path, "--save-every", 0, "--set", *settings)
    assert modes == [("ann", True)] * 14 + [("snn", True)] * 14, "13 steps make an epoch"
    before, after = (torch.load(path)["state"]["network"] for path in sorted((tmp_path / "ann").iterdir()))
    change = torch.cat([(after[name] - before[name]).flatten() for name in before]).norm().item()
    expected = 0.5 + 0.5 * math.cos(math.pi * 13 / 26)  # max_steps cuts the cosine off, it does not shorten it
    assert outcome(tmp_path)[2][1]["lr"] == pytest.approx(expected)
    assert change == pytest.approx(1e-4 * expected, rel=1e-2)
    assert json.loads((tmp_path / "metrics.json").read_text())["provenance"]["precision"] == "bf16-mixed"


def test_label_smoothing_reaches_both_losses(monkeypatch, tmp_path):
    settings = [*SHORT, "ann.max_steps=1", "snn.max_steps=1"]
    losses = []
    for smoothing in (0, 0.5):
        smoothed = [f"{stage}.label_smoothing={smoothing}" for stage in ("ann", "snn")]
        train(monkeypatch, DIGITS, "--out", tmp_path / str(smoothing), "--set", *settings, "ann.lr=1e-9", *smoothed)
        losses.append([entry["loss"] for entry in outcome(tmp_path / str(smoothing))[2]])
    assert losses[0][0] != losses[1][0]
    assert losses[0][1] != losses[1][1]


def test_accumulated_parts_make_the_same_step(monkeypatch, tmp_path):
    still = [*SHORT, "dropout=0", "fc_dropout=0", "snn_dropout=0", "ann.max_steps=5", "snn.max_steps=5"]
    train(monkeypatch, DIGITS, "--out", tmp_path / "whole", "--set", *still)
    train(monkeypatch, DIGITS, "--out", tmp_path / "parts", "--set", *still, "ann.accumulate=3", "snn.accumulate=3")
    whole, parts = outcome(tmp_path / "whole")[2], outcome(tmp_path / "parts")[2]
    assert [entry["loss"] for entry in parts] == pytest.approx([entry["loss"] for entry in whole], rel=1e-6)


def test_loggers(monkeypatch, tmp_path):
    short = [*SHORT, "ann.max_steps=1", "snn.max_steps=1"]
    for name, arguments in {"wandb": ["--wandb", "project"], "tensorboard": ["--tensorboard"]}.items():
        with monkeypatch.context() as without:
            without.setitem(sys.modules, name, None)
            with pytest.raises(SystemExit, match=f"--{name} needs its package: pip install {name}"):
                train(monkeypatch, DIGITS, "--out", tmp_path / "run", *arguments, "--set", *short)
        assert not (tmp_path / "run").exists()
    calls = []

    class Service:
        __spec__ = "installed"

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
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert card.startswith("# digits\n")
    assert "| this network, by potential | " in card
    header = (tmp_path / "run" / "history.csv").read_text().splitlines()[0].split(",")
    assert {"stage", "loss", "validation_accuracy", "activity.1", "leak.1", "threshold.1"} <= set(header)
    for name in ("ann_accuracy", "snn_loss", "activity_by_epoch", "leak_by_epoch", "threshold_by_epoch", "raster", "energy"):
        assert (tmp_path / "run" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


GROWN += ["snn.optimizer=adam", "snn.neuron_lr=0.01", "snn.warmup=0.2", "init=centred"]


LAST_OF_13 = 0.3 * (0.5 + 0.5 * math.cos(math.pi * (12 - 2.6) / (13 - 2.6)))
"""The rate of the last step of an epoch that is a cosine of its own, after a warm-up of a fifth."""


def test_a_run_goes_on_where_its_steps_grow(monkeypatch, tmp_path):
    """From the last step with T = 1: 13 steps make an epoch, the second one has T = 5."""
    settings = ["--save-every", 0, "--set", *SHORT, *GROWN]
    train(monkeypatch, DIGITS, "--out", tmp_path / "whole", *settings)
    advance, seen = Trainer.advance, []

    def stop(trainer, batch):
        seen.append((trainer.stage.name, trainer.progress.step, getattr(trainer.network, "T", None)))
        if seen[-1][:2] == ("snn", 13) and len(seen) == 40:
            raise KeyboardInterrupt
        advance(trainer, batch)

    monkeypatch.setattr(Trainer, "advance", stop)
    with pytest.raises(KeyboardInterrupt):
        train(monkeypatch, DIGITS, "--out", tmp_path / "parts", *settings)
    train(monkeypatch, DIGITS, "--out", tmp_path / "parts", "--resume", *settings)
    assert [entry["lr"] for entry in outcome(tmp_path / "whole")[2][-2:]] == pytest.approx([LAST_OF_13, LAST_OF_13 / 5])
    assert {T for name, step, T in seen if name == "snn" and step < 13} == {1}
    assert {T for name, step, T in seen if name == "snn" and step >= 13} == {5}
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")
    entry = outcome(tmp_path / "whole")[2][-1]
    assert all(0 < share <= 1 for share in entry["support"].values())
    assert all(gradient > 0 for gradient in entry["gradient"].values())


def test_the_optimiser_begins_afresh_where_the_steps_grow(monkeypatch, tmp_path):
    advance, moved = Trainer.advance, {}

    def watch(trainer, batch):
        if trainer.stage.name == "snn" and trainer.progress.step in (12, 13):
            moved[trainer.progress.step] = len(trainer.optimizer.optimizer.state)
        advance(trainer, batch)

    monkeypatch.setattr(Trainer, "advance", watch)
    train(monkeypatch, DIGITS, "--out", tmp_path, "--set", *SHORT, *GROWN, "snn.max_steps=14")
    assert moved[12] > 0
    assert moved[13] == 0


def test_leaks_and_output_threshold_are_calibrated_where_the_first_step_alone_was_trained(monkeypatch, tmp_path):
    settings = [*SHORT, *GROWN, "snn.max_steps=5"]
    thresholds, leaks = {}, {}
    for share in (0.5, 1.0):
        train(monkeypatch, DIGITS, "--out", tmp_path / str(share), "--set", *settings, f"one_step={share}")
        network = SpikingNetwork.load(tmp_path / str(share) / "model")
        data = load_data(load_config([DIGITS], settings), Path("nowhere"), torch.device("cpu"))
        kept = network.readout.v_threshold.item()
        leaks[share] = {round(node.leak.item(), 6) for node in network.nodes().values()}
        network.calibrate_readout(data.train.plain(slice(0, 32))[0])
        thresholds[share] = kept == pytest.approx(network.readout.v_threshold.item(), rel=1e-5)
    assert thresholds == {0.5: False, 1.0: True}
    assert leaks[0.5] == {1.0}, "five steps with T = 1"
    assert {1.0} != leaks[1.0] <= set(LEAKS)


def test_phases():
    steps = [1, 1, 1, 5, 5, 10]
    assert [phase_of(epoch, 6, lambda e: steps[e]) for epoch in range(6)] == [(0, 3)] * 3 + [(3, 5)] * 2 + [(5, 6)]
    assert phase_of(2, 6, None) == (0, 6)


LEARNT = [*SHORT, "ann.epochs=6", "width=0.1", "init=centred"]


@pytest.fixture(scope="module")
def trained_ann(tmp_path_factory):
    """A run whose ANN tells digits apart."""
    folder = tmp_path_factory.mktemp("ann")
    command = [
        sys.executable,
        RECIPES / "train.py",
        DIGITS,
        "--out",
        folder,
        "--device",
        "cpu",
        "--set",
        *LEARNT,
        "snn.max_steps=0",
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert outcome(folder)[1]["converted"]["accuracy"]["potential"] > 25
    return folder


def test_distillation_pulls_towards_the_ann(monkeypatch, trained_ann, tmp_path):
    losses = []
    for weight, temperature in ((0, 2), (1, 2), (2, 2), (1, 4)):
        folder = tmp_path / f"{weight}-{temperature}"
        settings = [*LEARNT, "snn.max_steps=1", "snn_dropout=0", f"distillation={weight}", f"temperature={temperature}"]
        train(monkeypatch, DIGITS, "--out", folder, "--ann", trained_ann, "--set", *settings)
        losses.append(outcome(folder)[2][-1]["loss"])
    plain, once, twice, softer = losses
    assert once - plain > 0.01
    assert twice - plain == pytest.approx(2 * (once - plain), rel=1e-4)
    assert softer != pytest.approx(once, rel=1e-4)


def test_the_divergence_is_the_textbooks():
    torch.manual_seed(0)
    images, target, potential = torch.randn(6, 4), torch.arange(6) % 3, torch.randn(6, 3)
    teacher = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))
    loss = distilled(lambda output, _: output.potential.sum(), teacher, 0.7, 3.0, Fabric(accelerator="cpu"))
    found = loss(Readout(potential, potential), target, images).item()
    p, q = (values.div(3).softmax(1).double() for values in (teacher[0](images), potential))
    expected = potential.sum().item() + 0.7 * 9 * (p * (p / q).log()).sum(1).mean().item()
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_dead_training_is_stopped(monkeypatch, trained_ann, tmp_path):
    settings = [*LEARNT, "snn.epochs=9", "snn.lr=0.3"]
    arguments = [DIGITS, "--ann", trained_ann, "--out", tmp_path, "--set", *settings]
    with pytest.raises(SystemExit, match=r"snn can learn no more at step 13: .*step-00000000.* is the last good.*lower snn.lr"):
        train(monkeypatch, *arguments)
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 7, "the epoch that it died in is on record"
    assert [path.name[:13] for path in (tmp_path / "snn").iterdir()] == ["step-00000000"]
    with pytest.raises(SystemExit, match=r"snn can learn no more at step \d+: "):
        train(monkeypatch, *arguments[: -len(settings)], *settings, "--save-every", 0, "--resume")


def test_a_stage_ends_when_its_time_is_up_for_good(monkeypatch, trained_ann, tmp_path):
    settings = ["--set", *LEARNT, "snn.epochs=9"]
    train(monkeypatch, DIGITS, "--ann", trained_ann, "--out", tmp_path / "cut", "--until", "snn=0", *settings)
    weights, results, history = outcome(tmp_path / "cut")
    assert [entry["stage"] for entry in history] == ["ann"] * 6 + ["snn"], "it is measured where it was cut"
    assert "step-00000001" in next((tmp_path / "cut" / "snn").glob("step-*1.*")).name
    for gone in ("metrics.json", "results.json"):
        (tmp_path / "cut" / gone).unlink()
    train(monkeypatch, DIGITS, "--ann", trained_ann, "--out", tmp_path / "cut", "--resume", *settings)
    assert outcome(tmp_path / "cut") == (weights, results, history)


def test_a_run_starts_from_a_network(monkeypatch, trained_ann, tmp_path):
    settings = ["--set", *LEARNT, "snn.max_steps=0"]
    common = [DIGITS, "--ann", trained_ann]
    train(monkeypatch, *common, "--out", tmp_path / "first", "--set", *LEARNT, "snn.max_steps=5")
    train(monkeypatch, *common, "--out", tmp_path / "second", "--start", tmp_path / "first" / "model", *settings)
    assert outcome(tmp_path / "second")[0] == outcome(tmp_path / "first")[0]
    train(
        monkeypatch, *common, "--out", tmp_path / "direct", "--start", tmp_path / "first" / "model", *settings, "encoder=direct"
    )
    with pytest.raises(SystemExit, match=r"train.py: .*nowhere.* is missing|train.py: .*nowhere.*cannot be read"):
        train(monkeypatch, *common, "--out", tmp_path / "third", "--start", tmp_path / "nowhere", *settings)
    with pytest.raises(SystemExit, match="--start must be a network of the same layers"):
        train(monkeypatch, DIGITS, "--out", tmp_path / "third", "--start", tmp_path / "first" / "model", "--set", *SHORT)


def test_until_takes_stages_and_minutes(monkeypatch, tmp_path, capsys):
    for pair in ("snn=soon", "both=1", "ann=-1", "ann"):
        with pytest.raises(SystemExit):
            train(monkeypatch, DIGITS, "--out", tmp_path, "--until", pair)
        assert f"argument --until: must be ann=MINUTES or snn=MINUTES, MINUTES >= 0, got '{pair}'" in capsys.readouterr().err


def test_a_network_that_learns_nothing_is_given_up(monkeypatch, tmp_path):
    settings = [*SHORT, "ann.epochs=9", "ann.lr=1e-9", "ann.patience=2", "ann.warmup=1"]
    with pytest.raises(SystemExit) as error:
        train(monkeypatch, DIGITS, "--out", tmp_path / "a", "--set", *settings)
    message = str(error.value)
    assert "ann can learn no more at step 39: after 3 epochs its accuracy is still " in message
    assert message.endswith("begin again with another ann.lr, init=centred, ann.centralize=true or less dropout")
    assert len((tmp_path / "a" / "history.jsonl").read_text().splitlines()) == 3
    train(monkeypatch, DIGITS, "--out", tmp_path / "b", "--set", *settings, "ann.patience=0", "snn.max_steps=0")


def test_centralized_gradients_leave_the_sum_of_a_neurons_weights_alone(monkeypatch, tmp_path):
    settings = [*SHORT, "init=centred", "ann.max_steps=4", "ann.lr=0.1", "ann.weight_decay=0", "snn.max_steps=0"]
    sums = {}
    for centralized in ("true", "false"):
        out = tmp_path / centralized
        train(monkeypatch, DIGITS, "--out", out, "--set", *settings, f"ann.centralize={centralized}")
        weights = torch.load(max((out / "ann").iterdir()))["state"]["network"].values()
        sums[centralized] = max(weight.flatten(1).sum(1).abs().max().item() for weight in list(weights)[1:])
    assert sums["true"] < 1e-4 < 1e-2 < sums["false"]


@pytest.mark.parametrize("setting", ["cutout=8", "init=paper", "ann.centralize=true"])
def test_an_ann_of_other_settings_is_refused(setting, monkeypatch, trained_ann, tmp_path):
    with pytest.raises(SystemExit, match=f"was made with other settings: {setting.split('=')[0]}: "):
        train(monkeypatch, DIGITS, "--ann", trained_ann, "--out", tmp_path, "--set", *LEARNT, setting)


def test_a_network_that_starts_at_chance_may_train(monkeypatch, tmp_path):
    """As deep ones do for an epoch, and as networks do whose scale is 0.2: only a fall is a fault."""
    train(monkeypatch, DIGITS, "--out", tmp_path, "--set", *SHORT, "ann.lr=1e-6", "snn.lr=1e-6")
    assert max(entry["validation_accuracy"] for entry in outcome(tmp_path)[2]) < 25
