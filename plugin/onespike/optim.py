"""Steps that suit spiking networks: rates in the unit of the firing threshold, gradients without what all inputs share."""

from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from onespike.functional.checks import check_positive

ADAM_EPS = 1e-16
"""Adam's `eps` for a deep network: its default of 1e-8 is above the gradients of the first layers, which would stand still."""
LEAKS = ("leak", "beta")
LEAK_UNIT = 0.1
"""By how much a leak counts as moved that a threshold moved by itself would: leaks lie in [0, 1], most close to 1."""
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def parameter_groups(network: nn.Module, lr: float = 0.3, *, neuron_lr: float = 0.01) -> list[dict[str, Any]]:
    """Return groups for Adam, so that a step moves a neuron's current by about a share `lr` of its threshold at most.

    Adam moves every weight by its learning rate, whatever the gradient, and at first all weights of a neuron in the same
    direction, since spikes are never negative. A current is a sum over `fan_in` weights, so one rate for all moves it by
    rate * fan_in, and where that is much of a threshold whole layers leave the surrogate's support within a few steps: they
    fall silent from the last to the first, and nothing brings them back. So the weights of layer l, in front of a threshold
    V_l, get

        lr_l = lr * V_l / fan_in_l,    a threshold lr * neuron_lr * V,    a leak lr * neuron_lr / 10,

    by the thresholds as they are now. No group has weight decay.

        optimizer = torch.optim.Adam(parameter_groups(network), eps=ADAM_EPS)

    Leave Adam's `amsgrad` off, and let the rate rise over the first tenth of the steps. A potential adds up the currents of T
    steps: for T above 1 give lr / (1 + leak + ... + leak^(T-1)).

    Args:
        network: any module with single-spike neurons of either host, whose layers are registered in forward order: a weight
            belongs to the neuron or readout that is registered next. One behind the last threshold gets the last threshold.
        lr: share of a threshold, > 0.
        neuron_lr: factor for thresholds, leaks, and what else there is with one dimension or none (biases), >= 0.

    Returns:
        One group for each parameter that requires gradients, with "lr" and "weight_decay" set.

    Raises:
        ValueError: an argument leaves its range, or the network has no threshold.
    """
    check_positive("lr", lr)
    if neuron_lr:
        check_positive("neuron_lr", neuron_lr)
    found: list[tuple[nn.Module, str, nn.Parameter, float]] = []
    waiting: list[tuple[nn.Module, str, nn.Parameter]] = []
    unit: float | None = None
    for module in network.modules():
        own = [(module, name, p) for name, p in module.named_parameters(recurse=False)]
        threshold = threshold_of(module)
        if threshold is None:
            waiting += own
            continue
        unit = threshold
        found += [(*of, unit) for of in [*waiting, *own]]
        waiting = []
    if unit is None:
        raise ValueError(f"network must hold neurons with a threshold, got {type(network).__name__} without any")
    found += [(*of, unit) for of in waiting]
    groups: dict[nn.Parameter, dict[str, Any]] = {}
    for module, name, parameter, threshold in found:
        if parameter.dim() > 1:
            rate = threshold / fan_in(module, parameter)
        else:
            rate = neuron_lr * (LEAK_UNIT if name in LEAKS else threshold)
        if parameter.requires_grad:
            groups.setdefault(parameter, {"params": [parameter], "lr": lr * rate, "weight_decay": 0.0})
    return list(groups.values())


def threshold_of(module: nn.Module) -> float | None:
    """Return the mean threshold of a neuron or readout, ours or a host's; None of other modules, and of an infinite one."""
    threshold = getattr(module, "v_threshold", getattr(module, "threshold", None))
    if isinstance(threshold, Tensor):
        threshold = float(threshold.detach().mean())
    elif not hasattr(module, "v_threshold"):  # nn.Threshold has a number of that name
        threshold = None
    return threshold if threshold is not None and isfinite(threshold) else None


def fan_in(module: nn.Module, weight: Tensor) -> int:
    """Return of how many inputs an output of the layer is a sum, at most."""
    if isinstance(module, TRANSPOSED):
        return weight.numel() // weight.shape[1] // module.groups
    return weight[0].numel()


@torch.no_grad()
def centralize_gradients(network: nn.Module) -> None:
    """Take from the gradient of each weight the mean over its neuron's weights, in place (Yong et al. 2020).

        g_ij <- g_ij - 1/n sum_k g_ik,    n the number of inputs of neuron i

    Spikes are never negative, nor is what a ReLU gives, so that the weights of a neuron have much of their gradient in common:
    it raises or lowers the neuron's current for all images alike, and tells none of them from another. Call it between
    `backward` and the step of the optimiser, before gradients are clipped. SGD then leaves the sum of a neuron's weights as it
    is; Adam, which divides by weight, does so about.

    Args:
        network: any module, an ANN too. Gradients of its linear, convolutional and transposed convolutional layers change, but
            for neurons of a single input, of whose gradient nothing would be left.
    """
    for module in network.modules():
        if not isinstance(module, (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)) or module.weight.grad is None:
            continue
        gradient = module.weight.grad
        first = 1
        if isinstance(module, TRANSPOSED):  # [in, out / groups, ...] -> [groups, out / groups, in / groups, ...]
            gradient, first = gradient.unflatten(0, (module.groups, -1)).transpose(1, 2), 2
        if fan_in(module, module.weight) > 1:
            gradient -= gradient.mean(tuple(range(first, gradient.dim())), keepdim=True)
