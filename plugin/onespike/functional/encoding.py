"""The hybrid encoder: the analogue pixel at t = 1, then one spike per pixel (eqs. 4-5)."""

import warnings
from math import inf

import torch
from torch import Tensor

from onespike.functional.checks import (
    as_operand,
    broadcasts,
    can_look_at,
    check_finite,
    check_floating,
    check_T,
    extremes,
    is_traced,
)
from onespike.kernels.reference import state_dtype

IntensityRange = str | tuple[float | Tensor, float | Tensor]
SLACK, FEW = 0.1, 0.05
"""Share of its range by which an intensity may lie outside of it, and share of intensities that may lie further outside."""
FIRST_OWN_DIM = {"image": 1, "image_channel": 2}
"""The first dimension that lies within what has a range of its own."""
COLOURS = 3
"""So many square "images" [H, W] in a batch may be the channels of a single one."""


def spike_times(x: Tensor, T: int, *, intensity_range: IntensityRange) -> Tensor:
    """Map pixel intensities to spike times (eq. 4): the brightest pixel fires at t = 2, the darkest at t = T.

    Equation:
        T_i = floor(T - (T - 2) * (I_i - Imin) / (Imax - Imin) + 1/2), clamped to [2, T]

    Ties round up. Intensities outside the range clamp; where Imax == Imin, T_i = T.

    Args:
        x: intensities, [N, *], floating point, in any unit that `intensity_range` shares.
        T: number of time steps, at least 2.
        intensity_range: (Imin, Imax), each a float or a tensor broadcastable to x; or "image" for every image's own
            range, or "image_channel" for that of each channel of each image, x being [N, C, *].

    Returns:
        Spike times in steps, 1-based, in 2..T: [N, *], int64.

    Raises:
        TypeError: `x` is not floating point (divide uint8 images by 255 first), or `T` is not an int.
        ValueError: T < 2, a malformed range, or, for CPU tensors, NaN or Inf in `x`.
    """
    return _spike_times(x, T, intensity_range).long()


def _spike_times(x: Tensor, T: int, intensity_range: IntensityRange, watch: "RangeWatch | None" = None) -> Tensor:
    """Do the work of `spike_times`; return whole numbers in the dtype of x, float32 at least."""
    T = check_T(T, 2)
    check_floating("x", x, 1, "[N, *]")
    seen = check_finite("x", x)
    x = x.detach().to(state_dtype(x.dtype))
    low, high = range_of(x, intensity_range)
    if watch is not None and seen is not None and not isinstance(intensity_range, str):
        watch.look(x, seen, low, high)
    span = high - low
    span = span.masked_fill(span <= 0, inf)  # without a range every pixel counts as dark
    brightness = (x - low).div_(span).clamp_(0, 1)
    return brightness.mul_(2 - T).add_(T).add_(0.5).floor_()


class RangeWatch:
    """Warns, once, of images of which many intensities lie outside of their range; a few are let be, as noise leaves them."""

    def __init__(self) -> None:
        self.told = False

    def look(self, x: Tensor, seen: tuple[float, float], low: Tensor, high: Tensor) -> None:
        """Look at a batch and its extremes."""
        if self.told:
            return
        lowest, highest = low.min().item(), high.max().item()
        if lowest == highest or lowest <= seen[0] <= seen[1] <= highest:
            return
        slack = SLACK * (high - low)
        beyond = {"below": x < low - slack, "above": x > high + slack}
        share = sum(outside.float().mean().item() for outside in beyond.values())
        if share <= FEW:
            return
        self.told = True
        sides = " and ".join(side for side, outside in beyond.items() if outside.any())
        warnings.warn(
            f"x holds values {sides} its intensity_range ({lowest:.4g}, {highest:.4g}), {100 * share:.0f} % of them, from "
            f"{seen[0]:.4g} to {seen[1]:.4g}, which clamp: divide images in 0..255 by 255, and give the range of normalised "
            "ones (HybridEncoder.for_normalized(T, mean, std))",
            stacklevel=2,
        )


