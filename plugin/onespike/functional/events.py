"""The hybrid code of an event camera: the frame first, then each pixel's first event (Section III)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from onespike.functional.checks import check_floating, check_T

FIELDS = ("x", "y", "t", "p")


def hybrid_encode_events(frame: Tensor, events: Any, T: int, *, window: tuple[float, float] | None = None) -> Tensor:
    """Encode a frame as the analogue image at t = 1, followed by one spike per pixel and polarity at its first event.

    Equation:
        X^1 = (frame, 0, 0),   X^t = (0, 1[T_darker == t], 1[T_brighter == t]) for t >= 2
        T_p = 2 + floor((T - 1) * (first event of polarity p - start) / (end - start)), at most T

    T - 1 bins of equal length divide the window; its end belongs to the last. A pixel without events of a polarity stays
    silent in it.

    Args:
        frame: intensities, [C, H, W], or [N, C, H, W] for a batch; floating point.
        events: for a frame, its events: a NumPy structured array with the fields x, y, t and p (tonic's format), a mapping of
            these names to arrays [E] (SpikingJelly's, and its .npz files), or a tensor [E, 4] with the columns x, y, t, p. x is
            the column in 0..W-1, y the row in 0..H-1, t a time in any unit, such as microseconds, in any order, and p the
            polarity: 1 or True for brighter, 0, -1 or False for darker. For a batch, a sequence of N of them.
        T: number of time steps, at least 2.
        window: (start, end) in the unit of t; events outside are left out. None for each recording's first and last event.

    Returns:
        [T, C + 2, H, W] or [T, N, C + 2, H, W] in the dtype of `frame`: the frame's channels, darker, brighter.

    Raises:
        TypeError: `frame` is not floating point, or `events` are none of the formats.
        ValueError: T < 2, a shape does not fit, an event lies off the sensor, a polarity is unknown, a time is not finite, or
            the window is no pair of finite numbers or is empty.
    """
    T = check_T(T, 2)
    check_floating("frame", frame, 3, "[C, H, W] or [N, C, H, W]")
    if frame.dim() == 3:
        return hybrid_encode_events(frame.unsqueeze(0), [events], T, window=window)[:, 0]
    if frame.dim() != 4:
        raise ValueError(f"frame must be [C, H, W] or [N, C, H, W], got shape {tuple(frame.shape)}")
    if not isinstance(events, Sequence) or len(events) != len(frame):
        given = f"{len(events)} recordings" if isinstance(events, Sequence) else type(events).__name__
        raise ValueError(f"events must be a sequence of one recording for each of the {len(frame)} frames, got {given}")
    if window is not None:
        check_window(window)
    _, channels, height, width = frame.shape
    first_step = torch.cat([frame, frame.new_zeros(len(frame), 2, height, width)], 1).unsqueeze(0)
    spikes = frame.new_zeros(T - 1, len(frame), channels + 2, height, width)
    steps = torch.arange(2, T + 1, device=frame.device).view(-1, 1, 1, 1)
    for n, recording in enumerate(events):
        spikes[:, n, channels:] = (first_event_times(recording, height, width, T, window).to(frame.device) == steps).to(
            frame.dtype
        )
    return torch.cat([first_step, spikes])


def first_event_times(events: Any, height: int, width: int, T: int, window: tuple[float, float] | None = None) -> Tensor:
    """Return the step in 2..T of each pixel's first event, 0 where there is none: [2, H, W], int64, darker before brighter.

    Args, Raises: as `hybrid_encode_events`.
    """
    x, y, t, p = columns(events)
    polarity = (p > 0).long()
    if not bool(((p == 0) | (p == 1) | (p == -1)).all()):
        raise ValueError(f"events: p must be 0 or -1 (darker) or 1 (brighter), got {p[(p != 0) & (p.abs() != 1)][0].item()}")
    for name, values, size in (("x", x, width), ("y", y, height)):
        if not bool(((values >= 0) & (values < size)).all()):
            low, high = values.min().item(), values.max().item()
            raise ValueError(f"events: {name} must be in 0..{size - 1}, the size of the frame, got values from {low} to {high}")
    if not bool(t.isfinite().all()):
        raise ValueError(f"events: t must be finite, got {t[~t.isfinite()][0].item()}: leave such events out")
    if t.is_floating_point() or not all(isinstance(bound, int) for bound in (() if window is None else window)):
        t = t.double()  # beside a float, torch would take whole numbers to float32 and lose microseconds
    steps = torch.zeros(2 * height * width, dtype=torch.int64)
    if len(t) and window is None:
        window = t.min().item(), t.max().item()
    if len(t) == 0 or window is None:
        return steps.view(2, height, width)

    start, end = window
    inside = (t >= start) & (t <= end)
    pixel = ((polarity * height + y.long()) * width + x.long())[inside]
    # A single instant has no length: all its events are first.
    step = torch.clamp(2 + ((T - 1) * (t[inside] - start)).div(end - start or 1, rounding_mode="floor").long(), max=T)
    steps.fill_(T + 1).scatter_reduce_(0, pixel, step, "amin")
    return steps.masked_fill_(steps > T, 0).view(2, height, width)


def check_window(window: tuple[float, float]) -> None:
    """Raise a ValueError unless `window` is (start, end) with start < end, both finite."""
    try:
        start, end = window
        valid = float("-inf") < start < end < float("inf")
    except (TypeError, ValueError) as error:
        raise ValueError(f"window must be a pair (start, end) of numbers, got {window!r}") from error
    if not valid:
        raise ValueError(f"window must be (start, end) with start < end, both finite, got {window}")


def columns(events: Any) -> list[Tensor]:
    """Return x, y, t and p of a recording as tensors on the CPU; whole numbers stay whole, and get 64 bits to compute in.

    Raises:
        TypeError: it is neither a structured array, nor a mapping of arrays, nor a tensor [E, 4].
        ValueError: the arrays of a mapping differ in length.
    """
    if isinstance(events, Mapping) and set(FIELDS) <= set(events):
        arrays = [torch.as_tensor(events[name]).detach().cpu() for name in FIELDS]
        if len({array.shape for array in arrays}) > 1 or arrays[0].dim() != 1:
            shapes = ", ".join(f"{name} {tuple(array.shape)}" for name, array in zip(FIELDS, arrays, strict=True))
            raise ValueError(f"events must hold one number of each field for every event, [E], got {shapes}")
        return [array if array.is_floating_point() else array.long() for array in arrays]
    if isinstance(events, Tensor):
        if events.dim() != 2 or events.shape[1] != len(FIELDS) or events.dtype == torch.bool:
            raise TypeError(f"events must be a tensor [E, 4] of numbers x, y, t, p, got {events.dtype} {tuple(events.shape)}")
        events = events.detach().cpu()
        return list((events if events.is_floating_point() else events.long()).unbind(1))
    names = getattr(getattr(events, "dtype", None), "names", None)
    if names is None or not set(FIELDS) <= set(names):
        what = f"fields {names}" if names else type(events).__name__
        what = f"keys {sorted(map(str, events))}" if isinstance(events, Mapping) else what
        raise TypeError(
            f"events must be a structured array or a mapping with the fields x, y, t, p, or a tensor [E, 4], got {what}"
        )
    whole = [events[name].astype("float64" if events[name].dtype.kind == "f" else "int64") for name in FIELDS]
    return [torch.from_numpy(values) for values in whole]
