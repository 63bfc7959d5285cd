"""What the figures hold: every assertion reads the drawn artists back."""

import importlib
import subprocess
import sys

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from onespike import plots
from onespike.spikingjelly import HybridEncoder, SingleSpikeLIFNode

mpl.use("Agg")
T = 5
ZETA = {"conv1": 0.5, "conv2": 0.25, "fc1": 0.0}
ENERGIES = {"ANN": 1.083e9, "direct": 1.8e7, "hybrid": 1.55e7}
CALLS = {
    "raster": lambda ax: plots.raster(torch.ones(T, 1, 3), ax=ax),
    "membrane_traces": lambda ax: plots.membrane_traces(torch.ones(T, 1, 3), 0.5, ax=ax),
    "activity_bars": lambda ax: plots.activity_bars(ZETA, ax=ax),
    "energy_bars": lambda ax: plots.energy_bars(ENERGIES, ax=ax),
    "training_curves": lambda ax: plots.training_curves({"ANN": [10, 20]}, ax=ax),
    "spike_time_histogram": lambda ax: plots.spike_time_histogram([1, 2], T=2, ax=ax),
}


@pytest.fixture(autouse=True)
def _no_figure_is_left():
    plt.close("all")
    yield
    plt.close("all")


@pytest.fixture
def layer():
    """A layer's spikes and membrane traces [T, N, C, H, W] with their graph, and its node."""
    torch.manual_seed(0)
    node = SingleSpikeLIFNode(v_threshold=0.7, store_v_seq=True)
    s_seq = node(torch.nn.Linear(8, 8, bias=False)(HybridEncoder(T)(torch.rand(3, 4, 6, 8))))
    assert s_seq[:, 1].sum() > 5
    return s_seq, node.v_seq, node


def heights(container):
    return [bar.get_height() for bar in container]


def strokes(ax):
    """The (step, neuron) of every stroke of a raster."""
    return sorted((round(s[0][0]), round(float(s[:, 1].mean()))) for s in ax.collections[0].get_segments())


def labelled(ax):
    return {line.get_label(): line for line in ax.lines}


@pytest.mark.parametrize("name", CALLS)
def test_draws_on_the_given_axes_and_opens_no_figure(name):
    figure, (left, right) = plt.subplots(1, 2)
    left.set_title("mine")
    assert CALLS[name](left) is left
    assert left.get_title() == "mine"
    assert left.has_data()
    assert not right.has_data()
    assert plt.get_fignums() == [figure.number]


@pytest.mark.parametrize("name", CALLS)
def test_without_axes_opens_one_figure_and_changes_no_setting(name):
    plt.figure()
    before = dict(mpl.rcParams)
    ax = CALLS[name](None)
    assert len(plt.get_fignums()) == 2
    assert ax.figure.axes == [ax]
    assert dict(mpl.rcParams) == before
    assert ax.get_title()
    assert ax.get_ylabel()
    assert not ax.spines["top"].get_visible()
    ax.figure.canvas.draw()


def test_an_error_leaves_no_figure_behind():
    with pytest.raises(ValueError, match="image"):
        plots.raster(torch.ones(T, 1, 3), image=1)
    assert plt.get_fignums() == []


def test_package_imports_without_matplotlib_and_plots_names_the_remedy(monkeypatch):
    code = "import sys; sys.modules['matplotlib'] = None; import onespike"
    subprocess.run([sys.executable, "-c", code], check=True)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    monkeypatch.delitem(sys.modules, "onespike.plots")
    with pytest.raises(ImportError, match=r'pip install "onespike\[recipes\]"'):
        importlib.import_module("onespike.plots")


def test_raster_has_a_stroke_per_spike_of_the_image(layer):
    s_seq, _, _ = layer
    ax = plots.raster(s_seq, image=1)
    steps, neurons = s_seq[:, 1].flatten(1).nonzero(as_tuple=True)
    assert strokes(ax) == sorted(zip((steps + 1).tolist(), neurons.tolist(), strict=True))
    assert [tick for tick in ax.get_xticks() if 0.5 < tick < T + 0.5] == [1, 2, 3, 4, 5]
    assert ax.get_ylabel() == "neuron index"
    lengths = [np.ptp(stroke[:, 1]) for stroke in ax.collections[0].get_segments()]
    assert 0.5 < min(lengths) <= max(lengths) < 1


def test_raster_of_a_large_layer_shows_evenly_spaced_neurons_and_says_so():
    ax = plots.raster(torch.ones(2, 1, 101), max_neurons=5)
    assert strokes(ax) == [(t, neuron) for t in (1, 2) for neuron in (0, 25, 50, 75, 100)]
    assert ax.get_ylabel() == "neuron index (5 of 101, evenly spaced)"


