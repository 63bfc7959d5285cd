"""The output layer: accumulated potential, spike time, the loss on both and the decision (eqs. 9-18)."""

import warnings
from itertools import accumulate
from operator import index
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from onespike.functional.checks import (
    as_operand,
    broadcasts,
    can_look_at,
    check_floating,
    check_no_nan,
    check_positive,
    check_threshold,
    extremes,
    is_exported,
    is_traced,
    is_transformed,
)
from onespike.functional.records import saved_by_torch
from onespike.kernels.reference import state_dtype

TIME_GRADIENTS = ("threshold", "full", "off", "eq17")
RULES = ("potential", "combined", "time")


@saved_by_torch
class Readout(NamedTuple):
    """What the output layer says about each image.

    Attributes:
        potential: accumulated membrane potential U_L^T, [N, K], float32.
        spike_time: spike time T_l in steps, 1..T, [N, K], float32.
    """

    potential: Tensor
    spike_time: Tensor


class SilenceWatch:
    """Warns, once, where all images of two batches in turn read the same, as they do where a layer in front is silent.

    A single such batch may be a look at shapes.
    """

    def __init__(self) -> None:
        self.told = self.alike = False

    def look(self, readout: Readout) -> None:
        """Look at what a network says about a batch, if it is on a CPU."""
        potential = readout.potential
        if is_traced(potential) or self.told or not can_look_at(potential) or len(potential) < 2 or not potential.numel():
            return
        before = self.alike
        self.alike = torch.equal(potential[0], potential[-1]) and bool((potential == potential[0]).all())
        if self.alike and before:
            self.told = True
            warnings.warn(
                f"the readout says the same of all {len(potential)} images, twice in turn: unless they are equal a layer is "
                "silent, and learns nothing. onespike.metrics.NetworkHealth names it; lower its v_threshold, or put batch norm "
                "in front",
                stacklevel=2,
            )


def spike_time_readout(
    x_seq: Tensor, v_threshold: Tensor | float, *, beta: float = 0.2, time_gradient: str = "threshold"
) -> Readout:
    """Accumulate the output layer's currents and read potential and spike time (eqs. 9-10, 15-17).

    Equations:
        U^t = U^{t-1} + x^t                        no leak, no reset
        M^t = max_{s<=t} U^s
        T_l = 1 + sum_{t<T} 1[V > M^t]             the first t with U^t >= V, else T
        dT_l/dV = sum_{t<T} 1[|V - M^t| < beta]    the surrogate: a higher threshold spikes later

    Args:
        x_seq: the last layer's currents W_L O^t, [T, N, K], floating point.
        v_threshold: output threshold V_L > 0, in the unit of U; 0-d or broadcastable to [N, K].
        beta: half-width of the surrogate's window, in the unit of U.
        time_gradient: who receives the gradient of T_l.
            "threshold": V_L alone, as in the paper. The timing loss then changes no weight.
            "full": V_L, and U at the step where the running maximum was set, with the opposite sign.
            "off": nobody.
            "eq17": V_L by the paper's eq. 17 to the letter, for comparison; it can have the wrong sign.

    Returns:
        Potential [N, K] and spike time [N, K] in 1..T.

    Raises:
        TypeError: `x_seq` is not a floating-point tensor.
        ValueError: `x_seq` is not [T, N, K] with T >= 1, `beta` or a CPU `v_threshold` is not above 0, or `time_gradient`
            is unknown.
    """
    check_floating("x_seq", x_seq, 3, "[T, N, K]")
    if x_seq.dim() != 3 or x_seq.shape[0] < 1:
        raise ValueError(f"x_seq must be [T, N, K] with T >= 1, got shape {tuple(x_seq.shape)}")
    check_positive("beta", beta)
    if time_gradient not in TIME_GRADIENTS:
        raise ValueError(f"time_gradient must be one of {TIME_GRADIENTS}, got {time_gradient!r}")
    dtype = state_dtype(x_seq.dtype)
    threshold = as_operand(v_threshold, dtype, x_seq.device)
    check_threshold("v_threshold", threshold)
    if not broadcasts(threshold.shape, x_seq.shape[1:]):
        raise ValueError(f"v_threshold must be 0-d or broadcastable to [N, K], got shape {tuple(threshold.shape)}")

    v_seq = x_seq.to(dtype).cumsum(0)
    check_no_nan(v_seq[-1], x_seq=x_seq)
    highest = running_maximum(v_seq)[:-1]
    if time_gradient != "full":
        highest = highest.detach()
    windowed = time_gradient in ("threshold", "full")
    if windowed and not is_transformed(x_seq):
        spike_time = FirstCrossing.apply(highest, threshold, beta)
    else:
        spike_time = count_below(highest, threshold)
    if windowed and is_transformed(x_seq):  # the same by plain operators, more of them, which torch.func can transform
        margin = threshold - highest
        spike_time = add_gradient(spike_time, torch.where(margin.abs() < beta, margin, 0).sum(0))
    if time_gradient == "eq17":
        spike_time = add_gradient(spike_time, literal_eq17(v_seq.detach(), threshold.detach(), beta) * threshold)
    return Readout(v_seq[-1], spike_time)


