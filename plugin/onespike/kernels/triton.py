"""The "triton" backend: the kernels of lif.cu once more in Triton, for machines with a CUDA torch but no CuPy.

Neurons, rows and parameters are laid out as for CUDA (see `layout`). The backward pass keeps the potentials that it
computes again in a scratch memory of one tile a program; programs take one tile after another, so that it stays in cache.
"""

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from onespike.kernels.layout import Layout, check_dtype, layout_of, shared_values, step_stride

TILE = 1024
MAX_PROGRAMS = 1024
"""The number of programs of a backward pass does not depend on the device, nor do its sums."""


@triton.jit
def next_u(u, x, leak, threshold):
    """One step of U, each operation rounded on its own: the kernels are launched without fused multiply-add."""
    charged = leak * u + x
    return tl.where(u > threshold, charged - threshold, charged)


@triton.jit
def place(tile, row, size, TILE: tl.constexpr, PER_NEURON: tl.constexpr):
    """Return the neurons of a tile, which of them exist, and the row (or rows) they are in."""
    offsets = tl.arange(0, TILE)
    if PER_NEURON:
        neurons = tile * TILE + offsets
        return neurons, neurons < size, neurons
    tiles = tl.cdiv(row, TILE)
    index = tile // tiles
    within = (tile % tiles) * TILE + offsets
    return index * row + within, within < row, index + within * 0


