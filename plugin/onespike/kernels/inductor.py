"""The "inductor" backend: the forward and the hand-written backward as pure functions, each compiled into one fused loop.

The equations and the order of the operations are those of `onespike.kernels.eager`; the compiler may not contract a
multiplication and an addition into one rounding, so spikes and membrane potentials are bit-identical to it. Only the
input is kept for the backward pass, which computes the membrane potentials again in registers: per element the
forward pass reads x and writes O, the backward pass reads x and dL/dO and writes dL/dx, and little else moves.

Tensors are flattened to [T, M] in the order of their memory (see `plan`), so that one compiled function serves every
shape. Long sequences are taken in chunks, which write into slices of one result.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from onespike.kernels.compiled import compiled
from onespike.kernels.plan import Plan, Signature, require_finite

MAX_UNROLLED = 10
"""Steps in one compiled function, whose loop over time is unrolled. More of them compile slowly, and read and write so many
places at once that caches no longer hold them: 20 steps backward in one function take twice as long as in two of 10."""

SUMS_INSIDE_FROM = 2**13
"""The M from which a loop also adds up over all neurons, in a fixed order, and so writes less. Up to 4096 inductor would
generate other sums, which are not worth a second compilation, and on a GPU torch sums better."""


class InductorPlan(Plan):
    """The neuron in two compiled loops; for at least one neuron."""

    backend = "inductor"

    def __init__(self, signature: Signature) -> None:
        super().__init__(signature)
        self.chunks = chunks(self.steps)
        self.programs: dict[Any, Callable] = {}

    def forward(
        self, x_seq: Tensor, leak: Tensor, v_threshold: Tensor, v: Tensor | None, fired: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        trace, keep_state, single_spike = self.signature.trace, self.signature.keep_state, self.switches.single_spike
        flat_x, parameters, state = self.flat(self.laid(x_seq)), self.parameters(leak, v_threshold), self.state(v, fired)
        on_cpu, total = self.device.type == "cpu", None
        if len(self.chunks) == 1:
            sums = on_cpu and self.neurons >= SUMS_INSIDE_FROM
            kept = keep_state or (on_cpu and not sums)
            s_seq, v_seq, *state, total = self.run(
                forward_steps, flat_x, *parameters, *state, None, None, single_spike, True, trace, kept, sums, not on_cpu
            )
        else:
            s_seq = torch.empty_like(flat_x)
            v_seq = torch.empty_like(flat_x, dtype=self.state_dtype) if trace else None
            for steps in self.chunks:
                results = s_seq[steps].unbind(), None if v_seq is None else v_seq[steps].unbind()
                _, _, *state, _ = self.run(
                    forward_steps,
                    flat_x[steps],
                    *parameters,
                    *state,
                    *results,
                    single_spike,
                    True,
                    trace,
                    True,
                    False,
                    not on_cpu,
                )
        if on_cpu:
            require_finite(state[0], total)
        v_last, fired_last = state if keep_state else (None, None)
        return (
            self.result(self.shaped(s_seq)),
            self.shaped(v_last),
            None if fired_last is None else self.shaped(fired_last).view(torch.bool),
            self.result(self.shaped(v_seq)),
        )

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
        switches = self.switches
        flat_x, parameters = self.flat(self.laid(x_seq)), self.parameters(leak, v_threshold)
        grad_s = torch.zeros_like(flat_x) if grad_s_seq is None else self.flat(self.laid(grad_s_seq))
        grad_trace = self.flat(self.laid(grad_v_seq))
        carried: Any = self.flat(self.laid(grad_v))
        height = self.height(parameters[1])
        sums_inside = not self.per_neuron and self.device.type == "cpu" and self.neurons >= SUMS_INSIDE_FROM
        options = switches.grad_after_spike, switches.temporal_gradient, sums_inside

        states: list[Any] = [self.state(v, fired)]
        for steps in self.chunks[:-1]:
            _, _, *after, _ = self.run(
                forward_steps, flat_x[steps], *parameters, *states[-1], None, None, True, False, False, True, False, False
            )
            states.append(after)
        whole = len(self.chunks) == 1
        grad_x, totals = None if whole else torch.empty_like(flat_x), []
        for steps, state in reversed(list(zip(self.chunks, states, strict=True))):
            of_trace = None if grad_trace is None else grad_trace[steps]
            tensors = (flat_x, grad_s) if whole else (flat_x[steps], grad_s[steps])
            out = None if grad_x is None else grad_x[steps].unbind()
            found, carried, *sums = self.run(
                backward_steps, *tensors, of_trace, *parameters, *state, carried, height, out, *options
            )
            totals.append(sums)
        of_leak, of_threshold = (total(list(parts), self.per_neuron) for parts in zip(*totals, strict=True))
        return (
            self.result(self.shaped(found if grad_x is None else grad_x)),
            self.gradient(of_leak, leak),
            self.gradient(of_threshold, v_threshold),
            None if v is None else self.shaped(carried),
        )

    def parameters(self, leak: Tensor, v_threshold: Tensor) -> tuple[Tensor, Tensor]:
        """Return both parameters, each 0-d or each [M]."""
        return self.parameter(leak), self.parameter(v_threshold)

    def state(self, v: Tensor | None, fired: Tensor | None) -> tuple[Any, Any]:
        """Return the state as [M]; no state stays None unless there are more chunks, which all shall run the same function."""
        if v is not None and fired is not None:
            return self.flat(self.laid(v)), self.flat(self.laid(fired)).view(torch.uint8)
        if len(self.chunks) == 1:
            return None, None
        start = torch.zeros(self.neurons, dtype=self.state_dtype, device=self.device)
        return start, torch.zeros_like(start, dtype=torch.uint8)

    def run(self, body: Callable, *arguments: Any) -> Any:
        """Call `body`, compiled for arguments of these kinds, which a plan fixes but for their presence and length."""
        threads = torch.get_num_threads()
        key = body, threads, len(arguments[0]), *[argument is None for argument in arguments]
        program = self.programs.get(key)
        if program is None:
            found = compiled(body, threads, arguments)
            program = self.programs[key] = found.unguarded(self.neurons) or found
        return program(*arguments)


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


def chunks(steps: int) -> list[slice]:
    """Cut so many steps into runs of nearly equal length, none above `MAX_UNROLLED`."""
    count = math.ceil(steps / MAX_UNROLLED)
    bounds = [steps * i // count for i in range(count + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(bounds)]


def total(parts: list[Tensor], per_neuron: bool) -> Tensor:
    """Sum the gradients of the chunks, each 0-d or [M], over the neurons too unless they have parameters of their own."""
    summed = functools.reduce(torch.add, parts)
    return summed if per_neuron or summed.dim() == 0 else summed.sum()
