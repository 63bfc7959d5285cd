"""How a value becomes spikes of given sizes: the codes that encoders and neurons share."""

import torch
from torch import Tensor

from onespike.functional.checks import check_floating, check_T
from onespike.kernels.reference import state_dtype
from onespike.peers.numbers import check_number

PERIOD = 8
"""Phases of weighted spikes, after which their sizes begin again (Kim et al., 2018)."""


def phase_size(step: int, period: int = PERIOD) -> float:
    """Return the size of a weighted spike at a step, counted from 0 (Kim et al., 2018; eq. 3 of Park et al., 2019).

    Equation:
        Pi(step) = 2^-(1 + step mod period)

    Raises:
        TypeError, ValueError: `period` is not an int >= 1.
    """
    return 2.0 ** -(1 + step % check_T(period, name="period"))


def decay_kernel(T: int, tau: Tensor | float, like: Tensor) -> Tensor:
    """Return the kernel of T2FSNN at each step, [T], in the dtype and on the device of `like` (Park et al., 2020).

    Equation:
        epsilon(step) = exp(-step / tau),   step = 0..T-1

    Raises:
        TypeError, ValueError: `T` is not an int >= 1, `tau` not a finite number > 0, or `like` not floating point.
    """
    check_floating("like", like, 0, "[*]")
    T = check_T(T)
    check_number("tau", tau)
    return torch.exp(torch.arange(T, dtype=state_dtype(like.dtype), device=like.device) / -tau).to(like.dtype)


def kernel_spikes(x: Tensor, T: int, tau: Tensor | float) -> Tensor:
    """Encode values in the time of one spike, of the size that the kernel has then (T2FSNN; Park et al., 2020).

    Equation:
        s at a step = epsilon(step) at the first one with x >= epsilon(step), else 0;   NaN where x is

    What is sent is the largest value of the kernel that is not above x: more than x * exp(-1 / tau) for x in
    [exp(-(T - 1) / tau), 1]. Larger values are sent as 1, smaller ones not at all.

    Args:
        x: values in units of the largest one that can be sent, [N, *].
        T: steps of the window, at least 1.
        tau: time constant of the kernel, in steps, above 0.

    Returns:
        [T, N, *], in the dtype of x.

    Raises:
        TypeError, ValueError: an argument leaves its range, or x is not floating point.
    """
    check_floating("x", x, 0, "[N, *]")
    values = x.to(state_dtype(x.dtype))
    sizes = decay_kernel(T, tau, values).view(-1, *[1] * x.dim())
    reached = values >= sizes
    first = torch.cat([reached[:1], reached[1:] & ~reached[:-1]])
    return torch.where(values.isnan(), values, first * sizes).to(x.dtype)
