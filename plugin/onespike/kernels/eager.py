"""The "torch" backend: eqs. 6-8 and their hand-written BPTT in plain torch operators, on any device.

The order of the operations on U is fixed, `(leak * U + x) - V * reset`, each rounded on its own, so that other
backends can be bit-identical to it. "Above the threshold" and "still waiting to fire" are 0 or 1 in the dtype of U, since
torch is slow with bools. On a CPU neurons are taken through all steps in blocks that stay in the cache; the backward pass
keeps the input alone and computes U again there.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from onespike.kernels.reference import state_dtype

BLOCK_SIZE = 2**16
"""Neurons per thread that are taken through all steps together on a CPU, in whole rows of N.

Small enough for the cache, and large enough for torch to share each operator among the threads.
"""


def forward(
    x_seq: Tensor,
    leak: Tensor,
    v_threshold: Tensor,
    v: Tensor | None,
    fired: Tensor | None,
    single_spike: bool,
    return_v_seq: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return s_seq [T, N, *], the last v [N, *], fired [N, *] and v_seq [T, N, *] ([0] unless asked for)."""
    dtype = state_dtype(x_seq.dtype)
    leak, v_threshold = leak.to(dtype), v_threshold.to(dtype)
    s_seq, v_last = torch.empty_like(x_seq), torch.empty_like(x_seq[0], dtype=dtype)
    v_seq = torch.empty_like(x_seq, dtype=dtype) if return_v_seq else v_last.new_empty(0)
    fired_last = torch.empty_like(x_seq[0], dtype=torch.bool)
    for rows in blocks(x_seq):
        s_steps, v_now = s_seq[:, rows], v_last[rows]
        decay, threshold = of_rows(leak, rows, x_seq), of_rows(v_threshold, rows, x_seq)
        initial = None if v is None else v[rows]
        waiting = waiting_to_fire(fired, rows, v_now)
        for t, above in enumerate(charge([v_now] * len(x_seq), x_seq[:, rows], decay, threshold, initial)):
            if single_spike:
                waiting.sub_(torch.mul(above, waiting, out=s_steps[t]))
            else:
                waiting.mul_(1 - s_steps[t].copy_(above))
            if return_v_seq:
                v_seq[t, rows] = v_now
        fired_last[rows] = waiting == 0
    return s_seq, v_last, fired_last, v_seq


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

    With G^t = dL/dU^t, S^t = gamma * max(0, 1 - |U^t / V - 1|) and G^{T+1} the gradient of the returned state:
        G^t     = gO^t * S^t / V + leak * G^{t+1}          (temporal_gradient=False drops the second term)
        dL/dx^t = G^t
        dL/dleak = sum_t <G^t, U^{t-1}>
        dL/dV    = sum_t [ -<gO^t * S^t, U^t> / V^2 - <G^t, 1[U^{t-1} > V]> ]

    S^t / V is taken as gamma / V^2 * max(0, min(U^t, 2 V - U^t)), which costs fewer operators.
    """
    dtype = state_dtype(x_seq.dtype)
    leak32, v_threshold32 = leak.to(dtype), v_threshold.to(dtype)
    grad_x_seq = torch.empty_like(x_seq)
    grad_leak, grad_threshold = torch.zeros_like(leak32), torch.zeros_like(v_threshold32)
    grad_initial = x_seq.new_empty(0, dtype=dtype) if v is None else torch.zeros_like(v)
    for rows in blocks(x_seq):
        decay, threshold = of_rows(leak32, rows, x_seq), of_rows(v_threshold32, rows, x_seq)
        leak_sum, threshold_sum = of_rows(grad_leak, rows, x_seq), of_rows(grad_threshold, rows, x_seq)
        v_steps = [torch.empty_like(x_seq[0, rows], dtype=dtype) for _ in x_seq]
        initial = None if v is None else torch.empty_like(v_steps[0]).copy_(v[rows])  # dense, as `inner` wants it
        waiting_steps = [waiting_to_fire(fired, rows, v_steps[0])]
        for above in charge(v_steps, x_seq[:, rows], decay, threshold, initial):
            if not grad_after_spike:
                waiting_steps.append(waiting_steps[-1] * (1 - above))

        height, twice = gamma / threshold**2, 2 * threshold
        scratch, decayed = torch.empty_like(v_steps[0]), torch.empty_like(v_steps[0])
        carried, through_spike = None if grad_v is None else grad_v[rows], None
        for t in reversed(range(len(x_seq))):
            now, before = v_steps[t], v_steps[t - 1] if t else initial
            if grad_s_seq is not None:
                through_spike = torch.minimum(now, torch.sub(twice, now, out=scratch), out=scratch).clamp_min_(0).mul_(height)
                through_spike.mul_(grad_s_seq[t, rows])
                if not grad_after_spike:
                    through_spike.mul_(waiting_steps[t])
                threshold_sum -= inner(through_spike, now, threshold) / threshold
            total = grad_x_seq[t, rows] if x_seq.dtype == dtype else torch.empty_like(now)
            write_sum(total, through_spike, carried, None if grad_v_seq is None else grad_v_seq[t, rows])
            if before is not None:
                leak_sum += inner(total, before, decay)
                threshold_sum -= inner(total, torch.gt(before, threshold, out=scratch), threshold)
            carried = torch.mul(total, decay, out=decayed) if temporal_gradient else None
            if total.dtype != x_seq.dtype:
                grad_x_seq[t, rows] = total
        if v is not None and carried is not None:
            grad_initial[rows] = carried
    return grad_x_seq, grad_leak.to(leak.dtype), grad_threshold.to(v_threshold.dtype), grad_initial


def charge(
    v_steps: Sequence[Tensor], x_steps: Iterable[Tensor], leak: Tensor, v_threshold: Tensor, v: Tensor | None
) -> Iterator[Tensor]:
    """Write U^t to v_steps[t], which may be the same memory at every t, and yield 1[U^t > V] after each step."""
    above = torch.empty_like(v_steps[0])
    if v is not None:
        torch.gt(v, v_threshold, out=above)
    for now, x in zip(v_steps, x_steps, strict=True):
        if v is None:
            now.copy_(x)
        else:
            torch.mul(v, leak, out=now).add_(x).addcmul_(above, v_threshold, value=-1)
        yield torch.gt(now, v_threshold, out=above)
        v = now


def write_sum(out: Tensor, *terms: Tensor | None) -> None:
    """Write the sum of the terms, those that are not None, to `out`."""
    present = [term for term in terms if term is not None]
    if len(present) > 1:
        torch.add(present[0], present[1], out=out)
    elif present:
        out.copy_(present[0])
    else:
        out.zero_()
    for term in present[2:]:
        out.add_(term)


def inner(a: Tensor, b: Tensor, parameter: Tensor) -> Tensor:
    """Sum a * b, of which b is dense in memory, over what `parameter` was broadcast to."""
    if parameter.numel() == 1 and a.stride() == b.stride():
        return torch.dot(*(tensor.as_strided((tensor.numel(),), (1,)) for tensor in (a, b))).reshape(parameter.shape)
    return (a * b).sum_to_size(parameter.shape)


def blocks(sequence: Tensor) -> Iterator[slice]:
    """Cut the N of a sequence [T, N, *] into slices of about `BLOCK_SIZE` neurons per thread on a CPU, into one elsewhere."""
    count, neurons = sequence.shape[1], sequence[0].numel()
    size = count
    if sequence.device.type == "cpu" and neurons:
        size = BLOCK_SIZE * torch.get_num_threads() * count // neurons
    size = max(1, size)
    return (slice(start, start + size) for start in range(0, count, size))


def of_rows(parameter: Tensor, rows: slice, sequence: Tensor) -> Tensor:
    """View the part of a parameter that belongs to these rows of N: all of it, unless it differs along N."""
    return parameter[rows] if parameter.dim() == sequence.dim() - 1 and parameter.shape[0] > 1 else parameter


def waiting_to_fire(fired: Tensor | None, rows: slice, like: Tensor) -> Tensor:
    """Return 1 for the neurons of these rows that have not fired, 0 for the others, as a tensor like `like`."""
    return torch.ones_like(like) if fired is None else torch.empty_like(like).copy_(~fired[rows])
