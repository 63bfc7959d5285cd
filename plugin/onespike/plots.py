"""The figures of the method: spikes, membrane traces, activity, energy, training curves and spike times.

Every function draws on the Axes it is given, or on those of a new figure, and returns them; a title that they have stays. None
shows a figure or changes matplotlib's settings. Tensors may be on any device and part of a graph.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

try:
    import matplotlib.pyplot as plt
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.container import BarContainer
    from matplotlib.ticker import EngFormatter, MaxNLocator, NullFormatter
    from numpy.typing import ArrayLike, NDArray
except ImportError as error:
    raise ImportError('onespike.plots needs matplotlib: pip install "onespike[recipes]"') from error

from onespike.functional.checks import check_T

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7")
"""Colours of Okabe and Ito, apart under every common colour blindness; a seventh series starts over."""
INK = "0.25"
POINTS_PER_CHARACTER = 7.0


def raster(s_seq: ArrayLike, *, image: int = 0, max_neurons: int = 200, ax: Axes | None = None) -> Axes:
    """Draw the spikes of one layer for one image, time step against neuron index.

    Args:
        s_seq: spikes, 0 or 1, [T, N, *].
        image: which of the N images.
        max_neurons: of a larger layer this many neurons are drawn, evenly spaced, and the axis label says so.
        ax: where to draw; None for a new figure.

    Returns:
        The Axes, with one stroke per spike.

    Raises:
        TypeError, ValueError: `s_seq` is not [T, N, *] of zeros and ones, `image` is out of range, or `max_neurons` < 1.
    """
    check_T(max_neurons, name="max_neurons")
    spikes = _spikes_of_image(s_seq, image)
    T, neurons = spikes.shape
    shown = np.linspace(0, neurons - 1, min(neurons, max_neurons)).round().astype(int)
    steps, rows = spikes[:, shown].nonzero()
    half = 0.4 * neurons / len(shown)

    ax = _styled(ax)
    ax.vlines(steps + 1, shown[rows] - half, shown[rows] + half, color=PALETTE[0], linewidth=np.clip(150 / T, 1, 12))
    _step_axis(ax, T)
    ax.set_ylim(-1.2 * half, neurons - 1 + 1.2 * half)
    ax.yaxis.set_major_locator(_integers())
    which = f" ({len(shown)} of {neurons}, evenly spaced)" if len(shown) < neurons else ""
    return _finished(ax, f"Spikes of image {image}", "neuron index" + which)


def membrane_traces(
    v_seq: ArrayLike,
    v_threshold: torch.Tensor | float,
    *,
    s_seq: ArrayLike | None = None,
    neurons: Sequence[int] = (0, 1, 2),
    image: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Draw the membrane potential U^t of a few neurons over the steps, and the threshold as a dashed line (eqs. 6-8).

    Args:
        v_seq: membrane potentials U^t, [T, N, *], such as a node's `v_seq`.
        v_threshold: threshold V > 0 of the neurons shown, in the unit of U.
        s_seq: emitted spikes, 0 or 1, in the shape of `v_seq`; each gets a marker on its trace.
        neurons: which neurons, as indices into the flattened layer.
        image: which of the N images.
        ax: where to draw; None for a new figure.

    Returns:
        The Axes, with one line per neuron.

    Raises:
        TypeError, ValueError: `v_seq` is not [T, N, *], `v_threshold` is not a number above 0, `s_seq` does not fit or holds
            other values than 0 and 1, `neurons` is empty, or an index is out of range.
    """
    threshold = _number("v_threshold", v_threshold, "> 0")
    v = _of_image("v_seq", v_seq, image)
    spikes = None if s_seq is None else _spikes_of_image(s_seq, image)
    if spikes is not None and spikes.shape != v.shape:
        raise ValueError(f"s_seq must have the shape of v_seq, for one image {v.shape}, got {spikes.shape}")
    chosen = _array("neurons", neurons)
    if chosen.ndim != 1 or not chosen.size:
        raise ValueError(f"neurons must be a non-empty sequence of indices, got {neurons!r}")
    columns = [_index("neurons", neuron, v.shape[1]) for neuron in chosen.tolist()]
    steps = np.arange(1, len(v) + 1)

    ax = _styled(ax)
    ax.axhline(threshold, color=INK, linestyle="--", label="threshold V")
    for i, column in enumerate(columns):
        fired = [] if spikes is None else spikes[:, column].nonzero()[0].tolist()
        ax.plot(steps, v[:, column], color=_colour(i), marker="o" if fired else "", markevery=fired, label=f"neuron {column}")
    _step_axis(ax, len(v))
    dots = "" if spikes is None else " (dot: emitted spike)"
    return _finished(ax, f"Membrane potentials of image {image}", "membrane potential U" + dots)


