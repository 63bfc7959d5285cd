"""A layer's spikes over time, a bit each."""

import torch
from torch import Tensor

STEPS = 8
"""Steps in a byte."""


class SpikeBits:
    """The spikes [T, N, *] of a layer: byte i of a neuron holds its steps 8 i to 8 i + 7, lowest bit first.

    The bytes lie as the neurons lie in memory, so that a step comes back with the strides it had.
    """

    def __init__(self) -> None:
        self.bytes: list[Tensor] = []

    def append(self, s_seq: Tensor) -> None:
        """Add up to 8 steps, [T, N, *], each 0 or 1; only the last call may bring fewer."""
        self.dtype = s_seq.dtype
        packed = torch.zeros_like(s_seq[0], dtype=torch.uint8)
        for bit, spikes in enumerate(s_seq):
            packed.add_(spikes.to(torch.uint8), alpha=1 << bit)
        self.bytes.append(packed)

    def at(self, step: int) -> Tensor:
        """Return the spikes of one step, [N, *], in the dtype in which they came."""
        byte, bit = divmod(step, STEPS)
        spikes = torch.empty_like(self.bytes[byte], dtype=self.dtype)
        return torch.ne(self.bytes[byte] & (1 << bit), 0, out=spikes)