def running_maximum(v_seq: Tensor) -> Tensor:
    """Return max_{s<=t} U^s of U^t, each [T, N, K]; its gradient goes to the latest step that set the maximum."""
    if not is_exported():
        return v_seq.cummax(0).values
    return torch.stack(list(accumulate(v_seq.unbind(), torch.maximum)))  # ONNX has no cummax


def count_below(highest: Tensor, v_threshold: Tensor) -> Tensor:
    """Return 1 + sum_{t<T} 1[V > M^t] for `highest` M^t, [T - 1, N, K]."""
    return (v_threshold > highest).sum(0, dtype=highest.dtype).add_(1)


class FirstCrossing(torch.autograd.Function):
    """The spike time T_l of eqs. 9-10 with its surrogate: dT_l/dV = sum_{t<T} 1[|V - M^t| < beta], dT_l/dM^t the opposite.

    Shape:
        highest: M^t, [T - 1, N, K]; v_threshold: 0-d or broadcastable to [N, K]; returns [N, K].
    """

    @staticmethod
    def forward(ctx: Any, highest: Tensor, v_threshold: Tensor, beta: float) -> Tensor:
        ctx.save_for_backward(highest, v_threshold)
        ctx.beta = beta
        return count_below(highest, v_threshold)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None]:
        highest, v_threshold = ctx.saved_tensors
        near = (v_threshold - highest).abs_() < ctx.beta
        grad = grad * near
        return -grad if ctx.needs_input_grad[0] else None, grad.sum_to_size(v_threshold.shape), None


def add_gradient(value: Tensor, surrogate: Tensor) -> Tensor:
    """Return `value` unchanged, with the gradient of `surrogate`."""
    return value.detach() + (surrogate - surrogate.detach())


def literal_eq17(v_seq: Tensor, v_threshold: Tensor, beta: float) -> Tensor:
    """Evaluate dT_l/dV as printed in eq. 17, with a = U^t - V, b = V - U^{t-1}, c = V - U^T: [N, K]."""
    T = v_seq.shape[0]
    a = v_seq - v_threshold
    b = v_threshold - torch.cat([torch.zeros_like(v_seq[:1]), v_seq[:-1]])
    steps = torch.arange(1, T, device=v_seq.device, dtype=v_seq.dtype).view(-1, 1, 1)
    rising = (a >= 0) * (b.abs() < beta) * 1.0
    falling = (b >= 0) * (a.abs() < beta) * 1.0
    return (steps * (rising - falling)[:-1]).sum(0) + T * (a[-1].abs() < beta)


def hybrid_cross_entropy(
    readout: Readout,
    target: Tensor,
    *,
    reduction: str = "mean",
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
) -> Tensor:
    """Sum the cross-entropies of the potential and of the negated spike time (eqs. 11-12).

    Equation:
        L = CE(U_L^T, y) + CE(-T_l, y);   dL/dU = softmax(U) - y,   dL/dT = y - softmax(-T)

    Args:
        readout: potential and spike time, each [N, K].
        target: class indices in 0..K-1, [N], of any integer dtype; or a probability for each class (soft targets, such as
            mixup's), [N, K], floating point, each in [0, 1].
        reduction: "mean" over the batch, "sum" or "none".
        weight: a weight per class, [K], of any floating-point dtype.
        label_smoothing: share of the target spread over all classes, in [0, 1].
        ignore_index: an index, in 0..K-1 or not, whose images count for nothing: their loss is 0, the mean is over the others.

    Returns:
        0-d, or [N] for reduction "none". As in torch, the "mean" over no image is NaN.

    Raises:
        TypeError: `readout` is no pair, `target` no tensor of numbers, or `ignore_index` no int.
        ValueError: a shape does not fit, `reduction` is unknown, `ignore_index` is given for soft targets, or
            `label_smoothing` or, for CPU tensors, a target is out of range.
    """
    check_loss_settings(reduction, label_smoothing, ignore_index)
    potential, spike_time = check_readout(readout)
    classes = potential.shape[-1]
    if spike_time.shape != potential.shape or potential.dim() != 2:
        raise ValueError(f"readout must hold two [N, K], got {tuple(potential.shape)} and {tuple(spike_time.shape)}")
    target = check_target(target, potential, ignore_index)
    if weight is not None:
        if weight.shape != (classes,):
            raise ValueError(f"weight must be [K] with K = {classes}, got shape {tuple(weight.shape)}")
        weight = weight.to(potential.dtype)
    options: dict[str, Any] = {"reduction": reduction, "label_smoothing": label_smoothing}
    if ignore_index is not None:
        options["ignore_index"] = index(ignore_index)
    loss = F.cross_entropy(potential, target, weight, **options) + F.cross_entropy(-spike_time, target, weight, **options)
    check_no_nan(loss, potential=potential, spike_time=spike_time, weight=weight)
    return loss


