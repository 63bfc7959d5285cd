"""The encoder and the neurons of a config, and batch norm through time."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import Tensor, nn

from cifar.config import Config
from cifar.data import Data
from onespike.conversion import SpikingNetwork
from onespike.conversion.layers import NEURON, Layer
from onespike.peers import (
    BatchNormThroughTime,
    BurstNode,
    DCTEncoder,
    KernelEncoder,
    KernelNode,
    PhaseEncoder,
    PhaseNode,
    PoissonEncoder,
    farthest_pixel,
)
from onespike.spikingjelly import DirectEncoder, HybridEncoder, SingleSpikeLIFNode

DCT_IMAGES = 64
"""Training images from which the thresholds of the cosine encoder are taken."""


def encoder_of(config: Config, data: Data, images: Tensor) -> nn.Module:
    """Make the encoder of a config; that of cosines looks at the first of the calibration `images` [N, C, H, W]."""
    if config.encoder == "direct":
        return DirectEncoder(config.T)
    if config.encoder == "dct":
        return DCTEncoder.calibrated(config.T, images[:DCT_IMAGES])
    spiking = {"poisson": PoissonEncoder, "phase": PhaseEncoder, "kernel": KernelEncoder}
    if config.encoder in spiking:
        return spiking[config.encoder](config.T, farthest_pixel(data.mean, data.std))
    return HybridEncoder.for_normalized(
        config.T, data.mean, data.std, analogue=config.encoder != "temporal", temporal=config.encoder != "analogue"
    )


def neuron_of(config: Config) -> Callable[..., nn.Module]:
    """Return what `convert` calls for each ReLU, as neuron(leak=..., v_threshold=...)."""
    converted = {"phase": PhaseNode, "burst": BurstNode, "kernel": partial(KernelNode, T=config.T)}
    if config.neuron in converted:
        return lambda leak, v_threshold: converted[config.neuron](v_threshold)  # noqa: ARG005  (they have no leak)
    neuron = partial(
        SingleSpikeLIFNode,
        learn_leak=config.learn_leak,
        learn_threshold=config.learn_threshold,
        gamma=config.gamma,
        single_spike=config.single_spike,
        grad_after_spike=config.grad_after_spike,
        temporal_gradient=config.temporal_gradient,
        backend=config.backend,
    )
    if config.neuron == "bntt":  # currents of variance 1, whatever the weights
        return lambda leak, v_threshold: neuron(leak=leak, v_threshold=1.0)  # noqa: ARG005
    return neuron


def with_batch_norm(network: SpikingNetwork) -> SpikingNetwork:
    """Put a batch norm for each time step between the weights of a chain and their neurons."""
    layers: list[Layer] = []
    modules: list[nn.Module] = []
    weights: dict[str, nn.Module] = {}
    for layer, module in zip(network.layers, network.body, strict=True):
        if layer.kind == NEURON:
            (source,) = layer.inputs
            weight = weights[source].weight
            norm = Layer(f"{layer.name}_norm", BatchNormThroughTime.__name__, {}, layer.inputs)
            layers.append(norm)
            modules.append(BatchNormThroughTime(len(weight), network.T, weight.dim() - 2).to(weight.device))
            layer = replace(layer, inputs=(norm.name,))  # noqa: PLW2901
        weights[layer.name] = module
        layers.append(layer)
        modules.append(module)
    made = SpikingNetwork(network.encoder, layers, modules, network.readout)
    return made.train(network.training)
