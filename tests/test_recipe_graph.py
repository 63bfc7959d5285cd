"""Recorded training steps without a GPU: the buffers and the order of things, with plain calls in a recording's place."""

from types import SimpleNamespace

import pytest
import torch
from recipe_runs import DIGITS, SHORT, outcome, train
from torch import nn

from cifar import graph
from cifar.config import ConfigError, Training
from cifar.data import Epoch
from cifar.graph import FIRST_STEPS, GraphError, Replayed, capturable, capture, why_not_recorded
from cifar.memory import keep_freed_memory
from cifar.optimizer import make_optimizer, set_rate
from cifar.reading import load_config


def batches(sizes):
    generator = torch.Generator().manual_seed(0)
    return [Epoch.draw(size, generator, crop=2, flip=True) for size in sizes]


def test_a_recording_sees_every_batch():
    seen, recorded = [], []

    def step(batch):
        seen.append([values.clone() for values in batch])

    def record(work):
        recorded.append(len(seen))
        return work

    replayed, given = Replayed(step, 8, record), batches([8, 3, 8, 8, 8, 3, 8])
    for batch in given:
        replayed(batch)
    for batch, found in zip(given, seen, strict=True):
        assert all(torch.equal(values, other) for values, other in zip(batch, found, strict=True))
    assert recorded == [FIRST_STEPS + 1], "once, after three whole batches and a smaller one"


def test_a_recording_reads_the_same_memory():
    places = []
    replayed = Replayed(lambda batch: places.append(batch.index.data_ptr()), 4, lambda work: work)
    for batch in batches([4] * 6):
        replayed(batch)
    assert places[-1] == places[-2] == places[-3]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    with pytest.MonkeyPatch.context() as patch:
        train(patch, DIGITS, "--out", folder, "--device", "cpu", "--set", *SHORT)
    return outcome(folder)


def recording(monkeypatch):
    """Let runs on a CPU take the way of recorded steps; return how many were recorded."""
    recorded = []

    def call(_, work):
        recorded.append(work)
        return work

    monkeypatch.setattr("cifar.graph.why_not_recorded", lambda *_: None)
    monkeypatch.setattr("cifar.training.capture", call)
    return recorded


def test_a_run_of_recorded_steps_has_the_same_numbers(plain, monkeypatch, tmp_path):
    recorded = recording(monkeypatch)
    train(monkeypatch, DIGITS, "--out", tmp_path, "--device", "cpu", "--set", *SHORT)
    assert len(recorded) == 2, "one for the ANN and one for the SNN"
    assert outcome(tmp_path) == plain


@pytest.mark.parametrize("stop", [1, 5, 13])
def test_it_goes_on_with_other_recordings_from_any_step(stop, plain, monkeypatch, tmp_path):
    from cifar.training import Trainer  # noqa: PLC0415  (as the run imports it)

    arguments = [DIGITS, "--out", tmp_path, "--device", "cpu", "--save-every", 0, "--resume", "--set", *SHORT]
    advance = Trainer.advance

    def stopped(trainer, batch):
        if trainer.stage.name == "snn" and trainer.progress.step == stop:
            raise KeyboardInterrupt
        advance(trainer, batch)

    with monkeypatch.context() as broken:
        broken.setattr(Trainer, "advance", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(broken, *arguments, "cuda_graph=never")
    recorded = recording(monkeypatch)
    train(monkeypatch, *arguments, "cuda_graph=auto")
    assert len(recorded) == 1
    assert outcome(tmp_path) == plain


def test_what_cannot_be_recorded_is_named():
    def reason(device="cuda", world_size=1, *settings):
        fabric = SimpleNamespace(device=torch.device(device), world_size=world_size)
        return why_not_recorded(load_config([DIGITS], settings), fabric)

    assert reason() is None
    assert reason("cuda", 1, "cuda_graph=always") is None
    assert reason("cuda", 1, "cuda_graph=never") == "cuda_graph is never"
    for arguments, message in (
        (("cpu", 1), "needs a CUDA device, got cpu"),
        (("cuda", 2), "needs one process, got 2"),
        (("cuda", 1, "compile=true"), "needs compile=false, got true"),
    ):
        assert message in reason(*arguments)
        with pytest.raises(ConfigError, match=f"cuda_graph=always {message}"):
            reason(*arguments[:2], *arguments[2:], "cuda_graph=always")


def test_the_script_says_so(monkeypatch, tmp_path, capsys):
    short = [*SHORT, "ann.max_steps=1", "snn.max_steps=1"]
    with pytest.raises(SystemExit, match="cuda_graph=always needs a CUDA device, got cpu"):
        train(monkeypatch, DIGITS, "--out", tmp_path, "--device", "cpu", "--set", *short, "cuda_graph=always")
    train(monkeypatch, DIGITS, "--out", tmp_path, "--device", "cpu", "--set", *short)
    assert "kernel by kernel: cuda_graph needs a CUDA device, got cpu" in capsys.readouterr().out


def test_a_step_that_cannot_be_recorded_is_a_named_error(monkeypatch):
    class Capture:
        def __init__(self, _):
            pass

        def __enter__(self):
            pass

        def __exit__(self, *_):
            raise RuntimeError("capture was broken off")

    def work():
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(graph.torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(graph.torch.cuda, "graph", Capture)
    optimizer = make_optimizer(nn.Linear(2, 2), Training(optimizer="adam"))
    with pytest.raises(GraphError, match=r"operation not permitted when stream is capturing; go on with --resume --set cuda_"):
        capture(optimizer, work)
    assert not any(group["capturable"] for group in optimizer.param_groups)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_optimisers_can_be_recorded(name):
    optimizer = make_optimizer(nn.Linear(2, 2), Training(optimizer=name))
    before = [dict(group) for group in optimizer.param_groups]
    with capturable(optimizer):
        assert all(group.get("capturable", True) for group in optimizer.param_groups)
    assert [{**group} for group in optimizer.param_groups] == before


def test_rates_stay_in_one_place_on_a_device():
    optimizer = make_optimizer(nn.Linear(2, 2), Training(neuron_lr=0.5))
    set_rate(optimizer, 0.1, torch.device("cpu"))
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.05]
    set_rate(optimizer, 0.1, torch.device("meta"))
    tensors = [group["lr"] for group in optimizer.param_groups]
    assert all(tensor.device.type == "meta" for tensor in tensors)
    set_rate(optimizer, 0.2, torch.device("meta"))
    assert all(group["lr"] is tensor for group, tensor in zip(optimizer.param_groups, tensors, strict=True))


@pytest.mark.parametrize("wanted", [True, False])
def test_cudnn_and_tf32_are_as_asked(wanted, monkeypatch, tmp_path):
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    settings = [*SHORT, "ann.max_steps=0", "snn.max_steps=0", f"cudnn_benchmark={wanted}", f"tf32={wanted}"]
    try:
        train(monkeypatch, DIGITS, "--out", tmp_path, "--device", "cpu", "--set", *settings)
        found = cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    finally:
        cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before
    assert found == (not wanted, wanted, wanted, wanted)


def test_freed_memory_is_kept_where_glibc_can(monkeypatch):
    asked = []
    library = SimpleNamespace(mallopt=lambda *what: asked.append(what) or 1)
    monkeypatch.setattr("ctypes.CDLL", lambda _: library)
    assert keep_freed_memory()
    assert asked == [(-4, 0), (-1, -1)]
    monkeypatch.setattr("ctypes.CDLL", lambda _: SimpleNamespace())
    assert not keep_freed_memory()
