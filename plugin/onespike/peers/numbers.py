"""The numbers that these encoders and neurons are made with: checked, and part of their state dicts."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor

from onespike.functional.checks import as_number, can_look_at, check_floating, check_positive
from onespike.kernels.reference import state_dtype
from onespike.spikingjelly.memory import CopyableMemory


def as_real(name: str, value: Any) -> float:
    """Return `value`, one real number of any kind, as Python's; raise an error that names it where it is something else."""
    try:
        number = as_number(name, value) if hasattr(value, "__float__") and not isinstance(value, bool) else None
    except (TypeError, RuntimeError, OverflowError):
        number = None
    if number is None:
        raise TypeError(f"{name} must be a number, got {value!r} of type {type(value).__name__}")
    return number


def positive(name: str, value: Any) -> float:
    """Return `value`, a finite number above 0, as Python's; raise unless it is one."""
    number = as_real(name, value)
    check_positive(name, number)
    return number


def check_number(name: str, value: Tensor | float) -> None:
    """Raise unless `value`, such as one that was loaded, is a finite number above 0; on a CPU alone if it is a tensor."""
    if not isinstance(value, Tensor) or can_look_at(value):
        positive(name, value)


def check_sequence(x_seq: Tensor, dims: int, layout: str) -> None:
    """Raise unless `x_seq` is a floating-point sequence of at least one step and `dims` dimensions (`layout` shows which)."""
    check_floating("x_seq", x_seq, dims, layout)
    if not len(x_seq):
        raise ValueError(f"x_seq must hold at least one time step, T >= 1, got shape {tuple(x_seq.shape)}")


class NumberedModule(CopyableMemory):
    """A module whose numbers are buffers of float32: a state dict restores what it computes, and no `half()` rounds them.

    A state dict that was written before they were part of it leaves them as they are.
    """

    _version = 2  # since the numbers are part of the state dict

    def register_number(self, name: str, value: float | None) -> None:
        """Keep a number that was checked; None for one that is worked out at each call."""
        dtype = state_dtype(torch.get_default_dtype())
        self.register_buffer(name, None if value is None else torch.tensor(value, dtype=dtype))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Let the numbers follow the module to another device, but not to another dtype: rounding them would move spikes."""
        numbers = {name: number for name, number in self._buffers.items() if number is not None and not number.is_meta}
        super()._apply(fn, recurse)
        for name, number in numbers.items():
            moved = self._buffers[name]
            assert moved is not None
            self._buffers[name] = number.to(moved.device)
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *arguments: Any
    ) -> None:
        own = {f"{prefix}{name}": number for name, number in self._buffers.items()}
        given = {name: number for name, number in own.items() if number is not None}
        if local_metadata.get("version", 1) < NumberedModule._version and not own.keys() & state_dict.keys():
            state_dict.update(given)
        elif f"{prefix}tau" in own:  # there only where it was given
            tau, device = state_dict.get(f"{prefix}tau"), next(iter(given.values())).device
            self._buffers["tau"] = None if tau is None else torch.empty_like(tau, device=device)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *arguments)
