"""The "inductor" backend: the forward and the hand-written backward as pure functions, each compiled into one fused loop.

The equations and the order of the operations are those of `onespike.kernels.eager`; the compiler may not contract a
multiplication and an addition into one rounding, so spikes and membrane potentials are bit-identical to it. Only the
input is kept for the backward pass, which computes the membrane potentials again in registers: per element the
forward pass reads x and writes O, the backward pass reads x and dL/dO and writes dL/dx, and little else moves.

Tensors are flattened to [T, M] in the order of their memory (see `layout`), so that one compiled function serves every
shape. Long sequences are taken in chunks, which write into slices of one result.
"""

import functools
import itertools
import math
import types
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._inductor import config

from onespike.kernels.layout import Layout, layout_of
from onespike.kernels.reference import state_dtype

MAX_UNROLLED = 10
"""Steps in one compiled function, whose loop over time is unrolled. More of them compile slowly, and read and write so many
places at once that caches no longer hold them: 20 steps backward in one function take twice as long as in two of 10."""

EXAMPLE_SIZE = 2**15
"""The M of the example on which each function is compiled; any other runs the same code."""


def forward(
    x_seq: Tensor,
    leak: Tensor,
    v_threshold: Tensor,
    v: Tensor | None,
    fired: Tensor | None,
    single_spike: bool,
    return_v_seq: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return s_seq [T, N, *], the last v [N, *], fired [N, *] and v_seq [T, N, *] ([0] unless asked for). x_seq: not empty."""
    dtype = state_dtype(x_seq.dtype)
    layout = layout_of(x_seq)
    flat_x, before = layout.flat(x_seq).contiguous(), flat_state(layout, v, fired, x_seq)
    flat_s, trace = torch.empty_like(flat_x), torch.empty_like(flat_x, dtype=dtype) if return_v_seq else None
    parameters = flat_parameters(layout, leak.to(dtype), v_threshold.to(dtype))
    for steps in chunks(len(x_seq)):
        after = torch.empty_like(flat_x[0], dtype=dtype), torch.empty_like(flat_x[0], dtype=torch.uint8)
        results = flat_s[steps].unbind(), None if trace is None else trace[steps].unbind(), *after
        run_compiled(forward_steps, flat_x[steps], *parameters, *before, *results, single_spike)
        before = after
    v_last, fired_last = (layout.unflat_step(tensor, x_seq) for tensor in after)
    v_seq = v_last.new_empty(0) if trace is None else layout.unflat(trace, x_seq)
    return layout.unflat(flat_s, x_seq), v_last, fired_last.view(torch.bool), v_seq


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
    """Return the gradients of x_seq, leak, v_threshold and the initial v ([0] where there was none)."""
    dtype = state_dtype(x_seq.dtype)
    layout = layout_of(x_seq)
    flat_x, state = layout.flat(x_seq).contiguous(), flat_state(layout, v, fired, x_seq)
    flat_grad_s = torch.zeros_like(flat_x) if grad_s_seq is None else layout.flat(grad_s_seq).contiguous()
    flat_grad_trace = None if grad_v_seq is None else layout.flat(grad_v_seq).contiguous()
    parameters = flat_parameters(layout, leak.to(dtype), v_threshold.to(dtype))
    height = gamma / parameters[1] ** 2
    # Loops on the CPU can add up over all neurons, in a fixed order, and so write less; elsewhere torch sums afterwards.
    # For few neurons inductor would generate other sums, which are not worth a second compilation.
    sums_inside = parameters[0].dim() == 0 and x_seq.device.type == "cpu" and layout.neurons >= EXAMPLE_SIZE
    switches = grad_after_spike, temporal_gradient, sums_inside

    cuts, states = chunks(len(x_seq)), [state]
    for steps in cuts[:-1]:
        states.append((torch.empty_like(flat_x[0], dtype=dtype), torch.empty_like(flat_x[0], dtype=torch.uint8)))
        run_compiled(forward_steps, flat_x[steps], *parameters, *states[-2], None, None, *states[-1], True)
    flat_grad_x = None if len(cuts) == 1 else torch.empty_like(flat_x)
    sums = []
    carried: Any = None if grad_v is None else layout.flat_step(grad_v)
    for steps, state in reversed(list(zip(cuts, states, strict=True))):
        of_trace = None if flat_grad_trace is None else flat_grad_trace[steps]
        tensors = flat_x[steps], flat_grad_s[steps], of_trace, *parameters, *state, carried, height
        out = None if flat_grad_x is None else flat_grad_x[steps].unbind()
        grad_x, carried, *totals = run_compiled(backward_steps, *tensors, out, *switches)
        sums.append(totals)
    return (
        layout.unflat(grad_x if flat_grad_x is None else flat_grad_x, x_seq),
        sum_chunks(layout, [of_leak for of_leak, _ in sums], leak),
        sum_chunks(layout, [of_threshold for _, of_threshold in sums], v_threshold),
        height.new_empty(0) if v is None else strided_like(v, layout.unflat_step(carried, x_seq)),
    )


def strided_like(v: Tensor, grad: Tensor) -> Tensor:
    """Return `grad`, which lies in the memory order of x_seq, with the strides of `torch.empty_like(v)`."""
    return grad if grad.stride() == v.stride() else torch.empty_like(v).copy_(grad)


def charge(v: Tensor | None, x: Tensor, leak: Tensor, v_threshold: Tensor) -> Tensor:
    """Return U^t from U^{t-1} (None for U^0 = 0) and x^t."""
    return x.clone() if v is None else (leak * v + x) - torch.where(v > v_threshold, v_threshold, 0.0)


def forward_steps(
    x_seq: Tensor,
    leak: Tensor,
    v_threshold: Tensor,
    v: Tensor | None,
    fired: Tensor | None,
    s_steps: Sequence[Tensor] | None,
    v_steps: Sequence[Tensor] | None,
    v_last: Tensor,
    fired_last: Tensor,
    single_spike: bool,
) -> None:
    """Run the steps of x_seq [T, M]; write spikes and potentials, [M] a step, where asked for, and the last v and fired [M].

    `fired` is uint8, and whether a neuron still waits to fire is a 0 or 1 in the dtype of v: inductor's vectorised loops
    store bools so slowly that this would double the time.
    """
    waiting = torch.ones_like(v_last) if fired is None else 1 - fired.to(leak.dtype)
    for t, x in enumerate(x_seq.unbind()):
        v = charge(v, x.to(leak.dtype), leak, v_threshold)
        above = v > v_threshold
        if s_steps is not None:
            s_steps[t].copy_(torch.where(above, waiting, 0.0) if single_spike else above)
        if v_steps is not None:
            v_steps[t].copy_(v)
        waiting = torch.where(above, 0.0, waiting)
    assert v is not None
    v_last.copy_(v)
    fired_last.copy_(1 - waiting)


def backward_steps(
    x_seq: Tensor,
    grad_s_seq: Tensor,
    grad_v_seq: Tensor | None,
    leak: Tensor,
    v_threshold: Tensor,
    v: Tensor | None,
    fired: Tensor | None,
    grad_v: Tensor | None,
    height: Tensor,
    grad_x_steps: Sequence[Tensor] | None,
    grad_after_spike: bool,
    temporal_gradient: bool,
    sums_inside: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor]:
    """Compute U again and go back through the steps of x_seq [T, M] with the equations of `eager.backward`.

    `height` is gamma / V^2: with it, and with one division by V in all, the surrogate needs no division at each step.

    Returns:
        The gradients of x_seq [T, M], unless they are written to `grad_x_steps`, [M] a step (inductor then needs a second
        loop for the sums); of v [M]; of leak and v_threshold, [M], or 0-d if `sums_inside`.
    """
    initial, steps = v, []
    waiting = torch.ones_like(x_seq[0], dtype=leak.dtype) if fired is None else 1 - fired.to(leak.dtype)
    for t, (x, grad_s) in enumerate(zip(x_seq.unbind(), grad_s_seq.unbind(), strict=True)):
        before, v = v, charge(v, x.to(leak.dtype), leak, v_threshold)
        steps.append((before, v, waiting, grad_s.to(leak.dtype), None if grad_v_seq is None else grad_v_seq[t]))
        waiting = torch.where(v > v_threshold, 0.0, waiting)

    grads = []
    grad_leak = through_spikes = through_resets = torch.zeros_like(waiting)
    carried = grad_v
    for before, v, waiting, grad_s, grad_trace in reversed(steps):
        through_spike = torch.minimum(v, 2 * v_threshold - v).clamp_min(0) * height * grad_s
        if not grad_after_spike:
            through_spike = through_spike * waiting
        through_spikes = through_spikes + through_spike * v
        total = through_spike if carried is None else through_spike + carried
        if grad_trace is not None:
            total = total + grad_trace
        if before is not None:
            grad_leak = grad_leak + total * before
            through_resets = through_resets + torch.where(before > v_threshold, total, 0.0)
        carried = total * leak if temporal_gradient else None
        grads.append(total.to(x_seq.dtype))

    if carried is None and initial is not None:
        carried = torch.zeros_like(initial)
    grad_threshold = -(through_spikes / v_threshold + through_resets)
    if sums_inside:
        grad_leak, grad_threshold = grad_leak.sum(), grad_threshold.sum()
    if grad_x_steps is None:
        return torch.stack(grads[::-1]), None if initial is None else carried, grad_leak, grad_threshold
    for out, grad in zip(grad_x_steps, reversed(grads), strict=True):
        out.copy_(grad)
    return None, carried, grad_leak, grad_threshold


class Kind(NamedTuple):
    """What a compiled function may rely on in a tensor argument: everything but M."""

    dtype: torch.dtype
    device: torch.device
    steps: tuple[int, ...] | None  # the sizes before M; None for 0-d

    def example(self) -> Tensor:
        """Make a tensor of this kind with a typical M."""
        shape = () if self.steps is None else (*self.steps, EXAMPLE_SIZE)
        return torch.ones(shape, dtype=self.dtype, device=self.device)


class Slices(NamedTuple):
    """The kind of a tuple of tensors [M], which are the steps of one tensor [T, M]."""

    whole: Kind

    def example(self) -> tuple[Tensor, ...]:
        """Make such a tuple with a typical M."""
        return self.whole.example().unbind()


def kind_of(argument: Any) -> Any:
    """Return the kind of a tensor or of a tuple of them, and any other argument itself."""
    if isinstance(argument, Tensor):
        return Kind(argument.dtype, argument.device, argument.shape[:-1] if argument.dim() else None)
    if isinstance(argument, tuple):
        return Slices(Kind(argument[0].dtype, argument[0].device, (len(argument),)))
    return argument


def run_compiled(body: Callable, *arguments: Any) -> Any:
    """Call `body`, compiled for arguments of these kinds."""
    # Dynamo guards on whether a tensor requires grad or is a view, and on these modes: left as they come, each combination
    # would compile the same code again.
    arguments = tuple(map(bare, arguments))
    with torch.no_grad(), torch.autocast(arguments[0].device.type, enabled=False):
        return compiled(body, torch.get_num_threads(), *map(kind_of, arguments))(*arguments)


def bare(argument: Any) -> Any:
    """Strip a tensor, or each of a tuple, of its part in autograd; `data`, unlike `detach`, is no view."""
    if isinstance(argument, tuple):
        return tuple(map(bare, argument))
    return argument.data if isinstance(argument, Tensor) else argument


@functools.cache
def compiled(body: Callable, threads: int, *kinds: Any) -> Callable:  # noqa: ARG001
    """Compile `body` for these kinds of arguments, any M, and the number of threads, which inductor writes into the code.

    Each gets a code object of its own, because dynamo counts recompilations, up to a limit, per code object. It is compiled
    on an example, so that neither its code nor what it accepts hangs on the size that happened to come first.
    """
    own = types.FunctionType(body.__code__.replace(), body.__globals__, body.__name__)
    function = torch.compile(own, dynamic=True, options=compiler_options())
    function(*(kind.example() if isinstance(kind, Kind | Slices) else kind for kind in kinds))
    return function


def compiler_options() -> dict[str, Any]:
    """Forbid fused multiply-add, which would flip spikes, and spread loops of any size over the threads."""
    contract = "off" if isinstance(config.cpp.enable_floating_point_contract_flag, str) else False  # older torch has a bool
    return {
        "cpp.enable_floating_point_contract_flag": contract,
        "cpp.min_chunk_size": 1,
        "emulate_precision_casts": True,  # for Triton, which drops its enable_fp_fusion with it
    }


def chunks(steps: int) -> list[slice]:
    """Cut so many steps into runs of nearly equal length, none above `MAX_UNROLLED`."""
    count = math.ceil(steps / MAX_UNROLLED)
    bounds = [steps * i // count for i in range(count + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(bounds)]


def flat_parameters(layout: Layout, leak: Tensor, v_threshold: Tensor) -> tuple[Tensor, Tensor]:
    """Return both parameters as 0-d tensors, or, unless both are one number, as [M]."""
    if leak.numel() == v_threshold.numel() == 1:
        return leak.reshape(()), v_threshold.reshape(())
    return layout.per_neuron(leak), layout.per_neuron(v_threshold)


def flat_state(
    layout: Layout, v: Tensor | None, fired: Tensor | None, x_seq: Tensor
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Return the state as [M]; no state stays None unless there are more chunks, which all shall run the same function."""
    if v is not None and fired is not None:
        return layout.flat_step(v), layout.flat_step(fired.view(torch.uint8))
    if len(x_seq) <= MAX_UNROLLED:
        return None, None
    start = x_seq.new_zeros(layout.neurons, dtype=state_dtype(x_seq.dtype))
    return start, torch.zeros_like(start, dtype=torch.uint8)


def sum_chunks(layout: Layout, grads: list[Tensor], parameter: Tensor) -> Tensor:
    """Sum the gradients of the chunks, each [M] or 0-d, over what `parameter` was broadcast to."""
    grad = functools.reduce(torch.add, grads)
    return grad.reshape(parameter.shape).to(parameter.dtype) if grad.dim() == 0 else layout.sum_neurons(grad, parameter)
