"""Which implementation of the neuron runs where, and why one cannot."""

import functools
import importlib
import importlib.util
import os
import shutil
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from onespike.kernels.plan import Signature

KERNELS = {
    "torch": ("onespike.kernels.eager", "EagerPlan"),
    "inductor": ("onespike.kernels.inductor", "InductorPlan"),
    "cupy": ("onespike.kernels.cupy", "CupyPlan"),
    "triton": ("onespike.kernels.triton", "TritonPlan"),
}
"""Module and class of each implementation, a `Plan`."""

BACKENDS = tuple(KERNELS)
"""The names of the implementations; "auto" stands for the fastest usable one of them."""

AUTO_COMPILES_FROM = 2**20
"""Elements of x_seq, T x N x *, from which "auto" takes "inductor" on a CPU.

Measured on 2 cores of an AMD EPYC at T = 5, forward and backward, two threads: "inductor" saves 0.2 ms at 2.5 and at 20
thousand elements, 0.7 ms at 100 thousand, 4 ms at 1 million and 15 ms at 4 million. Compiling both functions costs 14 s the
first time and 3 s in later processes, from inductor's cache on disk; all layers of a network share them. At 1 million elements
a few thousand passes earn the time back; a script of small layers never compiles. The rule looks at the shape alone, so that a
run takes the same path again when it is resumed, recomputed under checkpointing, or repeated; ask for a backend by name to have
it at any size.
"""

AUTO_ON_CUDA = ("cupy", "triton")
"""What "auto" takes on CUDA, the first that works; "torch", several times slower, where none does."""


class BackendUnavailableError(RuntimeError):
    """A backend was asked for by name where it cannot run; the message holds every reason and the remedy."""


def why_unavailable(backend: str, device: str | torch.device) -> list[str]:
    """List the reasons why `backend` cannot run on `device`; an empty list means that it can.

    Args:
        backend: "torch", "inductor", "cupy" or "triton".
        device: where the tensors are, such as "cpu" or torch.device("cuda", 1).

    Raises:
        ValueError: `backend` is none of these names.
    """
    check_backend(backend, BACKENDS)
    device = torch.device(device)
    if backend == "torch":
        return []
    if backend == "inductor":
        return inductor_obstacles(device)
    reasons = []
    if device.type != "cuda":
        reasons.append(f'backend "{backend}" runs on CUDA devices, got device "{device}"')
    elif not torch.cuda.is_available():
        reasons.append(
            f'backend "{backend}" needs a CUDA device and driver that torch can use: torch.cuda.is_available() is False'
        )
    return reasons + (cupy_is_missing() if backend == "cupy" else triton_is_missing())