@triton.jit
def lif_forward(
    x_seq,
    x_stride,
    leak_values,
    leak_inner,
    leak_count,
    threshold_values,
    threshold_inner,
    threshold_count,
    v,
    fired,
    s_seq,
    v_last,
    fired_last,
    v_seq,
    steps,
    row,
    size,
    SINGLE_SPIKE: tl.constexpr,
    TILE: tl.constexpr,
    PER_NEURON: tl.constexpr,
):
    neurons, inside, rows = place(tl.program_id(0).to(tl.int64), row, size, TILE, PER_NEURON)
    leak = tl.load(leak_values + rows // leak_inner % leak_count, mask=inside, other=0.0)
    threshold = tl.load(threshold_values + rows // threshold_inner % threshold_count, mask=inside, other=1.0)
    u = tl.zeros([TILE], tl.float32)
    crossed = neurons < 0
    if v is not None:
        u = tl.load(v + neurons, mask=inside, other=0.0)
    if fired is not None:
        crossed = tl.load(fired + neurons, mask=inside, other=0) != 0
    for t in range(steps):
        at = (neurons * 0 + t) * x_stride + neurons
        u = next_u(u, tl.load(x_seq + at, mask=inside, other=0.0).to(tl.float32), leak, threshold)
        above = u > threshold
        spikes = above
        if SINGLE_SPIKE:
            spikes = above & (crossed == 0)
        crossed = crossed | above
        to = (neurons * 0 + t) * size + neurons
        tl.store(s_seq + to, spikes.to(tl.float32).to(s_seq.dtype.element_ty), mask=inside)
        if v_seq is not None:
            tl.store(v_seq + to, u, mask=inside)
    tl.store(v_last + neurons, u, mask=inside)
    tl.store(fired_last + neurons, crossed, mask=inside)


@triton.jit
def lif_backward(
    grad_s_seq,
    grad_s_stride,
    grad_v,
    grad_v_seq,
    grad_v_stride,
    x_seq,
    x_stride,
    leak_values,
    leak_inner,
    leak_count,
    threshold_values,
    threshold_inner,
    threshold_count,
    v,
    fired,
    traces,
    grad_x_seq,
    leak_sums,
    threshold_sums,
    grad_v_initial,
    steps,
    row,
    size,
    tiles,
    gamma,
    GRAD_AFTER_SPIKE: tl.constexpr,
    TEMPORAL_GRADIENT: tl.constexpr,
    TILE: tl.constexpr,
    PER_NEURON: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    trace = traces + program * steps * TILE + tl.arange(0, TILE)
    for tile in range(program, tiles, tl.num_programs(0)):
        neurons, inside, rows = place(tile, row, size, TILE, PER_NEURON)
        leak = tl.load(leak_values + rows // leak_inner % leak_count, mask=inside, other=0.0)
        threshold = tl.load(threshold_values + rows // threshold_inner % threshold_count, mask=inside, other=1.0)
        u = tl.zeros([TILE], tl.float32)
        if v is not None:
            u = tl.load(v + neurons, mask=inside, other=0.0)
        first_crossing = neurons * 0 + steps
        if fired is not None:
            first_crossing = tl.where(tl.load(fired + neurons, mask=inside, other=0) != 0, -1, first_crossing)

        tl.debug_barrier()  # the tile before has been read
        for t in range(steps):
            tl.store(trace + t * TILE, u)  # U before step t
            at = (neurons * 0 + t) * x_stride + neurons
            u = next_u(u, tl.load(x_seq + at, mask=inside, other=0.0).to(tl.float32), leak, threshold)
            first_crossing = tl.where((u > threshold) & (first_crossing > t), t, first_crossing)
        tl.debug_barrier()

        carried = tl.zeros([TILE], tl.float32)
        if grad_v is not None:
            carried = tl.load(grad_v + neurons, mask=inside, other=0.0)
        leak_sum = tl.zeros([TILE], tl.float32)
        threshold_sum = tl.zeros([TILE], tl.float32)
        for back in range(steps):
            t = steps - 1 - back
            before = tl.load(trace + t * TILE)
            total = carried
            if grad_s_seq is not None:
                at = (neurons * 0 + t) * grad_s_stride + neurons
                grad_s = tl.load(grad_s_seq + at, mask=inside, other=0.0).to(tl.float32)
                through_spike = gamma * tl.maximum(1.0 - tl.abs(u / threshold - 1.0), 0.0) * grad_s / threshold
                if not GRAD_AFTER_SPIKE:
                    through_spike = tl.where(first_crossing >= t, through_spike, 0.0)
                total += through_spike
                threshold_sum -= through_spike * u / threshold
            if grad_v_seq is not None:
                at = (neurons * 0 + t) * grad_v_stride + neurons
                total += tl.load(grad_v_seq + at, mask=inside, other=0.0)
            leak_sum += total * before
            threshold_sum -= tl.where(before > threshold, total, 0.0)
            to = (neurons * 0 + t) * size + neurons
            tl.store(grad_x_seq + to, total.to(grad_x_seq.dtype.element_ty), mask=inside)
            carried = tl.zeros([TILE], tl.float32)
            if TEMPORAL_GRADIENT:
                carried = leak * total
            u = before
        if grad_v_initial is not None:
            tl.store(grad_v_initial + neurons, carried, mask=inside)
        if PER_NEURON:
            tl.store(leak_sums + neurons, leak_sum, mask=inside)
            tl.store(threshold_sums + neurons, threshold_sum, mask=inside)
        else:
            tl.store(leak_sums + tile, tl.sum(tl.where(inside, leak_sum, 0.0), 0))
            tl.store(threshold_sums + tile, tl.sum(tl.where(inside, threshold_sum, 0.0), 0))


def forward(
    x_seq: Tensor,
    leak: Tensor,
    v_threshold: Tensor,
    v: Tensor | None,
    fired: Tensor | None,
    single_spike: bool,
    return_v_seq: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return s_seq [T, N, *], the last v [N, *], fired [N, *] and v_seq [T, N, *] ([0] unless asked for).

    Raises:
        TypeError: x_seq is not float32, float16 or bfloat16.
    """
    check_dtype(x_seq, "triton")
    s_seq = torch.empty_like(x_seq)
    v_seq = torch.empty_like(x_seq, dtype=torch.float32) if return_v_seq else x_seq.new_empty(0, dtype=torch.float32)
    v_last = torch.empty_like(x_seq[0], dtype=torch.float32)
    fired_last = torch.empty_like(x_seq[0], dtype=torch.bool)
    layout = layout_of(s_seq, leak, v_threshold)
    flat_s, flat_v, flat_fired = layout.flat(s_seq), layout.flat_step(v_last), layout.flat_step(fired_last)
    flat_trace = layout.flat(v_seq) if return_v_seq else None
    cut = tiling(layout)
    if cut.tiles:
        values = shared_values(layout, x_seq, leak, v_threshold, v, fired)
        with torch.cuda.device_of(x_seq):
            lif_forward[(cut.tiles,)](
                **values,
                s_seq=flat_s,
                v_last=flat_v,
                fired_last=flat_fired,
                v_seq=flat_trace,
                SINGLE_SPIKE=single_spike,
                TILE=cut.tile,
                PER_NEURON=cut.per_neuron,
                enable_fp_fusion=False,
            )
    if flat_trace is not None:
        layout.give_back(flat_trace, v_seq)
    return (
        layout.give_back(flat_s, s_seq),
        layout.give_back_step(flat_v, v_last),
        layout.give_back_step(flat_fired, fired_last),
        v_seq,
    )


def backward(
    grad_s_seq: Tensor | None,
    grad_v: Tensor | None,
    grad_v_seq: Tensor | None,
    x_seq: Tensor,
    leak: Tensor,
    v_threshold: Tensor,
    v: Tensor | None,
    fired: Tensor | None,
    gamma: float,
    grad_after_spike: bool,
    temporal_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x_seq, leak, v_threshold and the initial v ([0] where there was none).

    The potentials are computed again from x_seq; the equations stand in `eager.backward`.

    Raises:
        TypeError: x_seq is not float32, float16 or bfloat16.
    """
    check_dtype(x_seq, "triton")
    grad_x_seq = torch.empty_like(x_seq)
    grad_initial = x_seq.new_empty(0, dtype=torch.float32) if v is None else torch.empty_like(v, dtype=torch.float32)
    layout = layout_of(grad_x_seq, leak, v_threshold)
    flat_x, flat_initial = layout.flat(grad_x_seq), None if v is None else layout.flat_step(grad_initial)
    flat_s = None if grad_s_seq is None else layout.flat(grad_s_seq.to(x_seq.dtype))
    flat_trace = None if grad_v_seq is None else layout.flat(grad_v_seq.to(torch.float32))
    cut = tiling(layout)
    parts = (layout.neurons, 1) if cut.per_neuron else (layout.rows, cut.tiles // max(layout.rows, 1))
    scratch = functools.partial(torch.empty, dtype=torch.float32, device=x_seq.device)
    leak_sums, threshold_sums = scratch(parts), scratch(parts)
    programs = min(cut.tiles, MAX_PROGRAMS)
    if cut.tiles:
        values = shared_values(layout, x_seq, leak, v_threshold, v, fired)
        with torch.cuda.device_of(x_seq):
            lif_backward[(programs,)](
                grad_s_seq=flat_s,
                grad_s_stride=step_stride(flat_s),
                grad_v=None if grad_v is None else layout.flat_step(grad_v.to(torch.float32)),
                grad_v_seq=flat_trace,
                grad_v_stride=step_stride(flat_trace),
                **values,
                traces=scratch(programs, len(x_seq), cut.tile),
                grad_x_seq=flat_x,
                leak_sums=leak_sums,
                threshold_sums=threshold_sums,
                grad_v_initial=flat_initial,
                tiles=cut.tiles,
                gamma=gamma,
                GRAD_AFTER_SPIKE=grad_after_spike,
                TEMPORAL_GRADIENT=temporal_gradient,
                TILE=cut.tile,
                PER_NEURON=cut.per_neuron,
                enable_fp_fusion=False,
            )
    if flat_initial is not None:
        layout.give_back_step(flat_initial, grad_initial)
    return (
        layout.give_back(flat_x, grad_x_seq),
        layout.sum_rows(leak_sums, leak),
        layout.sum_rows(threshold_sums, v_threshold),
        grad_initial,
    )


class Tiling(NamedTuple):
    """How neurons are cut into tiles.

    Attributes:
        tile: neurons of a tile, a power of two.
        tiles: number of tiles.
        per_neuron: whether each neuron has its own parameters; otherwise a tile stays within a row.
    """

    tile: int
    tiles: int
    per_neuron: bool


def tiling(layout: Layout) -> Tiling:
    """Cut neurons, or each row of neurons, into tiles of at most `TILE`."""
    per_neuron = layout.row == 1
    span, spans = (layout.neurons, 1) if per_neuron else (layout.row, layout.rows)
    tile = min(TILE, max(128, triton.next_power_of_2(span)))
    return Tiling(tile, spans * -(-span // tile), per_neuron)
