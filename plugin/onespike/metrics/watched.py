"""Which parts of a network are watched: its spiking neurons, its weights, and the calls that join them."""

from collections.abc import Mapping
from typing import NamedTuple

from spikingjelly.activation_based import base
from torch import nn

from onespike.graph import Node, read
from onespike.metrics.macs import WEIGHTED


class Watched(NamedTuple):
    """The parts of a network: its modules' names, its neurons and its Conv and Linear layers by name, its calls in order."""

    names: dict[nn.Module, str]
    nodes: dict[str, nn.Module]
    weights: Mapping[str, nn.Module]
    calls: tuple[Node, ...]


def parts_of(network: nn.Module) -> Watched:
    """Find what is to be watched, or raise as `SpikingActivity` says."""
    check_network(network)
    named = named_modules(network)
    nodes = {name: module for name, module in named.items() if is_node(module)}
    if not nodes:
        other = {type(module).__name__ for module in named.values() if of_snntorch(module)}
        found = f"snnTorch's {', '.join(sorted(other))}" if other else f"{type(network).__name__} without any"
        raise ValueError(f"network must hold spiking neurons of SpikingJelly's kind, such as SingleSpikeLIFNode, got {found}")
    weights = {name: module for name, module in named.items() if isinstance(module, WEIGHTED)}
    for name, module in weights.items():
        if not hasattr(module, "step_mode"):
            kind = type(module).__name__
            raise TypeError(f"{name} ({kind}) must be a layer with a step mode: use spikingjelly's layer.{kind}")
    calls = read(network).nodes
    counted = {*nodes.values(), *weights.values()}
    for call in calls:
        inside = counted.intersection(call.module.modules()) - {call.module}
        if inside:
            kind, held = type(call.module).__name__, ", ".join(sorted(type(module).__name__ for module in inside))
            raise ValueError(f"{call.name} ({kind}) must hold nothing to be counted, got {held} inside: call them directly")
    if not any(call.module in nodes.values() for call in calls):
        raise ValueError(f"network must call a spiking neuron to be counted, got {', '.join(nodes)} that it never calls")
    return Watched({module: name for name, module in named.items()}, nodes, weights, calls)


def named_modules(network: nn.Module) -> dict[str, nn.Module]:
    """Return a network's modules by the names that it gives them, or by their paths."""
    own_names = getattr(network, "named_layers", None)
    return own_names() if own_names else dict(network.named_modules())


def check_network(network: nn.Module) -> None:
    """Raise unless `network` is a module."""
    if not isinstance(network, nn.Module):
        raise TypeError(f"network must be a torch.nn.Module, got {type(network).__name__}")


def is_node(module: nn.Module) -> bool:
    """Whether a module is a spiking neuron of SpikingJelly's kind."""
    return isinstance(module, base.MemoryModule) and "v" in module._memories


def emits_spikes(module: nn.Module) -> bool:
    """Whether a module is an encoder that says of itself that it emits spikes alone."""
    return getattr(module, "emits_spikes", False) is True


def of_snntorch(module: nn.Module) -> bool:
    """Whether a module is a snnTorch neuron, ours for it included; snnTorch need not be there to tell."""
    return any(kind.__module__.startswith("snntorch.") for kind in type(module).__mro__)
