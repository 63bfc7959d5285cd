"""A network as the graph of the modules that it calls: the one reader of conversion, activity and NIR."""

import operator
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from onespike.spikingjelly.wiring import Add, Concat, Wiring

INPUT = ""
"""The name of what goes into the network: no module has it."""
LEAVES = (
    "torch.nn.",
    "torch.ao.nn.",
    "spikingjelly.activation_based.layer",
    "spikingjelly.activation_based.neuron",
    "spikingjelly.activation_based.encoding",
    "snntorch.",
    "onespike.spikingjelly",
    "onespike.snntorch",
    "onespike.peers",
)
"""Packages whose modules are called, not read, but for what holds others alone."""


@dataclass(frozen=True)
class Node:
    """One call: the path of its module or the name of its function, the module that it stands for, whose results it takes."""

    name: str
    module: nn.Module
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Graph:
    """The calls of a network in their order, and the name of the one whose result it returns; None if it returns several."""

    nodes: tuple[Node, ...]
    output: str | None

    def needed(self) -> tuple[Node, ...]:
        """Return the calls on which the output depends."""
        wanted, kept = {self.output}, []
        for node in reversed(self.nodes):
            if node.name in wanted:
                wanted.update(node.inputs)
                kept.append(node)
        return tuple(reversed(kept))


class Unknown(nn.Module):
    """A call that no module stands for."""

    def __init__(self, called: str) -> None:
        super().__init__()
        self.called = called


class Tracer(fx.Tracer):
    """Follows calls down to the modules of torch and of the hosts."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        """Whether a module is called as it is; one that extends a layer of torch's is, whatever it makes of it."""
        if isinstance(m, Wiring) or type(m) is nn.Sequential:
            return False
        kinds = [kind for kind in type(m).__mro__ if kind is not nn.Module and kind.__module__ != nn.Sequential.__module__]
        return any(f"{kind.__module__}.".startswith(LEAVES) for kind in kinds)


def read(net: nn.Module) -> Graph:
    """Trace a network in eval mode and return its graph; a call that is not understood becomes an `Unknown`.

    Raises:
        ValueError: it cannot be traced.
    """
    root = nn.Sequential(OrderedDict(net.named_children())) if isinstance(getattr(net, "body", None), Wiring) else net
    with in_eval_mode(root):
        try:
            traced = Tracer().trace(root)
        except Exception as error:
            raise ValueError(f"{type(net).__name__} cannot be traced by torch.fx: {error}") from error
    names: dict[fx.Node, str] = {}
    nodes: list[Node] = []
    output: str | None = None
    for call in traced.nodes:
        if call.op == "output":
            output = names.get(call.args[0]) if isinstance(call.args[0], fx.Node) else None
        elif call.op == "placeholder" and INPUT not in names.values():
            names[call] = INPUT
        elif not is_shape(call):
            modules = [Unknown("in place")] if overwrites(call, root) else modules_of(call, root)
            sources = tuple(names[source] for source in sources_of(call))
            for position, module in enumerate(modules, 1):
                last = position == len(modules)
                name = unused(call, [node.name for node in nodes], "" if last else f"_{position}")
                nodes.append(Node(name, module, sources))
                sources = (name,)
            names[call] = sources[0] if not modules else nodes[-1].name
    return Graph(tuple(nodes), output)


@contextmanager
def in_eval_mode(net: nn.Module) -> Iterator[None]:
    """Put a network into eval mode for a while; each module returns to its own."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def unused(call: fx.Node, taken: list[str], suffix: str) -> str:
    """Name a call by its module's path or its function's name; a further call of a module gets a number."""
    name = (str(call.target) if call.op == "call_module" else call.name) + suffix
    times = 1
    while (found := name if times == 1 else f"{name}_{times - 1}") in taken:
        times += 1
    return found


def sources_of(call: fx.Node) -> list[fx.Node]:
    """Return where a call's inputs come from, in order and as often as they are used; sizes are none."""
    found: list[fx.Node] = []
    fx.node.map_arg((call.args, call.kwargs), lambda node: found.append(node) or node)  # type: ignore[func-returns-value]
    return [node for node in found if not is_shape(node)]


def is_shape(call: fx.Node) -> bool:
    """Whether a call gives a size, as in x.view(x.size(0), -1) or x.shape[0] // 2."""
    if call.op == "call_method" and call.target in ("size", "dim"):
        return True
    if call.op != "call_function":
        return False
    if call.target is getattr and call.args[1] in ("shape", "ndim"):
        return True
    return bool(call.all_input_nodes) and all(map(is_shape, call.all_input_nodes))


