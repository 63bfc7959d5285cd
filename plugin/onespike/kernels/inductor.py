"""The "inductor" backend: the forward and the hand-written backward as pure functions, each compiled into one fused loop.

The equations and the order of the operations are those of `onespike.kernels.eager`; the compiler may not contract a
multiplication and an addition into one rounding, so spikes and membrane potentials are bit-identical to it. Only the
input is kept for the backward pass, which computes the membrane potentials again in registers: per element the
forward pass reads x and writes O, the backward pass reads x and dL/dO and writes dL/dx, and little else moves.

Tensors are flattened to [T, M] in the order of their memory, so that one compiled function serves every shape.
"""

import functools
import math
import types
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._inductor import config

from onespike.kernels.reference import state_dtype

MAX_UNROLLED = 20
"""Steps in one compiled function. Their loop is unrolled, so compiling takes about 2 s for 5 steps and 8 s for 20 (whose
loop inductor cuts in two, at the price of one more pass over v)."""

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
    order = memory_order(x_seq)
    parameters = flat_parameters(leak, v_threshold, x_seq, order)
    state: Sequence[Any] = flat_state(v, fired, x_seq, order)
    s_chunks, v_chunks = [], []
    for x in chunks(flat(x_seq, order)):
        s, v_trace, *state = run_compiled(forward_steps, x, *parameters, *state, single_spike, True, return_v_seq)
        s_chunks.append(s)
        v_chunks.append(v_trace)
    v_last, fired_last = (unflat(tensor, x_seq[0], order) for tensor in state)
    v_seq = unflat(joined(v_chunks), x_seq, order) if return_v_seq else v_last.new_empty(0)
    return unflat(joined(s_chunks), x_seq, order), v_last, fired_last.view(torch.bool), v_seq


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
    order = memory_order(x_seq)
    parameters = flat_parameters(leak, v_threshold, x_seq, order)
    height = torch.full((), gamma, dtype=state_dtype(x_seq.dtype), device=x_seq.device)
    # Loops on the CPU can add up over all neurons, in a fixed order, and so write less; elsewhere torch sums afterwards.
    # For few neurons inductor would generate other sums, which are not worth a second compilation.
    many = x_seq[0].numel() >= EXAMPLE_SIZE
    switches = (grad_after_spike, temporal_gradient, parameters[0].dim() == 0 and x_seq.device.type == "cpu" and many)

    x_chunks = chunks(flat(x_seq, order))
    grad_s_chunks = chunks(flat(torch.zeros_like(x_seq) if grad_s_seq is None else grad_s_seq, order))
    grad_v_chunks = [None] * len(x_chunks) if grad_v_seq is None else chunks(flat(grad_v_seq, order))
    states = [flat_state(v, fired, x_seq, order)]
    for x in x_chunks[:-1]:
        states.append(run_compiled(forward_steps, x, *parameters, *states[-1], True, False, False)[2:])

    grads, leak_sums, threshold_sums = [], [], []
    carried: Any = None if grad_v is None else flat(grad_v, order)
    for piece in reversed(list(zip(x_chunks, grad_s_chunks, grad_v_chunks, states, strict=True))):
        *tensors, state = piece
        grad_x, leak_sum, threshold_sum, carried = run_compiled(
            backward_steps, *tensors, *parameters, *state, carried, height, *switches
        )
        grads.append(grad_x)
        leak_sums.append(leak_sum)
        threshold_sums.append(threshold_sum)
    return (
        unflat(joined(grads[::-1]), x_seq, order),
        sum_like(sum(leak_sums), leak, x_seq, order),
        sum_like(sum(threshold_sums), v_threshold, x_seq, order),
        height.new_empty(0) if v is None else unflat(carried, v, order),
    )


def charge(v: Tensor | None, x: Tensor, leak: Tensor, v_threshold: Tensor) -> Tensor:
    """Return U^t from U^{t-1} (None for U^0 = 0) and x^t."""
    return x.clone() if v is None else (leak * v + x) - torch.where(v > v_threshold, v_threshold, 0.0)


