"""GPU backends without a GPU: all of their Python, and nothing where a kernel would be launched."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from onespike.functional import backends
from onespike.kernels import cupy, triton

STUBBED = ("cupy", "triton")


def nothing(*_: Any, **__: Any) -> None:
    """Launch nothing."""


class NoKernel:
    """Stands in for a Triton kernel, `kernel[grid](...)`."""

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return nothing


@contextmanager
def stub_launches() -> Iterator[None]:
    """Let "cupy" and "triton" take CPU tensors and launch nothing: spikes and gradients are whatever the memory held.

    What a launch itself costs the host (CuPy's or Triton's launcher, the driver) is not in it.
    """
    usable = backends.USABLE | {(name, "cpu") for name in STUBBED}
    with (
        patch.object(backends, "USABLE", usable),
        patch.object(cupy, "launch", nothing),
        patch.object(triton, "lif_forward", NoKernel()),
        patch.object(triton, "lif_backward", NoKernel()),
    ):
        yield