@functools.cache
def cupy_is_missing() -> list[str]:
    """List what keeps CuPy from working beside this torch: nothing, its absence, or another CUDA major version."""
    if torch.version.cuda is None:
        return ['backend "cupy" needs a torch built for CUDA: see https://pytorch.org/get-started/locally']
    major = torch.version.cuda.split(".")[0]
    remedy = f'pip install "onespike[cupy-cuda{major}x]"'
    if importlib.util.find_spec("cupy") is None:
        return [f'backend "cupy" needs CuPy: {remedy}']
    try:
        built_for = str(importlib.import_module("cupy").cuda.runtime.runtimeGetVersion() // 1000)
    except Exception as error:  # CuPy's own errors cannot be named where it does not import
        return [f"CuPy is installed but does not load ({type(error).__name__}: {error}): {remedy}"]
    if built_for != major:
        return [
            f"CuPy is built for CUDA {built_for}, torch for CUDA {major}: pip uninstall cupy-cuda{built_for}x, then {remedy}"
        ]
    return []


@functools.cache
def triton_is_missing() -> list[str]:
    """List what keeps Triton from working: nothing, or its absence."""
    return [] if importlib.util.find_spec("triton") else ['backend "triton" needs Triton: pip install triton']


def available_backends(device: str | torch.device) -> tuple[str, ...]:
    """Name the backends that can run on `device`, "torch" first."""
    return tuple(backend for backend in BACKENDS if not why_unavailable(backend, device))


def check_backend(backend: str, names: tuple[str, ...] = ("auto", *BACKENDS)) -> None:
    """Raise a ValueError unless `backend` is one of `names`."""
    if backend not in names:
        raise ValueError(f"backend must be one of {', '.join(map(repr, names))}, got {backend!r}")


def resolve_backend(backend: str, device_type: str, elements: int = 0, dtype: torch.dtype = torch.float32) -> str:
    """Turn "auto" into a name and refuse a named backend that cannot run: it never falls back.

    Args:
        backend: a name or "auto".
        device_type: kind of device of the tensors, such as "cpu".
        elements: number of elements of x_seq, which "auto" goes by.
        dtype: dtype of x_seq; only "torch" and "inductor" have float64.

    Raises:
        ValueError: `backend` is no known name.
        BackendUnavailableError: the named backend cannot run on this kind of device.
    """
    check_backend(backend)
    if backend == "auto":
        if device_type == "cuda" and dtype != torch.float64:
            return fastest_on_cuda()
        return "inductor" if device_type == "cpu" and elements >= AUTO_COMPILES_FROM and compiles_on_cpu() else "torch"
    reasons = why_unavailable(backend, device_type)
    if reasons:
        raise BackendUnavailableError(f'backend "{backend}" cannot run on "{device_type}": ' + "; ".join(reasons))
    return backend


@functools.cache
def compiles_on_cpu() -> bool:
    """Whether "auto" may take "inductor" on a CPU; warn, once, where there is a compiler that does not work."""
    if inductor_is_missing("cpu"):
        return False
    reasons = compiler_fails("cpu")
    if reasons:
        warnings.warn(f'backend "auto" takes "torch", which is slower for large layers: {"; ".join(reasons)}', stacklevel=2)
    return not reasons


@functools.cache
def fastest_on_cuda() -> str:
    """Name the first of `AUTO_ON_CUDA` that runs a neuron on the current device; warn, once, where that is none."""
    reasons = []
    for backend in AUTO_ON_CUDA:
        if not (obstacles_found := why_unavailable(backend, "cuda") or failures(backend, "cuda")):
            return backend
        reasons += obstacles_found
    warnings.warn(f'backend "auto" takes "torch" on CUDA, which is several times slower: {"; ".join(reasons)}', stacklevel=2)
    return "torch"


def failures(backend: str, device: str) -> list[str]:
    """Run one neuron forward and backward, and say what went wrong: an installed compiler need not work."""
    module, kind = KERNELS[backend]
    try:
        x_seq, number = torch.ones(1, 1, device=device), torch.ones((), device=device)
        plan = getattr(importlib.import_module(module), kind)(Signature.of(x_seq, number, number))
        plan.forward(x_seq, number, number, None, None)
        plan.backward(x_seq, None, None, x_seq, number, number, None, None)
    except Exception as error:  # a compiler's errors have no common base
        return [f'backend "{backend}" is installed but fails ({type(error).__name__}: {error})']
    return []


def inductor_obstacles(device: torch.device) -> list[str]:
    """List what torch.compile lacks to generate code for `device`: a part that is not there, or one that does not work."""
    if device.type not in ("cpu", "cuda"):
        return [f'backend "inductor" runs on CPU and CUDA devices, got device "{device}"']
    return inductor_is_missing(device.type) or compiler_fails(device.type)


def inductor_is_missing(device_type: str) -> list[str]:
    """List the parts that torch.compile has to have, and has not."""
    reasons = []
    if device_type == "cpu" and not any(name and shutil.which(name) for name in compilers()):
        reasons.append("torch.compile needs a C++ compiler: apt-get install g++ (or set the variable CXX to one)")
    if device_type == "cuda":
        if not torch.cuda.is_available():
            reasons.append("torch finds no CUDA device")
        if importlib.util.find_spec("triton") is None:
            reasons.append("torch.compile needs Triton on CUDA devices: pip install triton")
    return reasons


def compilers() -> Sequence[str | None]:
    """Name the C++ compilers that torch.compile looks for: its setting, which is slow to import, or what that begins as."""
    config: Any = sys.modules.get("torch._inductor.config")
    return config.cpp.cxx if config else [os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")]


@functools.cache
def compiler_fails(device_type: str) -> list[str]:
    """Compile the smallest function, once, and say what went wrong: a compiler that is there need not work."""
    try:
        importlib.import_module("onespike.kernels.compiled").try_compiler(torch.device(device_type))
    except Exception as error:  # a compiler's errors have no common base
        lines = [line for line in str(error).splitlines() if line]
        gist = next((line for line in lines if "error: " in line), lines[0] if lines else "")
        return [
            f"torch.compile cannot compile here ({type(error).__name__}: {gist}): apt-get install g++ python3-dev, or set CXX "
            "to another compiler, TORCHINDUCTOR_CACHE_DIR to a folder that can be written"
        ]
    return []
