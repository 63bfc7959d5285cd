"""The output layer and the loss as modules."""

from typing import Any

import torch
from torch import Tensor, nn

from onespike.functional import Readout, hybrid_cross_entropy, spike_time_readout
from onespike.functional.checks import check_floating, check_positive, shown
from onespike.functional.projection import Projected
from onespike.functional.readout import TIME_GRADIENTS, SilenceWatch, check_loss_settings
from onespike.spikingjelly.memory import CopyableMemory


class SpikeTimeReadout(Projected, CopyableMemory):
    """Accumulate the last layer's currents and read potential and spike time (eqs. 9-10, 15-17).

    In step mode "m" it maps x_seq [T, N, K] to a `Readout`. In mode "s" each call takes one step's x [N, K] and
    returns the `Readout` of the steps seen since the reset, the latest of them counting as T.

    Args:
        v_threshold: initial output threshold V_L > 0, in the unit of the accumulated potential.
        beta: half-width of the spike time's surrogate gradient, in the unit of the potential.
        time_gradient: "threshold" (the paper), "full", "off" or "eq17"; see `onespike.functional.spike_time_readout`.
        learn_threshold: train V_L.
        step_mode: "m" or "s".

    Raises:
        ValueError: an argument leaves its range, the input has not the dimensions of the step mode, or, in mode "s", the batch
            size changed without a reset.
        TypeError: the input is not a floating-point tensor.
    """

    x_seq: Tensor | None
    watch = SilenceWatch()  # of readouts that were pickled before there was one

    def __init__(
        self,
        v_threshold: float = 1.0,
        *,
        beta: float = 0.2,
        time_gradient: str = "threshold",
        learn_threshold: bool = True,
        step_mode: str = "m",
    ) -> None:
        super().__init__()
        check_positive("v_threshold", v_threshold)
        check_positive("beta", beta)
        if time_gradient not in TIME_GRADIENTS:
            raise ValueError(f"time_gradient must be one of {TIME_GRADIENTS}, got {time_gradient!r}")
        self.v_threshold = nn.Parameter(torch.tensor(float(v_threshold)), requires_grad=learn_threshold)
        self.set_floor(v_threshold)
        self.beta = float(beta)
        self.time_gradient = time_gradient
        self.step_mode = step_mode
        self.watch = SilenceWatch()
        self.register_memory("x_seq", None)  # type: ignore[operator]

    def multi_step_forward(self, x_seq: Tensor) -> Readout:
        """Read out the currents of a whole sequence, [T, N, K]."""
        check_dims("x_seq", x_seq, "m", "[T, N, K]")
        readout = self.read(x_seq)
        self.watch.look(readout)
        return readout

    def read(self, x_seq: Tensor) -> Readout:
        """Do the work of `multi_step_forward`, of any part of a sequence."""
        return spike_time_readout(x_seq, self.v_threshold, beta=self.beta, time_gradient=self.time_gradient)

    def single_step_forward(self, x: Tensor) -> Readout:
        """Add one step's currents [N, K] and read out the steps so far."""
        readout, (self.x_seq,) = self.single_step_functional_forward((x,), (self.x_seq,))
        return Readout(*readout)

    def multi_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any]
    ) -> tuple[tuple[Tensor, ...], tuple[Any]]:
        """Explicit-state form: ((x_seq,), (None,)) -> ((potential, spike_time), (None,))."""
        return tuple(self.multi_step_forward(inputs[0])), states

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor]]:
        """One step of the explicit-state form: ((x,), (x_seq,)) -> ((potential, spike_time), (x_seq,))."""
        (x,), (x_seq,) = inputs, states
        check_dims("x", x, "s", "[N, K]")
        if x_seq is not None and x_seq.shape[1:] != x.shape:
            raise ValueError(
                f"x must have the shape of the earlier steps, {tuple(x_seq.shape[1:])}, got {tuple(x.shape)}: "
                "call reset_net before a new sequence"
            )
        x_seq = x.unsqueeze(0) if x_seq is None else torch.cat([x_seq, x.unsqueeze(0)])
        return tuple(self.read(x_seq)), (x_seq,)

    def extra_repr(self) -> str:
        return (
            f"v_threshold={shown(self.v_threshold)}, beta={self.beta:.4g}, time_gradient={self.time_gradient}, "
            f"step_mode={self.step_mode}"
        )


def check_dims(name: str, x: Tensor, step_mode: str, layout: str) -> None:
    """Raise unless `x` has the dimensions of what a readout takes in this step mode."""
    check_floating(name, x, 0, layout)
    if x.dim() != layout.count(",") + 1:
        raise ValueError(
            f'{name} must be {layout} in step mode "{step_mode}", got shape {tuple(x.shape)}: '
            "call set_step_mode(net, ...) with one mode for the whole network"
        )


class HybridCrossEntropyLoss(nn.Module):
    """Sum of the cross-entropies of the potential and of the negated spike time (eqs. 11-12).

    Args:
        reduction: "mean" over the batch, "sum" or "none".
        weight: a weight per class, [K].
        label_smoothing: share of the target spread over all classes, in [0, 1].
        ignore_index: an index whose images count for nothing.
    """

    def __init__(
        self,
        reduction: str = "mean",
        weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__()
        check_loss_settings(reduction, label_smoothing, ignore_index)
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.ignore_index = ignore_index
        self.weight: Tensor | None
        self.register_buffer("weight", weight)

    def forward(self, readout: Readout, target: Tensor) -> Tensor:
        """Return the loss of a `Readout` for class indices [N] or probabilities [N, K], as `hybrid_cross_entropy` does."""
        return hybrid_cross_entropy(
            readout,
            target,
            reduction=self.reduction,
            weight=self.weight,
            label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index,
        )
