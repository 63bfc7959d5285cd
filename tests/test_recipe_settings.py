"""The CIFAR recipe's settings and the configs in the repository."""

import json
import os
import subprocess
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from recipe_runs import CONFIGS, DIGITS, RECIPES, TINY, train

from cifar.config import Config, ConfigError, Training, explain, named_settings
from cifar.identity import ann_identity, claim, identity_of
from cifar.reading import flattened, load_config

EVIDENCE = CONFIGS / "evidence.yaml"
FEW = ["conversion_images=0", "validation=40", "test_images=40"]
PEERS = sorted(CONFIGS.glob("peers/*.yaml"))


def test_settings_are_read_typed_and_layered(tmp_path):
    (tmp_path / "base.yaml").write_text("width: 0.5\nsnn: {lr: 1e-4, epochs: 3}\n")
    (tmp_path / "run.yaml").write_text("base: base.yaml\nT: 3\n")
    (tmp_path / "more.yaml").write_text("encoder: direct\n")
    config = load_config([tmp_path / "run.yaml", tmp_path / "more.yaml"], ["snn.neuron_lr=1e-1", "threshold_scales=[0.2,0.4]"])
    snn = Training(**{**vars(Config().snn), "lr": 1e-4, "epochs": 3, "neuron_lr": 0.1})
    assert config == Config(width=0.5, T=3, encoder="direct", threshold_scales=[0.2, 0.4], snn=snn)
    assert isinstance(config.snn.lr, float)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("snn.learning_rat=1", "--set: unknown setting snn.learning_rat"),
        ("snn.epoch=1", r"unknown setting snn.epoch: did you mean snn.epochs\?"),
        ("threshold_scale=[1]", r"did you mean threshold_scales\?"),
        ("xyzzy=1", "unknown setting xyzzy: --help lists them all"),
        ("snn.epochs=few", "snn.epochs: Value 'few' of type 'str' could not be converted to Integer"),
        (
            "encoder=rate",
            r"encoder: Invalid value 'rate', expected one of \['hybrid', 'direct', 'analogue', 'temporal', 'poisson', ",
        ),
        ("T=0", "T must be >= 1, got 0"),
        ("ann.momentum=1", r"ann.momentum must be in \[0, 1\), got 1.0"),
        ("threshold_scales=[]", r"threshold_scales must be one or more numbers > 0, got \[\]"),
        ("snn.milestones=[3,2]", r"snn.milestones must be rising epochs >= 0, got \[3.0, 2.0\]"),
        ("snn=4", "--set: settings: Merge error"),
        ("T", "--set takes key=value, got 'T'"),
        ("T=${foo}", "settings: Interpolation key 'foo' not found"),
        ("ann.lr=inf", "ann.lr must be > 0 and finite, got inf"),
        ("cuda_graph=sometimes", r"cuda_graph: Invalid value 'sometimes', expected one of \['auto', 'always', 'never'\]"),
        ("cudnn_benchmark=maybe", "cudnn_benchmark: Value 'maybe' is not a valid bool"),
        ("tf32=maybe", "tf32: Value 'maybe' is not a valid bool"),
        ("crop=32", r"crop must be in \[0, 31\], got 32"),
        ("ann.centralize=often", r"ann.centralize: Value 'often' is not a valid bool"),
        ("ann.patience=-1", r"ann.patience must be >= 0, got -1"),
        ("cutout=33", r"cutout must be in \[0, 32\], got 33"),
        ("cutout=-1", r"cutout must be in \[0, 32\], got -1"),
        ("one_step=1.5", r"one_step must be in \[0, 1\], got 1.5"),
        ("distillation=-1", "distillation must be >= 0 and finite, got -1.0"),
        ("temperature=0", "temperature must be > 0 and finite, got 0.0"),
        ("calibration=guess", r"calibration: Invalid value 'guess', expected one of \['percentile', 'one_spike'\]"),
        ("init=xavier", r"init: Invalid value 'xavier', expected one of \['paper', 'centred'\]"),
        ("ann.relative=true", "relative must be false but for snn.optimizer=adam, got ann.relative=True"),
    ],
)
def test_bad_settings_are_named(pair, message):
    with pytest.raises(ConfigError, match=message):
        load_config([DIGITS], [pair])


