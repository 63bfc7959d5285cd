"""Argument checks shared by the functional layer: each error names the argument, the rule and the value."""

from collections.abc import Sequence
from math import isfinite, isnan
from operator import index
from typing import Any, SupportsIndex

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter


def check_T(T: SupportsIndex, minimum: int = 1, name: str = "T") -> int:
    """Return `T`, a number of time steps, as an int; raise unless it is an integer, such as NumPy's, of at least `minimum`."""
    try:
        steps = None if isinstance(T, bool) or getattr(T, "dtype", None) == torch.bool else index(T)
    except TypeError:
        steps = None
    if steps is None:
        raise TypeError(f"{name} must be an int, got {T!r} of type {type(T).__name__}")
    if minimum > steps:
        raise ValueError(f"{name} must be >= {minimum}, got {steps}")
    return steps


def check_floating(name: str, x: Tensor, dims: int, layout: str) -> None:
    """Raise unless `x` is a floating-point tensor of at least `dims` dimensions (`layout` shows which)."""
    if not isinstance(x, Tensor):
        remedy = ""
        if isinstance(x, tuple):
            remedy = ": a snnTorch neuron returns (spk, mem), pass spk alone"
        elif isinstance(x, list):
            remedy = ": make one tensor of the steps with torch.stack"
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}{remedy}")
    if not x.dtype.is_floating_point:
        whole = not x.dtype.is_complex and x.dtype != torch.bool
        remedy = ": convert images with x.float() / 255" if whole else ""
        raise TypeError(f"{name} must be a floating-point tensor, got {x.dtype}{remedy}")
    if x.dim() < dims:
        raise ValueError(f"{name} must have at least {dims} dimensions, {layout}, got shape {tuple(x.shape)}")


def as_number(name: str, value: float | Tensor) -> float:
    """Return `value` as a Python number; raise where it is a tensor of several."""
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"{name} must be one number for the layer, got a tensor of shape {tuple(value.shape)}")
    return float(value)


def shown(value: Tensor) -> str:
    """Return a 0-d tensor as text for a repr, whatever device it lies on."""
    return "?" if value.is_meta else f"{value.item():.4g}"


def check_positive(name: str, value: float) -> None:
    """Raise unless the Python number `value` is finite and above 0."""
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be > 0, got {value}")


def check_finite(name: str, x: Tensor) -> tuple[float, float] | None:
    """Raise where a CPU tensor holds NaN or Inf, and return its extremes.

    On other devices looking would stall the stream, so nothing is checked, and the answer is None.
    """
    if not can_look_at(x) or not x.numel():
        return None
    seen = extremes(x)
    if not all(map(isfinite, seen)):
        raise ValueError(f"{name} must be finite, got {int((~torch.isfinite(x)).sum())} NaN or Inf values")
    return seen


def extremes(x: Tensor) -> tuple[float, float]:
    """Return the smallest and the largest value of a CPU tensor that is not empty; NaN for both where it holds one."""
    smallest, largest = torch.aminmax(x)
    return smallest.item(), largest.item()


class NotFiniteError(ValueError):
    """A number is NaN or infinite where it may not be; the message names the argument."""


def not_finite(name: str, x_seq: Tensor, v: Tensor | None) -> NotFiniteError:
    """Say from what potentials became NaN or infinite."""
    for source, tensor in ((name, x_seq), ("state.v", v)):
        if tensor is not None and not tensor.isfinite().all():
            nans, infinities = int(tensor.isnan().sum()), int(tensor.isinf().sum())
            return NotFiniteError(f"{source} must be finite, got {nans} NaN and {infinities} Inf in {tensor.numel()} values")
    low, high = extremes(x_seq.detach())
    return NotFiniteError(f"{name} must not overflow the potential, got values from {low} to {high}")


def check_no_nan(result: Tensor, **sources: Tensor | None) -> None:
    """Raise where a CPU tensor holds NaN and one of those that it was computed from does, by name.

    Nothing is checked on other devices, where looking would stall the stream and NaN goes on to the loss.
    """
    if not can_look_at(result) or is_traced(result) or not isnan(result.sum().item()):
        return
    for name, source in sources.items():
        if source is not None and (missing := int(source.isnan().sum())):
            raise NotFiniteError(f"{name} must be finite, got NaN in {missing} of {source.numel()} values")


def check_leak(name: str, leak: Tensor) -> None:
    """Raise where a CPU tensor of leaks leaves [0, 1]."""
    if not can_look_at(leak) or (leak.dim() == 0 and 0 <= leak.item() <= 1):  # a single number is quicker to read
        return
    check_within(name, leak, bool(((leak >= 0) & (leak <= 1)).all()), "in [0, 1]")


def check_threshold(name: str, v_threshold: Tensor) -> None:
    """Raise where a CPU tensor of thresholds is not above 0, or infinite."""
    if not can_look_at(v_threshold) or (v_threshold.dim() == 0 and 0 < v_threshold.item() < float("inf")):
        return
    check_within(name, v_threshold, bool((v_threshold > 0).all()), "> 0")
    check_within(name, v_threshold, bool((v_threshold < torch.inf).all()), "finite")


def check_within(name: str, value: Tensor, holds: bool, rule: str) -> None:
    """Raise a ValueError with the range of `value` unless `holds`, and name the projection as the remedy, but not of NaN."""
    if holds:
        return
    value = value.detach()
    if missing := int(value.isnan().sum()):
        raise NotFiniteError(f"{name} must be {rule}, got NaN in {missing} of {value.numel()}: training has failed")
    seen = f"{float(value)}" if value.numel() == 1 else f"values from {float(value.min())} to {float(value.max())}"
    raise ValueError(f"{name} must be {rule}, got {seen} (a trained value: call project_() after each optimizer step)")


def can_look_at(x: Tensor) -> bool:
    """Whether reading values of `x` is free of a device synchronisation and of a graph break."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def is_traced(x: Tensor) -> bool:
    """Whether torch wants plain operators to follow: it compiles, exports, transforms functions, or has taken over tensors."""
    return (
        torch.compiler.is_compiling()
        or type(x) not in (Tensor, Parameter)
        or torch._C._len_torch_dispatch_stack() > 0
        or is_transformed(x)
        or torch._C._get_tracing_state() is not None
    )


def is_exported() -> bool:
    """Whether `torch.export` records a program, to be run elsewhere."""
    if hasattr(torch.compiler, "is_exporting"):
        return torch.compiler.is_exporting()
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()  # torch 2.6


def is_transformed(x: Tensor) -> bool:
    """Whether a transform of `torch.func`, a batch of gradients or forward-mode differentiation is at work."""
    return not torch.compiler.is_compiling() and (
        torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._functorch.is_legacy_batchedtensor(x)
        or forward_ad._current_level >= 0
    )


def as_operand(value: Any, dtype: torch.dtype, device: torch.device | None) -> Tensor:
    """Return `value` as a tensor to compute with on `device`.

    A single number stays on the CPU, from where kernels take it as an argument: a copy would make the host wait, and could not
    be captured in a CUDA graph.
    """
    value = torch.as_tensor(value, dtype=dtype)
    return value if value.dim() == 0 and value.device.type == "cpu" else value.to(device)


def broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    """Whether `shape` broadcasts to the shape `to` without enlarging it."""
    missing = len(to) - len(shape)
    return missing >= 0 and all(size in (1, wanted) for size, wanted in zip(shape, to[missing:], strict=True))
