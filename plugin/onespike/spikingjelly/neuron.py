"""The single-spike LIF neuron as a SpikingJelly node."""

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from spikingjelly.activation_based import base, neuron
from torch import Tensor, nn

from onespike.functional.backends import BACKENDS, check_backend
from onespike.functional.checks import as_number, check_floating, check_positive, check_T, is_exported, shown
from onespike.functional.lif import LIFState, Switches, lif
from onespike.functional.projection import Projected
from onespike.functional.sequences import Remembered
from onespike.kernels.reference import state_dtype
from onespike.spikingjelly.memory import CopyableMemory, detached

SWAP = "or give the host's neuron and exchange it by to_single_spike(net)"
REMEDIES = {
    "surrogate_function": f"its surrogate is the triangle of height gamma, so leave it out, {SWAP}",
    "detach_reset": f"its reset is detached, so leave it out, {SWAP}",
    "v_reset": f"its reset subtracts the threshold, so leave it out, {SWAP}",
    "tau": f"give leak=1 - 1 / tau, {SWAP}",
    "init_tau": f"give leak=1 - 1 / init_tau, {SWAP}",
    "decay_input": f"its input does not decay; for decay_input=True give v_threshold times tau, {SWAP}",
}
"""What to do about each argument of the host's neurons that this one does not have."""
ALWAYS = {"detach_reset": True, "v_reset": None, "decay_input": False}
"""Their values that it has in any case."""


