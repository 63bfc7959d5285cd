"""Thresholds for spiking networks of few steps: each ReLU's channel by the one spike that says most about it."""

import copy
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onespike.conversion.assemble import scale_columns
from onespike.conversion.layers import MAX_POOL, NEURON, WEIGHTED, check_images
from onespike.conversion.rules import ConversionError, Plan, read_ann
from onespike.functional.checks import check_positive

LOWEST = 0.01
"""Lowest threshold of a channel, as a share of the layer's largest current: its weights are divided by it."""


@torch.no_grad()
def fit_one_spike(ann: nn.Module, images: Tensor, *, threshold_factor: float = 1.0) -> tuple[nn.Module, dict[str, float]]:
    """Rescale an ANN's weights, and find thresholds, so that a spike at t = 1 says as much about each ReLU as one bit can.

    `calibrate_thresholds` finds what a neuron needs that spikes at a rate, over many steps. With few steps a neuron has one bit
    to say whether its ReLU was large, and a threshold that fits the layer leaves most channels always or never above it. Here
    layer by layer, s being the current that the spikes of the layers before give at t = 1, and a the ANN's activation:

        v_c = argmax_v Cov(a_c, 1[s_c > v])^2 / Var 1[s_c > v]      what explains most of the variance of channel c
        g_c = E[a_c | s_c > v_c] - E[a_c | s_c <= v_c]              what a spike stands for
        V = 1;    rows of W: times 1 / v_c;    columns of the next W: times g_c

    A spike is 1, and a layer has one threshold, so both factors go into the weights: currents are in units of the threshold,
    the logits in those of the ANN. What a spike cannot say, the mean, is left to the next thresholds.

        fitted, thresholds = fit_one_spike(ann, images)
        network = convert(fitted, images, thresholds=thresholds, threshold_scale=1.0)

    Args:
        ann: a bias-free chain, without batch norm and max pools; used in eval mode, left unchanged.
        images: training images, [N, *], as the ANN takes them: one value of each channel, at least, must differ. All at once:
            for each value of the largest layer some 60 bytes are held (512 images and VGG-16: 2 GB).
        threshold_factor: on every v_c: above 1 for fewer spikes, below for more.

    Returns:
        A copy of the ANN to convert in its place, which as an ANN computes nothing of use, and path of each ReLU -> 1.0.

    Raises:
        ConversionError: the ANN cannot be converted, or a layer gets no positive current.
        TypeError, ValueError: an argument leaves its range.
    """
    check_positive("threshold_factor", threshold_factor)
    plan = read_ann(ann)
    require_chain(plan)
    layers, weights = plan.layers, {name: own.weight for name, own in plan.weights.items()}
    check_images(layers, images)
    if len(images) < 2:
        raise ValueError(f"images must hold at least two images, got shape {tuple(images.shape)}")
    plain = dict(ann.named_parameters())
    for name in weights:
        if f"{name}.weight" not in plain:
            raise ConversionError(
                f"{name}: its weight must be a plain parameter to be rescaled: remove pruning or parametrisation"
            )
    modules = {layer.name: layer.build().eval() for layer in layers if layer.kind != NEURON}
    for name, module in modules.items():
        module.step_mode = "s"  # type: ignore[assignment]
        if name in weights:
            module.weight = nn.Parameter(weights[name].detach().clone())
    activation = current = images.to(next(iter(weights.values())).device)
    weighted = [layer.name for layer in layers if layer.kind in WEIGHTED]
    following = dict(pairwise(weighted))
    factors = {name: torch.ones_like(weight) for name, weight in weights.items()}
    thresholds: dict[str, float] = {}
    source = ""
    for layer in layers:
        if layer.kind != NEURON:
            source = layer.name if layer.kind in WEIGHTED else source
            activation, current = modules[layer.name](activation), modules[layer.name](current)
            continue
        if current.shape[1] != len(factors[source]) or (current.dim() > 2 and isinstance(modules[source], nn.Linear)):
            raise ConversionError(
                f"{layer.name}: its input must be [N, channels, *] of {source} for a threshold by channel, got "
                f"{tuple(current.shape)}: use calibrate_thresholds"
            )
        activation = F.relu(activation)
        try:
            v_threshold, gain = best_bits(by_channel(current), by_channel(activation), threshold_factor)
        except ValueError as error:
            raise ConversionError(f"{layer.name}: {error}") from error
        thresholds[layer.name] = 1.0
        factors[source] /= v_threshold.view(-1, *[1] * (factors[source].dim() - 1))
        scale_columns(factors[following[source]], modules[following[source]], gain)
        shape = (1, -1, *[1] * (current.dim() - 2))
        current = (current > v_threshold.view(shape)).to(current.dtype) * gain.view(shape)
    fitted = copy.deepcopy(ann)
    for name, factor in factors.items():
        fitted.get_parameter(f"{name}.weight").mul_(factor)
    return fitted, thresholds


def require_chain(plan: Plan) -> None:
    """Raise a ConversionError unless layers follow one on the other, without biases, batch norm and maximum pools."""
    for before, layer in pairwise(plan.layers):
        if layer.inputs != (before.name,) or layer.kind == MAX_POOL:
            raise ConversionError(
                f"{layer.name} ({layer.kind}): only chains without max pools are fitted: use calibrate_thresholds"
            )
    for name, own in plan.weights.items():
        if own.bias is not None:
            raise ConversionError(
                f"{name} has a bias, or a batch norm behind it, which is not fitted: use calibrate_thresholds"
            )


def by_channel(x: Tensor) -> Tensor:
    """Return [N, C, *] as [C, values of each]."""
    return x.transpose(0, 1).reshape(x.shape[1], -1)


def best_bits(current: Tensor, activation: Tensor, threshold_factor: float) -> tuple[Tensor, Tensor]:
    """Return for each row the threshold on its currents whose bit says most about the activation, and what that stands for.

    Args:
        current, activation: [C, n].
        threshold_factor: on every threshold.

    Returns:
        Thresholds > 0 and gains, each [C]; of channels that no threshold divides, the median of the others.

    Raises:
        ValueError: no threshold divides any channel.
    """
    falling, order = current.sort(dim=1, descending=True)
    sums = activation.gather(1, order).cumsum(1, dtype=torch.float64)
    n = current.shape[1]
    above = torch.arange(1, n, device=current.device, dtype=torch.float64)  # how many lie above each gap
    explained = (sums[:, :-1] - above / n * sums[:, -1:]).square() / (above * (1 - above / n))
    # Half-way between two currents: a rounding of the rescaled weights moves no spike.
    middle = (falling[:, 1:] + falling[:, :-1]) / 2
    allowed = (middle > LOWEST * falling[:, :1].max()) & (falling[:, 1:] < falling[:, :-1])
    best = torch.where(allowed, explained, -1.0).argmax(1, keepdim=True)
    v_threshold = threshold_factor * middle.gather(1, best)
    spikes = current > v_threshold
    fired = spikes.sum(1)
    gain = (activation * spikes).sum(1) / fired - (activation * ~spikes).sum(1) / (n - fired)
    divided = allowed.any(1) & (gain > 0)  # NaN, where the factor left no spike, is not above 0
    if not divided.any():
        if allowed.any():
            raise ValueError(f"threshold_factor must leave spikes, got {threshold_factor}")
        raise ValueError("no threshold divides its currents on these images: train the ANN further")
    return (
        torch.where(divided, v_threshold[:, 0], v_threshold[divided].median()),
        torch.where(divided, gain, gain[divided].median()),
    )