def check_target(target: Tensor, potential: Tensor, ignore_index: int | None) -> Tensor:
    """Return class indices [N] as int64, or probabilities [N, K] in the dtype of `potential`; raise where they are neither."""
    if not isinstance(target, Tensor) or target.dtype == torch.bool or target.is_complex():
        got = getattr(target, "dtype", type(target).__name__)
        raise TypeError(f"target must hold class indices or a probability for each class, got {got}")
    images, classes = potential.shape
    soft = target.is_floating_point()
    if soft and target.shape != potential.shape:
        raise ValueError(
            f"target must be [N, K] = {(images, classes)} where it holds probabilities, in floating point, got shape "
            f"{tuple(target.shape)}: class indices are integers"
        )
    if soft and ignore_index is not None:
        raise ValueError(f"ignore_index must be None where target holds probabilities, got {ignore_index}")
    if not soft and target.shape != (images,):
        raise ValueError(f"target must be [N] with N = {images}, got shape {tuple(target.shape)}")
    counted = target if soft or ignore_index is None or not can_look_at(target) else target[target != ignore_index]
    if can_look_at(target) and counted.numel():
        low, high = extremes(counted)
        if soft and not 0 <= low <= high <= 1:
            raise ValueError(f"target must hold probabilities in [0, 1], got values from {low} to {high}")
        if not soft and (low < 0 or high >= classes):
            raise ValueError(f"target must be in 0..{classes - 1}, got values from {low} to {high}")
    return target.to(potential.dtype if soft else torch.int64)


def check_readout(readout: Readout | tuple[Tensor, Tensor]) -> Readout:
    """Raise a TypeError unless `readout` is a pair: currents and recorded spikes must go through a readout first."""
    if not isinstance(readout, tuple) or len(readout) != 2:
        got = f"a tensor of shape {tuple(readout.shape)}" if isinstance(readout, Tensor) else type(readout).__name__
        raise TypeError(f"readout must be the pair (potential, spike_time) that SpikeTimeReadout returns, got {got}")
    return Readout(*readout)


def check_loss_settings(reduction: str, label_smoothing: float, ignore_index: int | None = None) -> None:
    """Raise unless `hybrid_cross_entropy` takes these settings."""
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'reduction must be "mean", "sum" or "none", got {reduction!r}')
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be in [0, 1], got {label_smoothing}")
    if ignore_index is not None and (isinstance(ignore_index, bool) or not hasattr(ignore_index, "__index__")):
        raise TypeError(f"ignore_index must be an int or None, got {ignore_index!r}")


def predict(readout: Readout, rule: str = "potential") -> Tensor:
    """Decide each image's class.

    Args:
        readout: potential and spike time, each [N, K].
        rule: "potential" for argmax U, "combined" for argmax (U - T), "time" for argmin T with ties broken by U.

    Returns:
        Class indices, [N], int64.

    Raises:
        TypeError: `readout` is no pair.
        ValueError: `rule` is unknown.
    """
    potential, spike_time = check_readout(readout)
    check_no_nan(potential, potential=potential)
    check_no_nan(spike_time, spike_time=spike_time)
    if rule == "potential":
        return potential.argmax(-1)
    if rule == "combined":
        return (potential - spike_time).argmax(-1)
    if rule == "time":
        first = spike_time == spike_time.amin(-1, keepdim=True)
        return potential.masked_fill(~first, -torch.inf).argmax(-1)
    raise ValueError(f"rule must be one of {RULES}, got {rule!r}")
