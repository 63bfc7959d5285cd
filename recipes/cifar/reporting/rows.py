"""Finished runs, gathered by their settings and named as a reader would name them."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from cifar.checkpoint import CheckpointError
from cifar.folder import parse
from cifar.reading import flattened
from cifar.reporting.paper import PEERS, VARIANTS
from onespike.metrics.energy import ACCOUNTINGS, TECHNOLOGIES
from onespike.models.vgg import LAYERS

DATA = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "digits": "digits"}
QUICKSTART = "Quickstart CNN"
CONVOLUTIONS = {name: sum(isinstance(layer, int) for layer in layers) for name, layers in LAYERS.items()} | {QUICKSTART: 2}
ENCODERS = {
    "hybrid": "hybrid input",
    "direct": "direct input",
    "analogue": "image, then zeros",
    "temporal": "spike times alone",
    "poisson": "Poisson input",
    "dct": "DCT input",
    "phase": "phase-coded input",
    "kernel": "kernel-coded input",
}
NEURONS = {"phase": "weighted spikes", "burst": "bursts", "kernel": "one spike a window", "bntt": "batch norm at each step"}
SWITCHES = {
    ("learn_leak", False): "leak fixed",
    ("learn_threshold", False): "threshold fixed",
    ("grad_after_spike", False): "no gradient after the spike",
    ("temporal_gradient", False): "no gradient through time",
    ("time_gradient", "full"): "time loss in full",
    ("time_gradient", "off"): "no time loss",
    ("time_gradient", "threshold"): "time loss for the threshold",
}
SCRATCH = "from scratch"
OWN = ("dataset", "model", "width", "hidden", "encoder", "neuron", "single_spike", "T", "seed")
"""Settings that a row's name says anyway."""


@dataclass
class Row:
    """Runs that differ in their seed alone."""

    run: str
    config: dict[str, Any]
    seeds: list[int]
    results: list[dict[str, Any]]
    provenance: list[dict[str, Any]]
    seconds: list[float]
    remark: str = ""

    @property
    def setting(self) -> str:
        """Network and data."""
        model, width = str(self.config["model"]), self.config["width"]
        for name in ("VGG-", "ResNet-"):
            plain = name[:-1].lower()
            model = name + model.removeprefix(plain) if model.startswith(plain) else model
        return f"{model}{'' if width == 1 else f' at {width:g} of its width'}, {DATA.get(self.config['dataset'], 'other data')}"

    @property
    def slug(self) -> str:
        """The setting, as part of a file's name."""
        words = f"{self.config['dataset']} {self.config['model']} {self.config['width']:g}"
        return "-".join("".join(c if c.isalnum() or c == "." else " " for c in words.lower()).split())

    @property
    def kind(self) -> str:
        """What is particular about it, but for T."""
        config = self.config
        spikes = NEURONS.get(config.get("neuron", "lif"), "one spike" if config["single_spike"] else "any number of spikes")
        return ", ".join(filter(None, [ENCODERS.get(config["encoder"], str(config["encoder"])), spikes, self.how, self.remark]))

    @property
    def how(self) -> str:
        """How it came about, where it was not converted and then trained."""
        epochs = {stage: self.config[stage]["epochs"] for stage in ("ann", "snn") if isinstance(self.config.get(stage), dict)}
        return "conversion alone" if epochs.get("snn") == 0 else SCRATCH if epochs.get("ann") == 0 else ""

    @property
    def T(self) -> int:
        """Time steps."""
        return int(self.config["T"])

    @property
    def variant(self) -> str:
        """What tells it from other rows of its setting."""
        return f"{self.kind}, T = {self.T}"

    @property
    def name(self) -> str:
        """What tells it from all others."""
        return f"{self.setting}: {self.variant}"

    @property
    def letter(self) -> str:
        """Which network of Fig. 4 it is; empty for another, and for a peer of Table II whose input is the same."""
        if self.remark or self.how or self.peer or self.config.get("neuron", "lif") != "lif":
            return ""
        own = (self.config["encoder"], self.config["single_spike"])
        return next((letter for letter, (*variant, _) in VARIANTS.items() if own == tuple(variant)), "")

    @property
    def peer(self) -> str:
        """Which peer of Table II it is, by the name of a config; empty for this method and for others."""
        return next((part for part in self.run.split("-") if part in PEERS), "")

    def trained(self, look: Callable[[dict[str, Any]], Any]) -> list[float]:
        """Return a number of the trained network for each seed.

        Raises:
            ValueError: one is no finite number.
        """
        return numbers([look(result["trained"]) for result in self.results])

    def recorded(self, look: Callable[[dict[str, Any]], Any]) -> list[float]:
        """Return a number for each seed that has it: earlier versions of the recipe recorded less."""
        return numbers([value for result in self.results if (value := look(result["trained"])) is not None])

    def ann(self) -> list[float]:
        """Return the ANN's accuracy for each seed; none where the spiking network was trained from scratch."""
        return numbers([result["ann"]["accuracy"] for result in self.results]) if self.how != SCRATCH else []

    def layers(self) -> dict[str, str]:
        """Return a name for each spiking layer, such as conv1 or fc2, by the module's name."""
        trained = self.results[0]["trained"]
        if isinstance(trained.get("layers"), dict):
            return {name: str(trained["layers"].get(name, name)) for name in trained["activity"]}
        names, convolutions = list(trained["activity"]), CONVOLUTIONS.get(self.config["model"])
        if convolutions is None or not all(name.isdigit() for name in names):
            return {name: name for name in names}
        names.sort(key=int)
        return {n: f"conv{i}" if i <= convolutions else f"fc{i - convolutions}" for i, n in enumerate(names, 1)}


