"""How a value becomes spikes of given sizes: the codes that encoders and neurons share."""

import torch
from torch import Tensor

PERIOD = 8
"""Phases of weighted spikes, after which their sizes begin again (Kim et al., 2018)."""


def phase_size(step: int, period: int = PERIOD) -> float:
    """Return the size of a weighted spike at a step, counted from 0 (Kim et al., 2018; eq. 3 of Park et al., 2019).

    Equation:
        Pi(t) = 2^-(1 + t mod period)
    """
    return 2.0 ** -(1 + step % period)


def decay_kernel(T: int, tau: float, like: Tensor) -> Tensor:
    """Return the kernel of T2FSNN at each step, [T], in the dtype and on the device of `like` (Park et al., 2020).

    Equation:
        epsilon(t) = exp(-t / tau),   t = 0..T-1
    """
    return torch.exp(torch.arange(T, dtype=like.dtype, device=like.device) / -tau)


def kernel_spikes(x: Tensor, T: int, tau: float) -> Tensor:
    """Encode values in the time of one spike, of the size that the kernel has then (T2FSNN; Park et al., 2020).

    Equation:
        s^t = epsilon(t) at the first t with x >= epsilon(t), else 0

    What is sent is the largest value of the kernel that is not above x: more than x * exp(-1 / tau) for x in
    [exp(-(T - 1) / tau), 1]. Larger values are sent as 1, smaller ones not at all.

    Args:
        x: values in units of the largest one that can be sent, [N, *].
        T: steps of the window.
        tau: time constant of the kernel, in steps.

    Returns:
        [T, N, *].
    """
    sizes = decay_kernel(T, tau, x).view(-1, *[1] * x.dim())
    reached = x >= sizes
    first = torch.cat([reached[:1], reached[1:] & ~reached[:-1]])
    return first * sizes
