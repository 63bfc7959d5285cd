"""The single-spike LIF neuron as a snnTorch neuron."""

import copy
import warnings
from typing import Any, Self

import snntorch
import torch
from snntorch import utils
from torch import Tensor, nn

from onespike.functional.backends import check_backend
from onespike.functional.checks import as_number, check_positive, is_exported, shown
from onespike.functional.lif import LIFState, Switches, lif
from onespike.functional.projection import Projected
from onespike.functional.sequences import Remembered

RESET = "call fired, mem = node.reset_mem() for its two states, or onespike.snntorch.reset(net) for all neurons of a network"
MISSED = {
    **dict.fromkeys(("init_leaky", "init_lapicque", "init_synaptic", "init_alpha", "reset_hidden"), RESET),
    "detach_hidden": "pass fired and mem.detach() to the next step, or set node.mem = node.mem.detach() with init_hidden",
}
"""What to do about what the host's neurons have and this one has not."""


class Mark:
    """Stands where `snntorch.utils.reset` writes, until it is called."""


def mark_of_host() -> Mark:
    """Return a mark that is another one after each call of `snntorch.utils.reset`, which passes over neurons not its own.

    The host's function notes in its module which kinds of neurons it found, and reads that at once. So what was put there is
    gone when it has been called.
    """
    mark = getattr(utils, "is_leaky", None)
    if not isinstance(mark, Mark):
        mark = utils.is_leaky = Mark()
    return mark


