"""The projection of trained leaks and thresholds back to their ranges, over a whole network at once."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

LEAKS, THRESHOLDS = ("leak", "beta"), ("v_threshold", "threshold")
"""What our modules call their parameters: SpikingJelly's conventions, then snnTorch's."""

LOWEST_SHARE = 1e-3
"""Of the threshold that a module was given, what a trained one is kept above."""


class Projected(nn.Module):
    """A module with a trained threshold, and perhaps a leak, that `project_` keeps in their ranges.

    Attributes:
        threshold_floor: what the threshold is kept above, 0-d: a thousandth of the one given, whatever its unit. It is part of
            the state dict; under one that was written before it was, the threshold in there counts as the one given.
    """

    threshold_floor: Tensor

    def set_floor(self, v_threshold: float | Tensor) -> None:
        """Keep the threshold above a share of `v_threshold` from now on."""
        self.register_buffer("threshold_floor", torch.as_tensor(LOWEST_SHARE * v_threshold))

    @torch.no_grad()
    def project_(self) -> None:
        """Bring the leak back to [0, 1] and the threshold to `threshold_floor` at least, in place; NaN stays NaN."""
        project_together([self])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        """Load the floor, or make it of the threshold that is loaded."""
        floor, own = f"{prefix}threshold_floor", self.threshold_floor
        if floor not in state_dict:
            given = next((state_dict[prefix + name] for name in THRESHOLDS if prefix + name in state_dict), None)
            state_dict[floor] = own if given is None else LOWEST_SHARE * lowest_positive(given).to(own.dtype)
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def lowest_positive(v_threshold: Tensor) -> Tensor:
    """Return the smallest of some thresholds, or 1 where it is not above 0; without a look at a device."""
    lowest = v_threshold.detach().amin()
    return torch.where(lowest > 0, lowest, torch.ones_like(lowest))


def project_net(net: nn.Module) -> None:
    """Bring every leak of `net` back to [0, 1] and every threshold to its floor; for the line after `optimizer.step()`.

    The floor of a threshold is a thousandth of the one that its module was given (`threshold_floor`). The modules of this
    package are projected together, by three calls whatever their number. Any other module whose class has a `project_()`, a
    subclass of ours that overrides it among them, has that called. NaN stays NaN.

    Args:
        net: any module; one without our neurons is left as it is.
    """
    ours: list[nn.Module] = []
    for module in net.modules():
        method = getattr(type(module), "project_", None)  # asked of a module itself, a missing name takes ten times as long
        if method is None:
            continue
        if method.__module__.startswith("onespike."):
            ours.append(module)
        else:
            module.project_()  # type: ignore[operator]
    project_together(ours)


def project_together(modules: Iterable[nn.Module]) -> None:
    """Project the parameters of modules of ours."""
    leaks: list[Tensor] = []
    thresholds: dict[Tensor, Tensor] = {}
    for module in modules:
        tensors: dict[str, Any] = module._parameters | module._buffers
        leaks += (tensor for name in LEAKS if (tensor := tensors.get(name)) is not None)
        thresholds |= {tensor: tensors["threshold_floor"] for name in THRESHOLDS if (tensor := tensors.get(name)) is not None}
    clamp_together(leaks, thresholds)


@torch.no_grad()
def clamp_together(leaks: Iterable[Tensor], floors: Mapping[Tensor, Tensor]) -> None:
    """Clamp `leaks` to [0, 1] and each threshold to its floor, in place: a kernel a bound for tensors of a kind."""
    leaks = list(dict.fromkeys(leaks))  # modules may share a parameter
    if leaks:
        torch._foreach_clamp_min_(leaks, 0.0)
        torch._foreach_clamp_max_(leaks, 1.0)
    if floors:
        torch._foreach_clamp_min_(list(floors), list(floors.values()))
