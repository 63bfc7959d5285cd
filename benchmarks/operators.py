"""Which operators Python calls: what a small layer costs the host."""

from collections import Counter
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile


def called_operators(work: Callable[[], object]) -> Counter[str]:
    """Count the operators that `work` and the backward passes in it call, by name, such as "aten::mul".

    Those that an operator of torch's own calls in turn are left out, as they cost no Python; those inside one of ours are
    counted beside it.
    """
    work()  # what is made once, such as compiled code, is made here
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        work()
    return Counter(event.name for event in recorded.events() if is_operator(event) and not inside_torchs_own(event))


def is_operator(event: torch.autograd.profiler_util.FunctionEvent) -> bool:
    """Whether an event of the profile is a call of an operator, and not the engine's or a marker's."""
    return "::" in event.name and not event.name.startswith(("autograd::", "torch::")) and " " not in event.name


def inside_torchs_own(event: torch.autograd.profiler_util.FunctionEvent) -> bool:
    """Whether an event was called by an operator of torch's own, at any depth."""
    caller = event.cpu_parent
    while caller is not None:
        if caller.name.startswith("aten::"):
            return True
        caller = caller.cpu_parent
    return False
