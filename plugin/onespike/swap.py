"""Exchange a host's neurons for ours in a copy of a network, and report what became of each."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Swap:
    """One neuron of a network.

    Attributes:
        path: its name in the network.
        was: its type.
        now: what it became, as it prints; None if it was left as it was.
        note: what was changed on the way, or why it was left.
    """

    path: str
    was: str
    now: str | None
    note: str


@dataclass(frozen=True)
class SwapReport:
    """What became of every neuron of a network, in the order of its modules."""

    swaps: tuple[Swap, ...]

    @property
    def left(self) -> tuple[Swap, ...]:
        """The neurons that could not be exchanged."""
        return tuple(swap for swap in self.swaps if swap.now is None)

    def __str__(self) -> str:
        lines = [f"{len(self.swaps) - len(self.left)} of {len(self.swaps)} neurons exchanged"]
        lines += [f"{swap.path}: {swap.was} -> {swap.now or 'left as it is'}. {swap.note}" for swap in self.swaps]
        return "\n".join(lines)


def swap_neurons(
    net: nn.Module, is_neuron: Callable[[nn.Module], bool], rule: Callable[[nn.Module], tuple[nn.Module | None, str]]
) -> tuple[nn.Module, SwapReport]:
    """Copy `net` and put in place of each neuron what `rule` makes of it: a module, or None to leave it, and a note.

    Raises:
        ValueError: `net` holds no neuron.
    """
    net = copy.deepcopy(net)
    swaps, made = [], {}
    for path, module in list(net.named_modules(remove_duplicate=False)):
        if not is_neuron(module):
            continue
        if module not in made:  # a neuron that stands in two places stays one
            made[module] = rule(module)
        ours, note = made[module]
        swaps.append(Swap(path, type(module).__name__, None if ours is None else str(ours), note))
        if ours is None:
            continue
        ours.train(module.training)
        if path:
            net.set_submodule(path, ours)
        else:
            net = ours
    if not swaps:
        raise ValueError(f"net must hold a neuron of the host to exchange, got {type(net).__name__} without one")
    return net, SwapReport(tuple(swaps))
