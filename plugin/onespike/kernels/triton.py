"""The "triton" backend: the kernels of lif.cu once more in Triton, for machines with a CUDA torch but no CuPy.

Memory and parameters are laid out as for CUDA (see `gpu`). The backward pass keeps the potentials that it
computes again in a scratch memory of one tile a program; programs take one tile after another, so that it stays in cache.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from onespike.kernels.gpu import GpuPlan
from onespike.kernels.plan import Signature

TILE = 512
MAX_PROGRAMS = 1024
"""The number of programs of a backward pass does not depend on the device, nor do its sums."""
HELD_KERNELS_TAKE_ALL_ARGUMENTS = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 3)
"""Before Triton 3.3, a compiled kernel took its arguments without the constants among them."""


@triton.jit
def next_u(u, x, leak, threshold):
    """One step of U, each operation rounded on its own: the kernels are launched without fused multiply-add."""
    charged = leak * u + x
    return tl.where(u > threshold, charged - threshold, charged)


@triton.jit
def lif_forward(
    x_seq,
    v,
    fired,
    s_seq,
    v_last,
    fired_last,
    v_seq,
    leak_values,
    threshold_values,
    leak_inner,
    leak_count,
    threshold_inner,
    threshold_count,
    steps,
    size,
    SINGLE_SPIKE: tl.constexpr,
    TILE: tl.constexpr,
    PER_NEURON: tl.constexpr,
):
    neurons = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = neurons < size
    if PER_NEURON:
        leak = tl.load(leak_values + neurons // leak_inner % leak_count, mask=inside, other=0.0)
        threshold = tl.load(threshold_values + neurons // threshold_inner % threshold_count, mask=inside, other=1.0)
    else:
        leak, threshold = tl.load(leak_values), tl.load(threshold_values)
    u = tl.zeros([TILE], tl.float32)
    crossed = neurons < 0
    if v is not None:
        u = tl.load(v + neurons, mask=inside, other=0.0)
        crossed = tl.load(fired + neurons, mask=inside, other=0) != 0
    for t in range(steps):
        at = (neurons * 0 + t) * size + neurons
        u = next_u(u, tl.load(x_seq + at, mask=inside, other=0.0).to(tl.float32), leak, threshold)
        above = u > threshold
        spikes = above
        if SINGLE_SPIKE:
            spikes = above & (crossed == 0)
        crossed = crossed | above
        shown = tl.where(u != u, u, spikes.to(tl.float32))  # noqa: PLR0124 (it is NaN)
        tl.store(s_seq + at, shown.to(s_seq.dtype.element_ty), mask=inside)
        if v_seq is not None:
            tl.store(v_seq + at, u, mask=inside)
    if v_last is not None:
        tl.store(v_last + neurons, u, mask=inside)
        tl.store(fired_last + neurons, crossed, mask=inside)


@triton.jit
def lif_backward(
    grad_s_seq,
    grad_v,
    grad_v_seq,
    x_seq,
    v,
    fired,
    grad_x_seq,
    grad_v_initial,
    leak_values,
    threshold_values,
    sums,
    traces,
    leak_inner,
    leak_count,
    threshold_inner,
    threshold_count,
    steps,
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
        neurons = tile * TILE + tl.arange(0, TILE)
        inside = neurons < size
        if PER_NEURON:
            leak = tl.load(leak_values + neurons // leak_inner % leak_count, mask=inside, other=0.0)
            threshold = tl.load(threshold_values + neurons // threshold_inner % threshold_count, mask=inside, other=1.0)
        else:
            leak, threshold = tl.load(leak_values), tl.load(threshold_values)
        u = tl.zeros([TILE], tl.float32)
        first_crossing = neurons * 0 + steps
        if v is not None:
            u = tl.load(v + neurons, mask=inside, other=0.0)
            first_crossing = tl.where(tl.load(fired + neurons, mask=inside, other=0) != 0, -1, first_crossing)

        tl.debug_barrier()  # the tile before has been read
        for t in range(steps):
            tl.store(trace + t * TILE, u)  # U before step t
            at = (neurons * 0 + t) * size + neurons
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
            at = (neurons * 0 + t) * size + neurons
            total = carried
            if grad_s_seq is not None:
                grad_s = tl.load(grad_s_seq + at, mask=inside, other=0.0).to(tl.float32)
                through_spike = gamma * tl.maximum(1.0 - tl.abs(u / threshold - 1.0), 0.0) * grad_s / threshold
                if not GRAD_AFTER_SPIKE:
                    through_spike = tl.where(first_crossing >= t, through_spike, 0.0)
                total += through_spike
                threshold_sum -= through_spike * u / threshold
            if grad_v_seq is not None:
                total += tl.load(grad_v_seq + at, mask=inside, other=0.0)
            leak_sum += total * before
            threshold_sum -= tl.where(before > threshold, total, 0.0)
            tl.store(grad_x_seq + at, total.to(grad_x_seq.dtype.element_ty), mask=inside)
            carried = tl.zeros([TILE], tl.float32)
            if TEMPORAL_GRADIENT:
                carried = leak * total
            u = before
        if grad_v_initial is not None:
            tl.store(grad_v_initial + neurons, carried, mask=inside)
        if PER_NEURON:
            tl.store(sums + neurons, leak_sum, mask=inside)
            tl.store(sums + size + neurons, threshold_sum, mask=inside)
        else:
            tl.store(sums + tile, tl.sum(tl.where(inside, leak_sum, 0.0), 0))
            tl.store(sums + tiles + tile, tl.sum(tl.where(inside, threshold_sum, 0.0), 0))


class TritonPlan(GpuPlan):
    """The neuron in two Triton kernels.

    Attributes:
        tile: neurons of a tile, a power of two; there are `tiles` of them.
        programs: number of programs of the backward kernel, which take one tile after another.
    """

    backend = "triton"

    def __init__(self, signature: Signature) -> None:
        super().__init__(signature)
        self.tile = min(TILE, max(128, triton.next_power_of_2(self.neurons)))
        self.tiles = -(-self.neurons // self.tile)
        self.programs = min(self.tiles, MAX_PROGRAMS)
        numbers, switches = (*self.indexing, self.steps, self.neurons), self.switches
        self.of_forward = *numbers, switches.single_spike, self.tile, self.per_neuron
        self.of_backward = (
            *numbers,
            self.tiles,
            switches.gamma,
            switches.grad_after_spike,
            switches.temporal_gradient,
            self.tile,
            self.per_neuron,
        )
        self.launchers: dict[tuple[bool, ...], Any] = {}

    def launch_forward(self, *tensors: Tensor | None) -> None:
        self.run(lif_forward, self.tiles, tensors, self.of_forward)

    def launch_backward(self, *tensors: Tensor | None) -> Tensor:
        parts = self.neurons if self.per_neuron else self.tiles
        sums = torch.empty((2, parts), dtype=torch.float32, device=self.device)
        traces = torch.empty((self.programs, self.steps, self.tile), dtype=torch.float32, device=self.device)
        self.run(lif_backward, self.programs, (*tensors, sums, traces), self.of_backward)
        return sums

    def run(self, kernel: Any, programs: int, tensors: tuple[Tensor | None, ...], others: tuple[Any, ...]) -> None:
        """Launch `kernel` on torch's current stream.

        What Triton compiles for is fixed in a plan, but for which of the first three tensors are there and how all are aligned.
        What it compiled is kept, and launched without Triton's search for it, which takes longer than all the rest of a call.
        """
        pointers, together = [None if tensor is None else tensor.data_ptr() for tensor in tensors], 0
        for pointer in pointers:
            together |= pointer or 0
        aligned = together % 16 == 0
        key = kernel, tensors[0] is None, tensors[1] is None, tensors[2] is None
        launcher = self.launchers.get(key)
        if launcher is not None and aligned and self.device.index == torch.cuda.current_device():
            # A tensor would be asked for its address, and the driver whether it can reach it.
            launcher(*pointers, *others, stream=torch._C._cuda_getCurrentRawStream(self.device.index))
            return
        with torch.cuda.device_of(tensors[3]):  # s_seq or x_seq, which are always there
            compiled = kernel[(programs,)](*tensors, *others, enable_fp_fusion=False)
        if compiled is not None and aligned and HELD_KERNELS_TAKE_ALL_ARGUMENTS:
            self.launchers[key] = compiled[(programs, 1, 1)]
