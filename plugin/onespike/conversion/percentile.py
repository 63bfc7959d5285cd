"""A percentile of many numbers without sorting them: only those at its upper end are looked at."""

from collections.abc import Sequence
from math import inf, sqrt

import torch
from torch import Tensor

SAMPLE = 2**16
"""Numbers from which a lower bound is guessed."""


def nearest_percentile(parts: Sequence[Tensor], percentile: float, floor: float = -inf) -> float:
    """Return the percentile of all numbers in `parts`, or `floor` if that is higher.

    It is the number of rank 1 + round(percentile / 100 * (n - 1)), exactly: NumPy's percentile with method="nearest". A
    selection among all n takes a GPU long (`kthvalue` of one vector runs in one block there), so the numbers are compared with
    a bound below it, guessed from a sample, and the selection is made among the few above; a guess too high is noticed by their
    number. Percentiles far from 100 leave many above, and gain nothing. NaN counts as the largest, and as below `floor`.

    Args:
        parts: tensors of one dtype and device, any shapes, n > 0 numbers in all.
        percentile: in (0, 100].
        floor: what is not exceeded need not be known: one pass over the numbers then settles it.
    """
    flat = [in_memory_order(part) for part in parts]
    count = sum(len(part) for part in flat)
    from_top = count - round(percentile / 100 * (count - 1))  # it is the from_top-th largest
    if floor > -inf and count - sum(int(torch.count_nonzero(part <= floor)) for part in flat) < from_top:
        return floor
    for bound in (max(floor, likely_bound(flat, from_top / count)), floor):
        # Indexing by a mask; on a CPU `masked_select` takes three times as long.
        above = torch.cat([part[(part <= bound).logical_not_()] for part in flat])
        if len(above) >= from_top:
            return max(floor, float(above.kthvalue(len(above) - from_top + 1).values))
    return floor


def likely_bound(flat: list[Tensor], share: float) -> float:
    """Guess, from evenly spaced numbers, one that at least this share of all numbers exceeds."""
    spacing = max(1, sum(map(len, flat)) // SAMPLE) | 1  # odd: channels that lie last are all met
    sample = torch.cat([part[::spacing] for part in flat])
    expected = share * len(sample)
    from_top = min(len(sample), round(expected + 4 * sqrt(expected) + 4))
    return float(sample.kthvalue(len(sample) - from_top + 1).values)


def in_memory_order(tensor: Tensor) -> Tensor:
    """Flatten a tensor in the order in which it lies in memory: no copy where it is dense."""
    return tensor.permute(sorted(range(tensor.dim()), key=tensor.stride, reverse=True)).flatten()
