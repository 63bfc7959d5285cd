"""Timing, memory and provenance, shared by the benchmarks."""

import ctypes
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))

from cifar.provenance import commit, cpu_model, installed

Work = Callable[[], Any]
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


def warm_heap() -> str:
    """Keep freed memory in the process, as an allocator that caches would, and say in words what the heap is like.

    Left alone, glibc maps every tensor above 32 MiB afresh and the kernel clears its pages one by one, which takes longer
    than moving the data, and hits those who use few large tensors, such as the fused neurons and the plain copy.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not (mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1)):
        return "as the system's allocator has it"
    return "warm: freed memory stays in the process (glibc mallopt M_MMAP_MAX=0, M_TRIM_THRESHOLD=-1)"


def usable_device(name: str, plan: str) -> torch.device:
    """Turn a name into a device, or end with what is missing and what would have been measured there."""
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"--device {name} needs a CUDA device: torch.cuda.is_available() is False. It would measure {plan}")
    return device


def interleave(
    works: dict[str, Work], rounds: int, device: torch.device, before_round: Work | None = None
) -> dict[str, list[float]]:
    """Run every work in turn in each round, so that a change of the machine's speed meets all; return seconds.

    In its turn a work runs twice and the second run is timed: in the first it pays for the caches and the heap that the work
    before it left behind.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():  # compiles, and warms the heap
        work()
    gc.disable()
    for _ in range(rounds):
        if before_round:
            before_round()
        for name, work in works.items():
            work()
            times[name].append(time_once(work, device))
    gc.enable()
    return times


def time_once(work: Work, device: torch.device) -> float:
    """Time one run in seconds, by device events on a GPU; what it returns is freed outside the time."""
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        result = work()
        end.record()
        torch.cuda.synchronize()
        seconds = start.elapsed_time(end) / 1e3
    else:
        begin = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - begin
    del result
    return seconds


def summary(seconds: list[float]) -> dict[str, float]:
    """Return median and quartiles in milliseconds."""
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return {"median_ms": 1e3 * median, "q1_ms": 1e3 * low, "q3_ms": 1e3 * high}


def ratio(slow: list[float], fast: list[float]) -> float:
    """Return the median over the rounds of slow / fast, each taken within one round."""
    return statistics.median(s / f for s, f in zip(slow, fast, strict=True))


def peak_bytes(work: Work, device: torch.device) -> int:
    """Return the most bytes that torch's allocator held at once beyond those held before, while `work` ran."""
    work()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = work()
    del result
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def saved_bytes(forward: Work) -> int:
    """Return the bytes of all distinct memory that autograd keeps for the backward pass of `forward`."""
    storages: dict[int, int] = {}
    kept = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        kept.append(tensor)  # so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result
    return sum(storages.values())


def provenance(device: torch.device) -> dict[str, Any]:
    """Describe machine, versions, commit and command of this run."""
    sha, changed = commit(Path(__file__).parent, "../plugin", "*.py")
    record = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": cpu_model(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": installed("torch", "triton", "spikingjelly", "snntorch", "cupy-cuda12x"),
        "commit": (sha or "unknown") + (" with uncommitted changes" if changed else ""),
        "command": " ".join([Path(sys.executable).name, *sys.argv]),
        "date": time.strftime("%Y-%m-%d"),
    }
    if device.type == "cuda":
        record["cuda"] = torch.version.cuda
    return record


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write `record` to `path`, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
