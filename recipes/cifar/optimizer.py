"""Optimisers and learning rates from the settings of a training."""

import math

import torch
from torch import Tensor, nn

from cifar.config import Training
from onespike.optim import ADAM_EPS, parameter_groups

STATES = {"sgd": 1, "adam": 3}
"""Numbers that an optimiser keeps for each weight, at most."""


def make_optimizer(network: nn.Module, settings: Training) -> torch.optim.Optimizer:
    """Return the optimiser: leaks and thresholds, which are single numbers, never decay and have their own learning rate."""
    if settings.relative:
        groups = parameter_groups(network, neuron_lr=settings.neuron_lr, lr=1)
        for group in groups:
            group["factor"] = group.pop("lr")
            if group["params"][0].dim() > 1:
                group["weight_decay"] = settings.weight_decay
        return torch.optim.AdamW(groups, settings.lr, amsgrad=settings.amsgrad, eps=ADAM_EPS, fused=True)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": settings.weight_decay, "factor": 1.0},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0, "factor": settings.neuron_lr},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, settings.lr, momentum=settings.momentum, nesterov=settings.momentum > 0, fused=True)
    return torch.optim.AdamW(groups, settings.lr, amsgrad=settings.amsgrad, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, lr: float, device: torch.device) -> None:
    """Set the learning rate of every group; on a GPU in place, in a tensor, where a recorded step finds it."""
    for group in optimizer.param_groups:
        value = lr * group["factor"]
        if device.type == "cpu":
            group["lr"] = value
        elif isinstance(group["lr"], Tensor) and group["lr"].device == device:
            group["lr"].fill_(value)
        else:
            group["lr"] = torch.full((), value, device=device)


def rate(settings: Training, step: int, steps_per_epoch: int, planned: int) -> float:
    """Return the factor on the learning rate at a step."""
    epoch = step / steps_per_epoch
    warmup = min(settings.warmup * steps_per_epoch, planned / 2)
    if step < warmup:
        return min(1.0, (step + 1) / warmup)
    if settings.schedule == "cosine":
        return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / (planned - warmup))
    return settings.decay ** sum(int(epoch) >= milestone for milestone in settings.milestones)
