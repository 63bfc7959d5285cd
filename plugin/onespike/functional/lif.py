"""The leaky integrate-and-fire neuron that fires at most once, as a pure function (eqs. 6-8, 19-23)."""

from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from onespike.functional.backends import KERNELS, check_backend, resolve_backend
from onespike.functional.checks import (
    NotFiniteError,
    broadcasts,
    check_floating,
    check_leak,
    check_positive,
    check_threshold,
    extremes,
    is_exported,
    is_traced,
)
from onespike.functional.records import saved_by_torch
from onespike.kernels.plan import Plan, PotentialError, Signature
from onespike.kernels.plan import Switches as Switches  # noqa: PLC0414  (for the hosts' neurons)
from onespike.kernels.reference import state_dtype
from onespike.kernels.steps import forward_steps

NAMES = "x_seq", "leak", "v_threshold"
"""What errors call them."""


@saved_by_torch
class LIFState(NamedTuple):
    """What a neuron carries from one step to the next.

    Attributes:
        v: membrane potential U, [N, *], float32 (float64 for float64 inputs).
        fired: whether the neuron has crossed its threshold before, [N, *], bool.
    """

    v: Tensor
    fired: Tensor


@saved_by_torch
class SingleSpikeLIFOutput(NamedTuple):
    """Spikes and final state of `single_spike_lif`.

    Attributes:
        s_seq: emitted spikes O^t, 0 or 1, [T, N, *], in the dtype of the input.
        state: the state after the last step, to be fed to the next chunk of the sequence.
    """

    s_seq: Tensor
    state: LIFState


def single_spike_lif(
    x_seq: Tensor,
    leak: Tensor | float,
    v_threshold: Tensor | float,
    *,
    state: LIFState | None = None,
    gamma: float = 0.3,
    single_spike: bool = True,
    grad_after_spike: bool = True,
    temporal_gradient: bool = True,
    backend: str = "auto",
) -> SingleSpikeLIFOutput:
    """Run a layer of single-spike LIF neurons over a sequence of input currents (eqs. 6-8).

    Equations:
        U^t = leak * U^{t-1} + x^t - V * 1[U^{t-1} > V]
        O^t = 1 if U^t > V and no earlier U^s > V, else 0

    After its only spike a neuron goes on integrating and resetting silently, so that its gradient, with the surrogate
    S^t = gamma * max(0, 1 - |U^t / V - 1|) at every step, does not die (eqs. 19-23, back-propagated through time).

    Args:
        x_seq: input currents W O, [T, N, *], floating point. State and sums are kept in float32 for
            float32, bfloat16 and float16 inputs.
        leak: factor by which U decays in a step, in [0, 1]; 0-d, or broadcastable to [N, *] (such as [C, 1, 1]).
        v_threshold: firing threshold V > 0, in the unit of U; 0-d, or broadcastable to [N, *].
        state: what an earlier chunk of the same sequence returned; None starts from U = 0.
        gamma: height of the surrogate gradient (eq. 20).
        single_spike: at most one spike per neuron; False emits a spike at every crossing.
        grad_after_spike: keep the surrogate gradient after the first spike; False masks it, for ablation.
        temporal_gradient: back-propagate through time; False gives eqs. 19, 21 and 23 as printed and no gradient to `state.v`.
        backend: "auto", "torch", "inductor", "cupy" or "triton"; see `why_unavailable`.

    Returns:
        Spikes [T, N, *] and the state after the last step.

    Raises:
        TypeError: `x_seq` is not a floating-point tensor.
        ValueError: a shape does not fit, or, for CPU tensors, `leak` leaves [0, 1], `v_threshold` is not above 0, or a
            potential becomes NaN or infinite. On other devices the spikes of a neuron whose potential is NaN are NaN.
        BackendUnavailableError: the named backend cannot run here.
        RuntimeError: it is differentiated in forward mode, such as by `torch.func.jvp`.
    """
    switches = Switches(gamma, single_spike, grad_after_spike, temporal_gradient)
    s_seq, v, fired, _ = lif(x_seq, leak, v_threshold, state, switches, backend)
    return SingleSpikeLIFOutput(s_seq, LIFState(v, fired))


