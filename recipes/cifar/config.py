"""The settings of a run: frozen dataclasses whose defaults are the paper's."""

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal, get_args, get_type_hints

from onespike.models.resnet import BLOCKS
from onespike.models.vgg import LAYERS


class ConfigError(ValueError):
    """A setting is unknown, of the wrong type or out of its range."""


def option(default: Any, help: str) -> Any:
    """Declare a field with its default and the line that `--help` prints."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Training:
    """How a network is trained."""

    epochs: int = option(200, "passes over the training split; 0 leaves the network as it is")
    batch_size: int = option(64, "images per optimiser step, over all processes and accumulated parts")
    accumulate: int = option(1, "parts in which a batch is computed, to save memory")
    optimizer: Literal["sgd", "adam"] = option("sgd", "SGD with Nesterov momentum, or Adam (with decoupled weight decay)")
    lr: float = option(0.01, "learning rate at its highest")
    relative: bool = option(
        False, "lr is the share of its threshold by which a step of Adam may move a neuron's current; spiking networks alone"
    )
    neuron_lr: float = option(1.0, "factor on the learning rate of leaks and thresholds")
    momentum: float = option(0.9, "of SGD; it is Nesterov's, of which the paper says nothing")
    amsgrad: bool = option(False, "of Adam")
    weight_decay: float = option(0.0, "of weights; leaks and thresholds never decay")
    schedule: Literal["steps", "cosine"] = option("steps", "learning rate: times `decay` at each milestone, or half a cosine")
    milestones: list[float] = option([], "epochs at which the rate falls, for schedule=steps")
    decay: float = option(0.1, "factor at a milestone")
    warmup: float = option(0.0, "epochs over which the rate first rises from 0; half of all at most")
    label_smoothing: float = option(0.0, "share of the target spread over all classes")
    centralize: bool = option(False, "take from the gradient of each weight the mean over its neuron's weights")
    clip: float = option(0.0, "largest gradient norm; 0 clips nothing")
    patience: int = option(10, "epochs after the warm-up until a network that never left chance is given up; 0: never")
    max_steps: int | None = option(None, "end after so many optimiser steps, to try a config out; null trains all epochs")


@dataclass(frozen=True)
class Config:
    """Every setting of a run that its result depends on. The defaults are the paper's."""

    dataset: Literal["cifar10", "cifar100", "digits"] = option(
        "cifar10", "digits: scikit-learn's, bundled, enlarged to 32 x 32"
    )
    test_images: int | None = option(None, "read so many test images, to try a config out; null reads all")
    validation: int = option(5000, "images held out of the training set, for every choice")
    crop: int = option(4, "pixels of black border for random crops; 0 crops nothing")
    flip: bool = option(True, "mirror half of the images")
    cutout: int = option(0, "side in pixels of a square set to the mean colour, anywhere in each training image; 0 sets none")
    seed: int = option(0, "of weights, batches, augmentation and dropout")

    model: Literal["vgg6", "vgg9", "vgg11", "vgg16", "resnet8", "resnet14", "resnet20", "resnet32"] = option(
        "vgg16", "network; a resnet has batch norm, and of what follows takes the width alone"
    )
    width: float = option(1.0, "factor on the channels of its convolutions")
    hidden: int = option(4096, "units of its two hidden fully-connected layers")
    dropout: float = option(0.2, "dropout of the ANN after convolutions")
    fc_dropout: float = option(0.5, "dropout of the ANN in the fully-connected head")
    init: Literal["paper", "centred"] = option(
        "paper", "the ANN's first weights: as the paper's lineage has them, or such that images stay apart in every layer"
    )
    ann: Training = option(
        Training(milestones=[120, 160, 180], weight_decay=5e-4), "training of the ANN, by its fields: ann.epochs=..."
    )

    T: int = option(5, "time steps")
    encoder: Literal["hybrid", "direct", "analogue", "temporal", "poisson", "dct", "phase", "kernel"] = option(
        "hybrid",
        "image at t = 1, then one spike per pixel; image at every step; image, then zeros; spikes alone; other codes' spikes, "
        "see docs/peers.md",
    )
    neuron: Literal["lif", "phase", "burst", "kernel", "bntt"] = option(
        "lif", "what the settings below make of it; codes that conversion alone makes; LIF behind batch norm for each step"
    )
    calibration_images: int = option(512, "training images from which thresholds are found")
    calibration_T: int = option(200, "time steps of that calibration")
    calibration: Literal["percentile", "one_spike"] = option(
        "percentile", "thresholds: a percentile of each layer's current, or each channel's by the one spike that says most"
    )
    percentile: float = option(99.7, "of a layer's input current that becomes its threshold")
    threshold_scales: list[float] = option([0.4], "factors on all thresholds; the best on the validation split is taken")
    leak: float = option(1.0, "of every neuron at the start")
    single_spike: bool = option(True, "a neuron fires at most once")
    learn_leak: bool = option(True, "train the leaks")
    learn_threshold: bool = option(True, "train the thresholds")
    gamma: float = option(0.3, "height of the spike's surrogate gradient")
    grad_after_spike: bool = option(True, "the surrogate lives on after a neuron's only spike")
    temporal_gradient: bool = option(True, "gradients flow back through time")
    beta: float = option(0.2, "half-width of the spike time's surrogate, as a share of the output threshold")
    time_gradient: Literal["threshold", "full", "off", "eq17"] = option("threshold", "who receives the spike time's gradient")
    snn_dropout: float = option(0.2, "dropout of the SNN, one mask for all steps of an image")
    one_step: float = option(
        0.0,
        "share of the SNN's epochs, the first ones, that train t = 1 alone; where all of them do, V_L is calibrated anew",
    )
    distillation: float = option(0.0, "weight of the divergence from the ANN's softened logits in the SNN's loss")
    temperature: float = option(2.0, "by which both logits are divided for it")
    snn: Training = option(
        Training(epochs=150, optimizer="adam", amsgrad=True, lr=1e-4, milestones=[float(e) for e in range(10, 150, 10)]),
        "training of the SNN, by its fields: snn.epochs=...",
    )

    conversion_T: int = option(200, "time steps of the plain conversion (Table I, column b)")
    conversion_images: int = option(10000, "test images for it; 0 leaves it out")
    activity_images: int = option(1500, "test images over which spikes and energy are counted")

    backend: Literal["auto", "torch", "inductor", "cupy", "triton"] = option("auto", "of the neurons")
    precision: Literal["auto", "32-true", "bf16-mixed"] = option(
        "auto", "of training; auto: bf16-mixed where it is fast, else 32-true"
    )
    channels_last: bool = option(True, "memory format of images and weights")
    compile: bool = option(False, "torch.compile the network")
    cuda_graph: Literal["auto", "always", "never"] = option(
        "auto", "replay a training step as one CUDA graph; the numbers are the same. auto: wherever a step can be recorded"
    )
    cudnn_benchmark: bool = option(
        False, "let cuDNN try its algorithms and take the quickest: a run is no longer the same to the last bit when repeated"
    )
    tf32: bool = option(
        False,
        "on a GPU, float32 products from factors of 10 bits: quicker in 32-true and in evaluation, and less exact in both",
    )


