"""From a trained ANN to a spiking network ready to be trained (Section V)."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import inf, nan
from typing import Any

import torch
from torch import Tensor, nn

from onespike.conversion.assemble import Assembly, largest
from onespike.conversion.calibrate import calibrate_thresholds
from onespike.conversion.layers import MAX_POOL, NEURON, Layer, check_images, with_dropout
from onespike.conversion.network import SpikingNetwork
from onespike.conversion.rules import ConversionError, read_ann
from onespike.functional.checks import check_positive, check_T
from onespike.spikingjelly import HybridEncoder, SingleSpikeLIFNode, SpikeTimeReadout

SPANS_LIKE_A_SPIKE = 0.5, 10.0
"""From where to where the range of pixels may span for them to stand beside spikes, which are 1, as they are."""


def convert(
    ann: nn.Module,
    images: Tensor,
    *,
    T: int = 5,
    threshold_scale: float = 0.4,
    leak: float = 1.0,
    percentile: float = 99.7,
    neuron: Callable[..., nn.Module] = SingleSpikeLIFNode,
    encoder: nn.Module | None = None,
    dropout: float | None = None,
    thresholds: Mapping[str, float] | None = None,
    timesteps: int | None = 200,
    batch_size: int = 128,
) -> SpikingNetwork:
    """Convert a feed-forward ANN into a hybrid-encoded single-spike network of the same weights.

    Every ReLU becomes a neuron whose threshold is `threshold_scale` times the calibrated one; the last layer feeds a readout
    with V_L at the median of its half-way potential. Batch norm is folded into the layer before it, maximum pools become
    `SpikeMaxPool`, and weights and biases take up what a spike stands for where branches meet. A bias acts when the analogue
    image does: once, at t = 1, behind a `HybridEncoder`, at every step behind any other. The ANN is left as it was; the
    network is in the same mode, train or eval.

    Args:
        ann: any torch.fx-traceable network of Conv, Linear, BatchNorm behind them, ReLU, AvgPool, MaxPool behind a ReLU,
            Flatten, Dropout, sums and concatenations of channels. `compare` says what became of each.
        images: calibration images from the training set, [N, *], as the ANN takes them.
        T: number of time steps.
        threshold_scale: factor on all hidden thresholds. It matters more than anything else: choose it on validation data.
        leak: initial leak of every neuron, in [0, 1].
        percentile: see `calibrate_thresholds`.
        neuron: called as neuron(leak=..., v_threshold=...) for each ReLU, such as
            functools.partial(SingleSpikeLIFNode, single_spike=False). Neurons whose attribute `sized` is true, as spikes of
            theirs are not 1, are refused beside maximum pools.
        encoder: module [N, *] -> [T, N, *] with an attribute T, which then stands in place of the argument T; None for a
            `HybridEncoder` over the range of each channel of `images` (of all of them, unless they are [N, C, H, W]). Where the
            range of a `HybridEncoder` without a `unit` spans less than 0.5 or more than 10, a copy takes the span for its
            unit. The first threshold is divided by the attribute `unit` of an encoder that has one, a number > 0: the intensity
            that 1 stands for.
        dropout: probability for every dropout layer, in [0, 1); None keeps the ANN's. One mask serves all steps of an image.
        thresholds: what `calibrate_thresholds` returned, to calibrate once for several scales.
        timesteps, batch_size: see `calibrate_thresholds`.

    Returns:
        The spiking network, on the device of the ANN.

    Raises:
        ConversionError: the ANN cannot be converted, or not with this `neuron`; the message names every module in the way and
            the remedy.
        TypeError, ValueError: an argument leaves its range.
    """
    T = check_T(T)
    check_positive("threshold_scale", threshold_scale)
    if dropout is not None and not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1) or None, got {dropout}")
    batch_size = check_T(batch_size, name="batch_size")
    plan = read_ann(ann)
    check_images(plan.layers, images)
    if not len(images):
        raise ValueError(f"images must hold at least one image, got shape {tuple(images.shape)}")
    if encoder is None:
        encoder = HybridEncoder(T, intensity_range_of(images))
    encoder, image_unit = in_unit_of_spikes(encoder)
    if thresholds is None:
        thresholds = calibrate_thresholds(ann, images, percentile=percentile, timesteps=timesteps, batch_size=batch_size)
    missing = [layer.name for layer in plan.layers if layer.kind == NEURON and layer.name not in thresholds]
    if missing:
        raise ValueError(f"thresholds must name every ReLU of the ANN, {', '.join(missing)} missing")
    if dropout is not None:
        plan = replace(plan, layers=with_dropout(plan.layers, dropout))

    once = isinstance(encoder, HybridEncoder)
    assembly = Assembly(plan, images, lambda _, layer: thresholds[layer.name], bias_once=once)
    if image_unit != 1:  # what a spike stands for stays, in units that begin elsewhere
        spike = {layer.name: largest(assembly.units[layer.name]) for layer in plan.layers}

        def in_unit(made: Assembly, layer: Layer) -> float:
            return spike[layer.name] / largest(made.units[layer.inputs[0]])

        assembly = Assembly(plan, images, in_unit, bias_once=once, image_unit=image_unit)
    stages = [
        neuron(leak=leak, v_threshold=assembly.thresholds[layer.name] * threshold_scale)
        if layer.kind == NEURON
        else assembly.modules[layer.name]
        for layer in assembly.layers
    ]
    require_plain_spikes(assembly.layers, stages)
    network = SpikingNetwork(encoder, assembly.layers, stages, SpikeTimeReadout())
    require_logits(network.to(plan.device).eval(), images[:1].to(plan.device))
    network.train(ann.training)
    network.calibrate_readout(images, batch_size)
    return network


def require_plain_spikes(layers: Sequence[Layer], stages: Sequence[nn.Module]) -> None:
    """Raise a ConversionError where maximum pools, which count spikes of 0 and 1, would take spikes that have a size."""
    pools = [layer.name for layer in layers if layer.kind == MAX_POOL]
    sized = {type(part).__name__ for stage in stages for part in stage.modules() if getattr(part, "sized", False)}
    if pools and sized:
        raise ConversionError(
            f"{', '.join(pools)} ({MAX_POOL}) must take spikes of 0 and 1, got those of {', '.join(sorted(sized))}, which have "
            "a size: use average pools, and train the ANN with them"
        )


@torch.no_grad()
def require_logits(network: SpikingNetwork, images: Tensor) -> None:
    """Raise a ConversionError unless the network's output is [N, K]."""
    _, *shape = network.currents(images).shape
    if len(shape) != 2:
        last = f"{network.layers[-1].name} ({network.layers[-1].kind})"
        raise ConversionError(f"{last} must give logits [N, K], got shape {tuple(shape)}: pool and flatten before it")


