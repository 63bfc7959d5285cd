"""What values settings may have, each alone and together."""

from dataclasses import fields, is_dataclass
from math import inf
from typing import Any

from cifar.config import Config, ConfigError
from onespike.models.resnet import BLOCKS

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


def require_ranges(section: Any, prefix: str = "") -> None:
    """Raise a ConfigError for the first field outside its range."""
    for entry in fields(section):
        value = getattr(section, entry.name)
        if is_dataclass(value):
            require_ranges(value, f"{entry.name}.")
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


def require_consistent(config: Config) -> None:
    """Raise a ConfigError where settings do not go together."""
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
