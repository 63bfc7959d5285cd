"""The "torch" backend: eqs. 6-8 and their hand-written BPTT in plain torch operators, on any device.

The order of the operations is fixed, `(leak * U + x) - V * reset`, each rounded on its own, so that other
backends can be bit-identical to it.
"""

import torch
from torch import Tensor

from onespike.kernels.reference import state_dtype


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
    s_seq = torch.empty_like(x_seq)
    v_seq = torch.empty_like(x_seq, dtype=dtype) if return_v_seq else x_seq.new_empty(0, dtype=dtype)
    given, fired = fired, torch.zeros_like(x_seq[0], dtype=torch.bool)
    if given is not None:
        fired.copy_(given)
    above = None if v is None else v > v_threshold
    for t, x in enumerate(x_seq):
        charged = v_seq[t] if return_v_seq else torch.empty_like(x, dtype=dtype)
        if v is None:
            charged.copy_(x)
        else:
            torch.mul(v, leak, out=charged).add_(x)
        if above is not None:
            charged.sub_(v_threshold * above)
        v = charged
        above = v > v_threshold
        s_seq[t] = above & ~fired if single_spike else above
        fired |= above
    assert v is not None  # T >= 1 is checked by the caller
    return s_seq, v.clone() if return_v_seq else v, fired, v_seq


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
    leak32, threshold = leak.to(v_seq.dtype), v_threshold.to(v_seq.dtype)
    grad_leak, grad_threshold = torch.zeros_like(leak32), torch.zeros_like(threshold)
    waiting = None if grad_after_spike else steps_before_firing(v_seq, threshold, fired)

    carried = grad_v
    for t in reversed(range(v_seq.shape[0])):
        before = v_seq[t - 1] if t else v
        total = grad_x_seq[t] if dtype == v_seq.dtype else torch.empty_like(v_seq[t])
        if grad_s_seq is None:
            total.zero_()
        else:
            through_spike = torch.div(v_seq[t], threshold).sub_(1).abs_().neg_().add_(1).clamp_min_(0).mul_(gamma)
            through_spike.mul_(grad_s_seq[t])
            if waiting is not None:
                through_spike.mul_(waiting[t])
            torch.div(through_spike, threshold, out=total)
            grad_threshold -= (through_spike.mul_(v_seq[t]) / threshold**2).sum_to_size(threshold.shape)
        if carried is not None:
            total.add_(carried)
        if grad_v_seq is not None:
            total.add_(grad_v_seq[t])
        if before is not None:
            grad_leak += (total * before).sum_to_size(leak32.shape)
            grad_threshold -= (total * (before > threshold)).sum_to_size(threshold.shape)
        carried = total * leak32 if temporal_gradient else None
        if total.dtype != dtype:
            grad_x_seq[t] = total

    grad_initial = v_seq.new_empty(0)
    if v is not None:
        grad_initial = torch.zeros_like(v)
        if carried is not None:
            grad_initial.copy_(carried)
    return grad_x_seq, grad_leak.to(leak.dtype), grad_threshold.to(v_threshold.dtype), grad_initial


def steps_before_firing(v_seq: Tensor, v_threshold: Tensor, fired: Tensor | None) -> list[Tensor]:
    """For each step, whether a neuron had not crossed its threshold in any earlier step, each [N, *] bool."""
    waiting = torch.ones_like(v_seq[0], dtype=torch.bool) if fired is None else ~fired
    steps = []
    for v in v_seq:
        steps.append(waiting)
        waiting = waiting & ~(v > v_threshold)
    return steps
