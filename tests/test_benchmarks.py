"""The benchmark scripts, as users call them, on small shapes; and the page of tables, which come from their results."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from recipe_runs import DIGITS, SHORT, call, train
from torch import nn

from onespike.functional import BackendUnavailableError, single_spike_lif
from onespike.spikingjelly import HybridEncoder

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"


def run(script: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *arguments], capture_output=True, text=True, check=False, timeout=280
    )


@pytest.fixture
def benchmarks(monkeypatch):
    """Let a test import the benchmarks' modules."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_bench_neuron_writes_json_markdown_and_a_plot(tmp_path):
    out = tmp_path / "neuron.json"
    done = run("bench_neuron.py", "--quick", "--out", str(out))
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads(out.read_text())
    assert record["benchmark"] == "neuron"
    assert record["heap"] == "as glibc manages it"
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]
    assert {case["kind"] for case in record["cases"]} == {"conv", "fc"}
    for case in record["cases"]:
        ours, theirs = case["rows"]["onespike torch"], case["rows"]["SpikingJelly LIFNode"]
        assert ours["median_ms"] > 0
        assert theirs["speedup_over_spikingjelly"] == 1
        assert ours["saved_for_backward"] == pytest.approx(1, abs=0.1)  # memory comes with a page to move in
        assert ours["peak_extra_memory"] < theirs["peak_extra_memory"]
    assert "| onespike torch |" in out.with_suffix(".md").read_text()
    assert out.with_suffix(".png").stat().st_size > 10_000


def test_bench_network_and_the_tables_made_from_it(benchmarks, monkeypatch, capsys, tmp_path):
    results, page = tmp_path / "results", tmp_path / "benchmarks.md"
    out = results / "some_machine" / "network.json"
    done = run("bench_network.py", "--quick", "--precision", "bf16", "--heap", "warm", "--out", str(out))
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads(out.read_text())
    assert {(case["phase"], case["precision"]) for case in record["cases"]} == {("train", "bf16"), ("infer", "bf16")}
    assert record["heap"].startswith(("warm: ", "as the system's allocator"))
    assert "training step, bf16 autocast, T = 5, batch 4" in out.with_suffix(".md").read_text()
    (results / "notes.json").write_text('{"not": "a benchmark"}')

    tables = (monkeypatch, capsys, BENCHMARKS / "make_tables.py", "--results", results, "--page", page)
    page.write_text("before\n<!-- speed: begin -->\nold\n<!-- speed: end -->\nafter\n")
    status, told = call(*tables, "--check")
    assert status == 1
    assert "is out of date" in told
    assert call(*tables)[0] == 0
    assert call(*tables, "--check")[0] == 0
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| onespike torch |" in text
    page.write_text("no markers")
    status, told = call(*tables)
    assert status == 1
    assert "must hold the lines" in told