def numbers(values: Sequence[Any]) -> list[float]:
    """Return finite numbers as floats; raise a ValueError for anything else."""
    if not all(isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) for value in values):
        raise ValueError(f"a result must be a finite number, got {values}")
    return [float(value) for value in values]


@dataclass
class Runs:
    """What was found: rows, and a line for whatever could not be read."""

    rows: list[Row] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)

    def of_setting(self) -> dict[str, list[Row]]:
        """Gather the rows by setting, in the order of Fig. 4's networks."""
        ordered = sorted(self.rows, key=lambda row: (row.letter or "z", row.kind, row.T))
        settings = dict.fromkeys(row.setting for row in self.rows)
        return {setting: [row for row in ordered if row.setting == setting] for setting in settings}


def read_runs(runs: Sequence[Path], check: Callable[[list[Row]], object]) -> Runs:
    """Read finished runs, folders or their metrics.json by whatever name, and gather those of the same settings.

    Args:
        runs: folders or files; what is no finished run, or repeats another's seed, becomes a line.
        check: what the rows must bear; where it fails for one, whatever is missing or no number in it comes to light.
    """
    found, rows, seeds = Runs(), dict[str, Row](), set()
    for run in runs:
        path = run / "metrics.json" if run.is_dir() else run
        try:
            metrics = parse(path, unfinished(run))
            for one in of_quickstart(path, metrics) if "environment" in metrics else [metrics]:
                row = row_of(path, one, check)
                key, seed = json.dumps(row.config, sort_keys=True), row.seeds[0]
                if (key, seed) in seeds:
                    found.unread.append(f"{run} repeats seed {seed} of {row.name}")
                    continue
                seeds.add((key, seed))
                known = rows.setdefault(key, Row(row.run, row.config, [], [], [], []))
                known.seeds += row.seeds
                known.results += row.results
                known.provenance += row.provenance
                known.seconds += row.seconds
        except CheckpointError as error:
            found.unread.append(str(error))
    found.rows = list(rows.values())
    tell_apart(found.rows)
    return found


def unfinished(run: Path) -> str:
    """Say how far a run came that left no results."""
    try:
        last = json.loads((run / "history.jsonl").read_text().splitlines()[-1])
        return f"{run} holds no finished run; its last epoch is {last['epoch']} of the {last['stage'].upper()}"
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return f"{run} holds no finished run"


def row_of(path: Path, metrics: dict[str, Any], check: Callable[[list[Row]], object]) -> Row:
    """Make a row of one run.

    Raises:
        CheckpointError: it is not what a run leaves.
    """
    source = f"{path} is not what a run of recipes/train.py leaves"
    if missing := {"name", "config", "results", "provenance", "seconds"} - set(metrics):
        raise CheckpointError(f"{source}: it lacks {', '.join(sorted(missing))}")
    try:
        config = {name: value for name, value in metrics["config"].items() if name != "seed"}
        seconds = sum(metrics["seconds"].values())
        seeds = [int(metrics["config"]["seed"])]
        row = Row(str(metrics["name"]), config, seeds, [metrics["results"]], [metrics["provenance"]], [seconds])
        require_complete(row)
        check([row])
        return row
    except Exception as error:  # as many as there are kinds of nonsense
        raise CheckpointError(f"{source} ({error!r}): delete it") from error