def lif(
    x_seq: Tensor,
    leak: Tensor | float,
    v_threshold: Tensor | float,
    state: LIFState | None,
    switches: Switches,
    backend: str,
    *,
    keep_state: bool = True,
    trace: bool = False,
    names: tuple[str, str, str] = NAMES,
) -> tuple[Tensor, Any, Any, Any]:
    """Do the work of `single_spike_lif`; return the spikes, the last v and fired if kept, and v_seq [T, N, *] if traced.

    What was not asked for is None, or, where torch traces, a tensor that nobody should use. `names` are what the caller calls
    x_seq, leak and v_threshold.
    """
    check_floating(names[0], x_seq, 2, "[T, N, *]")
    leak = as_parameter(names[1], leak, x_seq)
    v_threshold = as_parameter(names[2], v_threshold, x_seq)
    v, fired = (None, None) if state is None else check_state(state, x_seq)
    trained = (x_seq, leak, v_threshold) if v is None else (x_seq, leak, v_threshold, v)
    if is_traced(x_seq):
        check_no_tangent(*trained)
        if is_exported():
            return lif_in_plain_operators(x_seq, leak, v_threshold, v, fired, switches, trace=trace)
        check_backend(backend)  # which "auto" stands for is seen when it runs: sizes may be symbols here
        return torch.ops.onespike.single_spike_lif(x_seq, leak, v_threshold, v, fired, *switches, trace, backend)
    plan = plan_of(x_seq, leak, v_threshold, v, switches, backend, keep_state=keep_state, trace=trace)
    check_leak(names[1], leak)
    check_threshold(names[2], v_threshold)
    try:
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in trained):
            aside: list[Tensor] = []
            s_seq, v_last, v_seq = SingleSpikeLIF.apply(x_seq, leak, v_threshold, v, fired, plan, aside)
            return s_seq, v_last, aside[0], v_seq
        return plan.forward(x_seq, leak, v_threshold, v, fired)
    except PotentialError:
        raise not_finite(names[0], x_seq, v) from None


def lif_in_plain_operators(
    x_seq: Tensor,
    leak: Tensor,
    v_threshold: Tensor,
    v: Tensor | None,
    fired: Tensor | None,
    switches: Switches,
    *,
    trace: bool,
) -> tuple[Tensor, Any, Any, Any]:
    """Do what an export records: it needs no operator of ours where it runs, and its spikes have no gradient."""
    check_fits(x_seq.shape, leak.shape, v_threshold.shape, switches.gamma)
    dtype = state_dtype(x_seq.dtype)
    parameters = leak.to(dtype), v_threshold.to(dtype)
    results: Any = forward_steps(
        x_seq, *parameters, v, fired, None, None, switches.single_spike, True, trace, True, False, True
    )
    s_seq, v_seq, v_last, fired_last, _ = results
    return s_seq, v_last, fired_last.bool(), v_seq


def check_no_tangent(*tensors: Tensor) -> None:
    """Raise where one is differentiated in forward mode: there is the reverse mode alone, and torch would return zeros."""
    if not torch.compiler.is_compiling() and any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise RuntimeError("single_spike_lif has no forward-mode derivative: use torch.autograd.grad, or jacobian")


def plan_of(
    x_seq: Tensor,
    leak: Tensor,
    v_threshold: Tensor,
    v: Tensor | None,
    switches: Switches,
    backend: str,
    *,
    keep_state: bool = True,
    trace: bool = False,
) -> Plan:
    """Return how `backend` does this; worked out once for all calls alike."""
    return planned(Signature.of(x_seq, leak, v_threshold, v is not None, switches, keep_state, trace), backend)


@lru_cache(maxsize=512)
def planned(signature: Signature, backend: str) -> Plan:
    """Check what `signature` says of the arguments, and make a plan for them.

    Raises:
        ValueError: a sequence has no step, a parameter does not broadcast to one, or gamma is not above 0.
        BackendUnavailableError: the named backend cannot run here.
    """
    check_fits(signature.shape, signature.leak, signature.v_threshold, signature.switches.gamma)
    elements = prod(signature.shape)
    name = resolve_backend(backend, signature.device.type, elements, signature.dtype)
    module, kind = KERNELS[name if elements else "torch"]  # plain operators serve inputs without elements
    return getattr(import_module(module), kind)(signature)


