"""The single-spike LIF neuron as its equations read: a loop over time, differentiated by autograd.

Every other implementation is tested against this one. It is slow and keeps every intermediate; use
`onespike.functional.single_spike_lif` for work.
"""

from typing import Any

import torch
from torch import Tensor


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Membrane potentials are float32, whatever the input; float64 inputs alone keep their precision."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class TriangleSpike(torch.autograd.Function):
    """Heaviside of `U > V` with the triangular surrogate of eq. 20, S = gamma * max(0, 1 - |U / V - 1|)."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, v_threshold: Tensor, gamma: float) -> Tensor:
        ctx.save_for_backward(v, v_threshold)
        ctx.gamma = gamma
        return (v > v_threshold).to(v.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        v, v_threshold = ctx.saved_tensors
        surrogate = ctx.gamma * (1 - (v / v_threshold - 1).abs()).clamp_min(0)
        grad_v = grad * surrogate / v_threshold
        grad_threshold = -grad * surrogate * v / v_threshold**2
        return grad_v, grad_threshold.sum_to_size(v_threshold.shape), None


def single_spike_lif_ref(
    x_seq: Tensor,
    leak: Tensor,
    v_threshold: Tensor,
    v: Tensor | None = None,
    fired: Tensor | None = None,
    *,
    gamma: float = 0.3,
    single_spike: bool = True,
    grad_after_spike: bool = True,
    temporal_gradient: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run eqs. 6-8 step by step; gradients by autograd are eqs. 19-23 in their full-BPTT form.

    Equations:
        U^t = leak * U^{t-1} + x^t - V * 1[U^{t-1} > V]
        O^t = 1 if U^t > V and no earlier U^s > V, else 0;  NaN where U^t is

    Shape:
        x_seq: [T, N, *]; leak, v_threshold: 0-d or broadcastable to [N, *]; v, fired: [N, *].
        Returns s_seq [T, N, *] in the dtype of x_seq, v_seq [T, N, *] and fired [N, *].
    """
    dtype = state_dtype(x_seq.dtype)
    leak, v_threshold = leak.to(dtype), v_threshold.to(dtype)
    v = torch.zeros_like(x_seq[0], dtype=dtype) if v is None else v.to(dtype)
    fired = torch.zeros_like(x_seq[0], dtype=torch.bool) if fired is None else fired

    s_steps, v_steps = [], []
    for x in x_seq.to(dtype):
        reset = (v > v_threshold).to(dtype)
        v = leak * (v if temporal_gradient else v.detach()) + x - v_threshold * reset

        spike: Tensor = TriangleSpike.apply(v, v_threshold, gamma)
        emitted = spike.detach() * ~fired if single_spike else spike.detach()
        emitted = torch.where(v.isnan(), v.detach(), emitted)
        # The value is the emitted spike; the gradient is the surrogate's at every step, fired or not.
        surrogate = spike - spike.detach()
        s_steps.append(emitted + (surrogate if grad_after_spike else surrogate * ~fired))
        v_steps.append(v)
        fired = fired | (v > v_threshold)
    return torch.stack(s_steps).to(x_seq.dtype), torch.stack(v_steps), fired
