"""From the trained ANN to the spiking network of a config."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cifar.checkpoint import require_one_folder
from cifar.codes import encoder_of, neuron_of, with_batch_norm
from cifar.config import Config
from cifar.data import Data, Split
from cifar.evaluation import FEW_STEPS, accuracy
from cifar.folder import digest_of_weights, read_json, write_json
from cifar.results import watch
from cifar.seeds import seed_of
from cifar.stage import Runtime
from onespike.conversion import ConversionError, SpikingNetwork, calibrate_thresholds, convert, fit_one_spike
from onespike.conversion.calibrate import SilentLayerError
from onespike.metrics import NetworkHealth
from onespike.spikingjelly import DirectEncoder, HybridCrossEntropyLoss, SingleSpikeLIFNode

DESCRIBED_IMAGES = 500
HEALTH_IMAGES = 250
IMAGES_TIMES_STEPS = 2000
"""What a batch of the plain conversion holds, so that its memory does not grow with T."""


def choose_thresholds(path: Path, ann: nn.Module, runtime: Runtime) -> dict[str, Any]:
    """Calibrate the thresholds and take the factor that serves the untrained network best on the validation images.

    The choice is kept in the file `path`, bound to the ANN, and read from there where it was made before.

    Raises:
        CheckpointError: the file was altered, or made from another ANN.
        ConversionError: a layer is silent, or no threshold of these scales fits float32.
    """
    config, data, fabric = runtime.config, runtime.data, runtime.fabric
    found = path.exists()
    require_one_folder(fabric, path.name, found)
    made_from = {"ANN": fabric.broadcast(digest_of_weights(ann))}
    if found:
        return read_json(path, **made_from)
    ann.eval()
    thresholds = calibrated(ann, data, config) if config.calibration == "percentile" or config.conversion_images else None
    accuracies = {}
    for scale in config.threshold_scales:
        network = spiking_network(ann, {"thresholds": thresholds, "scale": scale}, data, config)
        accuracies[scale] = accuracy(network, data.validation, fabric)
    choice = {
        "thresholds": thresholds,
        "scale": max(accuracies, key=lambda scale: accuracies[scale]),
        "validation_accuracy": {str(scale): percent for scale, percent in accuracies.items()},
    }
    return fabric.broadcast(write_json(path, choice, **made_from) if fabric.is_global_zero else choice)


def calibrated(ann: nn.Module, data: Data, config: Config) -> dict[str, float]:
    """Return the thresholds by the percentile; where a layer is silent, say by which settings it could speak."""
    images = calibration_images(data, config)
    try:
        return calibrate_thresholds(ann, images, percentile=config.percentile, timesteps=config.calibration_T)
    except SilentLayerError as error:
        settings = f"calibration_T={config.calibration_T}, percentile={config.percentile:g} or ann.epochs={config.ann.epochs}"
        raise ConversionError(f"{error.found}: begin again with more than {settings}") from error


def calibration_images(data: Data, config: Config) -> Tensor:
    """Return the first training images, as they are."""
    return data.train.plain(slice(0, config.calibration_images))[0]


def spiking_network(ann: nn.Module, conversion: dict[str, Any], data: Data, config: Config) -> SpikingNetwork:
    """Convert the ANN into the spiking network of the config, by a choice of `choose_thresholds`."""
    torch.manual_seed(seed_of(config.seed, "conversion"))  # encoders may draw
    images, thresholds, scale = calibration_images(data, config), conversion["thresholds"], conversion["scale"]
    if config.calibration == "one_spike":
        try:
            ann, thresholds = fit_one_spike(ann, images, threshold_factor=scale)
        except ConversionError as error:
            raise ConversionError(f"calibration=one_spike, threshold_scales=[{scale}]: {error}") from error
        scale = 1.0
    try:
        network = convert(
            ann,
            images,
            threshold_scale=scale,
            thresholds=thresholds,
            leak=config.leak,
            neuron=neuron_of(config),
            encoder=encoder_of(config, data, images),
            dropout=config.snn_dropout,
        )
    except ConversionError:
        raise
    except ValueError as error:  # numbers of the ANN and of settings that are in range, but whose product is not
        raise ConversionError(f"the ANN cannot be converted by threshold_scales={config.threshold_scales}: {error}") from error
    if config.neuron == "bntt":
        network = with_batch_norm(network)
        network.calibrate_readout(images)
    network.readout.beta = config.beta * network.readout.v_threshold.item()
    network.readout.time_gradient = config.time_gradient
    network.readout.v_threshold.requires_grad_(config.time_gradient != "off")
    return network


def plain_accuracy(ann: nn.Module, conversion: dict[str, Any], runtime: Runtime) -> float:
    """Measure the plain conversion of Table I's column b: direct input, any number of spikes, thresholds as calibrated."""
    config, data = runtime.config, runtime.data
    network = convert(
        ann,
        calibration_images(data, config)[:1],  # V_L alone depends on them, and the potential not on V_L
        threshold_scale=1,
        thresholds=conversion["thresholds"],
        encoder=DirectEncoder(config.conversion_T),
        neuron=partial(SingleSpikeLIFNode, single_spike=False, backend=config.backend),
    )
    batch_size = max(1, IMAGES_TIMES_STEPS // config.conversion_T)
    test = data.test.head(config.conversion_images)
    return accuracy(network, test, runtime.fabric, batch_size)


def health(network: SpikingNetwork, validation: Split) -> NetworkHealth:
    """Watch potentials and gradients of a spiking network over the first validation images; no weight keeps a gradient."""
    network.eval()
    x, y = validation.plain(slice(0, min(HEALTH_IMAGES, HEALTH_IMAGES * FEW_STEPS // network.T)))
    first = next(network.body.parameters())
    with NetworkHealth(network) as seen, torch.enable_grad():
        torch.autograd.grad(HybridCrossEntropyLoss()(network(x), y), first)
    return seen


def blocked(seen: NetworkHealth) -> list[str]:
    """Return the dead layers, if no gradient at all arrives at the first one."""
    first = next(iter(seen.layers.values()))
    return [] if first.gradient else seen.dead


def describe(network: SpikingNetwork, validation: Split) -> dict[str, Any]:
    """Return what an epoch's line of the history says about a spiking network."""
    activity = watch(network, validation, DESCRIBED_IMAGES)
    nodes = network.nodes()
    return {
        "spikes": activity.mean,
        "activity": activity.zeta,
        **health(network, validation).as_dict(),
        "leak": {name: node.leak.item() for name, node in nodes.items()},
        "threshold": {name: node.v_threshold.item() for name, node in nodes.items()},
        "output_threshold": network.readout.v_threshold.item(),
    }