def activity_bars(zeta: Mapping[str, Any], *, ax: Axes | None = None, label: str | None = None) -> Axes:
    """Draw the spikes per neuron of each layer as bars and their mean over the layers as a dashed line (Fig. 3).

    Args:
        zeta: spikes per neuron and image over the T steps, layer name -> value; or series name -> such a dict, for
            bars side by side ("direct" against "hybrid").
        ax: where to draw; None for a new figure.
        label: name of the one series of a plain dict.

    Returns:
        The Axes, with one container of bars per series, NaN where a series lacks a layer. The mean is over layers,
        whatever their size.

    Raises:
        TypeError, ValueError: `zeta` is not a dict as above, a dict is empty, a value is not finite and >= 0, or `label` is
            given beside named series.
    """
    groups = _groups("zeta", zeta, ">= 0")
    if label is not None:
        if "" not in groups:
            raise ValueError(f"label must be None where the keys of zeta name the series, got {label!r}")
        groups = {label: groups[""]}

    ax = _styled(ax)
    _category_bars(ax, groups)
    for i, series in enumerate(groups.values()):
        mean = sum(series.values()) / len(series)
        ax.axhline(mean, color=_colour(i), linestyle="--", gapcolor="white", label=f"layer mean {mean:.2f}")
    return _finished(ax, "Spiking activity", "spikes per neuron and image", columns=2)


