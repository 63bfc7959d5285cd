"""Maximum pooling of spikes: what passes is the spike of the input that leads."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from onespike.functional.checks import check_floating

MOST_STEPS = 2**12
"""Steps of a sequence: a count and the step at which it was reached share a float32's 24 bits."""
POOLS = {3: F.max_pool1d, 4: F.max_pool2d, 5: F.max_pool3d}

Size = int | tuple[int, ...]


class PoolState(NamedTuple):
    """What a pool knows: how often each input [N, C, *] has fired, and at which step last, and how many steps there were."""

    counts: Tensor
    last: Tensor
    steps: int


def spike_max_pool(
    s_seq: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    *,
    ceil_mode: bool = False,
    state: PoolState | None = None,
) -> tuple[Tensor, PoolState]:
    """Pool spikes by the maximum of their counts: where the inputs fire at most once, by the earliest spike of the window.

    Equations, n_i^t = sum_{u<=t} s_i^u being how often input i of a window has fired:
        leader(t) = argmax_i n_i^t; of several the one that got there first, of those the first in the window
        out^t = s_leader(t)^t,    so that  sum_{u<=t} out^u = max_i n_i^t

    With at most one spike each it is an OR over time that falls silent. A gradient goes to the leader of its step.

    Args:
        s_seq: spikes 0 or 1, [T, N, C, L], [T, N, C, H, W] or [T, N, C, D, H, W].
        kernel_size, stride, padding, dilation, ceil_mode: as torch's max pools have them.
        state: what an earlier part of the sequence left.

    Returns:
        Spikes [T, N, C, *] and the state behind them.

    Raises:
        TypeError, ValueError: `s_seq` is no floating-point tensor of 4 to 6 dimensions or not of the state's shape, or has
            more than 4096 steps in all.
    """
    check_floating("s_seq", s_seq, 4, "[T, N, C, *]")
    if s_seq.dim() > 6:
        raise ValueError(f"s_seq must be [T, N, C, *] of 4 to 6 dimensions, got shape {tuple(s_seq.shape)}")
    T, steps = s_seq.shape[0], state.steps if state else 0
    if state and state.counts.shape != s_seq.shape[1:]:
        shapes = f"{tuple(s_seq.shape[1:])}, the state is of {tuple(state.counts.shape)}"
        raise ValueError(f"s_seq must have the shape of the state, got {shapes}: reset between sequences")
    if steps + T > MOST_STEPS:
        raise ValueError(f"s_seq must have at most {MOST_STEPS} steps in all, got {steps + T}: reset between sequences")
    spikes = s_seq.detach().float()
    counts = spikes.cumsum(0)
    now = torch.arange(steps + 1, steps + T + 1, device=s_seq.device).view(-1, *[1] * (s_seq.dim() - 1))
    lasts = ((spikes > 0) * now).to(spikes.dtype).cummax(0).values
    if state:
        counts, lasts = counts + state.counts, lasts.maximum(state.last)
    rank = (counts * MOST_STEPS - lasts).flatten(0, 1)
    pool = POOLS[rank.dim()]
    _, leader = pool(rank, kernel_size, stride, padding, dilation, ceil_mode, return_indices=True)
    out = s_seq.flatten(0, 1).flatten(2).gather(2, leader.flatten(2)).view(leader.shape)
    return out.unflatten(0, s_seq.shape[:2]), PoolState(counts[-1], lasts[-1], steps + T)
