"""The benchmark scripts, as users call them, on small shapes; and the README's tables, which come from their results."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"


def run(script: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *arguments], capture_output=True, text=True, check=False, timeout=280
    )


def test_bench_neuron_writes_json_markdown_and_a_plot(tmp_path):
    out = tmp_path / "neuron.json"
    done = run("bench_neuron.py", "--quick", "--out", str(out))
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads(out.read_text())
    assert record["benchmark"] == "neuron"
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


def test_bench_network_and_the_tables_made_from_it(tmp_path):
    results, readme = tmp_path / "results", tmp_path / "README.md"
    done = run("bench_network.py", "--quick", "--out", str(results / "network.json"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert {case["phase"] for case in json.loads((results / "network.json").read_text())["cases"]} == {"train", "infer"}

    tables = ("make_tables.py", "--results", str(results), "--readme", str(readme))
    readme.write_text("before\n<!-- speed: begin -->\nold\n<!-- speed: end -->\nafter\n")
    assert "is out of date" in run(*tables, "--check").stderr
    assert run(*tables).returncode == 0
    assert run(*tables, "--check").returncode == 0
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| onespike torch |" in text
    readme.write_text("no markers")
    assert "must hold the lines" in run(*tables).stderr


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


def test_the_readme_is_made_from_the_recorded_results():
    done = run("make_tables.py", "--check")
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_a_missing_device_is_named():
    neuron, network = (run(script, "--device", "cuda").stderr for script in ("bench_neuron.py", "bench_network.py"))
    assert "--device cuda needs a CUDA device" in neuron
    assert "It would measure one layer of neurons, float32, T = [2, 5, 10, 20], [N, *] = conv [256, 64, 32, 32]" in neuron
    assert "It would measure training steps and inference of vgg6, vgg6 width/4, vgg16 at T = 5" in network


def test_no_time_is_reported_when_parity_fails(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import bench_neuron  # noqa: PLC0415

    from onespike.kernels import eager  # noqa: PLC0415

    right = eager.forward
    monkeypatch.setattr(eager, "forward", lambda x_seq, *rest: right(x_seq * 0.99, *rest))
    with pytest.raises(SystemExit, match="refusing to time: spikes of torch differ"):
        bench_neuron.check_parity(torch.device("cpu"), torch.float32, 5)