def check_fits(shape: Sequence[int], leak: Sequence[int], v_threshold: Sequence[int], gamma: float) -> None:
    """Raise a ValueError unless a neuron can run with parameters of these shapes on sequences of this shape."""
    step = tuple(shape[1:])
    if not shape[0]:
        raise ValueError(f"x_seq must hold at least one time step, T >= 1, got shape {tuple(shape)}")
    check_positive("gamma", gamma)
    for name, of_parameter in (("leak", leak), ("v_threshold", v_threshold)):
        if not broadcasts(of_parameter, step):
            raise ValueError(f"{name} must be 0-d or broadcastable to [N, *] = {step}, got {tuple(of_parameter)}")


def as_parameter(name: str, value: Tensor | float, x_seq: Tensor) -> Tensor:
    """Make `value` a tensor beside `x_seq`."""
    if not isinstance(value, Tensor):
        return torch.full((), value, dtype=state_dtype(x_seq.dtype), device=x_seq.device)
    if value.device != x_seq.device:
        raise ValueError(f"{name} must be on the device of x_seq, {x_seq.device}, got {value.device}")
    return value


def check_state(state: LIFState, x_seq: Tensor) -> LIFState:
    """Check that a carried-in state belongs to sequences shaped like `x_seq`."""
    v, fired = state
    for name, tensor in (("state.v", v), ("state.fired", fired)):
        if tensor.shape != x_seq.shape[1:]:
            raise ValueError(
                f"{name} must have the shape of one step of x_seq, {tuple(x_seq.shape[1:])}, got {tuple(tensor.shape)}: "
                "the batch or layer size changed, so reset the state (pass None, or reset the network) before a new sequence"
            )
        if tensor.device != x_seq.device:
            raise ValueError(f"{name} must be on the device of x_seq, {x_seq.device}, got {tensor.device}")
    if fired.dtype != torch.bool:
        raise TypeError(f"state.fired must be a bool tensor, got {fired.dtype}")
    return LIFState(v.to(state_dtype(x_seq.dtype)), fired)


def not_finite(name: str, x_seq: Tensor, v: Tensor | None) -> NotFiniteError:
    """Say from what potentials became NaN or infinite."""
    for source, tensor in ((name, x_seq), ("state.v", v)):
        if tensor is not None and not tensor.isfinite().all():
            nans, infinities = int(tensor.isnan().sum()), int(tensor.isinf().sum())
            return NotFiniteError(f"{source} must be finite, got {nans} NaN and {infinities} Inf in {tensor.numel()} values")
    low, high = extremes(x_seq.detach())
    return NotFiniteError(f"{name} must not overflow the potential, got values from {low} to {high}")


class SingleSpikeLIF(torch.autograd.Function):
    """A plan's forward and backward for autograd: what calls outside of traces run, as an operator costs them more.

    Its outputs are s_seq, v and v_seq; `fired`, which nothing is differentiated by, is handed over in the list `aside`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_seq: Tensor,
        leak: Tensor,
        v_threshold: Tensor,
        v: Tensor | None,
        fired: Tensor | None,
        plan: Plan,
        aside: list[Tensor | None],
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        s_seq, v_last, fired_last, v_seq = plan.forward(x_seq, leak, v_threshold, v, fired)
        aside.append(fired_last)
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x_seq, leak, v_threshold, v, fired)
        return s_seq, v_last, v_seq

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        # Where a graph of the gradients is wanted, the operator refuses to be differentiated; batches it takes one by one.
        if torch.is_grad_enabled() or any(grad is not None and is_traced(grad) for grad in grads):
            found = differentiate_by_operator(grads, ctx.saved_tensors, ctx.plan.switches, ctx.plan.backend)
        else:
            found = ctx.plan.backward(*grads, *ctx.saved_tensors)
        return *found, None, None, None


@torch.library.custom_op("onespike::single_spike_lif", mutates_args=())
def lif_op(
    x_seq: Tensor,
    leak: Tensor,
    v_threshold: Tensor,
    v: Tensor | None,
    fired: Tensor | None,
    gamma: float,
    single_spike: bool,
    grad_after_spike: bool,
    temporal_gradient: bool,
    return_v_seq: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return s_seq, the last v, fired and v_seq ([0] unless `return_v_seq`).

    The parameters' values are checked here because they do not exist while a network is traced.
    """
    check_leak("leak", leak)
    check_threshold("v_threshold", v_threshold)
    switches = Switches(gamma, single_spike, grad_after_spike, temporal_gradient)
    plan = plan_of(x_seq, leak, v_threshold, v, switches, backend, trace=return_v_seq)
    try:
        s_seq, v_last, fired_last, v_seq = plan.forward(x_seq, leak, v_threshold, v, fired)
    except PotentialError:
        raise not_finite(NAMES[0], x_seq, v) from None
    assert v_last is not None
    assert fired_last is not None
    return s_seq, v_last, fired_last, x_seq.new_empty(0, dtype=plan.state_dtype) if v_seq is None else v_seq