def energy_bars(energies: Mapping[str, Any], *, ax: Axes | None = None) -> Axes:
    """Draw energies as bars on a log scale, each with its value and its ratio to the series' first entry (Fig. 5).

    Args:
        energies: picojoules per image, label -> value, the entry to compare with first ("ANN"); or series name -> such a
            dict, for bars side by side (a series per data set or accounting).
        ax: where to draw; None for a new figure.

    Returns:
        The Axes, in joules, with one container of bars per series, NaN where a series lacks a label.

    Raises:
        TypeError, ValueError: `energies` is not a dict as above, a dict is empty, or a value is not finite and > 0.
    """
    picojoules = _groups("energies", energies, "> 0")
    groups = {name: {label: value * 1e-12 for label, value in series.items()} for name, series in picojoules.items()}
    values = [value for series in groups.values() for value in series.values()]

    ax = _styled(ax)
    ax.set_yscale("log")
    size = "small" if len(groups) < 3 else "x-small"
    for bars, series in zip(_category_bars(ax, groups), groups.values(), strict=True):
        ax.bar_label(bars, fmt=partial(_energy_text, first=next(iter(series.values()))), padding=2, fontsize=size)
    ax.set_ylim(10 ** np.floor(np.log10(min(values) / 2)), max(values) * 6)
    ax.yaxis.set_major_formatter(EngFormatter("J"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    return _finished(ax, "Compute energy", "compute energy per image")


def training_curves(history: Mapping[str, ArrayLike], *, ax: Axes | None = None) -> Axes:
    """Draw accuracies over the epochs.

    Args:
        history: series name -> a value per epoch in percent, from epoch 1 on; None or NaN where an epoch has no value.
        ax: where to draw; None for a new figure.

    Returns:
        The Axes, with one line per series through the epochs that have a value.

    Raises:
        TypeError, ValueError: `history` is not a dict of sequences, it or a series is empty, or a value leaves 0..100.
    """
    curves = {name: _array(f"history[{name!r}]", values, float) for name, values in _dict("history", history).items()}
    for name, curve in curves.items():
        if curve.ndim != 1 or not curve.size:
            raise ValueError(f"history[{name!r}] must hold a value per epoch, [epochs], got shape {curve.shape}")
        _check_all(f"history[{name!r}]", "be in percent, 0..100", curve, ~((curve < 0) | (curve > 100)))

    ax = _styled(ax)
    for i, (name, curve) in enumerate(curves.items()):
        (at,) = np.isfinite(curve).nonzero()
        ax.plot(at + 1, curve[at], color=_colour(i), marker=".", label=name)
    _step_axis(ax, max(map(len, curves.values())), "epoch")
    return _finished(ax, "Accuracy by epoch", "accuracy [%]")


def spike_time_histogram(spike_time: ArrayLike, *, T: int, ax: Axes | None = None, correct: ArrayLike | None = None) -> Axes:
    """Draw how the output spike times T_l are spread over the steps, as a fraction per step (eq. 10).

    Args:
        spike_time: spike times in steps, whole numbers in 1..T, any shape; a `Readout` has [N, K].
        T: number of time steps.
        ax: where to draw; None for a new figure.
        correct: which spike times belong to the true class, to be drawn beside the others: a boolean mask in the shape of
            `spike_time`, or the class indices [N] for a `spike_time` [N, K].

    Returns:
        The Axes, with one container of T bars per group; the heights of each sum to 1.

    Raises:
        TypeError, ValueError: T is not an int >= 1, `spike_time` is empty or not of whole steps in 1..T, or `correct` does
            not fit it.
    """
    check_T(T)
    times = _array("spike_time", spike_time)
    if not times.size:
        raise ValueError(f"spike_time must hold at least one spike time, got shape {times.shape}")
    _check_all("spike_time", f"hold whole steps in 1..{T}", times, np.isin(times, np.arange(1, T + 1)))
    groups = {"": times.flatten()}
    if correct is not None:
        mask = _true_class(correct, times.shape)
        groups = {name: group for name, group in (("true class", times[mask]), ("other classes", times[~mask])) if group.size}

    ax = _styled(ax)
    steps = np.arange(1, T + 1)
    _bars(ax, steps, {name: (group[:, None] == steps).mean(0) for name, group in groups.items()})
    _step_axis(ax, T, "spike time [step]")
    return _finished(ax, "Output spike times", "fraction of spike times")


def _styled(ax: Axes | None) -> Axes:
    """Give `ax`, or the Axes of a new figure, the common look."""
    if ax is None:
        _, ax = plt.subplots(layout="constrained")
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="0.9")
    ax.set_axisbelow(True)
    return ax


def _colour(i: int) -> str:
    return PALETTE[i % len(PALETTE)]


def _finished(ax: Axes, title: str, y_label: str, columns: int = 1) -> Axes:
    ax.set_title(ax.get_title() or title)
    ax.set_ylabel(y_label)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(ncols=columns, fontsize="small", framealpha=0.85, edgecolor="none")
    return ax


def _step_axis(ax: Axes, steps: int, name: str = "time step t") -> None:
    ax.set_xlim(0.5, steps + 0.5)
    ax.xaxis.set_major_locator(_integers())
    ax.set_xlabel(name)


def _integers() -> MaxNLocator:
    return MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)


def _bars(ax: Axes, positions: NDArray[Any], series: Mapping[str, NDArray[Any]]) -> list[BarContainer]:
    """Draw the bars of the series side by side around each position."""
    width = 0.8 / len(series)
    ax.margins(y=0.2)  # room for the legend
    offsets = (np.arange(len(series)) - (len(series) - 1) / 2) * width
    return [
        ax.bar(positions + offset, heights, 0.95 * width, color=_colour(i), label=name)
        for i, (offset, (name, heights)) in enumerate(zip(offsets, series.items(), strict=True))
    ]