def test_spikes_alone_need_a_second_step():
    with pytest.raises(ConfigError, match="T must be >= 2 for encoder=temporal, whose first spike comes at t = 2, got 1"):
        load_config([DIGITS], ["encoder=temporal", "T=1"])


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (
            ["encoder=poisson", "one_step=0.5"],
            "one_step must be 0 for encoder=poisson, whose first step shows little of the image",
        ),
        (["encoder=phase"], "neuron must be phase or burst for encoder=phase, got lif"),
        (["encoder=kernel", "neuron=burst"], "neuron must be kernel for encoder=kernel, got burst"),
        (["neuron=phase", "snn.epochs=0"], "encoder must be phase for neuron=phase, got hybrid"),
        (["neuron=kernel", "snn.epochs=0"], "encoder must be kernel for neuron=kernel, got hybrid"),
        (["neuron=burst"], "snn.epochs must be 0 for neuron=burst, which has no gradient, got 5"),
        (
            ["neuron=burst", "snn.epochs=0", "calibration=one_spike"],
            "calibration must be percentile for neuron=burst, whose spikes have a size, got one_spike",
        ),
        (["neuron=bntt", "calibration=one_spike"], "calibration must be percentile for neuron=bntt, whose currents are normal"),
        (["neuron=burst", "snn.epochs=0", "leak=0.8"], "leak must be 1.0 for neuron=burst, which has no such thing, got 0.8"),
        (["neuron=burst", "snn.epochs=0", "learn_leak=false"], "learn_leak must be True for neuron=burst"),
        (["neuron=burst", "snn.epochs=0", "learn_threshold=false"], "learn_threshold must be True for neuron=burst"),
        (["neuron=burst", "snn.epochs=0", "single_spike=false"], "single_spike must be True for neuron=burst"),
        (["neuron=bntt", "model=resnet8"], "model must be a vgg for neuron=bntt, which takes no biases, got resnet8"),
    ],
)
def test_codes_that_do_not_go_together_are_named(pairs, message):
    with pytest.raises(ConfigError, match=message):
        load_config([DIGITS], pairs)


def test_peers_of_other_neurons_are_refused_by_name_on_the_short_schedule():
    for peer in PEERS:
        neuron = load_config([EVIDENCE, peer]).neuron
        if neuron != "lif":
            with pytest.raises(ConfigError, match=f"calibration must be percentile for neuron={neuron}, .* got one_spike"):
                load_config([CONFIGS / "short.yaml", peer])


def test_settings_that_exclude_each_other_are_named():
    with pytest.raises(ConfigError, match=r"one_step must be 0 for encoder=temporal, whose first step is empty, got 0.5"):
        load_config([DIGITS], ["encoder=temporal", "one_step=0.5"])
    with pytest.raises(ConfigError, match=r"relative must be false but for .* snn.relative=True, snn.optimizer=sgd"):
        load_config([DIGITS], ["snn.relative=true", "snn.optimizer=sgd"])


def test_the_settings_that_a_run_keeps_are_a_config(tmp_path):
    config = load_config([CONFIGS / "cifar10_vgg16_small.yaml"], ["ann.epochs=3", "T=4"])
    claim(tmp_path, flattened(asdict(config)))
    assert load_config([tmp_path / "config.yaml"]) == config
    (tmp_path / "both.yaml").write_text("ann: {epochs: 3}\nann.lr: 1\n")
    with pytest.raises(ConfigError, match=r"both.yaml has both ann.lr and ann: write one of them"):
        load_config([tmp_path / "both.yaml"])
    for text in ("ann.epochs: ???", "ann.epochs: ${nothing}", "1.5: 3"):
        (tmp_path / "odd.yaml").write_text(text)
        with pytest.raises(ConfigError):
            load_config([tmp_path / "odd.yaml"])
    (tmp_path / "below.yaml").write_text("T.x: 1\n")
    with pytest.raises(ConfigError, match=r"below.yaml: T: Value .* could not be converted to Integer"):
        load_config([tmp_path / "below.yaml"])


def test_a_file_may_have_several_bases(tmp_path):
    (tmp_path / "below.yaml").write_text("T: 7\nwidth: 0.5\n")
    (tmp_path / "one.yaml").write_text("base: below.yaml\nT: 3\n")
    (tmp_path / "two.yaml").write_text("base: below.yaml\nhidden: 8\n")
    (tmp_path / "both.yaml").write_text("base: [one.yaml, two.yaml]\ncrop: 2\n")
    config = load_config([tmp_path / "both.yaml"])
    assert (config.T, config.width, config.hidden, config.crop) == (7, 0.5, 8, 2), (
        "two.yaml, with what it is based on, lies on top"
    )


