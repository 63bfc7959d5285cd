"""The report of finished runs."""

import base64
import copy
import csv
import json
import re
import runpy
import sys
from statistics import mean

import pytest
from matplotlib.figure import Figure
from recipe_runs import CONFIGS, DIGITS, RECIPES, SHORT, outcome, train

import report as script
from cifar.reporting.dots import energy_figure, operations_figure
from cifar.reporting.lines import step_figure
from cifar.reporting.tables import energy_table, step_table, switch_table

RECORDED = RECIPES.parent / "benchmarks" / "results" / "recipes"
STEPS = [*SHORT, "conversion_images=20", "ann.max_steps=2", "snn.max_steps=2"]
FIGURES = ("activity", "spikes", "energy", "operations", "networks", "accuracy", "read", "spike-times")
TABLES = ("table1", "table2", "steps", "energy", "data-movement", "neurobench")


def report(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["report.py", *map(str, arguments)])
    runpy.run_path(str(RECIPES / "report.py"), run_name="__main__")


def metrics_of(name):
    return json.loads((RECORDED / f"{name}.json").read_text())


def written(folder, metrics, **config):
    """Write a run of other settings."""
    metrics = copy.deepcopy(metrics)
    metrics["config"] |= config
    folder.mkdir(exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A report of recorded runs and of folders that hold none, and the folder that it was made in."""
    folder = tmp_path_factory.mktemp("report")
    runs = [
        RECORDED / f"cifar10_vgg6_all_steps-{name}.json"
        for name in ("seed0", "seed1", "seed2", "direct-seed1", "temporal-seed1")
    ]
    (folder / "unfinished").mkdir()
    (folder / "unfinished" / "history.jsonl").write_text('{"stage": "snn", "epoch": 7}\n')
    (folder / "no<b>json").write_text("{")
    with pytest.MonkeyPatch.context() as monkeypatch:
        report(monkeypatch, *runs, folder / "unfinished", folder / "no<b>json", "--out", folder / "out")
    return folder / "out"


def test_seeds_share_a_row(monkeypatch, tmp_path, capsys):
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for seed, folder in enumerate(folders[:2]):
        train(monkeypatch, DIGITS, "--out", folder, "--set", *STEPS, f"seed={seed}")
    train(monkeypatch, DIGITS, CONFIGS / "ablations" / "one_step.yaml", "--out", folders[2], "--set", *STEPS)
    capsys.readouterr()
    report(monkeypatch, *folders, folders[0], "--out", tmp_path / "report")
    told = capsys.readouterr().out
    assert told.strip() == (tmp_path / "report" / "report.md").read_text().strip()
    accuracies = [outcome(folder)[1]["trained"]["accuracy"]["potential"] for folder in folders]
    average, low, high = sum(accuracies[:2]) / 2, min(accuracies[:2]), max(accuracies[:2])
    first, second = (line for line in told.splitlines() if line.startswith("| VGG-6") and " images |" in line)
    setting = "VGG-6 at 0.05 of its width, digits: hybrid input, one spike"
    assert first.startswith(f"| {setting}, T = 5 | 2 |")
    assert f"| {average:.2f} ({low:.2f} to {high:.2f}) |" in first
    assert second.startswith(f"| {setting}, T = 1 | 1 |")
    assert f"| {accuracies[2]:.2f} |" in second
    assert f"- {folders[0]} repeats seed 0 of {setting}, T = 5" in told
    for name in FIGURES:
        assert (tmp_path / "report" / f"{name}-digits-vgg6-0.05.png").read_bytes().startswith(b"\x89PNG")
    trained = outcome(folders[0])[1]["trained"]
    assert trained["layers"] == {"1": "conv1", "4": "conv2", "7": "conv3", "11": "fc1", "14": "fc2"}
    assert {name: sum(counts) for name, counts in trained["spike_times"].items()} == {"true class": 360, "other classes": 3240}
    assert trained["neurobench"]["ActivationSparsity"] == pytest.approx(1 - trained["spikes_per_neuron"] / 5)
    assert "| spikes per neuron and step, % |" in told


def test_every_table_and_figure_is_there_with_its_numbers(made):
    text = (made / "report.md").read_text()
    for name in TABLES:
        assert (made / f"{name}.csv").exists()
    for name in FIGURES[:-1]:
        assert (made / f"{name}-cifar10-vgg6-0.25.png").read_bytes().startswith(b"\x89PNG")
        assert f"]({name}-cifar10-vgg6-0.25.png)" in text
    assert not list(made.glob("spike-times*.png")), "these runs did not record them"
    assert "Spike times of the output neurons. VGG-6 at 0.25 of its width, CIFAR-10:\n\nNot recorded by these runs." in text
    assert not list(made.glob(".*.tmp"))

    trained = [metrics_of(f"cifar10_vgg6_all_steps-seed{seed}")["results"]["trained"] for seed in range(3)]
    rows = {row["run"]: row for row in csv.DictReader((made / "activity-cifar10-vgg6-0.25.csv").open())}
    row = rows["hybrid input, one spike, T = 5"]
    for layer, module in {"conv1": "1", "conv2": "4", "conv3": "7", "fc1": "11", "fc2": "14"}.items():
        values = [one["activity"][module] for one in trained]
        numbers = [float(row[name]) for name in (layer, f"{layer}: lowest", f"{layer}: highest")]
        assert numbers == pytest.approx([mean(values), min(values), max(values)], rel=1e-12)
    rows = {row["run"]: row for row in csv.DictReader((made / "energy.csv").open())}
    row = rows["VGG-6 at 0.25 of its width, CIFAR-10: hybrid input, one spike, T = 5"]
    reports = [one["energy"]["fp32_45nm"]["events"] for one in trained]
    assert float(row["fp32_45nm, events"]) == pytest.approx(mean(r["ann_pj"] / r["snn_pj"] for r in reports))
    assert float(row["at no spike"]) == pytest.approx(trained[0]["energy"]["int32_45nm"]["paper"]["ceiling"])


def test_operations_follow_from_the_energies(made):
    """By hand: the paper's accounting multiplies in the first layer alone, whatever its spikes."""
    one = metrics_of("cifar10_vgg6_all_steps-direct-seed1")["results"]["trained"]["energy"]["int32_45nm"]["paper"]
    rows = {row["run"]: row for row in csv.DictReader((made / "operations-cifar10-vgg6-0.25.csv").open())}
    row = rows["direct input, one spike, T = 5"]
    assert float(row["MACs, paper"]) == pytest.approx(100 * one["layers_pj"]["0"] / one["ann_pj"])
    others = sum(pj for name, pj in one["layers_pj"].items() if name != "0")
    assert float(row["accumulates, paper"]) == pytest.approx(100 * (others / 0.1) / (one["ann_pj"] / 3.2))


def test_switches_are_told_by_the_differences_of_the_same_seeds(made, tmp_path):
    def trained(name):
        return metrics_of(f"cifar10_vgg6_all_steps-{name}")["results"]["trained"]

    rows = {row["run"]: row for row in csv.DictReader((made / "switches-cifar10-vgg6-0.25.csv").open())}
    assert list(rows) == ["direct input, one spike", "spike times alone, one spike"], (
        "what is not at T = 5 is no switch, nor is (f)"
    )
    direct, base = trained("direct-seed1"), trained("seed1")
    row = rows["direct input, one spike"]
    assert row["seeds"] == "1"
    difference = direct["accuracy"]["potential"] - base["accuracy"]["potential"]
    assert float(row["accuracy less that of (f), points"]) == pytest.approx(difference)
    difference = direct["spikes_per_neuron"] - base["spikes_per_neuron"]
    assert float(row["spikes per neuron less those of (f)"]) == pytest.approx(difference)

    folders = []
    for seed, own, of_base in (
        (2, 74.0, 76.0),
        (0, 75.0, 75.5),
        (7, 10.0, None),
        (1, 76.0, 75.0),
    ):  # in any order, one unpaired
        for name, accuracy, config in (("own", own, {"learn_leak": False}), ("base", of_base, {})):
            if accuracy is not None:
                one = metrics_of("cifar10_vgg6_all_steps-seed0")
                one["results"]["trained"]["accuracy"]["potential"] = accuracy
                folders.append(written(tmp_path / f"{name}{seed}", one, seed=seed, **config))
    rows = script.read_runs(folders[::-1]).rows
    base, own = (next(row for row in rows if row.config["learn_leak"] is learned) for learned in (True, False))
    (line,) = switch_table([base, own]).rows
    assert line[:2] == ["hybrid input, one spike, leak fixed", 3]
    assert sorted(line[2].values) == [-2.0, -0.5, 1.0]
    assert "± 3.73" in str(line[2]), "Student's t of three seeds: 4.303 x 1.5 / sqrt(3)"
    assert not switch_table([own]).rows
    assert switch_table([own]).note == "No run has a seed of (f) at T = 5 beside it."


def test_what_is_no_run_becomes_a_line(made):
    text, page = (made / "report.md").read_text(), (made / "report.html").read_text()
    assert text.startswith("Not in this report:\n\n- ")
    assert "unfinished holds no finished run; its last epoch is 7 of the SNN" in text
    assert "no<b>json is damaged, it is not JSON" in text
    assert "no&lt;b&gt;json is damaged" in page
    assert "<b>json" not in page


def test_what_was_not_run_is_shown_as_such(made):
    text = (made / "report.md").read_text()
    assert "| (a) Poisson input, any number of spikes | not run |  |  |  | 94.8 |" in text
    assert "| Sengupta et al. 2019 | conversion | rate | VGG-16, CIFAR-10 | 91.55 | 2500 | not run |  |  |  |" in text
    direct = metrics_of("cifar10_vgg6_all_steps-direct-seed1")["results"]["trained"]
    ours = [metrics_of(f"cifar10_vgg6_all_steps-seed{s}")["results"]["trained"]["spikes_per_neuron"] for s in range(3)]
    spikes, accuracy = direct["spikes_per_neuron"], direct["accuracy"]["potential"]
    assert f"| (e) direct input, one spike | 5 | {accuracy:.2f} | {spikes:.3f} | {spikes / mean(ours):.2f} |  |" in text
    assert "| reported by the paper: VGG-16, CIFAR-10, hybrid input, one spike, T = 5 | 70 |  |  |  |  |  | 191 |" in text


def test_the_page_holds_its_images_and_numbers(made):
    page = (made / "report.html").read_text()
    images = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    drawn = {path.read_bytes() for path in made.glob("*.png")}
    assert {base64.b64decode(image) for image in images} == drawn
    assert len(drawn) == len(FIGURES) - 1
    links = dict(re.findall(r'download="([^"]+)" href="data:text/csv;base64,([^"]+)"', page))
    for name, content in links.items():
        assert base64.b64decode(content) == (made / name).read_bytes()
    assert set(links) >= {f"{name}.csv" for name in TABLES[:-1]}
    assert not re.findall(r'(?:src|href)="(?!data:)', page), "nothing outside is asked for"
    assert all(re.findall(r'<img alt="([^"]+)"', page))


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_a_phone_and_a_screen(made, browser, width):
    page, failed = browser.new_page(viewport={"width": width, "height": 900}), []
    page.on("requestfailed", lambda request: failed.append(request.url[:80]))
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.goto((made / "report.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].length") == len(FIGURES) - 1
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 400)")
    tables = "[...document.querySelectorAll('.scroll')]"
    assert page.evaluate(f"{tables}.length > 5 && {tables}.every(one => one.getBoundingClientRect().right <= innerWidth)")
    assert page.evaluate("Math.min(...[...document.images].map(image => image.getBoundingClientRect().width))") >= 350
    assert not failed
    page.close()


def test_rows_are_named_by_what_tells_them_apart(tmp_path):
    usual = metrics_of("cifar10_vgg6_all_steps-seed0")
    changes = [
        {},
        {"seed": 1},
        {"learn_leak": False},
        {"time_gradient": "off", "threshold_scales": [0.4]},
        {"T": 5, "snn": usual["config"]["snn"] | {"lr": 0.25}},
        {"beta": 0.3, "gamma": 0.4, "leak": 0.9, "percentile": 99.0},
        {"encoder": "poisson", "single_spike": False, "neuron": "bntt"},
        {"encoder": "phase", "neuron": "phase", "snn": usual["config"]["snn"] | {"epochs": 0}},
        {"encoder": "direct", "single_spike": False, "ann": usual["config"]["ann"] | {"epochs": 0}},
        {"setting_of_later_versions": 1},
    ]
    runs = [written(tmp_path / str(i), usual, **change) for i, change in enumerate(changes)]
    found = script.read_runs(runs)
    assert not found.unread
    assert {row.setting for row in found.rows} == {"VGG-6 at 0.25 of its width, CIFAR-10"}
    assert [row.variant for row in found.rows] == [
        "hybrid input, one spike, T = 5",
        "hybrid input, one spike, leak fixed, T = 5",
        "hybrid input, one spike, threshold scale 0.4, no time loss, T = 5",
        "hybrid input, one spike, snn.lr 0.25, T = 5",
        "hybrid input, one spike, settings of cifar10_vgg6_all_steps, T = 5",
        "Poisson input, batch norm at each step, T = 5",
        "phase-coded input, weighted spikes, conversion alone, T = 5",
        "direct input, any number of spikes, from scratch, T = 5",
        "hybrid input, one spike, settings of cifar10_vgg6_all_steps (2), T = 5",
    ]
    assert len({row.name for row in found.rows}) == len(found.rows)
    assert len(found.rows[0].results) == 2
    text = script.markdown(found)
    assert (
        "| VGG-6 at 0.25 of its width, CIFAR-10: direct input, any number of spikes, from scratch, T = 5 | 1 | not trained |"
        in text
    )
    assert "Not run: (a), (b), (c), (d), (e). Shown: 8 of 9 networks; the others are in the CSV." in text


def test_the_papers_row_stands_beside_the_papers_network_alone(tmp_path):
    usual = metrics_of("cifar10_vgg6_all_steps-seed0")
    full = {"width": 1, "hidden": 4096}
    runs = [written(tmp_path / name, usual, **full, **own) for name, own in (("a", {}), ("b", {"encoder": "direct"}))]
    first, second = script.accuracy_table(script.read_runs(runs).rows).markdown()[2:]
    assert first.startswith("| VGG-6, CIFAR-10: hybrid input, one spike, T = 5 | 1 |")
    assert first.endswith("| 90.22 / 89.98 / 88.89 |")
    assert second.endswith("|  |"), "the paper's row is not of this network"
    assert " at T = 200, 500 images |" in first


def test_peers_stand_beside_what_the_paper_reports_of_them(tmp_path):
    usual = metrics_of("cifar10_vgg6_all_steps-direct_multi_spike-seed1")
    usual["name"] = "evidence-diet_snn"
    (row,) = script.read_runs([written(tmp_path / "a", usual)]).rows
    assert row.peer == "diet_snn"
    assert not row.letter, "(c) is trained otherwise"
    reported = "| Rathi & Roy 2020 | conversion + STDB | direct | VGG-16, CIFAR-10 | 92.70 | 5 "
    assert f"{reported}| {row.name} | 78.06 | 5 | 0.762 |" in script.markdown(script.read_runs([tmp_path / "a"])).splitlines()


def test_many_steps_are_told_in_part_and_kept_in_whole(tmp_path):
    long = metrics_of("cifar10_vgg6_all_steps-seed0")
    trained = long["results"]["trained"]
    trained["accuracy_at_step"] = [float(t) for t in range(1, 33)]
    for technology, cost in (("int32_45nm", 0.1), ("fp32_45nm", 0.9)):
        trained["energy"][technology]["events"]["snn_pj"] += cost * 1e9  # spikes by the billion
    rows = script.read_runs([written(tmp_path / "a", long, T=32)]).rows
    table = step_table(rows)
    assert table.header[1:] == [f"t = {t}" for t in (1, 2, 3, 4, 5, 10, 20, 30)]
    assert table.texts()[0][1:] == ["1.00", "2.00", "3.00", "4.00", "5.00", "10.00", "20.00", "30.00"]
    assert "all are in the CSVs" in table.note
    assert len(step_figure(rows).table.header) == 33
    axes = Figure().subplots()
    operations_figure(rows).draw(axes)
    assert axes.get_xscale() == "symlog", "on a linear axis the MACs would all be at 0"


@pytest.mark.parametrize("unlimited", [None, float("inf")], ids=["null", "as earlier versions wrote it"])
def test_a_network_whose_ratio_nothing_bounds_has_no_limit(unlimited, tmp_path):
    usual = metrics_of("cifar10_vgg6_all_steps-seed0")
    usual["results"]["trained"]["energy"]["int32_45nm"]["paper"]["ceiling"] = unlimited
    rows = script.read_runs([written(tmp_path / "a", usual)]).rows
    assert energy_table(rows).rows[-1][-1] == "no limit"
    assert energy_figure(rows).table.rows[-1][-1] == "no limit"


def test_the_recorded_runs_make_the_recorded_report():
    runs = script.read_runs(sorted(RECORDED.glob("*.json")))
    assert not runs.unread
    assert not [row.name for row in runs.rows if any(one["changed"] for one in row.provenance)], "only commits can be repeated"
    assert script.markdown(runs) == (RECORDED / "report.md").read_text()
    shown = set(re.findall(r"\(([^()]+\.png)\)", script.markdown(runs)))
    assert shown == {path.name for path in RECORDED.glob("*.png")}


def test_a_report_of_no_run_says_so(monkeypatch, tmp_path, capsys):
    out = tmp_path / "out"
    with pytest.raises(SystemExit, match=r"no finished run was found: .*metrics.json cannot be read .*holds no finished run"):
        report(monkeypatch, tmp_path, "--out", out)
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"is not what a run of recipes/train.py leaves: it lacks config, name, prov"):
        report(monkeypatch, tmp_path, "--out", out)
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(SystemExit, match=r"metrics.json is damaged, it is not JSON"):
        report(monkeypatch, tmp_path, "--out", out)
    assert "Not in this report" in capsys.readouterr().out
    assert "is damaged, it is not JSON" in (out / "report.html").read_text()
    (tmp_path / "metrics.json").write_text('{"environment": {}}')
    with pytest.raises(SystemExit, match=r"config.json cannot be read .* is the quickstart's, whose settings lie beside it"):
        report(monkeypatch, tmp_path, "--out", out)
    (tmp_path / "config.json").write_text('{"T": 5}')
    with pytest.raises(SystemExit, match=r"is not what recipes/quickstart.py leaves \(KeyError\('results'\)\): delete it"):
        report(monkeypatch, tmp_path, "--out", out)


@pytest.mark.parametrize("wrong", [float("nan"), "0.2", None, True])
def test_a_number_that_is_none_becomes_a_line(wrong, tmp_path):
    for path in (("spikes_per_neuron",), ("activity", "1"), ("accuracy", "time"), ("energy", "fp32_45nm", "events", "snn_pj")):
        metrics = metrics_of("cifar10_vgg6_all_steps-seed0")
        place = metrics["results"]["trained"]
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = wrong
        found = script.read_runs([written(tmp_path, metrics)])
        assert not found.rows
        assert "is not what a run of recipes/train.py leaves" in found.unread[0]