def _category_bars(ax: Axes, groups: Mapping[str, Mapping[str, float]]) -> list[BarContainer]:
    """Draw a group of bars per label; the labels slant where they would touch."""
    labels = list(dict.fromkeys(label for series in groups.values() for label in series))
    positions = np.arange(len(labels))
    ax.set_xticks(positions, labels)
    points = ax.get_window_extent().width * 72 / ax.figure.dpi
    if max(map(len, labels)) * POINTS_PER_CHARACTER > points / len(labels):
        plt.setp(ax.get_xticklabels(), rotation=45, ha="right", rotation_mode="anchor")
    return _bars(ax, positions, {name: np.array([series.get(x, np.nan) for x in labels]) for name, series in groups.items()})


def _energy_text(joules: float, first: float) -> str:
    value = EngFormatter("J")(float(f"{joules:.3g}"))
    if joules == first:
        return value
    ratio, word = (first / joules, "less") if joules < first else (joules / first, "more")
    return f"{value}\n{ratio:.{0 if ratio >= 10 else 1}f}x {word}"


def _array(name: str, value: Any, dtype: type | None = None) -> NDArray[Any]:
    """Bring a tensor or an array of numbers to host memory."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = value.double() if value.is_floating_point() else value  # numpy knows no bfloat16
    try:
        array = np.asarray(value, dtype)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be a tensor or an array of numbers, got {type(value).__name__}") from error
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be a tensor or an array of numbers, got {type(value).__name__} of {array.dtype}")
    return array


def _check_all(name: str, rule: str, values: NDArray[Any], holds: NDArray[np.bool_]) -> None:
    if not holds.all():
        raise ValueError(f"{name} must {rule}, got {values[~holds][0]}")


def _of_image(name: str, seq: ArrayLike, image: int) -> NDArray[Any]:
    """Take one image out of [T, N, *], flattened to [T, neurons]."""
    array = _array(name, seq)
    if array.ndim < 2 or not array.size:
        raise ValueError(f"{name} must be [T, N, *] with at least one step, image and neuron, got shape {array.shape}")
    return array[:, _index("image", image, array.shape[1])].reshape(len(array), -1)


def _spikes_of_image(s_seq: ArrayLike, image: int) -> NDArray[Any]:
    spikes = _of_image("s_seq", s_seq, image)
    _check_all("s_seq", "hold spikes, 0 or 1", spikes, (spikes == 0) | (spikes == 1))
    return spikes


def _true_class(correct: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Turn a mask or class indices into a mask of `shape`."""
    given = _array("correct", correct)
    if given.dtype.kind == "b" and given.shape == shape:
        return given
    if given.dtype.kind not in "iu" or len(shape) != 2 or given.shape != shape[:1]:
        raise ValueError(
            "correct must be a boolean mask in the shape of spike_time, or class indices [N] for a spike_time [N, K], "
            f"got {given.dtype} {given.shape} for {shape}"
        )
    classes = np.arange(shape[1])
    _check_all("correct", f"be in 0..{shape[1] - 1}", given, np.isin(given, classes))
    return given[:, None] == classes


def _index(name: str, value: Any, size: int) -> int:
    check_T(value, 0, name)
    if value >= size:
        raise ValueError(f"{name} must be in 0..{size - 1}, got {value}")
    return value


def _number(name: str, value: Any, rule: str) -> float:
    """Read a number, "> 0" or ">= 0"."""
    try:
        number = float(value.detach() if isinstance(value, torch.Tensor) else value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a number, got {value!r}") from error
    if not (0 < number < float("inf") or (number == 0 and rule == ">= 0")):
        raise ValueError(f"{name} must be finite and {rule}, got {number}")
    return number


def _dict(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a dict, got {value!r} of type {type(value).__name__}")
    if not value:
        raise ValueError(f"{name} must not be empty, got {value!r}")
    return value


def _groups(name: str, values: Mapping[str, Any], rule: str) -> dict[str, dict[str, float]]:
    """Read a dict of dicts of numbers, or a dict of numbers as the one series named ""."""
    nested = any(isinstance(value, Mapping) for value in _dict(name, values).values())
    return {
        series: {x: _number(f"{name}[{x!r}]", value, rule) for x, value in _dict(f"{name}[{series!r}]", group).items()}
        for series, group in (values if nested else {"": values}).items()
    }
