"""The neuron for autograd and for traces: a Function, and two operators that `torch.compile` and transforms follow."""

from typing import Any

import torch
from torch import Tensor

from onespike.functional.checks import check_leak, check_threshold, is_traced, not_finite
from onespike.functional.plans import plan_of
from onespike.kernels.plan import Plan, PotentialError, Switches
from onespike.kernels.reference import state_dtype


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
        raise not_finite("x_seq", x_seq, v) from None
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
