"""Integrate-and-fire neurons whose spikes have a size: phase, burst and kernel codes, for converted networks.

None of them has a gradient. They take the thresholds V of a conversion with `threshold_scale=1`: what is sent is in units of V.
Potentials are float32 (float64 for float64 currents). As with `SingleSpikeLIFNode`, a potential that becomes NaN or infinite is
an error on a CPU, and on other devices the spikes of a neuron whose potential is NaN are NaN.
"""

from abc import ABC, abstractmethod
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from onespike.functional.checks import can_look_at, check_floating, check_T, extremes, is_traced, not_finite, shown
from onespike.kernels.reference import state_dtype
from onespike.peers.codes import kernel_spikes, phase_size
from onespike.peers.numbers import NumberedModule, as_real, check_number, check_sequence, positive


def require_finite(v: Tensor, x_seq: Tensor, before: Any = None) -> None:
    """Raise a NotFiniteError if the last potentials, on a CPU, are not finite: they stay NaN or infinite once they are."""
    if can_look_at(v) and not is_traced(v) and v.numel() and not all(map(isfinite, extremes(v))):
        raise not_finite("x_seq", x_seq, before if isinstance(before, Tensor) else None)


class SizedSpikeNode(NumberedModule, ABC):
    """A neuron whose spike at step t takes g^t * V from its potential and sends g^t (Park et al., 2019).

    Equations:
        U^t = U^{t-1} + x^t,   O^t = g^t if U^t >= g^t * V, else 0,   then U^t -= O^t * V

    Args:
        v_threshold: V > 0, in the unit of the currents; a buffer.
        step_mode: "m" for x [T, N, *], "s" for x [N, *].

    Attributes:
        sized: what `convert` knows a neuron by whose spikes are not 1.

    Raises:
        TypeError, ValueError: an argument leaves its range, x is not floating point, has no step or another shape than before.
        NotFiniteError: on a CPU, a potential becomes NaN or infinite.
    """

    sized = True
    v_threshold: Tensor
    v: Any
    sent: Any
    t: int

    def __init__(self, v_threshold: float = 1.0, step_mode: str = "m") -> None:
        super().__init__()
        self.register_number("v_threshold", positive("v_threshold", v_threshold))
        self.step_mode = step_mode
        self.register_memory("v", 0.0)
        self.register_memory("sent", 0.0)
        self.register_memory("t", 0)

    @abstractmethod
    def size(self, step: int, sent: Tensor | float) -> Tensor | float:
        """Return g at a step, counted from 0, behind the spikes of the step before."""

    def multi_step_forward(self, x_seq: Tensor) -> Tensor:
        """Map currents [T, N, *] to spikes [T, N, *], going on from the stored state."""
        check_sequence(x_seq, 2, "[T, N, *]")
        check_number("v_threshold", self.v_threshold)
        before = self.v
        if isinstance(before, Tensor) and before.shape != x_seq.shape[1:]:
            raise ValueError(
                f"x must have the shape of the earlier steps, {tuple(before.shape)}, got {tuple(x_seq.shape[1:])}: "
                "call reset_net before a new sequence"
            )
        v, sent, steps = before, self.sent, []
        for step, x in enumerate(x_seq.detach().to(state_dtype(x_seq.dtype)), self.t):
            v, size = v + x, self.size(step, sent)
            sent = torch.where(v.isnan(), v, (v >= size * self.v_threshold) * size)
            v = v - sent * self.v_threshold
            steps.append(sent)
        require_finite(v, x_seq, before)
        self.v, self.sent, self.t = v, sent, self.t + len(x_seq)
        return torch.stack(steps).to(x_seq.dtype)

    def single_step_forward(self, x: Tensor) -> Tensor:
        """Map the currents of one step [N, *] to its spikes [N, *]."""
        check_floating("x", x, 1, "[N, *]")
        return self.multi_step_forward(x.unsqueeze(0))[0]

    def extra_repr(self) -> str:
        return f"v_threshold={shown(self.v_threshold)}, step_mode={self.step_mode}"


class PhaseNode(SizedSpikeNode):
    """Weighted spikes: a global clock sets the size, half as much at each of 8 phases (Kim et al., 2018).

    Equation:
        g^t = 2^-(1 + (t - 1) mod 8)

    A potential in [0, V) at the first step is sent within a period as its binary fraction of V, to 2^-8 V.
    """

    def size(self, step: int, sent: Tensor | float) -> float:  # noqa: ARG002  (the clock is global)
        """Return g at a step, counted from 0."""
        return phase_size(step)


