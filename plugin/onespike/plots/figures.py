"""Each figure: what it takes, checked, and what it draws."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, NullFormatter
from numpy.typing import ArrayLike

from onespike.functional.checks import check_T
from onespike.plots.axes import INK, PALETTE, colour, draw_bars, draw_category_bars, finished, integers, step_axis, styled
from onespike.plots.checks import (
    as_array,
    check_all,
    check_dict,
    check_index,
    of_image,
    read_groups,
    read_number,
    spikes_of_image,
    true_class,
)


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
    spikes = spikes_of_image(s_seq, image)
    T, neurons = spikes.shape
    shown = np.linspace(0, neurons - 1, min(neurons, max_neurons)).round().astype(int)
    steps, rows = spikes[:, shown].nonzero()
    half = 0.4 * neurons / len(shown)

    ax = styled(ax)
    ax.vlines(steps + 1, shown[rows] - half, shown[rows] + half, color=PALETTE[0], linewidth=np.clip(150 / T, 1, 12))
    step_axis(ax, T)
    ax.set_ylim(-1.2 * half, neurons - 1 + 1.2 * half)
    ax.yaxis.set_major_locator(integers())
    which = f" ({len(shown)} of {neurons}, evenly spaced)" if len(shown) < neurons else ""
    return finished(ax, f"Spikes of image {image}", "neuron index" + which)


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
    threshold = read_number("v_threshold", v_threshold, "> 0")
    v = of_image("v_seq", v_seq, image)
    spikes = None if s_seq is None else spikes_of_image(s_seq, image)
    if spikes is not None and spikes.shape != v.shape:
        raise ValueError(f"s_seq must have the shape of v_seq, for one image {v.shape}, got {spikes.shape}")
    chosen = as_array("neurons", neurons)
    if chosen.ndim != 1 or not chosen.size:
        raise ValueError(f"neurons must be a non-empty sequence of indices, got {neurons!r}")
    columns = [check_index("neurons", neuron, v.shape[1]) for neuron in chosen.tolist()]
    steps = np.arange(1, len(v) + 1)

    ax = styled(ax)
    ax.axhline(threshold, color=INK, linestyle="--", label="threshold V")
    for i, column in enumerate(columns):
        fired = [] if spikes is None else spikes[:, column].nonzero()[0].tolist()
        ax.plot(steps, v[:, column], color=colour(i), marker="o" if fired else "", markevery=fired, label=f"neuron {column}")
    step_axis(ax, len(v))
    dots = "" if spikes is None else " (dot: emitted spike)"
    return finished(ax, f"Membrane potentials of image {image}", "membrane potential U" + dots)


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
    groups = read_groups("zeta", zeta, ">= 0")
    if label is not None:
        if "" not in groups:
            raise ValueError(f"label must be None where the keys of zeta name the series, got {label!r}")
        groups = {label: groups[""]}

    ax = styled(ax)
    draw_category_bars(ax, groups)
    for i, series in enumerate(groups.values()):
        mean = sum(series.values()) / len(series)
        ax.axhline(mean, color=colour(i), linestyle="--", gapcolor="white", label=f"layer mean {mean:.2f}")
    return finished(ax, "Spiking activity", "spikes per neuron and image", columns=2)


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
    picojoules = read_groups("energies", energies, "> 0")
    groups = {name: {label: value * 1e-12 for label, value in series.items()} for name, series in picojoules.items()}
    values = [value for series in groups.values() for value in series.values()]

    ax = styled(ax)
    ax.set_yscale("log")
    size = "small" if len(groups) < 3 else "x-small"
    for bars, series in zip(draw_category_bars(ax, groups), groups.values(), strict=True):
        ax.bar_label(bars, fmt=partial(energy_text, first=next(iter(series.values()))), padding=2, fontsize=size)
    ax.set_ylim(10 ** np.floor(np.log10(min(values) / 2)), max(values) * 6)
    ax.yaxis.set_major_formatter(EngFormatter("J"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    return finished(ax, "Compute energy", "compute energy per image")


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
    curves = {name: as_array(f"history[{name!r}]", values, float) for name, values in check_dict("history", history).items()}
    for name, curve in curves.items():
        if curve.ndim != 1 or not curve.size:
            raise ValueError(f"history[{name!r}] must hold a value per epoch, [epochs], got shape {curve.shape}")
        check_all(f"history[{name!r}]", "be in percent, 0..100", curve, ~((curve < 0) | (curve > 100)))

    ax = styled(ax)
    for i, (name, curve) in enumerate(curves.items()):
        (at,) = np.isfinite(curve).nonzero()
        ax.plot(at + 1, curve[at], color=colour(i), marker=".", label=name)
    step_axis(ax, max(map(len, curves.values())), "epoch")
    return finished(ax, "Accuracy by epoch", "accuracy [%]")


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
    times = as_array("spike_time", spike_time)
    if not times.size:
        raise ValueError(f"spike_time must hold at least one spike time, got shape {times.shape}")
    check_all("spike_time", f"hold whole steps in 1..{T}", times, np.isin(times, np.arange(1, T + 1)))
    groups = {"": times.flatten()}
    if correct is not None:
        mask = true_class(correct, times.shape)
        groups = {name: group for name, group in (("true class", times[mask]), ("other classes", times[~mask])) if group.size}

    ax = styled(ax)
    steps = np.arange(1, T + 1)
    draw_bars(ax, steps, {name: (group[:, None] == steps).mean(0) for name, group in groups.items()})
    step_axis(ax, T, "spike time [step]")
    return finished(ax, "Output spike times", "fraction of spike times")


def energy_text(joules: float, first: float) -> str:
    """Write an energy above its bar, and its ratio to the first one."""
    value = EngFormatter("J")(float(f"{joules:.3g}"))
    if joules == first:
        return value
    ratio, word = (first / joules, "less") if joules < first else (joules / first, "more")
    return f"{value}\n{ratio:.{0 if ratio >= 10 else 1}f}x {word}"