def named_settings(section: type, prefix: str = "") -> list[tuple[str, Any]]:
    """Return every field below `section` with its dotted name."""
    types = get_type_hints(section)
    found: list[tuple[str, Any]] = []
    for entry in fields(section):
        name = prefix + entry.name
        found += [(name, entry), *(named_settings(types[entry.name], f"{name}.") if is_dataclass(types[entry.name]) else [])]
    return found


def explain() -> str:
    """Return every setting with its default and meaning, for `--help`."""
    lines, paper = [], Config()
    for section, title in ((Config, "settings (--set key=value)"), (Training, "settings of ann and snn (--set snn.key=value)")):
        types = get_type_hints(section)
        lines.append(f"{title}:")
        for entry in fields(section):
            if is_dataclass(types[entry.name]):
                lines.append(f"  {entry.name:<20}{entry.metadata['help']}")
                continue
            default = (
                getattr(paper, entry.name)
                if section is Config
                else f"ann {getattr(paper.ann, entry.name)}, snn {getattr(paper.snn, entry.name)}"
            )
            choices = get_args(types[entry.name]) if "Literal" in str(types[entry.name]) else ()
            allowed = f" [{', '.join(map(str, choices))}]" if choices else ""
            lines.append(f"  {entry.name:<20}{entry.metadata['help']}{allowed} (default {default})")
        lines.append("")
    return "\n".join(lines)


assert {*LAYERS, *BLOCKS} == set(get_args(get_type_hints(Config)["model"]))
