"""The settings of a run: frozen dataclasses, read from a YAML file and from key=value pairs."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from math import inf
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

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


TRUTHS = ("true", "false", "yes", "no", "on", "off", "y", "n")
"""How YAML and OmegaConf spell truth values."""
RANGES: dict[str, tuple[str, Any]] = {
    **dict.fromkeys(
        ("validation", "test_images", "hidden", "T", "calibration_images", "calibration_T", "conversion_T", "activity_images",
         "batch_size", "accumulate"),
        (">= 1", lambda value: value >= 1),
    ),
    **dict.fromkeys(
        ("seed", "max_steps", "conversion_images", "epochs", "weight_decay", "warmup", "clip", "neuron_lr", "patience"),
        (">= 0", lambda value: value >= 0),
    ),
    "crop": ("in [0, 31]", lambda value: 0 <= value <= 31),
    "cutout": ("in [0, 32]", lambda value: 0 <= value <= 32),
    **dict.fromkeys(("width", "gamma", "beta", "lr", "temperature"), ("> 0 and finite", lambda value: 0 < value < inf)),
    **dict.fromkeys(("dropout", "fc_dropout", "snn_dropout", "momentum"), ("in [0, 1)", lambda value: 0 <= value < 1)),
    **dict.fromkeys(("leak", "decay", "label_smoothing", "one_step"), ("in [0, 1]", lambda value: 0 <= value <= 1)),
    "distillation": (">= 0 and finite", lambda value: 0 <= value < inf),
    "percentile": ("in (0, 100]", lambda value: 0 < value <= 100),
    "threshold_scales": ("one or more numbers > 0", lambda value: value and all(scale > 0 for scale in value)),
    "milestones": ("rising epochs >= 0", lambda value: value == sorted(value) and all(epoch >= 0 for epoch in value)),
}  # fmt: skip


CODES = {"phase": ("phase", "burst"), "kernel": ("kernel",)}
"""Encoders whose spikes only some neurons understand."""
NEURONS = {"phase": ("phase",), "kernel": ("kernel",)}
"""Neurons that understand the spikes of some encoders alone."""
IGNORED = dict.fromkeys(("phase", "burst", "kernel"), ("leak", "learn_leak", "learn_threshold", "single_spike"))
"""Neurons of other codes, and the settings of LIF neurons that they do not have."""


LARGEST, SMALLEST = 3.4e38, 1.2e-38
"""What float32 can hold."""
LIMITS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("T", "hidden", "batch_size", "accumulate"), (1, 2**16)),
    **dict.fromkeys(("calibration_T", "conversion_T", "epochs", "patience", "warmup"), (0, 10**5)),
    "seed": (0, 2**63 - 1),
    "width": (1e-3, 64),
    "threshold_scales": (1e-6, 1e6),
}
"""What other numbers no run can mean; integers go to 2^31 - 1 and numbers to float32's range where nothing is said here."""


