"""The "torch" backend: eqs. 6-8 and their hand-written BPTT in plain torch operators, on any device.

The order of the operations on U is fixed, `(leak * U + x) - V * reset`, each rounded on its own, so that other backends can be
bit-identical to it. "Above the threshold" and "still waiting to fire" are 0 or 1 in the dtype of U, since torch is slow with
bools. Only what has to goes step by step: small layers cost what their operators cost to call. On a CPU, neurons are taken
through all steps in blocks that stay in the cache.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from onespike.kernels.plan import Plan, Switches, require_finite

BLOCK_SIZE = 2**16
"""Neurons per thread that are taken through all steps together on a CPU.

Small enough for the cache, and large enough for torch to share each operator among the threads.
"""


class EagerPlan(Plan):
    """The neuron in torch operators."""

    backend = "torch"

    def forward(
        self, x_seq: Tensor, leak: Tensor, v_threshold: Tensor, v: Tensor | None, fired: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        s_seq, v_last, fired_last, v_seq = self.new_outputs()
        inputs = self.laid(x_seq), self.parameter(leak), self.parameter(v_threshold), self.laid(v), self.laid(fired)
        on_cpu = self.device.type == "cpu"
        for tensors in self.blocks(*inputs, s_seq, v_last, fired_last, v_seq):
            v_of_block = forward_block(self.switches.single_spike, not on_cpu, *tensors)
            if on_cpu:
                require_finite(v_of_block)
        return self.result(s_seq), v_last, fired_last, self.result(v_seq)

    def backward(
        self,
        grad_s_seq: Tensor | None,
        grad_v: Tensor | None,
        grad_v_seq: Tensor | None,
        x_seq: Tensor,
        leak: Tensor,
        v_threshold: Tensor,
        v: Tensor | None,
        fired: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        grad_x, grad_initial = self.new_sequence(self.dtype), None if v is None else self.new_step(self.state_dtype)
        gradients = self.laid(grad_s_seq), self.laid(grad_v), self.laid(grad_v_seq)
        inputs = self.laid(x_seq), self.parameter(leak), self.parameter(v_threshold), self.laid(v), self.laid(fired)
        sums = torch.zeros_like(inputs[1]), torch.zeros_like(inputs[2])
        for tensors in self.blocks(*gradients, *inputs, self.height(inputs[2]), grad_x, grad_initial, *sums):
            backward_block(self.switches, *tensors)
        return self.result(grad_x), self.gradient(sums[0], leak), self.gradient(sums[1], v_threshold), grad_initial

    def blocks(self, *tensors: Tensor | None) -> Iterator[list[Any]]:
        """View the tensors flat, and cut their M into blocks that stay in the cache of a CPU; numbers stay whole."""
        size, of_image = self.neurons, max(1, self.neurons // max(1, self.shape[1]))
        if self.device.type == "cpu":
            size = max(1, BLOCK_SIZE * torch.get_num_threads() // of_image) * of_image  # whole images
        flat = [tensor if tensor is None or not tensor.dim() else self.flat(tensor) for tensor in tensors]
        if self.neurons <= size:
            yield flat
            return
        for start in range(0, self.neurons, size):
            yield [tensor if tensor is None or not tensor.dim() else tensor[..., start : start + size] for tensor in flat]


def forward_block(
    single_spike: bool,
    shows_nan: bool,
    x_seq: Tensor,
    leak: Tensor,
    v_threshold: Tensor,
    v: Tensor | None,
    fired: Tensor | None,
    s_seq: Tensor,
    v_last: Tensor | None,
    fired_last: Tensor | None,
    v_seq: Tensor | None,
) -> Tensor:
    """Write spikes [T, M] and, where asked for, the last v and fired [M] and the potentials [T, M]; return the last v.

    `shows_nan` makes the spikes of NaN potentials NaN.
    """
    x_steps, s_steps = x_seq.unbind(), s_seq.unbind()
    now = torch.empty_like(x_steps[0], dtype=leak.dtype) if v_last is None else v_last
    v_steps = [now] * len(x_steps) if v_seq is None else v_seq.unbind()
    waiting = torch.ones_like(now) if fired is None else torch.logical_not(fired, out=torch.empty_like(now))
    above = torch.empty_like(now) if v is None else torch.gt(v, v_threshold, out=torch.empty_like(now))
    for now, x, spikes in zip(v_steps, x_steps, s_steps, strict=True):
        charge(now, v, x, leak, v_threshold, above)
        torch.gt(now, v_threshold, out=above)
        if single_spike:
            waiting.sub_(torch.mul(above, waiting, out=spikes))
        else:
            waiting.mul_(1 - spikes.copy_(above))
        if shows_nan:
            spikes.copy_(torch.where(now.isnan(), now, spikes))
        v = now
    if v_last is not None and v_seq is not None:
        v_last.copy_(now)
    if fired_last is not None:
        torch.eq(waiting, 0, out=fired_last)
    return now


def backward_block(
    switches: Switches,
    grad_s_seq: Tensor | None,
    grad_v: Tensor | None,
    grad_v_seq: Tensor | None,
    x_seq: Tensor,
    leak: Tensor,
    v_threshold: Tensor,
    v: Tensor | None,
    fired: Tensor | None,
    height: Tensor,
    grad_x: Tensor,
    grad_initial: Tensor | None,
    of_leak: Tensor,
    of_threshold: Tensor,
) -> None:
    """Write the gradients of x_seq [T, M] and of the initial v [M], and add those of leak and v_threshold, 0-d or [M].

    S^t / V is taken as gamma / V^2 * max(0, min(U^t, 2 V - U^t)), which costs fewer operators; `height` is gamma / V^2.
    """
    v_seq = torch.empty(x_seq.shape, dtype=leak.dtype, device=leak.device)
    before, v_steps, resets = v, v_seq.unbind(), torch.empty_like(v_seq).unbind()
    for now, x, reset in zip(v_steps, x_seq.unbind(), resets, strict=True):
        if before is not None:
            torch.gt(before, v_threshold, out=reset)
        charge(now, before, x, leak, v_threshold, reset)
        before = now

    # Reused for the sum of all that reaches U^t.
    through_spikes = grad_x if grad_x.dtype == leak.dtype and grad_x.is_contiguous() else torch.empty_like(v_seq)
    if grad_s_seq is None:
        through_spikes.zero_()
    else:
        torch.sub(v_threshold + v_threshold, v_seq, out=through_spikes)
        torch.minimum(through_spikes, v_seq, out=through_spikes).clamp_min_(0).mul_(height).mul_(grad_s_seq)
        if not switches.grad_after_spike:
            through_spikes.mul_(waiting_to_fire(v_seq, v_threshold, fired))

    of_trace = None if grad_v_seq is None else grad_v_seq.unbind()
    decayed, carried = torch.empty_like(v_steps[0]), grad_v
    for t, total in reversed(list(enumerate(through_spikes.unbind()))):
        before = v_steps[t - 1] if t else v
        of_threshold.sub_(inner(total, v_steps[t], v_threshold).div_(v_threshold))
        for term in (carried, None if of_trace is None else of_trace[t]):
            if term is not None:
                total.add_(term)
        carried = None
        if before is not None:
            of_leak.add_(inner(total, before, leak))
            of_threshold.sub_(inner(total, resets[t], v_threshold))
            if switches.temporal_gradient:
                carried = torch.mul(total, leak, out=decayed)
    if grad_initial is not None:
        grad_initial.zero_() if carried is None else grad_initial.copy_(carried)
    if through_spikes is not grad_x:
        grad_x.copy_(through_spikes)


def charge(now: Tensor, v: Tensor | None, x: Tensor, leak: Tensor, v_threshold: Tensor, reset: Tensor) -> None:
    """Write U^t to `now`, which may be the memory of U^{t-1}, `v`; `reset` is 1[U^{t-1} > V]."""
    if v is None:
        now.copy_(x)
    else:
        decayed = now.mul_(leak) if now is v else torch.mul(v, leak, out=now)
        decayed.add_(x).addcmul_(reset, v_threshold, value=-1)


def waiting_to_fire(v_seq: Tensor, v_threshold: Tensor, fired: Tensor | None) -> Tensor:
    """Return 1 for the neurons that have not fired before step t, 0 for the others, [T, M]."""
    below = (v_seq <= v_threshold).to(v_seq.dtype)
    waiting = torch.ones_like(below)
    if fired is not None:
        torch.logical_not(fired, out=waiting[0])
    for t in range(1, len(waiting)):
        torch.mul(waiting[t - 1], below[t - 1], out=waiting[t])
    return waiting


def inner(a: Tensor, b: Tensor, parameter: Tensor) -> Tensor:
    """Sum a * b, both [M], over what `parameter`, 0-d or [M], was broadcast to."""
    return a * b if parameter.dim() else torch.dot(a, b)
