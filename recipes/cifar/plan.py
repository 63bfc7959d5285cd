"""How many epochs of each kind fit into a row's time, by what they cost on the device at hand."""

import argparse
import time
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from cifar.data import load_data
from cifar.folder import owned, read_json, understanding
from cifar.graph import why_not_recorded
from cifar.launch import make_fabric
from cifar.measure import Times, measure
from cifar.output import say
from cifar.pipeline import ann_loss, new_ann
from cifar.reading import load_config
from cifar.transfer import Networks, Row, plant

SHARES = {"ann": 0.3, "one_step": 0.7}
"""How the time that is left for training is divided: a first guess, not tuned. All steps after the first one did harm."""
PLANNED = ("ann.epochs", "snn.epochs", "one_step")
MOST_EPOCHS = 300
RESERVE = 0.08
"""Share of a row's time that the plan leaves free, for what was measured too short."""
START, FINISH = 0.25, 0.3
"""Minutes that a process takes to start, and to write figures and model, on two slow cores."""


class Table1Error(ValueError):
    """The table cannot be filled as asked."""


def make_plan(row: Row, minutes: float, imported: Networks, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure, choose the epochs, and put imported networks where the run finds them."""
    began = time.monotonic()
    config = load_config([row.config], arguments.set)
    fabric = make_fabric(arguments.device, config)
    data = load_data(config, arguments.data_root, fabric.device)
    loading = time.monotonic() - began
    times = measure(
        config,
        data,
        fabric,
        new_ann(config, data.classes, fabric.device),
        ann_loss(config),
        recorded=why_not_recorded(config, fabric) is None,
    )
    measuring = time.monotonic() - began
    left = 60 * minutes - measuring - loading - times.rest - 60 * (START + FINISH)
    shares = {kind: share for kind, share in SHARES.items() if kind not in imported}
    if config.encoder == "temporal":  # has nothing to learn from its first step
        shares["all_steps"] = shares.pop("one_step")
    epochs = choose_epochs((1 - RESERVE) * left, times, shares)
    settings = [f"ann.epochs={epochs['ann']}", f"snn.epochs={epochs['one_step'] + epochs['all_steps']}"]
    settings.append(f"one_step={epochs['one_step'] / (epochs['one_step'] + epochs['all_steps'])}")
    seconds = {"ANN": times.ann, "SNN at T = 1": times.one_step, f"SNN at T = {config.T}": times.all_steps}
    costs = ", ".join(f"{kind} {spent:.1f} s" for kind, spent in seconds.items())
    say(
        f"{row.name}: data loaded in {loading:.1f} s, measured in {measuring - loading:.1f} s; an epoch of the {costs}; "
        f"all that is not training {times.rest:.1f} s"
    )
    if imported:
        with owned(row.out):
            plant(row, load_config([row.config], [*arguments.set, *settings]), imported, data)
    spent = {kind: epochs[kind] * getattr(times, kind) for kind in shares}
    if fabric.device.type == "cuda":
        torch.cuda.empty_cache()  # the run is another process
    return {
        "settings": settings,
        "ann_share": spent.get("ann", 0) / sum(spent.values()),
        "measured": asdict(times),
        "imported": [about for about, _ in imported.values()],
    }


def choose_epochs(seconds: float, times: Times, shares: dict[str, float]) -> dict[str, int]:
    """Divide seconds of training among the epochs of each kind; at least one of each; an ANN that is there counts as one.

    Raises:
        Table1Error: one epoch of each kind does not fit.
    """
    least = sum(getattr(times, kind) for kind in shares)
    if seconds < least:
        raise Table1Error(
            f"--minutes must leave {least / 60:.2f} minutes a row for an epoch of each kind, got {seconds / 60:.2f}"
        )
    spare, total = seconds - least, sum(shares.values())
    chosen = {kind: 1 + int(spare * share / total / getattr(times, kind)) for kind, share in shares.items()}
    least_epochs = {"ann": 1, "one_step": 0, "all_steps": 0}
    return least_epochs | {kind: min(MOST_EPOCHS, epochs) for kind, epochs in chosen.items()}


def read_plan(path: Path) -> dict[str, Any]:
    """Read what `make_plan` returned."""
    plan = read_json(path)
    with understanding(path):
        numbers = [plan["ann_share"], plan["measured"]["rest"], plan["measured"]["validation"]]
        stages = [about["stage"] for about in plan["imported"]]
        if not all(map(isfinite, numbers)) or not all(pair.split("=")[0] in PLANNED for pair in plan["settings"]):
            raise ValueError(f"{numbers}, {plan['settings']}, {stages}")
    return plan
