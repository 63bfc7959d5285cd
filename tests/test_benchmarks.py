"""The benchmark scripts, as users call them, on small shapes; and the README's tables, which come from their results."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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
