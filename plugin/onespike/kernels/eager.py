"""The "torch" backend: eqs. 6-8 and their hand-written BPTT in plain torch operators, on any device.

The order of the operations is fixed, `(leak * U + x) - V * reset`, each rounded on its own, so that other
backends can be bit-identical to it. On a CPU the neurons are taken in blocks whose steps stay in the cache.
"""

from collections.abc import Iterator

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
    fired_last = torch.zeros_like(x_seq[0], dtype=torch.bool)
    if fired is not None:
        fired_last.copy_(fired)
    for rows in blocks(x_seq):
        x_steps, s_steps, has_fired = x_seq[:, rows], s_seq[:, rows], fired_last[rows]
        decay, threshold = of_rows(leak, rows, x_seq), of_rows(v_threshold, rows, x_seq)
        before = None if v is None else v[rows]
        above = None if before is None else before > threshold
        for t, x in enumerate(x_steps):
            charged = v_seq[t, rows] if return_v_seq else v_last[rows]
            if before is None or above is None:
                charged.copy_(x)
            else:
                torch.mul(before, decay, out=charged).add_(x).sub_(threshold * above)
            before, above = charged, charged > threshold
            s_steps[t] = above & ~has_fired if single_spike else above
            has_fired |= above
    if return_v_seq:
        v_last.copy_(v_seq[-1])
    return s_seq, v_last, fired_last, v_seq


def backward(
    grad_s_seq: Tensor | None,
    grad_v: Tensor | None,
    grad_v_seq: Tensor | None,
    v_seq: Tensor,
    leak: Tensor,
    v_threshold: Tensor,
    v: Tensor | None,
    fired: Tensor | None,
    gamma: float,
    grad_after_spike: bool,
    temporal_gradient: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x_seq (in `dtype`), leak, v_threshold and the initial v ([0] where there was none).

    With G^t = dL/dU^t, S^t = gamma * max(0, 1 - |U^t / V - 1|) and G^{T+1} the gradient of the returned state:
        G^t     = gO^t * S^t / V + leak * G^{t+1}          (temporal_gradient=False drops the second term)
        dL/dx^t = G^t
        dL/dleak = sum_t <G^t, U^{t-1}>
        dL/dV    = sum_t [ -<gO^t * S^t, U^t> / V^2 - <G^t, 1[U^{t-1} > V]> ]
    """
    grad_x_seq = torch.empty_like(v_seq, dtype=dtype)
    leak32, v_threshold32 = leak.to(v_seq.dtype), v_threshold.to(v_seq.dtype)
    grad_leak, grad_threshold = torch.zeros_like(leak32), torch.zeros_like(v_threshold32)
    grad_initial = v_seq.new_empty(0) if v is None else torch.zeros_like(v)
    for rows in blocks(v_seq):
        v_steps, decay, threshold = v_seq[:, rows], of_rows(leak32, rows, v_seq), of_rows(v_threshold32, rows, v_seq)
        leak_sum, threshold_sum = of_rows(grad_leak, rows, v_seq), of_rows(grad_threshold, rows, v_seq)
        waiting = None if grad_after_spike else steps_before_firing(v_steps, threshold, None if fired is None else fired[rows])
        carried = None if grad_v is None else grad_v[rows]
        for t in reversed(range(v_seq.shape[0])):
            now, before = v_steps[t], v_steps[t - 1] if t else None if v is None else v[rows]
            total = grad_x_seq[t, rows] if dtype == v_seq.dtype else torch.empty_like(now)
            if grad_s_seq is None:
                total.zero_()
            else:
                through_spike = torch.div(now, threshold).sub_(1).abs_().neg_().add_(1).clamp_min_(0).mul_(gamma)
                through_spike.mul_(grad_s_seq[t, rows])
                if waiting is not None:
                    through_spike.mul_(waiting[t])
                torch.div(through_spike, threshold, out=total)
                threshold_sum -= through_spike.mul_(now).div_(threshold**2).sum_to_size(threshold.shape)
            if carried is not None:
                total.add_(carried)
            if grad_v_seq is not None:
                total.add_(grad_v_seq[t, rows])
            if before is not None:
                leak_sum += (total * before).sum_to_size(decay.shape)
                threshold_sum -= (total * (before > threshold)).sum_to_size(threshold.shape)
            carried = total * decay if temporal_gradient else None
            if total.dtype != dtype:
                grad_x_seq[t, rows] = total
        if v is not None and carried is not None:
            grad_initial[rows] = carried
    return grad_x_seq, grad_leak.to(leak.dtype), grad_threshold.to(v_threshold.dtype), grad_initial


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


def steps_before_firing(v_seq: Tensor, v_threshold: Tensor, fired: Tensor | None) -> list[Tensor]:
    """For each step, whether a neuron had not crossed its threshold in any earlier step, each [N, *] bool."""
    waiting = torch.ones_like(v_seq[0], dtype=torch.bool) if fired is None else ~fired
    steps = []
    for v in v_seq:
        steps.append(waiting)
        waiting = waiting & ~(v > v_threshold)
    return steps
