"""Encoder, loss and accuracies, named and called as snnTorch's own."""

from torch import Tensor

from onespike.functional import hybrid_cross_entropy, predict
from onespike.functional.encoding import IntensityRange, RangeWatch, encode
from onespike.functional.readout import check_loss_settings, check_readout
from onespike.functional.sequences import Presenter

PRESENTER, WATCH = Presenter(), RangeWatch()
"""Of all that `hybrid` encodes."""


def hybrid(data: Tensor, num_steps: int, *, intensity_range: IntensityRange) -> Tensor:
    """Encode images as the analogue pixel at the first step and one spike per pixel after it (eqs. 4-5).

    It stands beside `snntorch.spikegen.latency`, which is its spike half.

    Args:
        data: images, [B, ...], floating point.
        num_steps: number of time steps T, at least 1.
        intensity_range: (low, high), "image" or "image_channel"; see `onespike.functional.hybrid_encode`.

    Returns:
        [num_steps, B, ...] in the dtype of `data`.

    Raises:
        TypeError, ValueError: as `onespike.functional.hybrid_encode`.
    """
    PRESENTER.present()
    return encode(data, num_steps, intensity_range, WATCH)


class ce_spike_time_potential_loss:  # noqa: N801, the host's style
    """Sum of the cross-entropies of the output's potential and of its negated spike time (eqs. 11-12).

    Equation:
        L = CE(mem, y) + CE(-spike_time, y)

    Call it as loss_fn(readout, targets): `readout` is the pair (potential, spike_time), each [B, K], that `SpikeTimeReadout`
    returns, `targets` are class indices, [B], or probabilities, [B, K].

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
        check_loss_settings(reduction, label_smoothing, ignore_index)
        self.reduction = reduction
        self.weight = weight
        self.label_smoothing = label_smoothing
        self.ignore_index = ignore_index
        self.__name__ = "ce_spike_time_potential_loss"

    def __call__(self, readout: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
        """Return the loss, 0-d, or [B] for reduction "none"."""
        if self.weight is not None:
            self.weight = self.weight.to(targets.device)  # kept there: a copy at every call would make the host wait
        return hybrid_cross_entropy(
            check_readout(readout),
            targets,
            reduction=self.reduction,
            weight=self.weight,
            label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index,
        )


def accuracy_potential(readout: tuple[Tensor, Tensor], targets: Tensor) -> float:
    """Return the share of images, 0..1, whose class has the highest potential."""
    return accuracy(readout, targets, "potential")


def accuracy_combined(readout: tuple[Tensor, Tensor], targets: Tensor) -> float:
    """Return the share of images, 0..1, whose class has the highest potential minus spike time."""
    return accuracy(readout, targets, "combined")


def accuracy_time(readout: tuple[Tensor, Tensor], targets: Tensor) -> float:
    """Return the share of images, 0..1, whose class spikes first; ties go to the higher potential."""
    return accuracy(readout, targets, "time")


def accuracy(readout: tuple[Tensor, Tensor], targets: Tensor, rule: str) -> float:
    """Return the share of images that `rule` gets right."""
    return (predict(check_readout(readout), rule) == targets).float().mean().item()
