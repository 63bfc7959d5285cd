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
import threading
import types
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._guards import TracingContext
from torch._inductor import config
from torch._inductor.compile_fx import compile_fx

from onespike.kernels.plan import Plan, Signature

MAX_UNROLLED = 10
"""Steps in one compiled function, whose loop over time is unrolled. More of them compile slowly, and read and write so many
places at once that caches no longer hold them: 20 steps backward in one function take twice as long as in two of 10."""

EXAMPLE_SIZE = 2**15
"""The M of the example on which each function is compiled; any other runs the same code."""

SUMS_INSIDE_FROM = 2**13
"""The M from which a loop also adds up over all neurons, in a fixed order, and so writes less. Up to 4096 inductor would
generate other sums, which are not worth a second compilation, and on a GPU torch sums better."""


COMPILING = threading.RLock()
"""Held while a function is compiled: torch's compiler takes its time for that of all threads."""


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
        if len(self.chunks) == 1:
            s_seq, v_seq, *state = self.run(
                forward_steps, flat_x, *parameters, *state, None, None, single_spike, True, trace, keep_state
            )
        else:
            s_seq = torch.empty_like(flat_x)
            v_seq = torch.empty_like(flat_x, dtype=self.state_dtype) if trace else None
            for steps in self.chunks:
                results = s_seq[steps].unbind(), None if v_seq is None else v_seq[steps].unbind()
                _, _, *state = self.run(
                    forward_steps, flat_x[steps], *parameters, *state, *results, single_spike, True, trace, True
                )
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
            _, _, *after = self.run(
                forward_steps, flat_x[steps], *parameters, *states[-1], None, None, True, False, False, True
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
        key = body, torch.get_num_threads(), len(arguments[0]), *[argument is None for argument in arguments]
        program = self.programs.get(key)
        if program is None:
            with COMPILING:
                program = compiled(body, key[1], *map(kind_of, arguments))
            program = self.programs[key] = program.unguarded(self.neurons) or program
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
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Run the steps of x_seq [T, M].

    `fired` is uint8, and whether a neuron still waits to fire is a 0 or 1 in the dtype of v: inductor's vectorised loops
    store bools so slowly that this would double the time.

    Returns:
        Spikes and potentials [T, M], if asked for and not to be written to `s_steps` and `v_steps`, [M] a step; the last v and
        fired [M], if asked for.
    """
    waiting = torch.ones_like(x_seq[0], dtype=leak.dtype) if fired is None else 1 - fired.to(leak.dtype)
    emitted, potentials = [], []
    for x in x_seq.unbind():
        v = charge(v, x.to(leak.dtype), leak, v_threshold)
        above = v > v_threshold
        emitted.append((torch.where(above, waiting, 0.0) if single_spike else above).to(x_seq.dtype))
        potentials.append(v)
        waiting = torch.where(above, 0.0, waiting)
    return (
        handed_over(emitted, s_steps) if spikes else None,
        handed_over(potentials, v_steps) if trace else None,
        v if keep_state else None,
        (1 - waiting).to(torch.uint8) if keep_state else None,
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


class Kind(NamedTuple):
    """What a compiled function may rely on in a tensor argument: everything but M."""

    dtype: torch.dtype
    device: torch.device
    steps: tuple[int, ...] | None  # the sizes before M; None for 0-d

    def example(self) -> Tensor:
        """Make a tensor of this kind with a typical M."""
        shape = () if self.steps is None else (*self.steps, EXAMPLE_SIZE)
        example = torch.ones(shape, dtype=self.dtype, device=self.device)
        example._dynamo_static_indices = set(range(len(shape) - 1))  # type: ignore[attr-defined]
        return example


class Slices(NamedTuple):
    """The kind of a tuple of tensors [M], which are the steps of one tensor [T, M]."""

    whole: Kind

    def example(self) -> tuple[Tensor, ...]:
        """Make such a tuple with a typical M."""
        return tuple(step.data for step in self.whole.example().unbind())


def kind_of(argument: Any) -> Any:
    """Return the kind of a tensor or of a tuple of them, and any other argument itself."""
    if isinstance(argument, Tensor):
        return Kind(argument.dtype, argument.device, argument.shape[:-1] if argument.dim() else None)
    if isinstance(argument, tuple):
        return Slices(Kind(argument[0].dtype, argument[0].device, (len(argument),)))
    return argument


def bare(argument: Any) -> Any:
    """Strip a tensor, or each of a tuple, of its part in autograd; `data`, unlike `detach`, is no view."""
    if isinstance(argument, tuple):
        return tuple(map(bare, argument))
    return argument.data if isinstance(argument, Tensor) else argument


@functools.cache
def compiled(body: Callable, threads: int, *kinds: Any) -> "Program":  # noqa: ARG001
    """Compile `body` for these kinds of arguments, any M, and the number of threads, which inductor writes into the code."""
    return Program(body, kinds)


class Program:
    """A function compiled on an example of its arguments, so that its code does not hang on the size that came first.

    It has a code object of its own, because dynamo counts recompilations, up to a limit, per code object.
    """

    def __init__(self, body: Callable, kinds: tuple[Any, ...]) -> None:
        own = types.FunctionType(body.__code__.replace(), body.__globals__, body.__name__)
        self.function = torch.compile(own, dynamic=True, fullgraph=True, backend=self.lower)
        self.loop: Any = None
        self.conditions: list[Any] = []
        self.seen: list[tuple[Any, Any]] = []  # what the loop took and gave for the example
        example = [kind.example() if isinstance(kind, Kind | Slices) else kind for kind in kinds]
        results = without_modes(self.function, example)
        taken, given = self.seen.pop() if self.seen else ((), ())  # nothing where dynamo is switched off
        # Inductor's function takes the tensors in an order of its own, and M where it needs it; None stands for that.
        self.reads = [None if isinstance(value, int) else place(value, example) for value in taken]
        self.writes = [None if result is None else place(result, given) for result in results]
        sizes_are_M = all(value == EXAMPLE_SIZE for value in taken if isinstance(value, int))
        self.is_plain = sizes_are_M and -1 not in (*self.reads, *self.writes)

    def __call__(self, *arguments: Any) -> Any:
        """Run it, after dynamo has looked whether it suits these arguments, and compiled it once more if not."""
        # Dynamo guards on whether a tensor requires grad or is a view, and on these modes: left as they come, each combination
        # would compile the same code again.
        return without_modes(self.function, [bare(argument) for argument in arguments])

    def lower(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable:
        """Compile what dynamo traced, and note what the first function takes, gives and relies on."""
        loop: Any = compile_fx(graph, inputs, config_patches=compiler_options())
        if self.loop is not None:
            return loop
        self.loop = loop
        context: Any = TracingContext.get()
        self.conditions = [guard.expr for guard in context.fake_mode.shape_env.guards]

        def watched(*taken: Any) -> Any:
            given = loop(*taken)
            if not hasattr(self, "is_plain"):
                self.seen.append((taken, given))
            return given

        return watched

    def unguarded(self, neurons: int) -> Callable | None:
        """Return the function without dynamo's look at the arguments, a third of a small layer's time, if it suits M neurons.

        The caller answers for the arguments' kinds. Functions that write into slices have more sizes than M, and keep the look.
        """
        loop, reads, writes = self.loop, self.reads, self.writes
        if not self.is_plain or neurons < 2 or not all(holds(condition, neurons) for condition in self.conditions):
            return None

        def run(*arguments: Any) -> list[Tensor | None]:
            results = loop(*[neurons if at is None else arguments[at] for at in reads])
            return [None if at is None else results[at] for at in writes]

        return run


def without_modes(function: Callable, arguments: Sequence[Any]) -> Any:
    """Call `function` without gradients and autocast."""
    with torch.no_grad(), torch.autocast(arguments[0].device.type, enabled=False):
        return function(*arguments)


def place(value: Any, among: Sequence[Any]) -> int:
    """Return where `value` itself, not its like, is found; -1 if nowhere."""
    return next((at for at, other in enumerate(among) if other is value), -1)


def holds(condition: Any, neurons: int) -> bool:
    """Whether a condition on sizes, in which all symbols stand for M, is true of so many neurons."""
    return condition.subs(dict.fromkeys(condition.free_symbols, neurons)) == True  # noqa: E712, it is SymPy's truth


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


def total(parts: list[Tensor], per_neuron: bool) -> Tensor:
    """Sum the gradients of the chunks, each 0-d or [M], over the neurons too unless they have parameters of their own."""
    summed = functools.reduce(torch.add, parts)
    return summed if per_neuron or summed.dim() == 0 else summed.sum()