def in_unit_of_spikes(encoder: nn.Module) -> tuple[nn.Module, float]:
    """Return the encoder, or a copy that divides the pixels by the span of its range, and what it divides them by.

    Spikes are 1. The paper's pixels span about 5, normalised, and those in [0, 1] span 1; pixels that span far more or less
    would say nothing beside spikes, or spikes nothing beside them, and how images are scaled would decide.
    """
    if (unit := unit_of(encoder)) is not None:
        return encoder, unit
    if not isinstance(encoder, HybridEncoder) or encoder.own_range:
        return encoder, 1.0
    span = float((encoder.high - encoder.low).max())
    if span == 0 or SPANS_LIKE_A_SPIKE[0] <= span <= SPANS_LIKE_A_SPIKE[1]:
        return encoder, 1.0
    encoder = copy.deepcopy(encoder)
    encoder.unit = torch.tensor(span, device=encoder.low.device)
    return encoder, span


def unit_of(encoder: nn.Module) -> float | None:
    """Return the `unit` of an encoder that has one; a ValueError unless it is a number > 0."""
    unit: Any = getattr(encoder, "unit", None)
    if unit is None:
        return None
    try:
        number = nan if isinstance(unit, str | bytes) else float(unit)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number = nan
    if not 0 < number < inf:
        raise ValueError(f"encoder.unit must be a number > 0, got {unit!r} of {type(encoder).__name__}")
    return number


def intensity_range_of(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lowest and highest intensity of each channel of images [N, C, H, W], as [C, 1, 1], or of all of [N, *]."""
    if images.dim() < 4:
        return images.min(), images.max()
    dims = (0, *range(2, images.dim()))
    low, high = images.amin(dims, keepdim=True)[0], images.amax(dims, keepdim=True)[0]
    return low.to(torch.float32), high.to(torch.float32)
