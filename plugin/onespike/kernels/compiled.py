"""Functions of flat tensors, [T, M] and [M], that inductor compiles once for any M."""

import functools
import logging
import threading
import time
import types
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._guards import TracingContext
from torch._inductor import config
from torch._inductor.compile_fx import compile_fx

LOG = logging.getLogger("onespike")

EXAMPLE_SIZE = 2**15
"""The M of the example on which each function is compiled; any other runs the same code."""

COMPILING = threading.RLock()
"""Held while a function is compiled: torch's compiler takes its time for that of all threads."""


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


def compiled(body: Callable[..., Any], threads: int, arguments: tuple[Any, ...]) -> "Program":
    """Compile `body` for arguments of these kinds, any M, and the number of threads, which inductor writes into the code."""
    with COMPILING:
        return program(body, threads, *map(kind_of, arguments))


@functools.cache
def program(body: Callable[..., Any], threads: int, *kinds: Any) -> "Program":
    """Return the one program for all calls alike, and log what is compiled and how long it takes."""
    of = kinds[0]
    what = f"{body.__name__} of {'x'.join(map(str, (*(of.steps or ()), 'M')))} {of.dtype} on {of.device}, {threads} threads"
    LOG.info("compiling %s, which takes seconds where torch's cache on disk does not hold it", what)
    start = time.perf_counter()
    made = Program(body, kinds)
    LOG.info("compiled %s in %.1f s", what, time.perf_counter() - start)
    return made


def try_compiler(device: torch.device) -> None:
    """Compile and run the smallest function; raise whatever the compiler raises."""
    compiled(next_number, torch.get_num_threads(), (torch.zeros(1, device=device),))


def next_number(x: Tensor) -> tuple[Tensor]:
    """Return x + 1."""
    return (x + 1,)


class Program:
    """A function compiled on an example of its arguments, so that its code does not hang on the size that came first.

    It has a code object of its own, because dynamo counts recompilations, up to a limit, per code object.
    """

    def __init__(self, body: Callable[..., Any], kinds: tuple[Any, ...]) -> None:
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

    def lower(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
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

    def unguarded(self, neurons: int) -> Callable[..., Any] | None:
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


def without_modes(function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
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
