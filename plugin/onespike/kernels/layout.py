"""How the fused kernels see tensors: sequences as flat [T, M] memory, parameters as one value for a row of neighbours.

A step [N, *] is read in the order in which it lies in memory, so channels-last tensors are neither copied nor
transposed: `order` permutes the dimensions of [T, N, *] until each step is contiguous, and whatever depends on a
neuron's channel is worked out on the permuted shape.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

MIN_ROW = 64
"""Rows shorter than this are not worth a block of their own: every neuron then has its own parameters and sums."""

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Parameter(NamedTuple):
    """A leak or threshold as a kernel reads it: row r has `values[(r // inner) % len(values)]`.

    Attributes:
        values: [count] float32, contiguous.
        inner: number of successive rows that share a value.
    """

    values: Tensor
    inner: int


@dataclass(frozen=True)
class Layout:
    """The flat view of sequences shaped like one x_seq [T, N, *].

    Attributes:
        order: permutation of the dimensions of [T, N, *], T first, that puts a step's elements in memory order.
        step: the permuted shape of a step; its product is M, the number of neurons.
        leading: how many of these dimensions tell rows apart; the others run within a row.
    """

    order: tuple[int, ...]
    step: tuple[int, ...]
    leading: int

    @property
    def neurons(self) -> int:
        """M, the number of neurons of a step."""
        return math.prod(self.step)

    @property
    def row(self) -> int:
        """The number of neighbouring neurons that share leak and threshold."""
        return math.prod(self.step[self.leading :])

    @property
    def rows(self) -> int:
        """M / row."""
        return math.prod(self.step[: self.leading])

    def flat(self, sequence: Tensor) -> Tensor:
        """View [T, N, *] as [T, M] with contiguous steps; copy only what does not lie in this order."""
        flat = sequence.permute(self.order).flatten(1)
        return flat if flat.stride(1) == 1 or self.neurons == 1 else flat.contiguous()

    def flat_step(self, tensor: Tensor) -> Tensor:
        """View [N, *] as contiguous [M]; copy only what does not lie in this order."""
        return self.flat(tensor.unsqueeze(0))[0]

    def give_back(self, flat: Tensor, out: Tensor) -> Tensor:
        """Return `out` [T, N, *] holding the elements of `flat` [T, M], which is its own memory unless it was copied."""
        if flat.data_ptr() != out.data_ptr():
            view = out.permute(self.order)
            view.copy_(flat.view(view.shape))
        return out

    def give_back_step(self, flat: Tensor, out: Tensor) -> Tensor:
        """Return `out` [N, *] holding the elements of `flat` [M], as `give_back`."""
        self.give_back(flat.unsqueeze(0), out.unsqueeze(0))
        return out

    def parameter(self, value: Tensor) -> Parameter:
        """Lay out a leak or threshold, 0-d or broadcastable to [N, *], for rows of neurons."""
        value = self.permuted(value.detach().to(torch.float32))
        sizes = value.shape[: self.leading]
        varying = [d for d, size in enumerate(sizes) if size != 1]
        if not varying:
            return Parameter(value.reshape(1), self.rows or 1)
        first, last = varying[0], varying[-1]
        if sizes[first : last + 1] == self.step[first : last + 1]:
            return Parameter(value.reshape(-1), math.prod(self.step[last + 1 : self.leading]))
        whole = value.expand(*self.step[: self.leading], *value.shape[self.leading :])
        return Parameter(whole.reshape(-1), 1)

    def permuted(self, value: Tensor) -> Tensor:
        """Pad `value` with leading dimensions of 1 to those of a step, and put them in memory order."""
        padded = value.reshape(*[1] * (len(self.step) - value.dim()), *value.shape)
        return padded.permute([d - 1 for d in self.order[1:]])

    def per_neuron(self, value: Tensor) -> Tensor:
        """Give each neuron its own leak or threshold, [M], from one broadcastable to [N, *]."""
        return self.permuted(value).expand(self.step).reshape(-1)

    def sum_rows(self, partial: Tensor, parameter: Tensor) -> Tensor:
        """Add up partial sums [rows, parts of a row] to the shape and dtype of `parameter`, in a fixed order."""
        sums = partial.sum(1).view(*self.step[: self.leading], *[1] * (len(self.step) - self.leading))
        return self.logical(sums[None])[0].sum_to_size(parameter.shape).to(parameter.dtype)

    def sum_neurons(self, grads: Tensor, parameter: Tensor) -> Tensor:
        """Add up the gradients of the neurons' own parameters, [M], to the shape and dtype of `parameter`."""
        return self.logical(grads.view(1, *self.step))[0].sum_to_size(parameter.shape).to(parameter.dtype)

    def logical(self, sequence: Tensor) -> Tensor:
        """Bring the dimensions of a sequence that lie in memory order into those of [T, N, *]."""
        return sequence.permute(sorted(range(len(self.order)), key=self.order.__getitem__))

    def unflat(self, flat: Tensor, like: Tensor) -> Tensor:
        """View contiguous [T, M] with the shape and strides of `torch.empty_like(like)`; copy only what must lie otherwise."""
        if like.permute(self.order).is_contiguous():
            return flat.as_strided(like.shape, like.stride())
        return torch.empty_like(like, dtype=flat.dtype).copy_(self.logical(flat.view(-1, *self.step)))

    def unflat_step(self, flat: Tensor, like: Tensor) -> Tensor:
        """View contiguous [M] as a step of `torch.empty_like(like)`, as `unflat`."""
        if like.permute(self.order).is_contiguous():
            return flat.as_strided(like.shape[1:], like.stride()[1:])
        return self.unflat(flat[None], like[:1])[0]