def test_off_is_a_name():
    assert load_config([DIGITS], ["time_gradient=off"]).time_gradient == "off"


def test_bad_files_are_named(tmp_path):
    loop, text, broken = (tmp_path / f"{name}.yaml" for name in ("loop", "text", "broken"))
    loop.write_text("base: loop.yaml\n")
    text.write_text("- 1\n")
    broken.write_text("a: [\n")
    for path, message in (
        (loop, "is based on itself"),
        (text, "must hold settings by name"),
        (broken, "is not YAML"),
        (tmp_path / "none.yaml", "cannot be read: No such file"),
    ):
        with pytest.raises(ConfigError, match=f"{path.name} {message}"):
            load_config([path])


def test_help_explains_every_setting():
    told = explain()
    for name, entry in named_settings(Config):
        assert entry.metadata["help"]
        assert name.rpartition(".")[2] in told
    assert "(default ann 0.01, snn 0.0001)" in told
    assert "(default ann sgd, snn adam)" in told


def evidence(folder, python, *arguments):
    """Run evidence.sh with this in the place of Python; return what it did, and the commands that it gave."""
    folder.mkdir(exist_ok=True)
    (folder / "python").write_text(f'#!/bin/sh\necho "$@" >> "$(dirname "$0")/commands"\n{python}\n')
    (folder / "python").chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", RECIPES / "evidence.sh", *arguments], env=environment, capture_output=True, text=True, check=False
    )
    commands = folder / "commands"
    return done, commands.read_text().splitlines() if commands.exists() else []


def test_the_evidence_stops_at_a_signal_and_at_a_base_that_fails(tmp_path):
    done, commands = evidence(tmp_path / "signal", "exit 130", "DATA", "RUNS", "base", "peers")
    assert (done.returncode, len(commands)) == (130, 1)
    done, commands = evidence(tmp_path / "failure", "exit 1", "DATA", "RUNS", "base", "peers")
    assert (done.returncode, len(commands)) == (1, 6)
    assert done.stderr.count("FAILED: ") == 6
    for arguments in ((), ("DATA", "RUNS"), ("DATA", "RUNS", "base", "contrls")):
        done, commands = evidence(tmp_path / "usage", "", *arguments)
        assert (done.returncode, commands) == (2, [])
        assert "bash recipes/evidence.sh DATA RUNS base [fig4] [peers] [controls]" in done.stderr


def test_the_evidence_is_made_of_runs_that_share_their_anns(tmp_path):
    done, commands = evidence(tmp_path, "", "DATA", "RUNS", "base", "fig4", "peers", "controls")
    assert done.returncode == 0
    anns, configs = {}, {}
    for line in commands:
        words = line.split()
        settings = load_config([Path(word) for word in words if word.endswith(".yaml")], [w for w in words if "=" in w])
        options = dict(pairwise(words))
        out, ann = options["--out"], ann_identity(identity_of(settings))
        if "--ann" in options:
            assert anns[options["--ann"]] == ann, f"{out} takes an ANN that is trained before it, by the same settings"
        else:
            anns[out] = ann
        assert configs.setdefault(out, settings) == settings, "a name is a run"
    assert len(set(map(repr, configs.values()))) == len(configs), "no run is made twice"
    assert all(load_config([EVIDENCE, peer]) in configs.values() for peer in PEERS)
    assert {config.encoder for config in configs.values()} == {*get_args(get_type_hints(Config)["encoder"])}
    assert {config.neuron for config in configs.values()} == {*get_args(get_type_hints(Config)["neuron"])}


@pytest.mark.parametrize("config", sorted({*CONFIGS.rglob("*.yaml")} - {*PEERS}), ids=lambda path: path.stem)
def test_every_config_runs(config, monkeypatch, tmp_path, capsys):
    steps = ["ann.max_steps=2", "snn.max_steps=2", "ann.batch_size=8", "snn.batch_size=8"]
    train(monkeypatch, config, "--out", tmp_path, "--device", "cpu", "--set", *TINY, "test_images=40", *steps)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    own = load_config([config])
    for name in ("model", "encoder", "T", "single_spike", "time_gradient"):
        assert metrics["config"][name] == getattr(own, name)
    assert len(metrics["results"]["trained"]["accuracy_at_step"]) == own.T
    assert stages(tmp_path) == ["ann", "snn"]
    assert "int32_45nm, paper accounting" in capsys.readouterr().out


