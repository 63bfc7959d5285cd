"""Which implementation of the neuron runs where, and why one cannot."""

import functools
import importlib
import importlib.util

import torch

BACKENDS = ("torch", "inductor", "cupy", "triton")
"""The names of the implementations; "auto" stands for the fastest usable one of them."""


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
        return [f'backend "{backend}" is not built yet in this version of onespike: use "torch" or "auto"']
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


def resolve_backend(backend: str, device_type: str) -> str:
    """Turn "auto" into a name and refuse a named backend that cannot run: it never falls back.

    Raises:
        ValueError: `backend` is no known name.
        BackendUnavailableError: the named backend cannot run on this kind of device.
    """
    check_backend(backend)
    if backend == "auto":
        return "torch"
    reasons = why_unavailable(backend, device_type)
    if reasons:
        raise BackendUnavailableError(f'backend "{backend}" cannot run on "{device_type}": ' + "; ".join(reasons))
    return backend
