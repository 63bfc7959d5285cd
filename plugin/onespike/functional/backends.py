"""Which implementation of the neuron runs where, and why one cannot."""

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
    reasons = [f'backend "{backend}" is not built yet in this version of onespike: use "torch" or "auto"']
    if backend in ("cupy", "triton") and device.type != "cuda":
        reasons.append(f'backend "{backend}" runs on CUDA devices, got device "{device}"')
    return reasons


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