def test_bench_loader_compares_the_same_work(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import bench_loader  # noqa: PLC0415

    class Photographs:
        def __init__(self, root, transform, download):
            self.data = np.random.default_rng(0).integers(0, 256, (256, 32, 32, 3), dtype=np.uint8)
            self.targets = [0] * 256
            self.transform = transform

        def __len__(self):
            return 256

        def __getitem__(self, i):
            return self.transform(Image.fromarray(self.data[i])), self.targets[i]

    monkeypatch.setattr(bench_loader.datasets, "CIFAR10", Photographs)
    out = tmp_path / "loader.json"
    monkeypatch.setattr(sys, "argv", ["bench_loader.py", "--rounds", "2", "--batches", "2", "--out", str(out)])
    bench_loader.main()
    rows = json.loads(out.read_text())["cases"][0]["rows"]
    assert set(rows) == {"resident", "DataLoader, 0 workers", "DataLoader, 2 workers"}
    assert rows["resident"]["resident_is_faster_by"] == 1
    assert rows["DataLoader, 0 workers"]["images_per_second"] < rows["resident"]["images_per_second"]
    assert "| DataLoader, 2 workers |" in capsys.readouterr().out


def test_autocast_reaches_the_network(benchmarks):
    import bench_network  # noqa: PLC0415

    class Network(nn.Linear):
        def forward(self, x):
            self.potential = super().forward(x)
            return self

    network = Network(3, 2)
    for precision, dtype in (("bf16", torch.bfloat16), ("float32", torch.float32)):
        assert bench_network.infer(network, torch.ones(1, 3), precision).dtype == dtype


def test_a_training_step_moves_every_parameter(benchmarks):
    import bench_network  # noqa: PLC0415

    images = torch.rand(8, 3, 32, 32) * 2 - 1
    neurons = {"ours": bench_network.onespike_node("torch")}
    network = bench_network.make_networks("vgg6 width/4", neurons, images, torch.device("cpu"))["ours"].train()
    step = bench_network.TrainStep(network, images, torch.arange(8) % 10, "float32")
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    step()
    assert step.loss.item() > 0
    assert step.loss.grad_fn is None
    assert all(not torch.equal(parameter, before[name]) for name, parameter in network.named_parameters())


def test_bench_overhead_counts_in_units_of_relu(tmp_path):
    out = tmp_path / "overhead.json"
    done = run("bench_overhead.py", "--rounds", "3", "--calls", "5", "--shape", "5", "2", "4", "3", "3", "--out", str(out))
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(out.read_text())["cases"][0]["rows"]
    stubbed = {f"onespike {name}, launches replaced by nothing" for name in ("cupy", "triton")}
    peers = {"SpikingJelly LIFNode", "SpikingJelly ParametricLIFNode", "snnTorch Leaky"}
    assert rows.keys() >= {"torch.relu", "onespike torch", *stubbed, *peers}
    assert rows["torch.relu"]["times_relu"] == 1
    assert rows["torch.relu"]["called"].keys() >= {"aten::relu", "aten::threshold_backward"}
    for name, row in rows.items():
        assert row["operators"] == sum(row["called"].values()) >= rows["torch.relu"]["operators"]
        assert name == "torch.relu" or row["times_relu"] > 1
    assert "| snnTorch Leaky |" in out.with_suffix(".md").read_text()


def test_operators_are_those_that_python_calls(benchmarks):
    from operators import called_operators  # noqa: PLC0415

    x, weight = torch.ones(3, 4, requires_grad=True), torch.ones(2, 4)
    assert called_operators(lambda: torch.nn.functional.linear(x.detach(), weight).mul_(2)) == {
        "aten::detach": 1,
        "aten::linear": 1,  # and not the operators that it calls
        "aten::mul_": 1,
    }
    assert called_operators(lambda: torch.relu(x).sum().backward())["aten::threshold_backward"] == 1
    arguments = torch.ones(5, 2, 3), torch.tensor(0.9), torch.tensor(1.0), None, None, 0.3, True, True, True, False, "torch"
    called = called_operators(lambda: torch.ops.onespike.single_spike_lif(*arguments))
    assert called["onespike::single_spike_lif"] == 1
    assert called["aten::mul"] >= 5, "what our operator calls counts as well"


def test_launches_are_replaced_for_a_while(benchmarks):
    from stubs import STUBBED, stub_launches  # noqa: PLC0415

    x_seq = torch.ones(5, 2, 3, requires_grad=True)
    for backend in STUBBED:
        with stub_launches():
            s_seq = single_spike_lif(x_seq, 0.9, 1.0, backend=backend).s_seq
            s_seq.sum().backward()
        assert s_seq.shape == x_seq.grad.shape == x_seq.shape
        with pytest.raises(BackendUnavailableError, match=f'backend "{backend}" cannot run on "cpu"'):
            single_spike_lif(x_seq, 0.9, 1.0, backend=backend)


def test_tables_show_the_heap_that_users_have_first(benchmarks, tmp_path):
    from make_tables import read_records  # noqa: PLC0415

    for place, (benchmark, device, heap) in enumerate(
        [("network", "cpu", "as"), ("neuron", "H100", "as"), ("neuron", "cpu", "warm: kept"), ("neuron", "cpu", "as")]
    ):
        record = {"benchmark": benchmark, "device": device, "heap": heap, "place": place}
        (tmp_path / f"{place}.json").write_text(json.dumps(record))
    assert [record["place"] for record in read_records(tmp_path)] == [3, 2, 1, 0]


def test_a_gpus_table_has_the_times_of_host_and_device(benchmarks):
    from bench_neuron import markdown  # noqa: PLC0415

    row = {"median_ms": 0.5, "host_ms": 0.25, "device_ms": 0.125, "times_copy": 1.0}
    case = {"kind": "fc", "shape": [5, 2], "dtype": "float32", "rows": {"copy": row}}
    assert "| neuron | ms | host, ms | device, ms | times a copy" in markdown(case)
    assert "| copy | 0.50 | 0.25 | 0.12 | 1.00 |" in markdown(case)


def test_a_step_can_be_profiled(tmp_path):
    out = tmp_path / "profile.txt"
    small = ("--network", "vgg6 width/4", "--batch-size", "2", "--precision", "float32", "--backend", "torch")
    done = run("profile_step.py", "--device", "cpu", *small, "--out", str(out))
    assert done.returncode == 0, done.stderr[-3000:]
    assert out.read_text().startswith("5 training steps of vgg6 width/4, T = 5, batch 2, float32")
    (line,) = (line for line in out.read_text().splitlines() if line.lstrip().startswith("SingleSpikeLIF "))
    assert line.split()[-1] == str(5 * 5), "five steps of five layers of neurons"


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_on_gpu_reports_every_part_and_fails_without_a_gpu(tmp_path):
    done = subprocess.run(
        ["bash", str(BENCHMARKS / "on_gpu.sh"), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=os.environ | {"ON_GPU_SECONDS": "9"},
    )
    assert done.returncode == 1
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == ["report.md", "rest.tar.gz"]
    report = (tmp_path / "out" / "report.md").read_text()
    for name in (
        "test_gpu",
        "overhead",
        "neuron_f32",
        "neuron_bf16",
        "network_f32",
        "network_bf16",
        "profile",
        "test_gpu_large",
    ):
        assert f"| {name} |" in report
    assert "passed |" not in report
    assert "not run: the time was over" in report


def test_the_page_is_made_from_the_recorded_results(benchmarks, monkeypatch, capsys):
    status, told = call(monkeypatch, capsys, BENCHMARKS / "make_tables.py", "--check")
    assert status == 0, told


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_a_missing_device_is_named(benchmarks, monkeypatch, capsys):
    neuron, network, overhead = (
        call(monkeypatch, capsys, BENCHMARKS / f"bench_{name}.py", "--device", "cuda")[1]
        for name in ("neuron", "network", "overhead")
    )
    assert "--device cuda needs a CUDA device" in neuron
    assert "It would measure one layer of neurons, float32, T = [2, 5, 10, 20], [N, *] = conv [256, 64, 32, 32]" in neuron
    assert "It would measure the host's time for one layer of neurons, x_seq [5, 8, 16, 8, 8]" in overhead
    assert "It would measure training steps and inference of vgg6, vgg6 width/4, vgg16 at T = 5" in network


def test_no_time_is_reported_when_parity_fails(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import bench_neuron  # noqa: PLC0415

    from onespike.kernels.eager import EagerPlan  # noqa: PLC0415

    right = EagerPlan.forward
    monkeypatch.setattr(EagerPlan, "forward", lambda plan, x_seq, *rest: right(plan, x_seq * 0.99, *rest))
    with pytest.raises(SystemExit, match="refusing to time: spikes of torch differ"):
        bench_neuron.check_parity(torch.device("cpu"), torch.float32, 5)


@pytest.mark.parametrize(
    ("backend", "kept", "spikes_alone"), [("cupy", 12, 10), ("triton", 13, 11), ("inductor", 17, 14), ("torch", 125, 121)]
)
def test_a_layer_calls_few_operators(backend, kept, spikes_alone, benchmarks):
    """A budget, forward and backward: what a small layer costs is what its operators cost to call."""
    from bench_overhead import SHAPE, Fresh, make_input, step  # noqa: PLC0415
    from operators import called_operators  # noqa: PLC0415
    from stubs import stub_launches  # noqa: PLC0415

    x_seq, grad = make_input(SHAPE, torch.device("cpu"))
    peer = Fresh(backend)
    with stub_launches():
        assert called_operators(lambda: step(peer, x_seq, grad)).total() <= kept
        peer.node.keep_state = False
        called = called_operators(lambda: step(peer, x_seq, grad))
    assert called.total() <= spikes_alone
    assert called.total() > 3, "the profiler saw nothing"


def test_the_collapse_can_be_watched(monkeypatch, tmp_path, capsys):
    train(
        monkeypatch,
        DIGITS,
        "--out",
        tmp_path / "run",
        "--device",
        "cpu",
        "--set",
        *SHORT,
        "ann.epochs=6",
        "width=0.1",
        "init=centred",
    )
    capsys.readouterr()
    command = [sys.executable, BENCHMARKS / "probe_collapse.py", tmp_path / "run", "--steps", 10, "--set", "snn.lr=1.0"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    blocks = done.stdout.split("\nbefore step ")[1:]
    assert [int(block.split(":")[0]) for block in blocks] == [0, 1, 2, 4, 8]
    first, last = (blocks[i].splitlines()[2:7] for i in (0, -1))
    assert len(first) == 5, "a line for each layer of neurons"
    assert all(float(line.split()[1]) > 0.01 for line in first)
    assert max(float(line.split()[4]) for line in first) > 1, "a rate of 1 moves currents by more than a threshold"
    assert min(float(line.split()[1]) for line in last) == 0, "which leaves nothing in support"


def test_networks_learn_to_live_with_spoilt_frames(benchmarks, monkeypatch, tmp_path, capsys):
    import degraded_frames  # noqa: PLC0415

    hybrid, analogue, other = (tmp_path / name for name in ("hybrid", "analogue", "other"))
    settings = ["--device", "cpu", "--set", *SHORT, "T=3"]
    train(monkeypatch, DIGITS, "--out", hybrid, *settings)
    train(monkeypatch, DIGITS, "--out", analogue, "--ann", hybrid, *settings, "encoder=analogue")
    train(monkeypatch, DIGITS, "--out", other, *settings, "seed=1", "ann.max_steps=1", "snn.max_steps=1")

    def spoil(*arguments):
        command = ["degraded_frames.py", *arguments, "--epochs", 1, "--out", tmp_path / "out"]
        monkeypatch.setattr(sys, "argv", list(map(str, command)))
        degraded_frames.main()
        return capsys.readouterr().out

    spoil(hybrid, analogue, "--ways", "1 bit", "moved")
    first = (tmp_path / "out" / "results.json").read_text()
    again = spoil(hybrid, analogue, "--ways", "1 bit", "as it is")
    found = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert again.count("1 bit, 1 epochs") == again.count("moved, 1 epochs") == 2, "what there is is printed"
    for run in (hybrid, analogue):
        recorded = json.loads((run / "metrics.json").read_text())["results"]["trained"]["accuracy_at_step"]
        ways = found[run.name]
        assert ways["as it is, 1 epochs"]["before"] == pytest.approx(recorded), "as it is, the network is the run's"
        assert ways["1 bit, 1 epochs"]["after"] != ways["1 bit, 1 epochs"]["before"]
        assert ways["moved, 1 epochs"] == json.loads(first)["results"][run.name]["moved, 1 epochs"], "nothing is lost"
    for runs, message in (
        ([tmp_path / "none"], "none"),
        ([hybrid, other], "conversion.json was made from another ANN"),
        ([hybrid, hybrid], "runs must have names of their own"),
    ):
        with pytest.raises(SystemExit, match=message):
            spoil(*runs)


@pytest.mark.parametrize("way", ["noise", "2 bits", "occluded", "half of the frames missing", "moved"])
def test_a_frame_is_spoilt_alone_and_alike_in_every_layout(way, benchmarks):
    from degraded_frames import SpoiltFrame  # noqa: PLC0415

    encoder = HybridEncoder(4, (-2.0, 3.0))
    x = 5 * torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0)) - 2
    spoilt = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        spoilt.append(SpoiltFrame(encoder, way)(x.contiguous(memory_format=layout)))
    assert torch.equal(*spoilt)
    assert torch.equal(spoilt[0][1:], encoder(x)[1:])
    changed = (spoilt[0][0] != x).float().mean().item()
    assert changed == pytest.approx({"occluded": 0.25, "half of the frames missing": 0.5}.get(way, 1), abs=0.1)