def load_config(paths: Sequence[Path], overrides: Sequence[str] = ()) -> Config:
    """Read config files, each on top of those before it, and the key=value pairs on top of all.

    A file names only what differs from the defaults; its key `base` names one or more files beside it to start from, each on
    top of those before it.

    Args:
        paths: YAML files.
        overrides: such as "snn.lr=1e-3" or "threshold_scales=[0.2,0.4]".

    Raises:
        ConfigError: a file cannot be read, a key is unknown (the nearest name is suggested), a value has the wrong type or
            leaves its range.
    """
    for pair in overrides:
        if "=" not in pair:
            raise ConfigError(f"--set takes key=value, got {pair!r}")
    layers = [layer for path in paths for layer in read_files(path)]
    merged = OmegaConf.structured(Config)
    for origin, layer in [*layers, *(("--set", read_pair(pair)) for pair in overrides)]:
        require_plain(origin, layer)
        if layer.get("time_gradient") is False:  # YAML reads off as a truth value
            layer.time_gradient = "off"
        try:
            merged = OmegaConf.merge(merged, layer)
        except ConfigKeyError as error:
            raise ConfigError(f"{origin}: unknown setting {error.full_key}{suggestion(error.full_key)}") from error
        except (OmegaConfBaseException, ArithmeticError, TypeError, ValueError) as error:
            name, given = getattr(error, "full_key", None), ", ".join(flattened(OmegaConf.to_container(layer)))
            raise ConfigError(f"{origin}: {name or 'settings'}: {first_line(error)} (in {given[:200]})") from error
    try:
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(f"settings: {first_line(error)}") from error
    assert isinstance(config, Config)
    check("", config)
    for name, training in (("ann", config.ann), ("snn", config.snn)):
        if training.accumulate > training.batch_size:
            raise ConfigError(
                f"{name}.accumulate must be at most {name}.batch_size, {training.batch_size}, got {training.accumulate}"
            )
    if config.encoder == "temporal" and config.T == 1:
        raise ConfigError("T must be >= 2 for encoder=temporal, whose first spike comes at t = 2, got 1")
    check_codes(config)
    if config.ann.relative or (config.snn.relative and config.snn.optimizer != "adam"):
        raise ConfigError(
            "relative must be false but for snn.optimizer=adam, got "
            f"ann.relative={config.ann.relative}, snn.relative={config.snn.relative}, snn.optimizer={config.snn.optimizer}"
        )
    return config


def check_codes(config: Config) -> None:
    """Raise a ConfigError where encoder, neuron and training do not go together."""
    encoder, neuron = config.encoder, config.neuron
    if encoder not in ("hybrid", "direct", "analogue") and config.one_step:
        shows = "is empty" if encoder == "temporal" else "shows little of the image"
        raise ConfigError(f"one_step must be 0 for encoder={encoder}, whose first step {shows}, got {config.one_step}")
    if neuron not in CODES.get(encoder, (neuron,)):
        raise ConfigError(f"neuron must be {' or '.join(CODES[encoder])} for encoder={encoder}, got {neuron}")
    if encoder not in NEURONS.get(neuron, (encoder,)):
        raise ConfigError(f"encoder must be {' or '.join(NEURONS[neuron])} for neuron={neuron}, got {encoder}")
    if neuron in ("phase", "burst", "kernel") and config.snn.epochs:
        raise ConfigError(f"snn.epochs must be 0 for neuron={neuron}, which has no gradient, got {config.snn.epochs}")
    if neuron != "lif" and config.calibration == "one_spike":
        fits = "whose spikes have a size" if neuron in IGNORED else "whose currents are normalised, whatever the weights"
        raise ConfigError(f"calibration must be percentile for neuron={neuron}, {fits}, got one_spike")
    for name in IGNORED.get(neuron, ()):
        default, value = getattr(Config, name), getattr(config, name)
        if value != default:
            raise ConfigError(f"{name} must be {default} for neuron={neuron}, which has no such thing, got {value}")
    if neuron != "lif" and config.model in BLOCKS:
        raise ConfigError(f"model must be a vgg for neuron={neuron}, which takes no biases, got {config.model}")


def first_line(error: Exception) -> str:
    """Return the part of an error's message that says what is wrong."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def read_pair(pair: str) -> DictConfig:
    """Read key=value as a layer of settings."""
    try:
        return OmegaConf.from_dotlist([pair])
    except Exception as error:  # YAML's errors have no common base that OmegaConf exports
        raise ConfigError(f"--set {pair[:80]!r} is not YAML: {first_line(error)}") from error


def require_plain(origin: str, layer: DictConfig) -> None:
    """Raise a ConfigError for a truth value that is none, which OmegaConf would make one of, and for one that is left open."""
    types = {name: get_type_hints(Training if "." in name else Config)[entry.name] for name, entry in named_settings(Config)}
    for name, value in flattened(OmegaConf.to_container(layer)).items():
        if value == "???":
            raise ConfigError(f"{origin}: {name} must have a value, got ???")
        if types.get(name) is not bool or isinstance(value, bool) or str(value).startswith("${"):
            continue
        if str(value).lower() not in TRUTHS:
            raise ConfigError(f"{origin}: {name}: Value '{value}' is not a valid bool")


def flattened(settings: Any) -> dict[str, Any]:
    """Return the settings of a layer by dotted name."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        section = isinstance(value, dict) and value
        found |= {f"{name}.{below}": one for below, one in value.items()} if section else {str(name): value}
    return found


