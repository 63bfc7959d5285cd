"""Firing thresholds from the distribution of each layer's input current (Section V)."""

import torch
from torch import Tensor, nn

from onespike.conversion.chain import NEURON, ConversionError, Layer, read_chain
from onespike.functional import LIFState, single_spike_lif
from onespike.functional.checks import check_finite, check_floating, check_T


@torch.no_grad()
def calibrate_thresholds(
    ann: nn.Module, images: Tensor, *, percentile: float = 99.7, timesteps: int = 200, batch_size: int = 128
) -> dict[str, float]:
    """Find each hidden layer's firing threshold: a percentile of its input current, layer by layer.

    The ANN's neurons become integrate-and-fire neurons (leak 1, any number of spikes) that see the analogue image at every
    step. A layer's threshold is the largest over the steps of the percentile over images and neurons, with the layers before
    it already at theirs. Scaling is left to `convert`.

    Args:
        ann: a bias-free feed-forward ANN; used in eval mode, left unchanged.
        images: training images, [N, *], as the ANN takes them; the paper uses 512.
        percentile: in (0, 100].
        timesteps: number of steps to simulate; the paper uses 200.
        batch_size: images at a time; changes memory, not the result.

    Returns:
        Path of each ReLU in the ANN -> threshold, in forward order, in the unit of that layer's current.

    Raises:
        ConversionError: the ANN cannot be converted, or a layer gets no positive input.
        TypeError, ValueError: an argument leaves its range.
    """
    check_floating("images", images, 2, "[N, *]")
    check_finite("images", images)
    if not len(images):
        raise ValueError(f"images must hold at least one image, got shape {tuple(images.shape)}")
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile must be in (0, 100], got {percentile}")
    check_T(timesteps, name="timesteps")
    check_T(batch_size, name="batch_size")

    layers, weights = read_chain(ann)
    modules = build_modules(layers, weights)
    for module in modules.values():
        module.eval()
        module.step_mode = "s"  # type: ignore[assignment]
    device = next(iter(weights.values())).device
    batches = [batch.to(device) for batch in images.split(batch_size)]
    thresholds: dict[str, float] = {}
    for position, layer in enumerate(layers):
        if layer.kind != NEURON:
            continue
        states: list[dict[str, LIFState]] = [{} for _ in batches]
        highest = -float("inf")
        for _ in range(timesteps if thresholds else 1):  # before the first neuron every step is the same
            currents = [
                _advance(batch, layers[:position], modules, thresholds, state)
                for batch, state in zip(batches, states, strict=True)
            ]
            highest = max(highest, nearest_percentile(torch.cat([current.flatten() for current in currents]), percentile))
        if highest <= 0:
            raise ConversionError(
                f"{layer.name}: the {percentile} percentile of its input current is {highest:.4g}, not above 0: "
                "the layer is silent on these images: raise timesteps or the percentile, or train the ANN further"
            )
        thresholds[layer.name] = highest
    return thresholds


def _advance(
    x: Tensor,
    layers: list[Layer],
    modules: dict[str, nn.Module],
    thresholds: dict[str, float],
    state: dict[str, LIFState],
) -> Tensor:
    """Pass one step's input through `layers`, updating the neurons' `state` in place."""
    for layer in layers:
        if layer.kind == NEURON:
            spikes, state[layer.name] = single_spike_lif(
                x.unsqueeze(0), 1.0, thresholds[layer.name], state=state.get(layer.name), single_spike=False
            )
            x = spikes[0]
        else:
            x = modules[layer.name](x)
    return x


def build_modules(layers: list[Layer], weights: dict[str, Tensor]) -> dict[str, nn.Module]:
    """Make every layer but the neurons, by name, with copies of the weights."""
    modules = {layer.name: layer.build() for layer in layers if layer.kind != NEURON}
    for name, weight in weights.items():
        modules[name].weight = nn.Parameter(weight.detach().clone())
    return modules


def nearest_percentile(values: Tensor, percentile: float) -> float:
    """Return the value of rank 1 + round(percentile / 100 * (n - 1)): NumPy's percentile with method="nearest"."""
    rank = 1 + round(percentile / 100 * (values.numel() - 1))
    return float(values.flatten().kthvalue(rank).values)