@lif_op.register_fake
def _(x_seq: Tensor, *others: Any) -> tuple[Tensor, ...]:
    *_, return_v_seq, _ = others
    dtype = state_dtype(x_seq.dtype)
    v_seq = torch.empty_like(x_seq, dtype=dtype) if return_v_seq else x_seq.new_empty(0, dtype=dtype)
    step = x_seq[0]
    return torch.empty_like(x_seq), torch.empty_like(step, dtype=dtype), torch.empty_like(step, dtype=torch.bool), v_seq


@torch.library.custom_op("onespike::single_spike_lif_backward", mutates_args=())
def lif_backward_op(
    grad_s_seq: Tensor | None,
    grad_v: Tensor | None,
    grad_v_seq: Tensor | None,
    x_seq: Tensor,
    leak: Tensor,
    v_threshold: Tensor,
    v: Tensor | None,
    fired: Tensor | None,
    gamma: float,
    grad_after_spike: bool,
    temporal_gradient: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x_seq, leak, v_threshold and the initial v ([0] where there was none)."""
    switches = Switches(gamma, True, grad_after_spike, temporal_gradient)
    plan = plan_of(x_seq, leak, v_threshold, v, switches, backend)
    grad_x, *of_parameters, grad_initial = plan.backward(grad_s_seq, grad_v, grad_v_seq, x_seq, leak, v_threshold, v, fired)
    # An operator's results must own their memory, and have the strides that the fake says.
    of_leak, of_threshold = (grad.clone() for grad in of_parameters)
    empty = torch.empty_like(v) if v is not None else x_seq.new_empty(0, dtype=plan.state_dtype)
    return grad_x, of_leak, of_threshold, empty if grad_initial is None else empty.copy_(grad_initial)


@lif_backward_op.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    x_seq, leak, v_threshold, v = arguments[3:7]
    grad_initial = x_seq.new_empty(0, dtype=state_dtype(x_seq.dtype)) if v is None else torch.empty_like(v)
    return torch.empty_like(x_seq), torch.empty_like(leak), torch.empty_like(v_threshold), grad_initial


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Save the input, from which the backward pass computes the membrane potentials again."""
    *saved, gamma, single_spike, grad_after_spike, temporal_gradient, ctx.trace, ctx.backend = inputs
    ctx.switches = Switches(gamma, single_spike, grad_after_spike, temporal_gradient)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*saved)


def differentiate(
    ctx: Any, grad_s_seq: Tensor | None, grad_v: Tensor | None, grad_fired: None, grad_v_seq: Tensor | None
) -> tuple[Any, ...]:
    """Turn the gradients of the outputs into those of the inputs of `lif_op`."""
    grads = (grad_s_seq, grad_v, grad_v_seq if ctx.trace else None)
    return *differentiate_by_operator(grads, ctx.saved_tensors, ctx.switches, ctx.backend), *[None] * 7


def differentiate_by_operator(
    grads: tuple[Tensor | None, ...], saved: tuple[Any, ...], switches: Switches, backend: str
) -> tuple[Any, ...]:
    """Return the gradients of x_seq, leak, v_threshold and v, through an operator, which traces follow."""
    gamma, _, grad_after_spike, temporal_gradient = switches
    *found, grad_initial = torch.ops.onespike.single_spike_lif_backward(
        *grads, *saved, gamma, grad_after_spike, temporal_gradient, backend
    )
    return *found, None if saved[3] is None else grad_initial


def refuse(ctx: Any, *grads: Any) -> None:
    """Say that there is no second derivative."""
    raise RuntimeError(
        "single_spike_lif has no second derivative: its first is a surrogate; call backward without create_graph"
    )


lif_op.register_autograd(differentiate, setup_context=setup_context)
lif_backward_op.register_autograd(refuse)
