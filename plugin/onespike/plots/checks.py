"""What figures take, read as NumPy arrays and numbers; each error names the argument, the rule and the value."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from onespike.functional.checks import check_T


def as_array(name: str, value: Any, dtype: type | None = None) -> NDArray[Any]:
    """Bring a tensor or an array of numbers to host memory."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = value.double() if value.is_floating_point() else value  # numpy knows no bfloat16
    try:
        array = np.asarray(value, dtype)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be a tensor or an array of numbers, got {type(value).__name__}") from error
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be a tensor or an array of numbers, got {type(value).__name__} of {array.dtype}")
    return array


def check_all(name: str, rule: str, values: NDArray[Any], holds: NDArray[np.bool_]) -> None:
    """Raise with the first of the values for which the rule does not hold."""
    if not holds.all():
        raise ValueError(f"{name} must {rule}, got {values[~holds][0]}")


def of_image(name: str, seq: ArrayLike, image: int) -> NDArray[Any]:
    """Take one image out of [T, N, *], flattened to [T, neurons]."""
    array = as_array(name, seq)
    if array.ndim < 2 or not array.size:
        raise ValueError(f"{name} must be [T, N, *] with at least one step, image and neuron, got shape {array.shape}")
    return array[:, check_index("image", image, array.shape[1])].reshape(len(array), -1)


def spikes_of_image(s_seq: ArrayLike, image: int) -> NDArray[Any]:
    """Take one image's spikes out of [T, N, *]."""
    spikes = of_image("s_seq", s_seq, image)
    check_all("s_seq", "hold spikes, 0 or 1", spikes, (spikes == 0) | (spikes == 1))
    return spikes


def true_class(correct: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Turn a mask or class indices into a mask of `shape`."""
    given = as_array("correct", correct)
    if given.dtype.kind == "b" and given.shape == shape:
        return given
    if given.dtype.kind not in "iu" or len(shape) != 2 or given.shape != shape[:1]:
        raise ValueError(
            "correct must be a boolean mask in the shape of spike_time, or class indices [N] for a spike_time [N, K], "
            f"got {given.dtype} {given.shape} for {shape}"
        )
    classes = np.arange(shape[1])
    check_all("correct", f"be in 0..{shape[1] - 1}", given, np.isin(given, classes))
    return given[:, None] == classes


def check_index(name: str, value: Any, size: int) -> int:
    """Return `value`, or raise unless it is an int in 0..size - 1."""
    check_T(value, 0, name)
    if value >= size:
        raise ValueError(f"{name} must be in 0..{size - 1}, got {value}")
    return value


def read_number(name: str, value: Any, rule: str) -> float:
    """Read a number, "> 0" or ">= 0"."""
    try:
        number = float(value.detach() if isinstance(value, torch.Tensor) else value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a number, got {value!r}") from error
    if not (0 < number < float("inf") or (number == 0 and rule == ">= 0")):
        raise ValueError(f"{name} must be finite and {rule}, got {number}")
    return number


def check_dict(name: str, value: Any) -> Mapping[str, Any]:
    """Return `value`, or raise unless it is a dict that is not empty."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a dict, got {value!r} of type {type(value).__name__}")
    if not value:
        raise ValueError(f"{name} must not be empty, got {value!r}")
    return value


def read_groups(name: str, values: Mapping[str, Any], rule: str) -> dict[str, dict[str, float]]:
    """Read a dict of dicts of numbers, or a dict of numbers as the one series named ""."""
    nested = any(isinstance(value, Mapping) for value in check_dict(name, values).values())
    return {
        series: {x: read_number(f"{name}[{x!r}]", value, rule) for x, value in check_dict(f"{name}[{series!r}]", group).items()}
        for series, group in (values if nested else {"": values}).items()
    }