@pytest.mark.parametrize("convert", [torch.Tensor.bfloat16, torch.Tensor.bool, torch.Tensor.numpy, torch.Tensor.tolist])
def test_raster_takes_any_kind_of_numbers(convert):
    s_seq = torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]]])
    assert strokes(plots.raster(convert(s_seq))) == [(1, 1), (2, 0)]


@pytest.mark.parametrize(
    ("s_seq", "settings", "error", "message"),
    [
        (torch.ones(3), {}, ValueError, r"s_seq must be \[T, N, \*\] .* got shape \(3,\)"),
        (torch.ones(3, 2, 0), {}, ValueError, r"at least one step, image and neuron, got shape \(3, 2, 0\)"),
        (torch.full((3, 2), 0.5), {}, ValueError, r"s_seq must hold spikes, 0 or 1, got 0\.5"),
        ("spikes", {}, TypeError, "s_seq must be a tensor or an array of numbers, got str"),
        ([[1], [1, 0]], {}, TypeError, "s_seq must be a tensor or an array of numbers, got list"),
        (torch.ones(3, 2), {"image": 2}, ValueError, r"image must be in 0\.\.1, got 2"),
        (torch.ones(3, 2), {"image": -1}, ValueError, "image must be >= 0, got -1"),
        (torch.ones(3, 2), {"image": 0.0}, TypeError, r"image must be an int, got 0\.0"),
        (torch.ones(3, 2), {"max_neurons": 0}, ValueError, "max_neurons must be >= 1, got 0"),
    ],
)
def test_raster_errors(s_seq, settings, error, message):
    with pytest.raises(error, match=message):
        plots.raster(s_seq, **settings)


def test_membrane_traces_show_potentials_threshold_and_emitted_spikes(layer):
    s_seq, v_seq, node = layer
    s, v = s_seq[:, 1].flatten(1).detach(), v_seq[:, 1].flatten(1).detach()
    fired, silent = int(s.sum(0).argmax()), int(s.sum(0).argmin())
    ax = plots.membrane_traces(v_seq, node.v_threshold, s_seq=s_seq, neurons=(fired, silent), image=1)
    lines = labelled(ax)
    assert lines["threshold V"].get_ydata() == pytest.approx([0.7, 0.7])
    assert lines["threshold V"].get_linestyle() == "--"
    for neuron in (fired, silent):
        assert lines[f"neuron {neuron}"].get_xdata().tolist() == [1, 2, 3, 4, 5]
        assert lines[f"neuron {neuron}"].get_ydata().tolist() == pytest.approx(v[:, neuron].tolist())
    at = lines[f"neuron {fired}"].get_markevery()
    assert at == s[:, fired].nonzero().flatten().tolist()
    assert len(at) == 1
    assert v[at[0], fired] > 0.7
    assert lines[f"neuron {silent}"].get_markevery() == []
    assert "emitted spike" in ax.get_ylabel()


def test_membrane_traces_without_spikes_have_no_marker():
    ax = plots.membrane_traces(torch.ones(T, 1, 3), 0.5)
    assert list(labelled(ax)) == ["threshold V", "neuron 0", "neuron 1", "neuron 2"]
    assert {line.get_marker() for line in ax.lines[1:]} == {""}
    assert ax.get_ylabel() == "membrane potential U"


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"v_threshold": -1.0}, ValueError, r"v_threshold must be finite and > 0, got -1\.0"),
        ({"v_threshold": torch.ones(3)}, TypeError, "v_threshold must be a number, got tensor"),
        ({"s_seq": torch.ones(T, 2, 4)}, ValueError, r"s_seq must have the shape of v_seq, .*\(5, 3\), got \(5, 4\)"),
        ({"neurons": (0, 3)}, ValueError, r"neurons must be in 0\.\.2, got 3"),
        ({"neurons": (0.5,)}, TypeError, r"neurons must be an int, got 0\.5"),
        ({"neurons": ()}, ValueError, r"neurons must be a non-empty sequence of indices, got \(\)"),
        ({"neurons": 1}, ValueError, "neurons must be a non-empty sequence of indices, got 1"),
        ({"image": 2}, ValueError, r"image must be in 0\.\.1, got 2"),
        ({"v_seq": torch.ones(T)}, ValueError, r"v_seq must be \[T, N, \*\]"),
    ],
)
def test_membrane_traces_errors(settings, error, message):
    with pytest.raises(error, match=message):
        plots.membrane_traces(**{"v_seq": torch.ones(T, 2, 3), "v_threshold": 1.0} | settings)


