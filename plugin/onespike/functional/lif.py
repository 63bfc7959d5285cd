"""The leaky integrate-and-fire neuron that fires at most once, as a pure function (eqs. 6-8, 19-23)."""

from importlib import import_module
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from onespike.functional.backends import KERNELS, resolve_backend
from onespike.functional.checks import broadcasts, check_floating, check_leak, check_positive, check_threshold
from onespike.kernels.reference import state_dtype

MIN_THRESHOLD = 1e-3
"""What a trained threshold is kept above."""


class LIFState(NamedTuple):
    """What a neuron carries from one step to the next.

    Attributes:
        v: membrane potential U, [N, *], float32 (float64 for float64 inputs).
        fired: whether the neuron has crossed its threshold before, [N, *], bool.
    """

    v: Tensor
    fired: Tensor


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
        ValueError: a shape does not fit, or, for CPU tensors, `leak` leaves [0, 1] or `v_threshold` is not above 0.
        BackendUnavailableError: the named backend cannot run here.
        RuntimeError: it is differentiated in forward mode, such as by `torch.func.jvp`.
    """
    s_seq, state, _ = lif_with_trace(
        x_seq,
        leak,
        v_threshold,
        state=state,
        gamma=gamma,
        single_spike=single_spike,
        grad_after_spike=grad_after_spike,
        temporal_gradient=temporal_gradient,
        backend=backend,
        return_v_seq=False,
    )
    return SingleSpikeLIFOutput(s_seq, state)


def lif_with_trace(
    x_seq: Tensor,
    leak: Tensor | float,
    v_threshold: Tensor | float,
    *,
    state: LIFState | None,
    gamma: float,
    single_spike: bool,
    grad_after_spike: bool,
    temporal_gradient: bool,
    backend: str,
    return_v_seq: bool,
) -> tuple[Tensor, LIFState, Tensor]:
    """Do the work of `single_spike_lif`, and return the membrane trace [T, N, *] too if `return_v_seq`."""
    check_floating("x_seq", x_seq, 2, "[T, N, *]")
    if x_seq.shape[0] < 1:
        raise ValueError(f"x_seq must hold at least one time step, T >= 1, got shape {tuple(x_seq.shape)}")
    check_positive("gamma", gamma)
    leak = as_parameter("leak", leak, x_seq)
    v_threshold = as_parameter("v_threshold", v_threshold, x_seq)
    v, fired = (None, None) if state is None else check_state(state, x_seq)
    check_no_tangent(x_seq, leak, v_threshold, *(() if v is None else (v,)))
    name = resolve_backend(backend, x_seq.device.type, x_seq.numel())
    s_seq, v_last, fired_last, v_seq = torch.ops.onespike.single_spike_lif(
        x_seq,
        leak,
        v_threshold,
        v,
        fired,
        gamma,
        single_spike,
        grad_after_spike,
        temporal_gradient,
        return_v_seq,
        name,
    )
    return s_seq, LIFState(v_last, fired_last), v_seq


def check_no_tangent(*tensors: Tensor) -> None:
    """Raise in forward-mode differentiation: the operator has the reverse mode alone, and torch would return zeros."""
    if not torch.compiler.is_compiling() and any(unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise RuntimeError("single_spike_lif has no forward-mode derivative: use torch.autograd.grad, or jacobian")


def project_parameters(leak: Tensor, v_threshold: Tensor) -> None:
    """Bring trained values back to 0 <= leak <= 1 and v_threshold >= `MIN_THRESHOLD`, in place; under `torch.no_grad`."""
    leak.clamp_(0, 1)
    v_threshold.clamp_(min=MIN_THRESHOLD)


def as_parameter(name: str, value: Tensor | float, x_seq: Tensor) -> Tensor:
    """Make `value` a tensor beside `x_seq` and check that it broadcasts to one step of it without enlarging it."""
    if not isinstance(value, Tensor):
        return torch.as_tensor(value, dtype=state_dtype(x_seq.dtype), device=x_seq.device)
    if value.device != x_seq.device:
        raise ValueError(f"{name} must be on the device of x_seq, {x_seq.device}, got {value.device}")
    if value.dim() == 0:
        return value
    step = x_seq[0]
    if not broadcasts(value, step):
        raise ValueError(f"{name} must be 0-d or broadcastable to [N, *] = {tuple(step.shape)}, got {tuple(value.shape)}")
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
    return kernel_of(backend, x_seq).forward(x_seq, leak, v_threshold, v, fired, single_spike, return_v_seq)


@lif_op.register_fake
def _(x_seq, leak, v_threshold, v, fired, gamma, single_spike, grad_after_spike, temporal_gradient, return_v_seq, backend):
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
    return kernel_of(backend, x_seq).backward(
        grad_s_seq, grad_v, grad_v_seq, x_seq, leak, v_threshold, v, fired, gamma, grad_after_spike, temporal_gradient
    )


@lif_backward_op.register_fake
def _(grad_s_seq, grad_v, grad_v_seq, x_seq, leak, v_threshold, v, fired, gamma, grad_after, temporal, backend):
    grad_initial = x_seq.new_empty(0, dtype=state_dtype(x_seq.dtype)) if v is None else torch.empty_like(v)
    return torch.empty_like(x_seq), torch.empty_like(leak), torch.empty_like(v_threshold), grad_initial


def kernel_of(backend: str, x_seq: Tensor) -> ModuleType:
    """Import the module that runs a backend; plain operators serve inputs without elements."""
    return import_module(KERNELS[backend if x_seq.numel() else "torch"])


def setup_context(ctx, inputs, output) -> None:
    """Save the input, from which the backward pass computes the membrane potentials again."""
    x_seq, leak, v_threshold, v, fired, *ctx.options, ctx.returns_v_seq, ctx.backend = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x_seq, leak, v_threshold, v, fired)


def differentiate(ctx, grad_s_seq, grad_v, grad_fired, grad_v_seq):
    """Turn the gradients of the outputs into those of the inputs of `lif_op`."""
    gamma, _, grad_after_spike, temporal_gradient = ctx.options
    x_seq, leak, v_threshold, v, fired = ctx.saved_tensors
    grad_x_seq, grad_leak, grad_threshold, grad_initial = torch.ops.onespike.single_spike_lif_backward(
        grad_s_seq,
        grad_v,
        grad_v_seq if ctx.returns_v_seq else None,
        x_seq,
        leak,
        v_threshold,
        v,
        fired,
        gamma,
        grad_after_spike,
        temporal_gradient,
        ctx.backend,
    )
    return grad_x_seq, grad_leak, grad_threshold, None if v is None else grad_initial, *[None] * 7


lif_op.register_autograd(differentiate, setup_context=setup_context)