@pytest.mark.parametrize("peer", PEERS, ids=lambda path: path.stem)
def test_every_peer_runs_on_the_backbone(peer, monkeypatch, tmp_path, capsys):
    own = load_config([EVIDENCE, peer])
    few = [*FEW, f"T={min(own.T, 9)}", "calibration_T=20", "threshold_scales=[0.2]"]
    steps = ["ann.max_steps=2", "snn.max_steps=2", "ann.batch_size=8", "snn.batch_size=8"]
    train(monkeypatch, EVIDENCE, peer, "--out", tmp_path, "--device", "cpu", "--set", *TINY, *few, *steps)
    text = (tmp_path / "metrics.json").read_text()
    assert "Infinity" not in text, "JSON has no such number"
    metrics = json.loads(text)
    for name in ("encoder", "neuron", "single_spike", "learn_leak", "learn_threshold", "leak"):
        assert metrics["config"][name] == getattr(own, name)
    results, out = metrics["results"], capsys.readouterr().out
    assert (results["trained"] == results["converted"]) == (own.snn.epochs == 0)
    assert stages(tmp_path) == [stage for stage in ("ann", "snn") if getattr(own, stage).epochs]
    assert 0 < results["trained"]["spikes_per_neuron"] < own.T
    reports = results["trained"]["energy"]["int32_45nm"]
    assert all((report["ceiling"] is None) == (own.encoder != "direct") for report in reports.values())
    saved = own.encoder == "direct"
    assert (tmp_path / "model").exists() == saved
    assert ("the weights are in the checkpoint of the SNN alone" in out) != saved


def stages(folder):
    return [json.loads(line)["stage"] for line in (folder / "history.jsonl").read_text().splitlines()]


def test_a_run_of_drawn_spikes_resumes_to_the_same_numbers(monkeypatch, tmp_path):
    settings = [*TINY, *FEW, "encoder=poisson", "snn.max_steps=2", "ann.max_steps=1", "T=3"]
    train(monkeypatch, DIGITS, "--out", tmp_path, "--device", "cpu", "--set", *settings)
    first = json.loads((tmp_path / "metrics.json").read_text())["results"]
    for name in ("metrics.json", "results.json"):
        (tmp_path / name).unlink()
    train(monkeypatch, DIGITS, "--out", tmp_path, "--device", "cpu", "--resume", "--set", *settings)
    again = json.loads((tmp_path / "metrics.json").read_text())["results"]
    assert {name: again[name] for name in ("converted", "trained")} == {name: first[name] for name in ("converted", "trained")}


def test_runs_share_an_ann_unless_their_images_or_its_training_differ():
    def ann_of(*paths):
        return ann_identity(identity_of(load_config([EVIDENCE, *paths])))

    shared = ann_of()
    for path in [*PEERS, *CONFIGS.glob("ablations/*.yaml")]:
        own = load_config([EVIDENCE, path])
        assert (ann_of(path) == shared) == (own.encoder != "dct" and own.ann.epochs > 0)
    assert ann_of(CONFIGS / "ablations" / "dct.yaml") == shared | {"encoder": "dct"}


def test_runs_from_before_there_were_other_neurons_go_on():
    assert "neuron" not in identity_of(load_config([DIGITS]))
    assert identity_of(load_config([EVIDENCE, CONFIGS / "peers" / "kim2020.yaml"]))["neuron"] == "bntt"


def test_the_rows_of_the_paper_are_there():
    paper = {path.stem: load_config([path]) for path in CONFIGS.glob("*.yaml")}
    for name in ("cifar10_vgg6", "cifar10_vgg9", "cifar10_vgg11", "cifar10_vgg16", "cifar100_vgg16"):
        config = paper[name]
        assert (config.dataset, config.model) == tuple(name.split("_"))
        assert (config.ann.epochs, config.ann.lr, config.ann.milestones) == (200, 0.01, [120, 160, 180])
        assert (config.snn.epochs, config.snn.lr, config.snn.milestones[:2]) == (150, 1e-4, [10, 20])
        assert f"{name}_fast" in paper


@pytest.mark.parametrize("ablation", sorted(CONFIGS.glob("ablations/*.yaml")), ids=lambda path: path.stem)
def test_every_ablation_goes_on_top_of_the_short_schedule(ablation):
    config = load_config([CONFIGS / "cifar10_vgg16_fast.yaml", ablation])
    assert config.calibration == "one_spike"
    assert config != load_config([CONFIGS / "cifar10_vgg16_fast.yaml"])
