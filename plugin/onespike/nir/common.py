"""How strongly a neuron has to silence itself, and what else writing and reading share."""

import math
from collections.abc import Iterable

import numpy as np

INHIBITION = 1e6
"""How strongly a neuron's own spike silences it, in units of its threshold, beyond what leaks away until the last step."""
STRONGEST = 1e30
"""Limit on the inhibition: float32 ends at 3e38."""


def needed_inhibition(leak: float, threshold: float, T: int) -> float:
    """Return how strong a neuron's own spike must be to silence it until step T."""
    left = leak**T
    return INHIBITION * max(1.0, threshold) / left if left else math.inf


def pair(size: Iterable[int] | int) -> tuple[int, int]:
    """Return a size along both dimensions."""
    height, width = np.broadcast_to(np.array(size), 2).tolist()
    return height, width
