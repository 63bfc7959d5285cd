"""How many images a network classifies correctly, and what its outputs are."""

from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from cifar.data import Split
from cifar.seeds import seed_of

FEW_STEPS = 20
"""Time steps up to which a network is evaluated by the same number of images at once."""


def parts(output: Any) -> tuple[Tensor, ...]:
    """Return the tensors that a network puts out, the logits or potentials [N, K] first."""
    return output if isinstance(output, tuple) else (output,)


def evaluation_batch(network: nn.Module, device: torch.device) -> int:
    """Return how many images are evaluated at once: on a GPU enough to keep it busy; fewer where there are many time steps."""
    size = 250 if device.type == "cpu" else 1000
    return max(1, min(size, size * FEW_STEPS // getattr(network, "T", 1)))


@torch.no_grad()
def accuracy(network: nn.Module, split: Split, fabric: Fabric, batch_size: int | None = None) -> float:
    """Return the share of hits in percent, in full precision, every image counted once over all processes."""
    network.eval()
    torch.manual_seed(seed_of("evaluation"))  # encoders may draw
    batch_size = batch_size or evaluation_batch(network, fabric.device)
    hits = torch.zeros((), device=fabric.device, dtype=torch.float64)
    for first in range(fabric.global_rank * batch_size, len(split), fabric.world_size * batch_size):
        x, y = split.plain(slice(first, first + batch_size))
        hits += (parts(network(x))[0].argmax(1) == y).sum()
    return 100 * fabric.all_reduce(hits, reduce_op="sum").item() / len(split)