def test_activity_bars_are_zeta_and_the_line_is_its_mean():
    ax = plots.activity_bars(ZETA, label="hybrid")
    (bars,) = ax.containers
    assert heights(bars) == [0.5, 0.25, 0.0]
    assert bars.get_label() == "hybrid"
    assert [tick.get_text() for tick in ax.get_xticklabels()] == list(ZETA)
    assert set(labelled(ax)["layer mean 0.25"].get_ydata()) == {0.25}
    assert ax.get_ylim()[0] == 0


def test_activity_bars_of_two_series_stand_side_by_side():
    ax = plots.activity_bars({"direct": ZETA, "hybrid": {"conv2": torch.tensor(0.1), "fc2": 0.3}})
    direct, hybrid = ax.containers
    assert [bars.get_label() for bars in ax.containers] == ["direct", "hybrid"]
    assert heights(direct) == pytest.approx([0.5, 0.25, 0.0, np.nan], nan_ok=True)
    assert heights(hybrid) == pytest.approx([np.nan, 0.1, np.nan, 0.3], nan_ok=True)
    assert all(a.get_x() + a.get_width() < b.get_x() for a, b in zip(direct, hybrid, strict=True))
    assert [line.get_ydata()[0] for line in ax.lines] == pytest.approx([0.25, 0.2])
    assert [line.get_color() for line in ax.lines] == list(plots.PALETTE[:2])


@pytest.mark.parametrize(("layers", "rotation"), [(3, 0), (16, 45)])
def test_layer_names_slant_where_they_would_touch(layers, rotation):
    ax = plots.activity_bars({f"features.{i}": 0.1 for i in range(layers)})
    assert {tick.get_rotation() for tick in ax.get_xticklabels()} == {rotation}


@pytest.mark.parametrize(
    ("zeta", "error", "message"),
    [
        ({}, ValueError, "zeta must not be empty"),
        ({"direct": {}}, ValueError, r"zeta\['direct'\] must not be empty"),
        ([0.5], TypeError, r"zeta must be a dict, got \[0\.5\] of type list"),
        ({"direct": ZETA, "hybrid": 0.5}, TypeError, r"zeta\['hybrid'\] must be a dict, got 0\.5"),
        ({"conv1": "many"}, TypeError, r"zeta\['conv1'\] must be a number, got 'many'"),
        ({"conv1": -0.1}, ValueError, r"zeta\['conv1'\] must be finite and >= 0, got -0\.1"),
        ({"conv1": float("nan")}, ValueError, r"zeta\['conv1'\] must be finite and >= 0, got nan"),
    ],
)
def test_activity_bars_errors(zeta, error, message):
    with pytest.raises(error, match=message):
        plots.activity_bars(zeta)


def test_activity_bars_refuse_a_label_beside_named_series():
    with pytest.raises(ValueError, match=r"label must be None .* got 'hybrid'"):
        plots.activity_bars({"direct": ZETA}, label="hybrid")


def test_energy_bars_are_joules_on_a_log_scale_with_value_and_ratio():
    ax = plots.energy_bars(ENERGIES)
    (bars,) = ax.containers
    assert heights(bars) == pytest.approx([1.083e-3, 1.8e-5, 1.55e-5])
    assert ax.get_yscale() == "log"
    assert [text.get_text() for text in ax.texts] == ["1.08 mJ", "18 µJ\n60x less", "15.5 µJ\n70x less"]
    bottom, top = ax.get_ylim()
    assert bottom < 1.55e-5
    assert top > 1.083e-3
    ax.figure.canvas.draw()
    assert "1 mJ" in [tick.get_text() for tick in ax.get_yticklabels()]


def test_energy_bars_compare_within_each_series():
    ax = plots.energy_bars({"paper": {"ANN": 100, "SNN": 40}, "events": {"ANN": 50, "SNN": 100, "hybrid": 50}})
    assert [heights(bars) for bars in ax.containers] == [
        pytest.approx([1e-10, 4e-11, np.nan], nan_ok=True),
        pytest.approx([5e-11, 1e-10, 5e-11]),
    ]
    texts = ["100 pJ", "40 pJ\n2.5x less", "", "50 pJ", "100 pJ\n2.0x more", "50 pJ"]
    assert [text.get_text() for text in ax.texts] == texts
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["paper", "events"]


@pytest.mark.parametrize(
    ("energies", "error", "message"),
    [
        ({}, ValueError, "energies must not be empty"),
        ({"ANN": 0}, ValueError, r"energies\['ANN'\] must be finite and > 0, got 0\.0"),
        ({"ANN": float("inf")}, ValueError, r"energies\['ANN'\] must be finite and > 0, got inf"),
        ({"paper": {"ANN": None}}, TypeError, r"energies\['ANN'\] must be a number, got None"),
    ],
)
def test_energy_bars_errors(energies, error, message):
    with pytest.raises(error, match=message):
        plots.energy_bars(energies)


