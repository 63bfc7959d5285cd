"""Integrate-and-fire neurons whose spikes have a size: phase, burst and kernel codes, for converted networks.

None of them has a gradient. They take the thresholds V of a conversion with `threshold_scale=1`: what is sent is in units of V.
"""

from typing import Any

import torch
from torch import Tensor

from onespike.functional.checks import check_floating, check_positive, check_T
from onespike.peers.codes import PERIOD, kernel_spikes, phase_size
from onespike.spikingjelly.memory import CopyableMemory


class SizedSpikeNode(CopyableMemory):
    """A neuron whose spike at step t takes g^t * V from its potential and sends g^t (Park et al., 2019).

    Equations:
        U^t = U^{t-1} + x^t,   O^t = g^t if U^t >= g^t * V, else 0,   then U^t -= O^t * V

    Args:
        v_threshold: V > 0, in the unit of the currents.
        step_mode: "m" for x [T, N, *], "s" for x [N, *].
    """

    v: Any

    def __init__(self, v_threshold: float = 1.0, step_mode: str = "m") -> None:
        super().__init__()
        check_positive("v_threshold", v_threshold)
        self.v_threshold = float(v_threshold)
        self.step_mode = step_mode
        self.register_memory("v", 0.0)

    def fire(self, x: Tensor, size: Tensor | float) -> Tensor:
        """Add the currents of one step [N, *] and send spikes of a size [N, *]."""
        check_floating("x", x, 1, "[N, *]")
        if isinstance(self.v, Tensor) and self.v.shape != x.shape:
            raise ValueError(
                f"x must have the shape of the earlier steps, {tuple(self.v.shape)}, got {tuple(x.shape)}: "
                "call reset_net before a new sequence"
            )
        v = self.v + x
        spikes = (v >= size * self.v_threshold) * size
        self.v = v - spikes * self.v_threshold
        return spikes.to(x.dtype)

    def multi_step_forward(self, x_seq: Tensor) -> Tensor:
        """Map currents [T, N, *] to spikes [T, N, *], going on from the stored state."""
        check_floating("x_seq", x_seq, 2, "[T, N, *]")
        return torch.stack([self.single_step_forward(x) for x in x_seq])

    def extra_repr(self) -> str:
        return f"v_threshold={self.v_threshold:.4g}, step_mode={self.step_mode}"


class PhaseNode(SizedSpikeNode):
    """Weighted spikes: a global clock sets the size, half as much at each of 8 phases (Kim et al., 2018).

    Equation:
        g^t = 2^-(1 + (t - 1) mod 8)

    A potential in [0, V) at the first step is sent within a period as its binary fraction of V, to 2^-8 V.
    """

    t: int

    def __init__(self, v_threshold: float = 1.0, step_mode: str = "m") -> None:
        super().__init__(v_threshold, step_mode)
        self.register_memory("t", 0)

    def single_step_forward(self, x: Tensor) -> Tensor:
        """Map the currents of one step [N, *] to its spikes [N, *]."""
        spikes = self.fire(x, phase_size(self.t))
        self.t = (self.t + 1) % PERIOD
        return spikes


class BurstNode(SizedSpikeNode):
    """Bursts: each spike is `beta` times as large as the one before it, until a step goes by without one (Park et al., 2019).

    Equation:
        g^t = beta * g^{t-1} if O^{t-1} > 0, else `first`

    Args:
        v_threshold: V > 0, in the unit of the currents.
        first: size of a burst's first spike, in (0, 1]; V_th of the paper, which takes 0.125.
        beta: growth of a burst, at least 1.
        step_mode: "m" for x [T, N, *], "s" for x [N, *].
    """

    size: Any

    def __init__(self, v_threshold: float = 1.0, *, first: float = 0.125, beta: float = 2.0, step_mode: str = "m") -> None:
        super().__init__(v_threshold, step_mode)
        if not 0 < first <= 1:
            raise ValueError(f"first must be in (0, 1], got {first}")
        if not 1 <= beta < float("inf"):
            raise ValueError(f"beta must be >= 1 and finite, got {beta}")
        self.first, self.beta = float(first), float(beta)
        self.register_memory("size", self.first)

    def single_step_forward(self, x: Tensor) -> Tensor:
        """Map the currents of one step [N, *] to its spikes [N, *]."""
        spikes = self.fire(x, self.size)
        self.size = torch.where(spikes > 0, self.beta * spikes, self.first)
        return spikes

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, first={self.first:g}, beta={self.beta:g}"


class KernelNode(CopyableMemory):
    """T2FSNN: integrate over one window of T steps, and fire once in the next, the earlier the higher the potential.

    Equations (Park et al., 2020; without their training of the kernels, and without early firing):
        U = sum of x^t over the window,   O = `kernel_spikes` of U / V: [T, N, *]

    What it gives lies a window later than what it took, so that a network of L such layers takes (L + 1) T steps from the
    first pixel to the last output. A single step says nothing: there is step mode "m" alone.

    Args:
        v_threshold: V > 0, the potential that fires at once, in the unit of the currents.
        T: steps of a window.
        tau: time constant of the kernel, in steps; None for T / 4, as `KernelEncoder` has it.

    Raises:
        ValueError: an argument leaves its range, or a sequence has not T steps.
        RuntimeError: it is called in step mode "s".
    """

    v: Any

    def __init__(self, v_threshold: float = 1.0, *, T: int, tau: float | None = None) -> None:
        super().__init__()
        check_positive("v_threshold", v_threshold)
        self.v_threshold = float(v_threshold)
        self.T = check_T(T)
        self.tau = self.T / 4 if tau is None else tau
        check_positive("tau", self.tau)
        self.step_mode = "m"
        self.register_memory("v", 0.0)

    def multi_step_forward(self, x_seq: Tensor) -> Tensor:
        """Map the currents of a window [T, N, *] to the spikes of the next one [T, N, *]."""
        check_floating("x_seq", x_seq, 2, "[T, N, *]")
        if len(x_seq) != self.T:
            raise ValueError(f"x_seq must have the {self.T} steps of a window, got {len(x_seq)}")
        self.v = x_seq.sum(0)
        return kernel_spikes(self.v / self.v_threshold, self.T, self.tau)

    def single_step_forward(self, x: Tensor) -> Tensor:
        """Raise a RuntimeError: a step is no window."""
        raise RuntimeError(
            f'step_mode must be "m" for KernelNode, which takes a window before it fires, got "s" and a step {tuple(x.shape)}'
        )

    def extra_repr(self) -> str:
        return f"v_threshold={self.v_threshold:.4g}, T={self.T}, tau={self.tau:g}"
