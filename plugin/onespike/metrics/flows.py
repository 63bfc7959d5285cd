"""What runs along the edges of a watched network, and what layers without weights make of it."""

from dataclasses import dataclass
from math import prod

from spikingjelly.activation_based import layer
from torch import Tensor, nn

from onespike.graph import Node
from onespike.spikingjelly import SpikeMaxPool
from onespike.spikingjelly.wiring import Scale

POOLS = tuple(getattr(nn, f"{kind}AvgPool{d}d") for kind in ("", "Adaptive") for d in (1, 2, 3))
MAX_POOLS = (SpikeMaxPool, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
MOVES = (nn.Flatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, layer.Dropout, layer.Dropout2d)
"""Layers that in eval mode leave every value as it is."""


@dataclass(frozen=True)
class Image:
    """What runs along an edge before the first weights."""


@dataclass(frozen=True)
class Spikes:
    """Spikes on an edge: how many each value stands for, what it would be without factors, and the mean of how many it is."""

    counts: Tensor
    rates: Tensor
    share: float
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Current:
    """What runs behind weights, and behind which."""

    weights: tuple[str, ...]


@dataclass(frozen=True)
class Lost:
    """Spikes that have gone through something from which they cannot be counted any more."""

    where: str


Flow = Image | Spikes | Current | Lost


def spikes_of(output: Tensor, sources: tuple[str, ...]) -> Spikes:
    """Return what a layer emits as spikes, each 1, whatever its size and sign."""
    ones = (output != 0).to(output.dtype)
    return Spikes(ones, ones, 1, sources)


def currents_of(flows: list[Flow]) -> Current:
    """Join currents."""
    return Current(tuple(dict.fromkeys(name for flow in flows if isinstance(flow, Current) for name in flow.weights)))


def added(flows: list[Spikes]) -> Spikes:
    """Add up spikes."""
    total, *others = flows
    for other in others:
        counts, rates = total.counts + other.counts, total.rates + other.rates
        total = Spikes(counts, rates, total.share + other.share, (*total.sources, *other.sources))
    return total


def side_by_side(concat: nn.Module, flows: list[Spikes]) -> Spikes:
    """Concatenate spikes."""
    counts, rates = concat(*[flow.counts for flow in flows]), concat(*[flow.rates for flow in flows])
    share = sum(flow.share * flow.counts.numel() for flow in flows) / max(1, counts.numel())
    return Spikes(counts, rates, share, tuple(dict.fromkeys(name for flow in flows for name in flow.sources)))


def through_layer(call: Node, spikes: Spikes) -> Spikes | Lost:
    """Follow spikes through a layer without weights."""
    module = call.module
    if isinstance(module, Scale):
        return spikes
    if not isinstance(module, (*POOLS, *MOVES)):
        return Lost(call.name)
    counts = module(spikes.counts)
    inputs = pooled_inputs(module, spikes.counts, counts) if isinstance(module, POOLS) else 1
    return Spikes(inputs * counts, module(spikes.rates), inputs * spikes.share, spikes.sources)


def pooled_inputs(module: nn.Module, x: Tensor, output: Tensor) -> int:
    """Return how many inputs one output of an average pool is the mean of.

    Raises:
        ValueError: the number differs between outputs, so that spikes cannot be counted from them.
    """
    if isinstance(module, POOLS[3:]):
        sizes = list(zip(x.shape, output.shape, strict=True))
        if any(i % o for i, o in sizes):
            raise ValueError(f"an adaptive pool must divide its input evenly to be counted, got input {tuple(x.shape)}")
        return prod(i // o for i, o in sizes)
    if getattr(module, "divisor_override", None):
        return int(module.divisor_override)  # type: ignore[arg-type]
    dims = 1 + next(d for d, kind in enumerate(POOLS[:3]) if isinstance(module, kind))
    kernel, padding = (value if isinstance(value, tuple) else (value,) * dims for value in (module.kernel_size, module.padding))
    if module.ceil_mode or (any(padding) and not module.count_include_pad):
        raise ValueError(
            f"an average pool must divide by the same number everywhere to be counted, got ceil_mode={module.ceil_mode}, "
            f"padding={padding}, count_include_pad={module.count_include_pad}"
        )
    return prod(kernel)
