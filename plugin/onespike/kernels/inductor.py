"""The "inductor" backend: the forward and the hand-written backward of `steps`, each compiled into one fused loop.

The compiler may not contract a multiplication and an addition into one rounding, so spikes and membrane potentials are
bit-identical to those of `onespike.kernels.eager`. Only the input is kept for the backward pass, which computes the membrane
potentials again in registers: per element the forward pass reads x and writes O, the backward pass reads x and dL/dO and
writes dL/dx, and little else moves.

Tensors are flattened to [T, M] in the order of their memory (see `plan`), so that one compiled function serves every
shape. Long sequences are taken in chunks, which write into slices of one result.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from onespike.kernels.compiled import compiled
from onespike.kernels.plan import Plan, Signature, require_finite
from onespike.kernels.steps import backward_steps, forward_steps

LONGEST_WHOLE = 11
"""Steps in one compiled function, whose loop over time is unrolled. More of them compile slowly, and read and write so many
places at once that caches no longer hold them: 20 steps backward in one function take twice as long as in two of 10."""

CHUNK = 8
FIRST_CHUNKS = ((), (4, 5), (5, 5), (4, 5, 5, 5), (4,), (5,), (4, 5, 5), (5, 5, 5))
"""Longer sequences run in chunks of 8 steps after these, by the remainder of T / 8: functions for three lengths serve any T."""

SUMS_INSIDE_FROM = 2**13
"""The M from which a loop also adds up over all neurons, in a fixed order, and so writes less. Up to 4096 inductor would
generate other sums, which are not worth a second compilation, and on a GPU torch sums better."""


class InductorPlan(Plan):
    """The neuron in two compiled loops; for at least one neuron."""

    backend = "inductor"

    def __init__(self, signature: Signature) -> None:
        super().__init__(signature)
        self.chunks = chunks(self.steps)
        self.programs: dict[Any, Callable[..., Any]] = {}

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
        if carried is None and len(self.chunks) > 1:  # as with the state: all chunks shall run the same function
            carried = torch.zeros(self.neurons, dtype=self.state_dtype, device=self.device)
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

    def run(self, body: Callable[..., Any], *arguments: Any) -> Any:
        """Call `body`, compiled for arguments of these kinds, which a plan fixes but for their presence and length."""
        threads = torch.get_num_threads()
        key = body, threads, len(arguments[0]), *[argument is None for argument in arguments]
        program = self.programs.get(key)
        if program is None:
            found = compiled(body, threads, arguments)
            program = self.programs[key] = found.unguarded(self.neurons) or found
        return program(*arguments)


def chunks(steps: int) -> list[slice]:
    """Cut so many steps into chunks; the backward pass computes all but the last again, so the short ones come first."""
    lengths = (steps,)
    if steps > LONGEST_WHOLE:
        first = FIRST_CHUNKS[steps % CHUNK]
        lengths = (*first, *[CHUNK] * ((steps - sum(first)) // CHUNK))
    return [slice(start, stop) for start, stop in itertools.pairwise(itertools.accumulate(lengths, initial=0))]


def total(parts: list[Tensor], per_neuron: bool) -> Tensor:
    """Sum the gradients of the chunks, each 0-d or [M], over the neurons too unless they have parameters of their own."""
    summed = functools.reduce(torch.add, parts)
    return summed if per_neuron or summed.dim() == 0 else summed.sum()
