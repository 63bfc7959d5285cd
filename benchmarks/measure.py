"""Time and memory, shared by the benchmarks."""

import argparse
import ctypes
import gc
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

Work = Callable[[], Any]
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


def add_heap_option(parser: argparse.ArgumentParser) -> None:
    """Give a benchmark the option `--heap`: as users have it, unless asked otherwise."""
    parser.add_argument(
        "--heap", choices=["default", "warm"], default="default", help="leave glibc alone, or keep freed memory"
    )


def set_heap(choice: str) -> str:
    """Leave the heap alone ("default") or keep freed memory in the process ("warm"); say in words what it is like.

    Left alone, glibc maps every tensor above 32 MiB afresh and the kernel clears its pages one by one, which takes longer
    than moving the data, and hits those who use few large tensors, such as the fused neurons and the plain copy. Asked to keep
    memory, glibc does not always: on one machine every fresh 64 MiB were cleared anew in some processes and not in others.
    """
    if choice == "default":
        return "as glibc manages it"
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not (mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1)):
        return "as the system's allocator has it"
    return "warm: glibc was asked to keep freed memory in the process (mallopt M_MMAP_MAX=0, M_TRIM_THRESHOLD=-1)"


def usable_device(name: str, plan: str) -> torch.device:
    """Turn a name into a device, or end with what is missing and what would have been measured there."""
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"--device {name} needs a CUDA device: torch.cuda.is_available() is False. It would measure {plan}")
    return device


@dataclass
class Times:
    """Seconds of each timed run of a work.

    Attributes:
        elapsed: from start to end, by device events on a GPU.
        host: until the call returned; on a GPU the device may still be at work then.
        cpu: what all threads of the process together took of the processor, whatever else ran on the machine.
        device: on a GPU, from start to end of what was queued while the device was held up, so that it never waited for the
            host; empty elsewhere.
    """

    elapsed: list[float] = field(default_factory=list)
    host: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    device: list[float] = field(default_factory=list)


def interleave(
    works: dict[str, Work], rounds: int, device: torch.device, before_round: Work | None = None, queued: bool = False
) -> dict[str, Times]:
    """Run every work in turn in each round, so that a change of the machine's speed meets all.

    In its turn a work runs twice and the second run is timed: in the first it pays for the caches and the heap that the work
    before it left behind. With `queued`, a GPU runs it a third time, for `Times.device`: what it launches must fit into the
    device's queue.
    """
    times = {name: Times() for name in works}
    for work in works.values():  # compiles, and warms the heap
        work()
    gc.disable()
    for _ in range(rounds):
        if before_round:
            before_round()
        for name, work in works.items():
            work()
            time_once(work, device, times[name])
            if queued and device.type == "cuda":
                times[name].device.append(time_queued(work, times[name].host[-1]))
    gc.enable()
    return times


def time_once(work: Work, device: torch.device, times: Times) -> None:
    """Time one run; what it returns is freed outside the time."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
    begin, begin_cpu = time.perf_counter(), time.process_time()
    result = work()
    times.cpu.append(time.process_time() - begin_cpu)
    times.host.append(time.perf_counter() - begin)
    if on_gpu:
        end.record()
        torch.cuda.synchronize()
    times.elapsed.append(start.elapsed_time(end) / 1e3 if on_gpu else times.host[-1])
    del result


def time_queued(work: Work, host_seconds: float) -> float:
    """Return the device's seconds for one run whose launches all wait in its queue before the first begins."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    torch.cuda._sleep(round(4e9 * host_seconds) + 1_000_000)  # cycles: twice the host's time at 2 GHz
    start.record()
    result = work()
    end.record()
    torch.cuda.synchronize()
    del result
    return start.elapsed_time(end) / 1e3


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


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write `record` to `path`, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