def forward_steps(
    x_seq: Tensor,
    leak: Tensor,
    v_threshold: Tensor,
    v: Tensor | None,
    fired: Tensor | None,
    single_spike: bool,
    return_s_seq: bool,
    return_v_seq: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Run the steps of x_seq [T, M]; return s_seq and v_seq [T, M], where asked for, and the last v and fired [M].

    `fired` is uint8, and whether a neuron still waits to fire is a 0 or 1 in the dtype of v: inductor's vectorised loops
    store bools so slowly that this would double the time.
    """
    s_steps, v_steps = [], []
    waiting = None if fired is None else 1 - fired.to(leak.dtype)
    for x in x_seq.unbind():
        v = charge(v, x.to(leak.dtype), leak, v_threshold)
        above = v > v_threshold
        waiting = torch.ones_like(v) if waiting is None else waiting
        s_steps.append((torch.where(above, waiting, 0.0) if single_spike else above).to(x.dtype))
        waiting = torch.where(above, 0.0, waiting)
        v_steps.append(v)
    assert waiting is not None
    s_seq = torch.stack(s_steps) if return_s_seq else None
    v_seq = torch.stack(v_steps) if return_v_seq else None
    return s_seq, v_seq, v, (1 - waiting).to(torch.uint8)


def backward_steps(
    x_seq: Tensor,
    grad_s_seq: Tensor,
    grad_v_seq: Tensor | None,
    leak: Tensor,
    v_threshold: Tensor,
    v: Tensor | None,
    fired: Tensor | None,
    grad_v: Tensor | None,
    gamma: Tensor,
    grad_after_spike: bool,
    temporal_gradient: bool,
    sums_inside: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Compute U again and go back through the steps of x_seq [T, M] with the equations of `eager.backward`.

    Returns:
        The gradients of x_seq [T, M], of leak and v_threshold ([M], 0-d if `sums_inside`) and of v.
    """
    initial, steps = v, []
    waiting = torch.ones_like(x_seq[0], dtype=leak.dtype) if fired is None else 1 - fired.to(leak.dtype)
    for t, (x, grad_s) in enumerate(zip(x_seq.unbind(), grad_s_seq.unbind(), strict=True)):
        before, v = v, charge(v, x.to(leak.dtype), leak, v_threshold)
        steps.append((before, v, waiting, grad_s.to(leak.dtype), None if grad_v_seq is None else grad_v_seq[t]))
        waiting = torch.where(v > v_threshold, 0.0, waiting)

    grads = []
    grad_leak = grad_threshold = torch.zeros_like(x_seq[0], dtype=leak.dtype)
    carried = grad_v
    for before, v, waiting, grad_s, grad_trace in reversed(steps):
        through_spike = (1 - (v / v_threshold - 1).abs()).clamp_min(0) * gamma * grad_s
        if not grad_after_spike:
            through_spike = through_spike * waiting
        grad_threshold = grad_threshold - through_spike * v / v_threshold**2
        total = through_spike / v_threshold
        if carried is not None:
            total = total + carried
        if grad_trace is not None:
            total = total + grad_trace
        if before is not None:
            grad_leak = grad_leak + total * before
            grad_threshold = grad_threshold - torch.where(before > v_threshold, total, 0.0)
        carried = total * leak if temporal_gradient else None
        grads.append(total.to(x_seq.dtype))

    if carried is None and initial is not None:
        carried = torch.zeros_like(initial)
    if sums_inside:
        grad_leak, grad_threshold = grad_leak.sum(), grad_threshold.sum()
    return torch.stack(grads[::-1]), grad_leak, grad_threshold, None if initial is None else carried


class Kind(NamedTuple):
    """What a compiled function may rely on in a tensor argument: everything but M."""

    dtype: torch.dtype
    device: torch.device
    steps: tuple[int, ...] | None  # the sizes before M; None for 0-d

    @classmethod
    def of(cls, argument: Any) -> Any:
        """Return the kind of a tensor, and any other argument itself."""
        if not isinstance(argument, Tensor):
            return argument
        return cls(argument.dtype, argument.device, argument.shape[:-1] if argument.dim() else None)

    def example(self) -> Tensor:
        """Make a tensor of this kind with a typical M."""
        shape = () if self.steps is None else (*self.steps, EXAMPLE_SIZE)
        return torch.ones(shape, dtype=self.dtype, device=self.device)


def run_compiled(body: Callable, *arguments: Any) -> Any:
    """Call `body`, compiled for arguments of these kinds."""
    # Dynamo guards on whether a tensor requires grad or is a view, and on these modes: left as they come, each combination
    # would compile the same code again. (`data`, unlike `detach`, is no view.)
    arguments = tuple(argument.data if isinstance(argument, Tensor) else argument for argument in arguments)
    with torch.no_grad(), torch.autocast(arguments[0].device.type, enabled=False):
        return compiled(body, torch.get_num_threads(), *map(Kind.of, arguments))(*arguments)


@functools.cache
def compiled(body: Callable, threads: int, *kinds: Any) -> Callable:  # noqa: ARG001
    """Compile `body` for these kinds of arguments, any M, and the number of threads, which inductor writes into the code.

    Each gets a code object of its own, because dynamo counts recompilations, up to a limit, per code object. It is compiled
    on an example, so that neither its code nor what it accepts hangs on the size that happened to come first.
    """
    own = types.FunctionType(body.__code__.replace(), body.__globals__, body.__name__)
    function = torch.compile(own, dynamic=True, options=compiler_options())
    function(*(kind.example() if isinstance(kind, Kind) else kind for kind in kinds))
    return function


def compiler_options() -> dict[str, Any]:
    """Forbid fused multiply-add, which would flip spikes, and spread loops of any size over the threads."""
    contract = "off" if isinstance(config.cpp.enable_floating_point_contract_flag, str) else False  # older torch has a bool
    return {
        "cpp.enable_floating_point_contract_flag": contract,
        "cpp.min_chunk_size": 1,
        "emulate_precision_casts": True,  # for Triton, which drops its enable_fp_fusion with it
    }


def chunks(sequence: Tensor) -> Sequence[Tensor]:
    """Cut [T, M] into runs of steps of nearly equal length, none above `MAX_UNROLLED`."""
    return sequence.tensor_split(math.ceil(sequence.shape[0] / MAX_UNROLLED))


def joined(pieces: list[Tensor]) -> Tensor:
    """Undo `chunks`; a single piece is not copied."""
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def memory_order(x_seq: Tensor) -> list[int]:
    """Return the dimensions of a step [N, *], the one with the largest stride first."""
    return sorted(range(x_seq.dim() - 1), key=lambda dim: -x_seq.stride(dim + 1))


def permuted(tensor: Tensor, order: list[int]) -> Tensor:
    """Bring the dimensions of [N, *] or [T, N, *] into memory order, T first."""
    lead = tensor.dim() - len(order)
    return tensor.permute(*range(lead), *(lead + dim for dim in order))


def flat(tensor: Tensor, order: list[int]) -> Tensor:
    """Turn [N, *] into [M] or [T, N, *] into [T, M]; a copy only where memory is not dense in this order."""
    lead = tensor.shape[: tensor.dim() - len(order)]
    return permuted(tensor, order).reshape(*lead, -1).contiguous()


def logical(tensor: Tensor, like: Tensor, order: list[int]) -> Tensor:
    """View [M] or [T, M] in the shape of `like`."""
    lead = like.dim() - len(order)
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return tensor.view(permuted(like, order).shape).permute(*range(lead), *(lead + dim for dim in inverse))


def unflat(tensor: Tensor, like: Tensor, order: list[int]) -> Tensor:
    """Give [M] or [T, M] the shape and the strides of `torch.empty_like(like)`; a copy only where `flat` made one."""
    if permuted(like, order).is_contiguous():
        return tensor.as_strided(like.shape, like.stride())
    return torch.empty_like(like, dtype=tensor.dtype).copy_(logical(tensor, like, order))


def flat_parameters(leak: Tensor, v_threshold: Tensor, x_seq: Tensor, order: list[int]) -> tuple[Tensor, Tensor]:
    """Return both parameters as 0-d tensors, or, unless both are one number, as [M]."""
    both = (leak.to(state_dtype(x_seq.dtype)), v_threshold.to(state_dtype(x_seq.dtype)))
    if leak.numel() == v_threshold.numel() == 1:
        return both[0].reshape(()), both[1].reshape(())
    return flat(both[0].expand(x_seq.shape[1:]), order), flat(both[1].expand(x_seq.shape[1:]), order)


def flat_state(v: Tensor | None, fired: Tensor | None, x_seq: Tensor, order: list[int]) -> Sequence[Tensor | None]:
    """Return the state as [M]; no state stays None unless there are more chunks, which all shall run the same function."""
    if v is not None and fired is not None:
        return flat(v, order), flat(fired.view(torch.uint8), order)
    if x_seq.shape[0] <= MAX_UNROLLED:
        return None, None
    start = x_seq.new_zeros(x_seq[0].numel(), dtype=state_dtype(x_seq.dtype))
    return start, torch.zeros_like(start, dtype=torch.uint8)


def sum_like(grad: Tensor, parameter: Tensor, x_seq: Tensor, order: list[int]) -> Tensor:
    """Sum a gradient, [M] or 0-d, over what `parameter` was broadcast to."""
    if parameter.numel() == 1:
        return grad.sum().reshape(parameter.shape).to(parameter.dtype)
    return logical(grad, x_seq[0], order).sum_to_size(parameter.shape).to(parameter.dtype)
