"""Encoders that emit spikes alone: signed Poisson, weighted phases, and the time of one spike."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from spikingjelly.activation_based import encoding
from torch import Tensor

from onespike.functional.checks import can_look_at, check_finite, check_floating, check_T, shown
from onespike.functional.sequences import Presenter
from onespike.kernels.reference import state_dtype
from onespike.peers.codes import PERIOD, kernel_spikes, phase_size
from onespike.peers.numbers import NumberedModule, check_number, positive
from onespike.spikingjelly import HybridEncoder


def farthest_pixel(mean: float | Sequence[float], std: float | Sequence[float]) -> float:
    """Return the size of the pixel farthest from 0 in images of [0, 1] normalised as (x - mean) / std: an encoder's `unit`."""
    hybrid = HybridEncoder.for_normalized(1, mean, std)
    return float(torch.maximum(hybrid.low.abs(), hybrid.high.abs()).max())


class SpikeEncoder(NumberedModule, ABC):
    """What these encoders have in common: a pixel becomes spikes of its sign, each of which costs an accumulate.

    In step mode "m" images x [N, *] become [T, N, *]. In mode "s" each call takes the same images and returns the next step's
    [N, *]; the first one encodes the images for all steps; `reset_net` starts over. Spikes are worked out in float32 (float64
    for float64 images) and have the dtype of the images. On other devices than a CPU the spikes of a NaN are NaN.

    Args:
        T: number of time steps, at least 1.
        unit: the intensity that the code's largest value stands for, a buffer; a pixel beyond it, of either sign, is sent as
            that.
        step_mode: "m" or "s".

    Attributes:
        emits_spikes: what `onespike.metrics` knows such an encoder by.

    Raises:
        TypeError, ValueError: an argument leaves its range, x is not floating point or not finite, or, in mode "s", not the
            images of the steps before (on other devices than a CPU, not of their shape).
        RuntimeError: in mode "s", a step beyond T.
    """

    emits_spikes = True
    unit: Tensor
    t: int
    images: Any
    sequence: Any

    def __init__(self, T: int, unit: float = 1.0, step_mode: str = "m") -> None:
        super().__init__()
        self.T = check_T(T)
        self.register_number("unit", positive("unit", unit))
        self.step_mode = step_mode
        self.presenter = Presenter()
        self.register_memory("t", 0)
        self.register_memory("images", None)
        self.register_memory("sequence", None)

    @abstractmethod
    def spikes(self, x: Tensor) -> Tensor:
        """Map images [N, *], float32 or float64, to the whole sequence [T, N, *]."""

    def encoded(self, x: Tensor) -> Tensor:
        """Check images [N, *] and map them to the whole sequence [T, N, *]."""
        check_floating("x", x, 1, "[N, *]")
        check_finite("x", x)
        check_number("unit", self.unit)
        return self.spikes(x.detach().to(state_dtype(x.dtype))).to(x.dtype)

    def multi_step_forward(self, x: Tensor) -> Tensor:
        """Map images [N, *] to the whole sequence [T, N, *], and begin a presentation."""
        x_seq = self.encoded(x)
        self.presenter.present()
        return x_seq

    def single_step_forward(self, x: Tensor) -> Tensor:
        """Return step t of the sequence for the images x [N, *] and advance t."""
        if self.sequence is None:
            self.sequence, self.images = self.encoded(x), x.detach()
        else:
            check_floating("x", x, 1, "[N, *]")
            if x.shape != self.images.shape or (can_look_at(x) and not torch.equal(x, self.images)):
                raise ValueError(
                    f"x must be the images of the earlier steps, {tuple(self.images.shape)}, got others, {tuple(x.shape)}: "
                    "call reset_net before a new sequence"
                )
        T = len(self.sequence)
        if self.t >= T:
            raise RuntimeError(f"t must stay below T = {T} in step mode 's', got step {self.t + 1}: call reset_net first")
        self.t += 1
        return self.sequence[self.t - 1]

    def extra_repr(self) -> str:
        return f"T={self.T}, unit={shown(self.unit)}, step_mode={self.step_mode}"


def sign_of(x: Tensor) -> Tensor:
    """Return -1, 0 or 1, and NaN of NaN, of which torch makes 0."""
    return torch.where(x.isnan(), x, x.sign())


class PoissonEncoder(SpikeEncoder):
    """Rate code: at each step a spike of the pixel's sign, with a probability of its size (Rathi et al., 2020).

    Equation:
        P(X^t = sign(x)) = min(|x| / unit, 1),   else X^t = 0

    The draws are those of SpikingJelly's own encoder, from torch's global generator: seed it for the same spikes again.
    """

    def spikes(self, x: Tensor) -> Tensor:
        """Draw the spikes of images [N, *], 1 and -1: [T, N, *]."""
        rates = (x.abs() / self.unit).expand(self.T, *x.shape)
        return encoding.PoissonEncoder("m")(rates) * sign_of(x)  # of a rate of 0 the host draws a spike now and then


class PhaseEncoder(SpikeEncoder):
    """Weighted spikes: a period of steps is a pixel's binary fraction, and repeats (Kim et al., 2018).

    Equation:
        sum of X^t over one period = sign(x) * floor(2^period * min(|x| / unit, 1 - 2^-period)) / 2^period,
        each X^t being 0 or a spike of size 2^-(1 + (t - 1) mod period)

    The bits are those of SpikingJelly's `WeightedPhaseEncoder`, whose spikes have no size and no sign.
    """

    def spikes(self, x: Tensor) -> Tensor:
        """Return the bits of images [N, *], each as large as its place and of the pixel's sign: [T, N, *]."""
        host = encoding.WeightedPhaseEncoder(PERIOD)
        fraction = (x.abs() / self.unit).nan_to_num(0.0).clamp(max=1 - 2.0**-PERIOD)  # the host asserts a range
        period = torch.stack([host(fraction) * phase_size(step) for step in range(PERIOD)])
        return period.repeat(-(-self.T // PERIOD), *[1] * x.dim())[: self.T] * sign_of(x)


class KernelEncoder(SpikeEncoder):
    """One spike for each pixel, the earlier the larger it is, of the size that the kernel has then (T2FSNN; Park et al., 2020).

    See `onespike.peers.kernel_spikes`, of |x| / unit.

    Args:
        tau: time constant of the kernel, in steps, a buffer; None for T / 4 of the T at the call.
    """

    tau: Tensor | None

    def __init__(self, T: int, unit: float = 1.0, step_mode: str = "m", *, tau: float | None = None) -> None:
        super().__init__(T, unit, step_mode)
        self.register_number("tau", None if tau is None else positive("tau", tau))

    def spikes(self, x: Tensor) -> Tensor:
        """Return a spike, or none, for each pixel of images [N, *]: [T, N, *]."""
        return kernel_spikes(x.abs() / self.unit, self.T, self.T / 4 if self.tau is None else self.tau) * sign_of(x)
