"""The neuron's forward and hand-written backward pass as pure functions: what "inductor" compiles, and what an export records.

The equations and the order of the operations are those of `onespike.kernels.eager`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


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
    single_spike: bool,
    spikes: bool,
    trace: bool,
    keep_state: bool,
    sums_inside: bool,
    shows_nan: bool,
) -> tuple[Tensor | None, ...]:
    """Run the steps of x_seq [T, M].

    `fired` is uint8, and whether a neuron still waits to fire is a 0 or 1 in the dtype of v: inductor's vectorised loops
    store bools so slowly that this would double the time.

    Returns:
        Spikes and potentials [T, M], if asked for and not to be written to `s_steps` and `v_steps`, [M] a step; the last v and
        fired [M], and the sum of the last v, 0-d, if asked for. `shows_nan` makes the spikes of NaN potentials NaN.
    """
    waiting = torch.ones_like(x_seq[0], dtype=leak.dtype) if fired is None else 1 - fired.to(leak.dtype)
    emitted, potentials = [], []
    for x in x_seq.unbind():
        v = charge(v, x.to(leak.dtype), leak, v_threshold)
        above = v > v_threshold
        spikes_now = torch.where(above, waiting, 0.0) if single_spike else above.to(leak.dtype)
        emitted.append((torch.where(v.isnan(), v, spikes_now) if shows_nan else spikes_now).to(x_seq.dtype))
        potentials.append(v)
        waiting = torch.where(above, 0.0, waiting)
    return (
        handed_over(emitted, s_steps) if spikes else None,
        handed_over(potentials, v_steps) if trace else None,
        v if keep_state else None,
        (1 - waiting).to(torch.uint8) if keep_state else None,
        v.sum() if sums_inside and v is not None else None,
    )


def handed_over(steps: list[Tensor], out: Sequence[Tensor] | None) -> Tensor | None:
    """Write the steps [M] to `out`, or return them as one tensor [T, M]."""
    if out is None:
        return torch.stack(steps)
    for to, step in zip(out, steps, strict=True):
        to.copy_(step)
    return None


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
    """Compute U again and go back through the steps of x_seq [T, M] with the equations of `Plan.backward`.

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
    return handed_over(grads[::-1], grad_x_steps), None if initial is None else carried, grad_leak, grad_threshold