class SingleSpikeLIFNode(Projected, CopyableMemory, neuron.BaseNode):
    """LIF node that fires at most once per sequence, with trainable leak and threshold (eqs. 6-8, 19-23).

    Equations:
        U^t = leak * U^{t-1} + x^t - V * 1[U^{t-1} > V]
        O^t = 1 if U^t > V and no earlier U^s > V, else 0

    The state is `v` (U, float32) and `fired`; `reset_net` clears both, and must be called between sequences. After each
    optimizer step call `project_()` (or `project_net(net)`), which keeps 0 <= leak <= 1 and v_threshold above a thousandth of
    the one given. Give neither parameter weight decay.

    Args:
        leak: initial factor by which U decays in a step, in [0, 1]. (SpikingJelly's 1 - 1 / tau.)
        v_threshold: initial firing threshold V > 0, in the unit of U.
        learn_leak: train the leak.
        learn_threshold: train the threshold.
        gamma: height of the triangular surrogate gradient.
        single_spike: at most one spike per neuron; False emits a spike at every crossing.
        grad_after_spike: keep the surrogate gradient after the first spike.
        temporal_gradient: back-propagate through time.
        per_channel: number of channels C for a leak and a threshold per channel of x [N, C, *]; None for one per layer.
        step_mode: "m" for x [T, N, *], "s" for x [N, *].
        backend: "auto", "torch", "inductor", "cupy" or "triton".
        store_v_seq: keep the membrane trace of the sequence as `v_seq`, [T, N, *].

    Attributes:
        leak, v_threshold: parameters, 0-d or [C].
        threshold_floor: what `project_` keeps v_threshold above, 0-d: a thousandth of the one given.
        v, fired: the state, [N, *]; 0.0 and False after a reset.
        keep_state: whether step mode "m" goes on from the state and keeps it. False starts every call from U = 0, not fired,
            and leaves the state alone, which saves its time and memory: for networks that are reset before each sequence.

    Raises:
        ValueError: an argument leaves its range, or, at the forward pass, the batch or layer size changed without a reset.
        TypeError: an argument is unknown; for those of the host's neurons the message says what stands in their place.
    """

    leak: nn.Parameter
    v_threshold: nn.Parameter
    v: Tensor | float
    fired: Tensor | bool
    v_reset = None  # as the host says that a reset is soft
    detach_reset = True
    keep_state = True

    def __init__(
        self,
        leak: float = 1.0,
        v_threshold: float = 1.0,
        *,
        learn_leak: bool = True,
        learn_threshold: bool = True,
        gamma: float = 0.3,
        single_spike: bool = True,
        grad_after_spike: bool = True,
        temporal_gradient: bool = True,
        per_channel: int | None = None,
        step_mode: str = "m",
        backend: str = "auto",
        store_v_seq: bool = False,
        **others: Any,
    ) -> None:
        refuse_others(others)
        # A BaseNode for those parts of the host that ask for one, but nothing of it is used: its parameters are numbers.
        base.MemoryModule.__init__(self)
        leak, v_threshold = as_number("leak", leak), as_number("v_threshold", v_threshold)
        if not 0 <= leak <= 1:
            raise ValueError(f"leak must be in [0, 1], got {leak}")
        check_positive("v_threshold", v_threshold)
        check_positive("gamma", gamma)
        if per_channel is not None:
            per_channel = check_T(per_channel, name="per_channel")
        shape = () if per_channel is None else (per_channel,)
        self.leak = nn.Parameter(torch.full(shape, leak), requires_grad=learn_leak)
        self.v_threshold = nn.Parameter(torch.full(shape, v_threshold), requires_grad=learn_threshold)
        self.set_floor(v_threshold)
        self.gamma = float(gamma)
        self.single_spike = single_spike
        self.grad_after_spike = grad_after_spike
        self.temporal_gradient = temporal_gradient
        self.per_channel = per_channel
        self.step_mode = step_mode
        self.backend = backend
        self.store_v_seq = store_v_seq
        self.remembered = Remembered()
        self.register_memory("v", 0.0)  # first: the host's monitors and v_seq read the first memory
        self.register_memory("fired", False)

    @property
    def supported_backends(self) -> tuple[str, ...]:
        """Names that `backend` accepts; whether one runs here, `onespike.functional.why_unavailable` tells."""
        return ("auto", *BACKENDS)

    @property
    def backend(self) -> str:
        """The implementation that runs the node; a named one never falls back to another."""
        return self._backend

    @backend.setter
    def backend(self, value: str) -> None:
        check_backend(value)
        self._backend = value

    @property
    def store_v_seq(self) -> bool:
        """Whether the membrane trace is kept as `v_seq`."""
        return self._store_v_seq

    @store_v_seq.setter
    def store_v_seq(self, value: bool) -> None:
        self._store_v_seq = value
        self.v_seq: Tensor | None = None

    def reset(self) -> None:
        """Return to U = 0, not fired, before a new sequence."""
        super().reset()
        self.v_seq = None

    def detach(self) -> None:
        """Cut the state and the stored trace off their graph, for truncated back-propagation."""
        super().detach()
        self.v_seq = detached(self.v_seq)

    def materialize_states(self, *arguments: Any) -> Any:
        """SpikingJelly 2's preparation of the explicit-state form; BaseNode's own would replace a state of another batch."""
        return base.MemoryModule.materialize_states(self, *arguments)

    def multi_step_forward(self, x_seq: Tensor) -> Tensor:
        """Map currents [T, N, *] to spikes [T, N, *], going on from the stored state if it is kept."""
        memories, trace = self._memories, self.store_v_seq  # not as attributes: each look at one costs as much as an operator
        if is_exported():
            return self._exported(x_seq)
        if self.keep_state:
            states = memories["v"], memories["fired"]
            s_seq, memories["v"], memories["fired"], v_seq = self._run(x_seq, states, trace=trace)
            if self.single_spike and not torch.compiler.is_compiling():
                self.remembered.go_on(states[1], "functional.reset_net(net)", len(x_seq))
        else:
            s_seq, _, _, v_seq = self._run(x_seq, None, keep_state=False, trace=trace)
        if trace:
            self.v_seq = v_seq
        return s_seq

    def _exported(self, x_seq: Tensor) -> Tensor:
        """Map currents to spikes in a program that torch.export records: it has no place for a state between calls."""
        v, fired = self._memories["v"], self._memories["fired"]
        if isinstance(v, Tensor) or fired is None:
            raise RuntimeError(
                "the state must be clear where torch.export records a sequence, got that of an earlier call, which would be "
                'part of the program: call reset_net before the export, and between calls in step mode "m"'
            )
        if self.keep_state:
            self._memories["fired"] = None  # as False, but not for another call before a reset
        return self._run(x_seq, (v, fired), keep_state=False)[0]

    def single_step_forward(self, x: Tensor) -> Tensor:
        """Map the currents of one step [N, *] to its spikes [N, *]."""
        check_floating("x", x, 1, "[N, *]")
        s_seq, self.v, self.fired, v_seq = self._run(x.unsqueeze(0), (self.v, self.fired), trace=self.store_v_seq)
        if self.store_v_seq:
            self.v_seq = v_seq if self.v_seq is None else torch.cat([self.v_seq, v_seq])
        return s_seq[0]

    def multi_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...]
    ) -> tuple[tuple[Tensor], tuple[Tensor, Tensor]]:
        """SpikingJelly 2's explicit-state form: ((x_seq,), (v, fired)) -> ((s_seq,), (v, fired)); changes nothing."""
        s_seq, v, fired, _ = self._run(inputs[0], states)
        return (s_seq,), (v, fired)

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...]
    ) -> tuple[tuple[Tensor], tuple[Tensor, Tensor]]:
        """One step of the explicit-state form: ((x,), (v, fired)) -> ((s,), (v, fired)); changes nothing."""
        s_seq, v, fired, _ = self._run(inputs[0].unsqueeze(0), states)
        return (s_seq[0],), (v, fired)

    def _run(
        self, x_seq: Tensor, states: tuple[Any, ...] | None, *, keep_state: bool = True, trace: bool = False
    ) -> tuple[Tensor, Any, Any, Any]:
        leak: Any = self._parameters.get("leak")
        v_threshold: Any = self._parameters.get("v_threshold")
        leak = self.leak if leak is None else leak  # under a parametrisation it is an attribute
        v_threshold = self.v_threshold if v_threshold is None else v_threshold
        if self.per_channel is not None:
            check_floating("x_seq", x_seq, 3, "[T, N, C, *] for per_channel")
            trailing = [1] * (x_seq.dim() - 3)
            leak, v_threshold = leak.view(-1, *trailing), v_threshold.view(-1, *trailing)
        switches = Switches(self.gamma, self.single_spike, self.grad_after_spike, self.temporal_gradient)
        state = None if states is None else state_of(x_seq, *states)
        return lif(x_seq, leak, v_threshold, state, switches, self.backend, keep_state=keep_state, trace=trace)

    def __getattr__(self, name: str) -> Any:
        """Find plain attributes too: SpikingJelly 0.0.0.0.14's AttributeMonitor calls this method for `v_seq`."""
        return self.__dict__[name] if name in self.__dict__ else super().__getattr__(name)

    def extra_repr(self) -> str:
        values = [
            f"{name}={shown(parameter)}" if self.per_channel is None else f"{name}=[{self.per_channel}]"
            for name, parameter in (("leak", self.leak), ("v_threshold", self.v_threshold))
        ]
        return ", ".join(
            [*values, f"single_spike={self.single_spike}", f"step_mode={self.step_mode}", f"backend={self.backend}"]
        )


