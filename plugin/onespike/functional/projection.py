"""The projection of trained leaks and thresholds back to their ranges, over a whole network at once."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from onespike.functional.lif import MIN_THRESHOLD

LEAKS, THRESHOLDS = ("leak", "beta"), ("v_threshold", "threshold")
"""What our modules call their parameters: SpikingJelly's conventions, then snnTorch's."""


def project_net(net: nn.Module) -> None:
    """Bring every leak of `net` back to [0, 1] and every threshold to >= 1e-3; for the line after `optimizer.step()`.

    The modules of this package are projected together, by three calls whatever their number. Any other module whose class has
    a `project_()`, a subclass of ours that overrides it among them, has that called. NaN stays NaN.

    Args:
        net: any module; one without our neurons is left as it is.
    """
    leaks: list[Tensor] = []
    thresholds: list[Tensor] = []
    for module in net.modules():
        method = getattr(type(module), "project_", None)  # asked of a module itself, a missing name takes ten times as long
        if method is None:
            continue
        if not method.__module__.startswith("onespike."):
            module.project_()  # type: ignore[operator]
            continue
        tensors = module._parameters | module._buffers
        leaks += (tensor for name in LEAKS if (tensor := tensors.get(name)) is not None)
        thresholds += (tensor for name in THRESHOLDS if (tensor := tensors.get(name)) is not None)
    clamp_together(leaks, thresholds)


@torch.no_grad()
def clamp_together(leaks: Iterable[Tensor], thresholds: Iterable[Tensor]) -> None:
    """Clamp `leaks` to [0, 1] and `thresholds` to >= `MIN_THRESHOLD`, in place: a kernel a bound for tensors of a kind."""
    leaks, thresholds = list(dict.fromkeys(leaks)), list(dict.fromkeys(thresholds))  # modules may share a parameter
    if leaks:
        torch._foreach_clamp_min_(leaks, 0.0)
        torch._foreach_clamp_max_(leaks, 1.0)
    if thresholds:
        torch._foreach_clamp_min_(thresholds, MIN_THRESHOLD)
