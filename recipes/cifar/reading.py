"""Settings from YAML files and key=value pairs."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from cifar.config import Config, ConfigError, Training, named_settings
from cifar.ranges import require_consistent, require_ranges

TRUTHS = ("true", "false", "yes", "no", "on", "off", "y", "n")
"""How YAML and OmegaConf spell truth values."""


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
    require_ranges(config)
    require_consistent(config)
    return config


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
    """Spread what lies in a part of its own over dotted names."""
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
