"""The output layer as a module for snnTorch networks."""

import torch
from torch import Tensor, nn

from onespike.functional import Readout, spike_time_readout
from onespike.functional.checks import check_positive, shown
from onespike.functional.projection import Projected
from onespike.functional.readout import TIME_GRADIENTS, SilenceWatch


class SpikeTimeReadout(Projected):
    """Accumulate the last layer's currents and read potential and spike time (eqs. 9-10, 15-17): [T, B, K] -> `Readout`.

    Args:
        threshold: initial output threshold V_L > 0, in the unit of the accumulated potential.
        half_width: of the spike time's surrogate gradient, in the unit of the potential; the paper's beta.
        time_gradient: "threshold" (the paper), "full", "off" or "eq17"; see `onespike.functional.spike_time_readout`.
        learn_threshold: make `threshold` a parameter; a buffer otherwise.

    Raises:
        ValueError: an argument leaves its range.
    """

    threshold: Tensor
    watch = SilenceWatch()  # of readouts that were pickled before there was one

    def __init__(
        self,
        threshold: float = 1.0,
        *,
        half_width: float = 0.2,
        time_gradient: str = "threshold",
        learn_threshold: bool = True,
    ) -> None:
        super().__init__()
        check_positive("threshold", threshold)
        check_positive("half_width", half_width)
        if time_gradient not in TIME_GRADIENTS:
            raise ValueError(f"time_gradient must be one of {TIME_GRADIENTS}, got {time_gradient!r}")
        if learn_threshold:
            self.threshold = nn.Parameter(torch.tensor(float(threshold)))
        else:
            self.register_buffer("threshold", torch.tensor(float(threshold)))
        self.set_floor(threshold)
        self.half_width = half_width
        self.time_gradient = time_gradient
        self.watch = SilenceWatch()

    def forward(self, cur_rec: Tensor) -> Readout:
        """Read out the recorded currents of the last layer, [T, B, K]."""
        readout = spike_time_readout(cur_rec, self.threshold, beta=self.half_width, time_gradient=self.time_gradient)
        self.watch.look(readout)
        return readout

    def extra_repr(self) -> str:
        return f"threshold={shown(self.threshold)}, half_width={self.half_width:.4g}, time_gradient={self.time_gradient}"
