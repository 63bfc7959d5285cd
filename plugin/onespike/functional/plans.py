"""How a backend runs the neuron on such tensors: worked out and checked once for all calls alike."""

from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from math import prod

from torch import Tensor

from onespike.functional.backends import KERNELS, resolve_backend
from onespike.functional.checks import broadcasts, check_positive
from onespike.kernels.plan import Plan, Signature, Switches


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
