"""GPU backends without a GPU: all of their Python, and nothing where a kernel would be launched."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch

from onespike.functional import backends
from onespike.functional.plans import planned
from onespike.kernels import cupy, triton

STUBBED = ("cupy", "triton")


class NoKernel:
    """Stands in for a kernel, compiled or not: `kernel[grid](...)`, or `kernel(...)`, launches nothing."""

    def __getitem__(self, grid: Any) -> "NoKernel":
        return self

    def __call__(self, *_: Any, **__: Any) -> "NoKernel":
        return self


@contextmanager
def stub_launches() -> Iterator[None]:
    """Let "cupy" and "triton" take CPU tensors and launch nothing: spikes and gradients are whatever the memory held.

    What a launch itself costs the host (CuPy's or Triton's launcher, the driver) is not in it.
    """
    others = backends.why_unavailable
    with (
        patch.object(backends, "why_unavailable", lambda name, device: [] if name in STUBBED else others(name, device)),
        patch.object(torch.cuda, "current_device", lambda: None),
        patch.object(torch._C, "_cuda_getCurrentRawStream", lambda _: 0, create=True),
        patch.object(cupy, "external_stream", lambda *_: nullcontext()),
        patch.object(cupy, "compiled", lambda *_: NoKernel()),
        patch.object(triton, "lif_forward", NoKernel()),
        patch.object(triton, "lif_backward", NoKernel()),
    ):
        planned.cache_clear()  # a plan for a backend that cannot run here must not outlive this
        try:
            yield
        finally:
            planned.cache_clear()