def overwrites(call: fx.Node, root: nn.Module) -> bool:
    """Whether a call changes its input in place, and a later one looks at it."""
    if call.op == "call_module":
        in_place = bool(getattr(root.get_submodule(str(call.target)), "inplace", False))
    else:
        named = call.target in IN_PLACE if call.op in ("call_function", "call_method") else False
        in_place = named or call.kwargs.get("inplace") is True or (call.target is F.relu and True in call.args[1:2])
    later = call
    while in_place and later.op != "output":
        later = later.next
        if sources_of(call)[0] in later.all_input_nodes:
            return True
    return False


def modules_of(call: fx.Node, root: nn.Module) -> list[nn.Module]:
    """Return the modules that a call stands for, one after the other; none for a call that changes nothing."""
    if call.op == "call_module":
        module = root.get_submodule(str(call.target))
        return [] if type(module) is nn.Identity else [module]
    called = "parameter" if call.op == "get_attr" else getattr(call.target, "__name__", str(call.target))
    make = FUNCTIONS.get(call.target) if call.op in ("call_function", "call_method") else None
    try:
        found = make(call) if make else None
    except (TypeError, ValueError, IndexError):  # arguments that the module does not take
        found = None
    return [Unknown(called)] if found is None else found


def module(make: Callable[..., nn.Module]) -> Callable[[fx.Node], list[nn.Module] | None]:
    """Return what makes a module of a function's arguments behind the first."""
    return lambda call: [make(*call.args[1:], **{key: value for key, value in call.kwargs.items() if key != "input"})]


def add(call: fx.Node) -> list[nn.Module] | None:
    """An `Add` of two tensors, if they are two."""
    both = len(call.args) == 2 and all(isinstance(value, fx.Node) for value in call.args) and len(sources_of(call)) == 2
    return [Add()] if both and not call.kwargs else None


def concat(call: fx.Node) -> list[nn.Module] | None:
    """A `Concat` along the dimension that is named."""
    dim = call.args[1] if len(call.args) == 2 else call.kwargs.get("dim", 0)
    return [Concat(dim)] if isinstance(dim, int) and isinstance(call.args[0], list | tuple) else None


def flatten(call: fx.Node) -> list[nn.Module] | None:
    """A view or reshape as [N, -1] or [N, features] is a `Flatten`."""
    shape = call.args[1:] if len(call.args) != 2 else call.args[1]
    if not isinstance(shape, list | tuple) or len(shape) != 2:
        return None
    batch, rest = shape
    return [nn.Flatten()] if isinstance(batch, fx.Node) and is_shape(batch) and isinstance(rest, int) else None


def spatial_mean(call: fx.Node) -> list[nn.Module] | None:
    """A mean over [H, W], or over as many last dimensions, is a global average pool."""
    dims: Any = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim")
    keep = call.args[2] if len(call.args) > 2 else call.kwargs.get("keepdim", False)
    pools = {(2,): nn.AdaptiveAvgPool1d, (2, 3): nn.AdaptiveAvgPool2d, (-2, -1): nn.AdaptiveAvgPool2d}
    found = pools.get(tuple(dims) if isinstance(dims, list | tuple) else (dims,))
    if found is None:
        return None
    return [found(1)] if keep else [found(1), nn.Flatten()]


IN_PLACE = (operator.iadd, torch.relu_, "relu_", "add_")
FUNCTIONS: dict[Any, Callable[[fx.Node], list[nn.Module] | None]] = {
    **dict.fromkeys((F.relu, torch.relu, torch.relu_, "relu", "relu_"), lambda _: [nn.ReLU()]),
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), add),
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), concat),
    **dict.fromkeys((torch.flatten, "flatten"), module(lambda start_dim=0, end_dim=-1: nn.Flatten(start_dim, end_dim))),
    **dict.fromkeys(("view", "reshape", torch.reshape), flatten),
    **dict.fromkeys((torch.mean, "mean"), spatial_mean),
    **dict.fromkeys((F.dropout, torch.dropout), module(lambda p=0.5, *_, **__: nn.Dropout(p))),
    F.dropout2d: module(lambda p=0.5, *_, **__: nn.Dropout2d(p)),
    "contiguous": lambda _: [],
    **{getattr(F, f"avg_pool{d}d"): module(getattr(nn, f"AvgPool{d}d")) for d in (1, 2, 3)},
    **{getattr(F, f"adaptive_avg_pool{d}d"): module(getattr(nn, f"AdaptiveAvgPool{d}d")) for d in (1, 2, 3)},
    **{
        function: module(partial_pool)
        for d in (1, 2, 3)
        for partial_pool in [getattr(nn, f"MaxPool{d}d")]
        for function in (getattr(F, f"max_pool{d}d"), getattr(torch, f"max_pool{d}d"))
    },
}
"""What functions and methods make of their arguments: the modules of the same meaning, or None."""
