"""The leaky integrate-and-fire neuron that fires at most once, as a pure function (eqs. 6-8, 19-23)."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from onespike.functional.autograd import SingleSpikeLIF
from onespike.functional.backends import check_backend
from onespike.functional.checks import check_floating, check_leak, check_threshold, is_exported, is_traced, not_finite
from onespike.functional.plans import check_fits, plan_of
from onespike.functional.records import saved_by_torch
from onespike.kernels.plan import PotentialError
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
