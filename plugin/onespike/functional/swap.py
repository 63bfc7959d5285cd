"""Exchange a host's neurons for ours in a copy of a network, and report what became of each."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

PARAMETERS = ("leak", "beta", "v_threshold", "threshold")
"""What neurons of either host call what they may train."""

OTHERS = {"SpikingJelly": "spikingjelly.activation_based.neuron", "snnTorch": "snntorch._neurons"}
"""Hosts, and where their neurons are."""


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
    net: nn.Module,
    host: str,
    is_neuron: Callable[[nn.Module], bool],
    rule: Callable[[nn.Module], tuple[nn.Module | None, str]],
) -> tuple[nn.Module, SwapReport]:
    """Copy `net` and put in place of each neuron what `rule` makes of it: a module, or None to leave it, and a note.

    A neuron that `rule` refuses with a ValueError is left, too; one that has no parameters of its own goes to the device of the
    layer before it.

    Raises:
        ValueError: `net` holds no neuron.
        RuntimeError: `net` holds the state of a sequence that has a graph.
    """
    swaps, made = [], {}
    last = next(net.parameters(), torch.empty(0))
    for path, module in net.named_modules(remove_duplicate=False):
        last = next(module.parameters(recurse=False), last)
        if not is_neuron(module):
            continue
        if module not in made:  # a neuron that stands in two places stays one
            try:
                ours, note = rule(module)
            except ValueError as error:
                ours, note = None, str(error)
            now = None if ours is None else str(ours)  # on the CPU: a device may refuse to be read
            note = note if ours is None else f"{note} {what_trains(ours)}"
            made[module] = None if ours is None else ours.to(last.device).train(module.training), now, note
        swaps.append(Swap(path, type(module).__name__, *made[module][1:]))
    if not swaps:
        other = next((name for name, package in OTHERS.items() if name != host and holds_of(net, package)), None)
        remedy = f", but with {other}'s: use to_single_spike of onespike.{other.lower()}" if other else ""
        raise ValueError(f"net must hold a neuron of {host} to exchange, got {type(net).__name__} without one{remedy}")
    # Told that these are the copies of the neurons, deepcopy puts them wherever a neuron is referred to.
    copies = {id(module): ours for module, (ours, *_) in made.items() if ours is not None}
    try:
        return copy.deepcopy(net, copies), SwapReport(tuple(swaps))
    except RuntimeError as error:
        raise RuntimeError("net cannot be copied: if it has run, reset it with the host's function first") from error


def holds_of(net: nn.Module, package: str) -> bool:
    """Whether a module of `net` is of a class of that package, or of one derived from it."""
    return any(kind.__module__.startswith(package) for module in net.modules() for kind in type(module).__mro__)


def what_trains(node: nn.Module) -> str:
    """Say which of a neuron's leak and threshold are trained."""
    names = [name for name in PARAMETERS if hasattr(node, name)]
    trained = [name for name in names if getattr(node, name).requires_grad]
    frozen = [name for name in names if name not in trained]
    parts = [f"{' and '.join(trained)} trained"] if trained else []
    parts += [f"{' and '.join(frozen)} frozen, as before"] if frozen else []
    return f"{', '.join(parts).capitalize()}."