class SingleSpikeLeaky(Projected, snntorch.SpikingNeuron):
    """snnTorch's `Leaky` that fires at most once per sequence, with trainable beta and threshold (eqs. 6-8, 19-23).

    Equations:
        mem^t = beta * mem^{t-1} + x^t - threshold * 1[mem^{t-1} > threshold]
        spk^t = 1 if mem^t > threshold and no earlier mem^s > threshold, else 0

    The potential is that of `Leaky` with `reset_mechanism="subtract"`; whether a neuron has fired is the second state. As
    with every snnTorch neuron there are three ways to run it:

        fired, mem = node.reset_mem()              # step by step, the state in your hands
        for x in x_seq:
            spk, fired, mem = node(x, fired, mem)

        node = SingleSpikeLeaky(init_hidden=True)  # step by step, the state inside: spk = node(x)
        spk, mem = node.sequence(x_seq)            # all of [T, B, ...] at once, no state kept: the fast way

    Between sequences call `reset(net)` of this module, or `reset_mem()` of each node. `snntorch.utils.reset` works too, outside
    of `torch.compile`: as with the host's neurons, those of all networks forget their state, here at their next step. The
    host's `backprop.BPTT` and its like want one of the host's neurons last. After each optimizer step call `project_()`. Give
    neither parameter weight decay.

    Args:
        beta: initial leak, the factor by which mem decays in a step, in [0, 1].
        threshold: initial firing threshold > 0, in the unit of mem.
        learn_beta: make `beta` a parameter; a buffer otherwise.
        learn_threshold: make `threshold` a parameter; a buffer otherwise.
        init_hidden: keep the state inside; a call then takes x alone and returns spk.
        output: with `init_hidden`, return (spk, fired, mem) all the same, as the last layer does in `nn.Sequential`.
        gamma: height of the triangular surrogate gradient.
        single_spike: at most one spike per neuron; False emits a spike at every crossing.
        grad_after_spike: keep the surrogate gradient after the first spike.
        temporal_gradient: back-propagate through time.
        backend: "auto", "torch", "inductor", "cupy" or "triton"; see `onespike.functional.why_unavailable`.

    Attributes:
        beta, threshold: 0-d.
        threshold_floor: what `project_` keeps the threshold above, 0-d: a thousandth of the one given.
        fired, mem: the state if `init_hidden`, [B, ...]; of shape [0] before the first step.

    Raises:
        ValueError: an argument leaves its range, or, at a call, the batch or layer size changed without a reset.
        TypeError: the state is passed although it is kept inside, or only half of it is passed.
    """

    beta: Tensor
    threshold: Tensor
    fired: Tensor
    mem: Tensor

    def __init__(
        self,
        beta: float = 1.0,
        threshold: float = 1.0,
        learn_beta: bool = True,
        learn_threshold: bool = True,
        init_hidden: bool = False,
        output: bool = False,
        *,
        gamma: float = 0.3,
        single_spike: bool = True,
        grad_after_spike: bool = True,
        temporal_gradient: bool = True,
        backend: str = "auto",
    ) -> None:
        beta, threshold = as_number("beta", beta), as_number("threshold", threshold)
        if not 0 <= beta <= 1:
            raise ValueError(f"beta must be in [0, 1], got {beta}")
        check_positive("threshold", threshold)
        check_positive("gamma", gamma)
        check_backend(backend)
        # The surrogate is the fused core's own; the host's default one could not be pickled.
        super().__init__(threshold, None, True, init_hidden, learn_threshold=learn_threshold, output=output)
        snntorch.SpikingNeuron.instances.remove(self)  # the host's list keeps every neuron alive, and serves others only
        if learn_beta:
            self.beta = nn.Parameter(torch.tensor(beta))
        else:
            self.register_buffer("beta", torch.tensor(beta))
        self.set_floor(threshold)
        self.gamma = gamma
        self.single_spike = single_spike
        self.grad_after_spike = grad_after_spike
        self.temporal_gradient = temporal_gradient
        self.backend = backend
        self.remembered = Remembered()
        self.mark: Mark | None = None
        self.register_buffer("fired", torch.zeros(0, dtype=torch.bool), persistent=False)
        self.register_buffer("mem", torch.zeros(0), persistent=False)

    def reset_mem(self) -> tuple[Tensor, Tensor]:
        """Forget the state, and return the one to start with: (fired, mem), each of shape [0]."""
        self.fired = self.fired.new_zeros(0)
        self.mem = self.mem.new_zeros(0).detach()
        return self.fired, self.mem

    def __getattr__(self, name: str) -> Any:
        """Name what stands in the place of a `Leaky`'s method that is missed."""
        if name in MISSED:
            raise AttributeError(f"SingleSpikeLeaky has no {name}: {MISSED[name]}")
        return super().__getattr__(name)

    def reset(self) -> None:
        """Forget the state: what SpikingJelly's `reset_net` calls."""
        self.reset_mem()

    @property
    def step_mode(self) -> str:
        """Always "s", SpikingJelly's name for one step a call; for its `set_step_mode` to find."""
        return "s"

    @step_mode.setter
    def step_mode(self, value: str) -> None:
        if value != "s":
            raise ValueError(
                f'step_mode must be "s" for a snnTorch neuron, got {value!r}: use SingleSpikeLIFNode of onespike.spikingjelly '
                "in a SpikingJelly network, or call sequence(x_seq)"
            )

    def forward(
        self, input_: Tensor, fired: Tensor | None = None, mem: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Run one step.

        Args:
            input_: currents, [B, ...].
            fired, mem: what the step before returned, each [B, ...], or what `reset_mem` returned; both None at the first
                step, and always with `init_hidden`.

        Returns:
            (spk, fired, mem), each [B, ...]; spk alone with `init_hidden` and without `output`.
        """
        if not isinstance(input_, Tensor):
            kind = type(input_).__name__
            raise TypeError(f"input_ must be a tensor, got {kind}: take the spikes out of what another neuron returns")
        if self.init_hidden:
            if fired is not None or mem is not None:
                raise TypeError("fired and mem must not be passed with init_hidden=True: the neuron keeps its own state")
            self.follow_the_hosts_reset()
            fired, mem = self.fired, self.mem
        elif (fired is None) != (mem is None):
            missing = "fired" if fired is None else "mem"
            raise TypeError(f"fired and mem must be passed together, got no {missing}: call node(x, fired, mem)")
        state = None
        if fired is not None and mem is not None and not fired.shape == mem.shape == (0,) != input_.shape:
            state = LIFState(mem, fired)
        spk, mem, fired, _ = self._run(input_.unsqueeze(0), state, name="input_")
        if self.init_hidden:
            if self.single_spike and not torch.compiler.is_compiling():
                self.remembered.go_on(state and state.fired, "onespike.snntorch.reset(net)")
            if is_exported():
                warnings.warn(
                    "the state that init_hidden=True keeps is lost between the calls of an exported program: export a loop "
                    "over all the steps, or pass fired and mem",
                    stacklevel=2,
                )
            self.fired, self.mem = fired, mem
            if not self.output:
                return spk[0]
        return spk[0], fired, mem

    def follow_the_hosts_reset(self) -> None:
        """Forget the state if `snntorch.utils.reset` has been called since the last step, for whatever network."""
        if torch.compiler.is_compiling():
            return
        mark = mark_of_host()
        if mark is not self.mark:
            if self.mark is not None:
                self.reset_mem()
            self.mark = mark

    def sequence(self, x_seq: Tensor) -> tuple[Tensor, Tensor]:
        """Map the currents of a whole sequence to spikes and potentials, each [T, B, ...]; the state inside is not touched."""
        spk, _, _, mem = self._run(x_seq, None, keep_state=False, trace=True)
        return spk, mem

    def _run(
        self, x_seq: Tensor, state: LIFState | None, *, keep_state: bool = True, trace: bool = False, name: str = "x_seq"
    ) -> tuple[Tensor, Any, Any, Any]:
        switches = Switches(self.gamma, self.single_spike, self.grad_after_spike, self.temporal_gradient)
        names, options = (name, "beta", "threshold"), {"keep_state": keep_state, "trace": trace}
        return lif(x_seq, self.beta, self.threshold, state, switches, self.backend, names=names, **options)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the graph that computed the state behind: autograd's tensors refuse to be copied."""
        buffers = {name: None if buffer is None else buffer.detach() for name, buffer in self._buffers.items()}
        return self.__dict__ | {"_buffers": buffers, "mark": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy what `__getstate__` leaves: a parametrised neuron would be copied with its graph, or refuse to be."""
        memo[id(self)] = twin = type(self).__new__(type(self))
        twin.__dict__.update(copy.deepcopy(SingleSpikeLeaky.__getstate__(self), memo))
        return twin

    def extra_repr(self) -> str:
        return (
            f"beta={shown(self.beta)}, threshold={shown(self.threshold)}, single_spike={self.single_spike}, "
            f"init_hidden={self.init_hidden}, output={self.output}, backend={self.backend}"
        )


def reset(net: nn.Module) -> None:
    """Clear the state of every neuron of `net` before a new sequence, ours and the host's, however deep, and of no other.

    (`snntorch.utils.reset` looks one level deep, and resets every neuron in the process that is of a kind that it found there.)

    Raises:
        TypeError: `net` holds a SpikingJelly module with state, which would keep it, or a neuron with hidden state and no
            `reset_mem`.
    """
    neurons = []
    for name, module in net.named_modules():
        label = f"{name or 'net'} ({type(module).__name__})"
        bases = [kind.__module__ for kind in type(module).__mro__]
        if "spikingjelly.activation_based.base" in bases and hasattr(module, "reset"):
            raise TypeError(
                f"{label} is a SpikingJelly module, whose state stays: call SpikingJelly's functional.reset_net(net)"
            )
        if isinstance(module, snntorch.SpikingNeuron):
            if hasattr(module, "reset_mem"):
                neurons.append(module)
            elif getattr(module, "init_hidden", False):
                raise TypeError(f"{label} must have reset_mem() to be reset, since it keeps a state (init_hidden=True)")
    for neuron in neurons:
        neuron.reset_mem()
