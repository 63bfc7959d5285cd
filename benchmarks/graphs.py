"""A whole training step as a CUDA graph."""

from collections.abc import Callable

import torch


def graphed(step: Callable[[], object]) -> tuple[Callable[[], None], int]:
    """Capture `step`, which must read and write the same memory at every call; return its replay and its peak of bytes.

    The peak is what torch's allocator held at once during the capture beyond what it held before; the graph keeps that much.

    Raises:
        RuntimeError: `step` does what a graph cannot hold, such as waiting for the device.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles, tunes and makes the optimizer's state
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    with torch.cuda.graph(graph):
        step()
    return graph.replay, torch.cuda.max_memory_allocated() - before
