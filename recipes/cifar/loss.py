"""What a stage minimises: (output, target, images) -> the mean over a batch."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from cifar.config import Config
from onespike.spikingjelly import HybridCrossEntropyLoss

Loss = Callable[[Any, Tensor, Tensor], Tensor]


def without_images(loss: nn.Module) -> Loss:
    """Return a loss of (output, target) as one that is given the images too."""
    return lambda output, target, _: loss(output, target)


def snn_loss(config: Config, ann: nn.Module, fabric: Fabric) -> Loss:
    """Return what the spiking network of a config minimises."""
    hybrid = HybridCrossEntropyLoss(label_smoothing=config.snn.label_smoothing)
    if not config.distillation:
        return without_images(hybrid)
    return distilled(hybrid, ann, config.distillation, config.temperature, fabric)


def distilled(loss: nn.Module, teacher: nn.Module, weight: float, temperature: float, fabric: Fabric) -> Loss:
    """Add the divergence from a trained ANN's softened logits (Hinton et al.) to the loss of a spiking network.

        L + weight * temperature^2 * KL(softmax(logits / temperature) || softmax(U_L^T / temperature))

    Args:
        loss: of (readout, target).
        teacher: the ANN, images [N, *] -> logits [N, K].
        weight, temperature: > 0.
        fabric: whose precision the teacher runs in.
    """

    def of(output: Any, target: Tensor, images: Tensor) -> Tensor:
        with torch.no_grad(), fabric.autocast():
            logits = teacher(images).float()
        student, aim = (F.log_softmax(values / temperature, 1) for values in (output.potential, logits))
        divergence = F.kl_div(student, aim, reduction="batchmean", log_target=True)
        return loss(output, target) + weight * temperature**2 * divergence

    teacher.eval()
    return of