def hybrid_encode(x: Tensor, T: int, *, intensity_range: IntensityRange) -> Tensor:
    """Encode images as the analogue pixel at t = 1 followed by one spike per pixel (eq. 5).

    Equation:
        X^1 = I,   X^t = 1[T_i == t] for t >= 2,   with T_i from `spike_times`

    Args:
        x: images, [N, *], floating point, usually normalised. The gradient to x passes through X^1 alone.
        T: number of time steps; T = 1 is the analogue pixel alone.
        intensity_range: see `spike_times`; for images in [0, 1] normalised by mean and std it is
            ((0 - mean) / std, (1 - mean) / std).

    Returns:
        [T, N, *] in the dtype of x; of channels-last images [N, C, H, W] every step is channels last. A data set's single image
        is hybrid_encode(image[None], ...)[:, 0]; batches of such sequences come as [N, T, *], so transpose(0, 1) them.

    Raises:
        TypeError, ValueError: as `spike_times`, with T >= 1.
    """
    return encode(x, T, intensity_range)


def encode(x: Tensor, T: int, intensity_range: IntensityRange, watch: RangeWatch | None = None) -> Tensor:
    """Do the work of `hybrid_encode`, and let `watch` look at the intensities if they are on a CPU."""
    T = check_T(T)
    if T == 1:
        check_floating("x", x, 1, "[N, *]")
        check_finite("x", x)
        parse_range(intensity_range)
        return x.unsqueeze(0)
    times = _spike_times(x, T, intensity_range, watch)
    channels_last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    if channels_last:
        x, times = x.permute(0, 2, 3, 1), times.permute(0, 2, 3, 1)
    steps = torch.arange(2, T + 1, dtype=times.dtype, device=times.device).view(-1, *[1] * times.dim())
    # Into a tensor of their own dtype the comparisons write 0 or 1 several times as fast as by way of bools.
    spikes = torch.eq(times, steps, out=times.new_empty(T - 1, *times.shape))
    x_seq = torch.cat([x.unsqueeze(0), spikes.to(x.dtype)])
    return x_seq.permute(0, 1, 4, 2, 3) if channels_last else x_seq


def parse_range(
    intensity_range: IntensityRange, dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> str | tuple[Tensor, Tensor]:
    """Return the name of a range, or (Imin, Imax) as operands on `device`; raise a ValueError that names what is wrong."""
    if isinstance(intensity_range, str):
        if intensity_range not in FIRST_OWN_DIM:
            raise ValueError(f'intensity_range must be (low, high), "image" or "image_channel", got {intensity_range!r}')
        return intensity_range
    try:
        low, high = (as_operand(bound, dtype, device) for bound in intensity_range)
    except (TypeError, ValueError) as error:
        raise ValueError(f"intensity_range must be a pair (low, high) of numbers, got {intensity_range!r}") from error
    if can_look_at(low) and can_look_at(high) and not span_is_valid(high - low):
        raise ValueError(f"intensity_range must have low <= high, both finite, got {intensity_range!r}")
    return low, high


def span_is_valid(span: Tensor) -> bool:
    """Whether every Imax - Imin is at least 0 and finite."""
    smallest, largest = extremes(span) if span.numel() else (0, 0)
    return 0 <= smallest <= largest < inf


def range_of(x: Tensor, intensity_range: IntensityRange) -> tuple[Tensor, Tensor]:
    """Return Imin and Imax as tensors broadcastable to x."""
    parsed = parse_range(intensity_range, x.dtype, x.device)
    if isinstance(parsed, str):
        first = FIRST_OWN_DIM[parsed]
        check_floating("x", x, first + 1, f'for intensity_range="{parsed}"')
        if x.dim() == 3 and x.shape[0] == COLOURS and x.shape[1] == x.shape[2] and not is_traced(x):
            warnings.warn(
                f'intensity_range="{parsed}" takes x of shape {tuple(x.shape)} for {COLOURS} images: if it is one of {COLOURS} '
                "channels, encode x[None], whose result [T, 1, *] is then [:, 0]",
                stacklevel=2,
            )
        if x.numel() == 0:
            return x.new_zeros(()), x.new_ones(())
        dims = tuple(range(first, x.dim()))
        return x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)
    for name, bound in zip(("low", "high"), parsed, strict=True):
        if not broadcasts(bound.shape, x.shape):
            raise ValueError(
                f"intensity_range: {name} must be broadcastable to x, {tuple(x.shape)}, got shape {tuple(bound.shape)}"
                " (per channel: [C, 1, 1])"
            )
    return parsed