def require_complete(row: Row) -> None:
    """Raise unless a run of one seed has what every table and figure relies on."""
    trained = row.results[0]["trained"]
    if len(trained["accuracy_at_step"]) != row.T:
        raise ValueError(f"accuracy_at_step must hold {row.T} values, got {trained['accuracy_at_step']}")
    numbers(list(trained["activity"].values()))
    for technology in TECHNOLOGIES:
        for accounting in ACCOUNTINGS:
            report = trained["energy"][technology][accounting]
            numbers([report["ann_pj"], report["snn_pj"], report["first_layer_ac_pj"], *report["layers_pj"].values()])
            if not (report["ann_pj"] > 0 and report["snn_pj"] > 0):
                raise ValueError(f"energy must be > 0, got {report['ann_pj']} and {report['snn_pj']} pJ")


def of_quickstart(path: Path, metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the quickstart's network and its control as if each were a run.

    Raises:
        CheckpointError: its config.json cannot be read, or either file is not what the quickstart leaves.
    """
    config = parse(path.parent / "config.json", f"{path} is the quickstart's, whose settings lie beside it")
    try:
        found, machine = metrics["results"], metrics["environment"]
        own = {"dataset": "digits", "model": QUICKSTART, "width": 1, "single_spike": True, "conversion_images": 360}
        versions = {name: machine[name] for name in ("onespike", "torch")}
        provenance = {"device": machine["device"], "processes": 1, "threads": 1, "precision": "32-true", "versions": versions}
        plain = {"accuracy": found["plain"]["accuracy"]["potential"]}
        shared = {"ann": found["ann"], "plain": plain, "converted": found["converted"]}
        runs = []
        for stage, encoder in (("trained", "hybrid"), ("control", "analogue")):
            settings = {"hidden": 192, **config, **own, "encoder": encoder}
            results = shared | {"trained": found[stage]}
            if stage == "control":
                del results["converted"]
            runs.append(
                {
                    "name": "quickstart",
                    "config": {name: value for name, value in settings.items() if name not in ("file", "made_from", "sha256")},
                    "results": results,
                    "provenance": {**provenance, "commit": None, "changed": False},
                    "seconds": {"both networks": metrics["seconds"]},
                }
            )
    except (LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not what recipes/quickstart.py leaves ({error!r}): delete it") from error
    return runs


def tell_apart(rows: list[Row]) -> None:
    """Remark on rows of one name in what they differ from most of their kind; the first counts where it is even."""
    kinds: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        kinds.setdefault((row.setting, row.kind), []).append(row)
    for alike in kinds.values():
        settings = [{k: json.dumps(v) for k, v in flattened(row.config).items() if k not in OWN} for row in alike]
        shared = set.intersection(*map(set, settings))  # versions of the recipe have different settings
        usual = {key: Counter(own[key] for own in settings).most_common(1)[0][0] for key in shared}
        for row, own in zip(alike, settings, strict=True):
            row.remark = remark(row, {key: json.loads(own[key]) for key in own if key in shared and own[key] != usual[key]})
    seen: Counter[str] = Counter()
    for row in rows:
        seen[row.name] += 1
        if seen[row.name] > 1:  # by settings that not every version of the recipe has
            row.remark = ", ".join(filter(None, [row.remark, f"settings of {row.run} ({seen[row.name]})"]))


def remark(row: Row, differing: dict[str, Any]) -> str:
    """Say in what a row differs; where that is much, by its run's name."""
    if len(differing) > 3:
        return f"settings of {row.run}"
    texts = []
    for key, value in differing.items():
        known = SWITCHES.get((key, value)) if isinstance(value, str | bool) else None
        one = value[0] if isinstance(value, list) and len(value) == 1 else value
        texts.append(known or f"{key.replace('_', ' ').replace('threshold scales', 'threshold scale')} {one}")
    return ", ".join(texts)