class BurstNode(SizedSpikeNode):
    """Bursts: each spike is `beta` times as large as the one before it, until a step goes by without one (Park et al., 2019).

    Equation:
        g^t = beta * g^{t-1} if O^{t-1} > 0, else `first`

    Args:
        v_threshold: V > 0, in the unit of the currents; a buffer, as are the next two.
        first: size of a burst's first spike, in (0, 1]; V_th of the paper, which takes 0.125.
        beta: growth of a burst, at least 1.
        step_mode: "m" for x [T, N, *], "s" for x [N, *].
    """

    first: Tensor
    beta: Tensor

    def __init__(self, v_threshold: float = 1.0, *, first: float = 0.125, beta: float = 2.0, step_mode: str = "m") -> None:
        super().__init__(v_threshold, step_mode)
        first, beta = as_real("first", first), as_real("beta", beta)
        if not 0 < first <= 1:
            raise ValueError(f"first must be in (0, 1], got {first}")
        if not 1 <= beta < float("inf"):
            raise ValueError(f"beta must be >= 1 and finite, got {beta}")
        self.register_number("first", first)
        self.register_number("beta", beta)

    def size(self, step: int, sent: Tensor | float) -> Tensor:  # noqa: ARG002  (each neuron has its own clock)
        """Return g behind the spikes of the step before."""
        return torch.where(sent > 0, self.beta * sent, self.first) if isinstance(sent, Tensor) else self.first

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, first={shown(self.first)}, beta={shown(self.beta)}"


class KernelNode(NumberedModule):
    """T2FSNN: integrate over one window of T steps, and fire once in the next, the earlier the higher the potential.

    Equations (Park et al., 2020; without their training of the kernels, and without early firing):
        U = sum of x^t over the window,   O = `kernel_spikes` of U / V: [T, N, *]

    What it gives lies a window later than what it took, so that a network of L such layers takes (L + 1) T steps from the
    first pixel to the last output. A single step says nothing: there is step mode "m" alone.

    Args:
        v_threshold: V > 0, the potential that fires at once, in the unit of the currents; a buffer.
        T: steps of a window.
        tau: time constant of the kernel, in steps, a buffer; None for T / 4 of the T at the call, as `KernelEncoder` has it.

    Attributes:
        sized: what `convert` knows a neuron by whose spikes are not 1.

    Raises:
        TypeError, ValueError: an argument leaves its range, or a sequence has not T steps.
        NotFiniteError: on a CPU, a potential becomes NaN or infinite.
        RuntimeError: it is called in step mode "s".
    """

    sized = True
    v_threshold: Tensor
    tau: Tensor | None
    v: Any

    def __init__(self, v_threshold: float = 1.0, *, T: int, tau: float | None = None) -> None:
        super().__init__()
        self.register_number("v_threshold", positive("v_threshold", v_threshold))
        self.T = check_T(T)
        self.register_number("tau", None if tau is None else positive("tau", tau))
        self.step_mode = "m"
        self.register_memory("v", 0.0)

    def multi_step_forward(self, x_seq: Tensor) -> Tensor:
        """Map the currents of a window [T, N, *] to the spikes of the next one [T, N, *]."""
        check_floating("x_seq", x_seq, 2, "[T, N, *]")
        if len(x_seq) != self.T:
            raise ValueError(f"x_seq must have the {self.T} steps of a window, got {len(x_seq)}")
        check_number("v_threshold", self.v_threshold)
        v = x_seq.detach().sum(0, dtype=state_dtype(x_seq.dtype))
        require_finite(v, x_seq)
        self.v = v
        return kernel_spikes(v / self.v_threshold, self.T, self.T / 4 if self.tau is None else self.tau).to(x_seq.dtype)

    def single_step_forward(self, x: Tensor) -> Tensor:
        """Raise a RuntimeError: a step is no window."""
        raise RuntimeError(
            f'step_mode must be "m" for KernelNode, which takes a window before it fires, got "s" and a step {tuple(x.shape)}'
        )

    def extra_repr(self) -> str:
        tau = "T/4" if self.tau is None else shown(self.tau)
        return f"v_threshold={shown(self.v_threshold)}, T={self.T}, tau={tau}"