def refuse_others(others: Mapping[str, Any]) -> None:
    """Raise a TypeError for the host's arguments, unless they ask for what is so in any case, and for unknown ones."""
    for name, value in others.items():
        if name in ALWAYS and value is ALWAYS[name]:
            continue
        known = tuple(inspect.signature(SingleSpikeLIFNode).parameters)[:-1]
        near = difflib.get_close_matches(name, known, n=1)
        remedy = REMEDIES.get(name, f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}")
        raise TypeError(f"SingleSpikeLIFNode takes no {name}, got {name}={value!r}: {remedy}")


def state_of(x_seq: Tensor, v: Tensor | float, fired: Tensor | bool) -> LIFState | None:
    """Make a state for `x_seq` of the node's memories, which are numbers after a reset; None if it is U = 0, not fired."""
    if isinstance(v, Tensor) and isinstance(fired, Tensor):
        return LIFState(v, fired)
    if not isinstance(v, Tensor) and not isinstance(fired, Tensor) and not v and not fired:
        return None
    check_floating("x_seq", x_seq, 2, "[T, N, *]")
    return LIFState(
        v if isinstance(v, Tensor) else torch.full_like(x_seq[0], v, dtype=state_dtype(x_seq.dtype)),
        fired if isinstance(fired, Tensor) else torch.full_like(x_seq[0], fired, dtype=torch.bool),
    )