def read_files(path: Path, based: tuple[Path, ...] = ()) -> list[tuple[str, DictConfig]]:
    """Return a file's settings after those of the files that it, and those in `based`, are based on."""
    if path in based:
        raise ConfigError(f"{path} is based on itself")
    try:
        layer = OmegaConf.load(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # YAML's errors have no common base that OmegaConf exports
        raise ConfigError(f"{path} is not YAML: {str(error)[:300]}") from error
    if not isinstance(layer, DictConfig):
        raise ConfigError(f"{path} must hold settings by name, got a {type(layer).__name__}")
    dotted = [name for name in layer if isinstance(name, str) and "." in name]  # as the config.yaml of a run has them
    for name in dotted:
        if name.partition(".")[0] in layer:
            raise ConfigError(f"{path} has both {name} and {name.partition('.')[0]}: write one of them")
    try:
        for name, value in [(name, layer.pop(name)) for name in dotted]:
            OmegaConf.update(layer, name, value)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {first_line(error)}") from error
    try:
        bases = layer.pop("base", None) or []
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: base must name files: {first_line(error)}") from error
    names = list(bases) if isinstance(bases, list | ListConfig) else [bases]
    if not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{path}: base must name files, got {bases}")
    return [below for name in names for below in read_files(path.parent / name, (*based, path))] + [(str(path), layer)]


def suggestion(key: str) -> str:
    """Return the setting that an unknown one was probably meant to be: of its own section first, then of any."""
    known = [name for name, _ in named_settings(Config)]
    section, _, leaf = key.rpartition(".")
    siblings = {name.removeprefix(f"{section}."): name for name in known if name.rpartition(".")[0] == section}
    leaves = {name.rpartition(".")[2]: name for name in known}
    for names in (siblings, leaves):
        if nearest := difflib.get_close_matches(leaf, names, 1):
            return f": did you mean {names[nearest[0]]}?"
    return ": --help lists them all"


def named_settings(section: type, prefix: str = "") -> list[tuple[str, Any]]:
    """Return every field below `section` with its dotted name."""
    types = get_type_hints(section)
    found: list[tuple[str, Any]] = []
    for entry in fields(section):
        name = prefix + entry.name
        found += [(name, entry), *(named_settings(types[entry.name], f"{name}.") if is_dataclass(types[entry.name]) else [])]
    return found


def check(prefix: str, section: Any) -> None:
    """Raise a ConfigError for the first field outside its range."""
    for entry in fields(section):
        value = getattr(section, entry.name)
        if is_dataclass(value):
            check(f"{entry.name}.", value)
            continue
        if entry.name in RANGES and value is not None:
            rule, holds = RANGES[entry.name]
            if not numeric(value) or not holds(value):
                raise ConfigError(f"{prefix}{entry.name} must be {rule}, got {value}")
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float) and not within_limits(entry.name, number):
                low, high = LIMITS.get(entry.name, (0, 2**31 - 1) if isinstance(number, int) else (SMALLEST, LARGEST))
                raise ConfigError(f"{prefix}{entry.name} must be a number from {low:g} to {high:g}, got {value}")


def numeric(value: Any) -> bool:
    """Whether a value is a number, or a list of numbers: OmegaConf lets lists hold anything."""
    return all(isinstance(number, int | float) for number in (value if isinstance(value, list) else [value]))


def within_limits(name: str, number: float) -> bool:
    """Whether a number is one that a run can mean."""
    if name in LIMITS:
        low, high = LIMITS[name]
        return low <= number <= high
    return number <= 2**31 - 1 if isinstance(number, int) else number == 0 or SMALLEST <= number <= LARGEST


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