def test_training_curves_pass_over_epochs_without_value():
    history = {"train": torch.tensor([10.0, 20.0, 30.0, 40.0]), "validation": [None, 15, float("nan"), 35], "test": [None]}
    ax = plots.training_curves(history)
    drawn = {name: (line.get_xdata().tolist(), line.get_ydata().tolist()) for name, line in labelled(ax).items()}
    assert drawn == {"train": ([1, 2, 3, 4], [10, 20, 30, 40]), "validation": ([2, 4], [15, 35]), "test": ([], [])}
    assert ax.get_ylabel() == "accuracy [%]"
    assert ax.get_xlabel() == "epoch"
    assert ax.get_xlim() == (0.5, 4.5)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list(history)


@pytest.mark.parametrize(
    ("history", "error", "message"),
    [
        ({}, ValueError, "history must not be empty"),
        ([1.0], TypeError, "history must be a dict"),
        ({"ANN": []}, ValueError, r"history\['ANN'\] must hold a value per epoch, .* got shape \(0,\)"),
        ({"ANN": 3.0}, ValueError, r"history\['ANN'\] must hold a value per epoch, .* got shape \(\)"),
        ({"ANN": ["good"]}, TypeError, r"history\['ANN'\] must be a tensor or an array of numbers"),
        ({"ANN": [50, 101]}, ValueError, r"history\['ANN'\] must be in percent, 0\.\.100, got 101"),
        ({"ANN": [float("-inf")]}, ValueError, r"history\['ANN'\] must be in percent, 0\.\.100, got -inf"),
    ],
)
def test_training_curves_errors(history, error, message):
    with pytest.raises(error, match=message):
        plots.training_curves(history)


def test_histogram_is_the_fraction_of_spike_times_per_step():
    ax = plots.spike_time_histogram(torch.tensor([[1.0, 5.0], [5.0, 2.0]]), T=T)
    (bars,) = ax.containers
    assert heights(bars) == [0.25, 0.25, 0, 0, 0.5]
    assert [bar.get_x() + bar.get_width() / 2 for bar in bars] == pytest.approx([1, 2, 3, 4, 5])
    assert ax.get_legend() is None


@pytest.mark.parametrize("correct", [torch.tensor([0, 2]), np.array([[True, False, False], [False, False, True]])])
def test_histogram_of_the_true_class_beside_the_others(correct):
    ax = plots.spike_time_histogram(torch.tensor([[1, 3, 3], [2, 3, 3]]), T=3, correct=correct)
    assert {bars.get_label(): heights(bars) for bars in ax.containers} == {
        "true class": [0.5, 0.0, 0.5],
        "other classes": [0.0, 0.25, 0.75],
    }
    assert [sum(heights(bars)) for bars in ax.containers] == [1, 1]


def test_histogram_leaves_out_an_empty_group():
    ax = plots.spike_time_histogram([1, 2], T=2, correct=[True, True])
    assert [(bars.get_label(), heights(bars)) for bars in ax.containers] == [("true class", [0.5, 0.5])]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"T": 0}, ValueError, "T must be >= 1, got 0"),
        ({"T": 5.0}, TypeError, r"T must be an int, got 5\.0"),
        ({"spike_time": torch.ones(0, 3)}, ValueError, r"spike_time must hold at least one spike time, got shape \(0, 3\)"),
        ({"spike_time": [0, 1]}, ValueError, r"spike_time must hold whole steps in 1\.\.5, got 0"),
        ({"spike_time": [6]}, ValueError, r"spike_time must hold whole steps in 1\.\.5, got 6"),
        ({"spike_time": [1.5]}, ValueError, r"spike_time must hold whole steps in 1\.\.5, got 1\.5"),
        ({"spike_time": [float("nan")]}, ValueError, r"spike_time must hold whole steps in 1\.\.5, got nan"),
        ({"correct": [True]}, ValueError, r"correct must be a boolean mask .* got bool \(1,\) for \(2, 3\)"),
        ({"correct": [1.0, 2.0]}, ValueError, r"correct must be .* got float64 \(2,\)"),
        ({"correct": [0, 1, 2]}, ValueError, r"correct must be .* got int64 \(3,\)"),
        ({"correct": [0, 3]}, ValueError, r"correct must be in 0\.\.2, got 3"),
        ({"spike_time": [1, 2], "correct": [0, 1]}, ValueError, r"class indices \[N\] for a spike_time \[N, K\]"),
    ],
)
def test_histogram_errors(settings, error, message):
    with pytest.raises(error, match=message):
        plots.spike_time_histogram(**{"spike_time": torch.ones(2, 3), "T": T} | settings)