def layout_of(like: Tensor, *parameters: Tensor) -> Layout:
    """Find the memory order of `like` [T, N, *], which is dense, and the rows in which no parameter varies."""
    strides = like.stride()
    order = (0, *sorted(range(1, like.dim()), key=lambda d: -strides[d]))
    layout = Layout(order, tuple(like.shape[d] for d in order[1:]), 0)
    leading = max((last_varying(layout.permuted(parameter).shape) for parameter in parameters), default=0)
    whole = Layout(order, layout.step, leading)
    return whole if leading == 0 or whole.row >= MIN_ROW else Layout(order, layout.step, len(order) - 1)


def last_varying(sizes: Sequence[int]) -> int:
    """The number of dimensions up to and including the last one that is not of size 1."""
    return max((d + 1 for d, size in enumerate(sizes) if size != 1), default=0)


def check_dtype(x_seq: Tensor, backend: str) -> None:
    """Raise where a GPU kernel has no code for the dtype of `x_seq`.

    Raises:
        TypeError: it is not float32, float16 or bfloat16.
    """
    if x_seq.dtype not in DTYPES:
        raise TypeError(
            f'x_seq must be float32, float16 or bfloat16 for backend "{backend}", got {x_seq.dtype}: use backend="torch"'
        )


def shared_values(
    layout: Layout, x_seq: Tensor, leak: Tensor, v_threshold: Tensor, v: Tensor | None, fired: Tensor | None
) -> dict[str, Any]:
    """The arguments by name that both kernels take."""
    flat_x = layout.flat(x_seq)
    leak_values, leak_inner = layout.parameter(leak)
    threshold_values, threshold_inner = layout.parameter(v_threshold)
    return {
        "x_seq": flat_x,
        "x_stride": step_stride(flat_x),
        "leak_values": leak_values,
        "leak_inner": leak_inner,
        "leak_count": len(leak_values),
        "threshold_values": threshold_values,
        "threshold_inner": threshold_inner,
        "threshold_count": len(threshold_values),
        "v": None if v is None else layout.flat_step(v.to(torch.float32)),
        "fired": None if fired is None else layout.flat_step(fired),
        "steps": len(x_seq),
        "row": layout.row,
        "size": layout.neurons,
    }


def step_stride(flat: Tensor | None) -> int:
    """How many elements lie between a step and the next; 0 where there is no next one."""
    return 0 if flat is None or len(flat) == 1 else flat.stride(0)
