"""ANN to spiking network: thresholds, accuracy, structure, what is refused, saving and loading."""

import copy
import json
from functools import partial
from math import ceil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from onespike.conversion import (
    ConversionError,
    CorruptModelError,
    SpikingNetwork,
    calibrate,
    calibrate_thresholds,
    convert,
    storage,
)
from onespike.conversion import percentile as percentiles
from onespike.conversion.network import LEAKS
from onespike.conversion.percentile import nearest_percentile
from onespike.conversion.spike_bits import SpikeBits
from onespike.functional import hybrid_cross_entropy, hybrid_encode, predict
from onespike.metrics import SpikingActivity
from onespike.models import vgg
from onespike.optim import parameter_groups
from onespike.spikingjelly import DirectEncoder, HybridEncoder, SingleSpikeLIFNode, SpikeTimeReadout

multi_spike = partial(SingleSpikeLIFNode, single_spike=False)


def sequential():
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(12, 24, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(96, 48, bias=False),
        nn.ReLU(),
        nn.Linear(48, 10, bias=False),
    )


class Written(nn.Module):
    """The same network in the way people write one: shared activation, functional pooling, dropout and flatten."""

    def __init__(self, flatten):
        super().__init__()
        self.features = nn.ModuleDict({"first": nn.Conv2d(1, 12, 3, padding=1, bias=False)})
        self.second = nn.Conv2d(12, 24, 3, padding=1, bias=False)
        self.hidden = nn.Linear(96, 48, bias=False)
        self.head = nn.Linear(48, 10, bias=False)
        self.act = nn.ReLU()
        self.flatten = flatten

    def forward(self, x):
        x = F.avg_pool2d(self.act(self.features["first"](x)), 2)
        x = F.dropout(F.relu(self.second(x), inplace=True), 0.1, self.training)
        x = self.flatten(F.adaptive_avg_pool2d(x, (2, 2)))
        return self.head(self.act(self.hidden(x)))


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(images, dtype=torch.float32)[order].view(-1, 1, 8, 8) / 16
    return (x - x.mean()) / x.std(), torch.tensor(labels, dtype=torch.int64)[order]


@pytest.fixture(scope="module")
def ann(digits):
    """A trained ANN: thresholds and conversion mean little on random weights."""
    torch.manual_seed(0)
    x, y = digits[0][:1400], digits[1][:1400]
    model = sequential()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(8):
        for batch in torch.randperm(len(x)).split(32):
            loss = F.cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def thresholds(ann, digits):
    return calibrate_thresholds(ann, digits[0][:256], timesteps=60)


def accuracy(outputs, labels):
    return 100 * (outputs == labels).double().mean().item()


def test_the_plain_conversion_is_within_a_point_of_its_ann(ann, digits, thresholds):
    x, y = digits[0][1400:], digits[1][1400:]
    network = convert(
        ann, digits[0][:64], threshold_scale=1, thresholds=thresholds, encoder=DirectEncoder(200), neuron=multi_spike
    )
    with torch.no_grad():
        found = accuracy(torch.cat([predict(network(batch)) for batch in x.split(50)]), y)
        expected = accuracy(ann(x).argmax(1), y)
    assert expected > 90
    assert abs(found - expected) <= 1


def test_thresholds_are_percentiles_of_the_input_current(ann, digits, thresholds):
    images = digits[0][:256]
    assert list(thresholds) == ["1", "4", "9"]
    with torch.no_grad():
        first = ann[0](images).numpy()
    assert thresholds["1"] == np.percentile(first, 99.7, method="nearest")
    # The second layer, by hand: integrate-and-fire neurons of the first, percentiles step by step, their maximum.
    v = torch.zeros(256, 12, 8, 8)
    highest = -np.inf
    for _ in range(60):
        v = v + torch.from_numpy(first) - thresholds["1"] * (v > thresholds["1"])
        with torch.no_grad():
            current = ann[3](ann[2]((v > thresholds["1"]).float()))
        highest = max(highest, np.percentile(current.numpy(), 99.7, method="nearest"))
    assert thresholds["4"] == pytest.approx(highest, rel=1e-6)


def test_thresholds_do_not_depend_on_the_batch_size(ann, digits, thresholds):
    images = digits[0][:64]
    whole = calibrate_thresholds(ann, images, timesteps=10)
    assert calibrate_thresholds(ann, images, timesteps=10, batch_size=7) == pytest.approx(whole, rel=1e-6)
    assert calibrate_thresholds(ann, images, percentile=90.0, timesteps=10)["9"] < whole["9"]


def thresholds_step_by_step(ann, images, percentile, timesteps, batch_size):
    """Calibration as it reads: for each ReLU, from the start, every step of every batch through all that lies before it."""
    ann = ann.eval()
    modules = [module for module in ann if not isinstance(module, nn.Dropout)]
    found = {}
    for target in ann:
        if not isinstance(target, nn.ReLU):
            continue
        batches, states, highest = images.split(batch_size), [{} for _ in images.split(batch_size)], -np.inf
        for _ in range(timesteps):
            currents = []
            for batch, v in zip(batches, states, strict=True):
                x = batch
                for module in modules[: modules.index(target)]:
                    if isinstance(module, nn.ReLU):
                        threshold = found[module]
                        charged = v[module] + x if module in v else x
                        crossed = v[module] > threshold if module in v else torch.zeros_like(x, dtype=torch.bool)
                        v[module] = charged - threshold * crossed
                        x = (v[module] > threshold).to(x.dtype)
                    else:
                        x = module(x)
                currents.append(x.flatten())
            values = torch.cat(currents).sort().values
            highest = max(highest, values[round(percentile / 100 * (len(values) - 1))].item())
        found[target] = highest
    return {name: found[module] for name, module in ann.named_children() if module in found}


@pytest.mark.parametrize(
    ("N", "batch_size", "timesteps", "percentile"),
    [(64, 128, 8, 99.7), (37, 7, 13, 99.7), (30, 10, 17, 90.0), (9, 1, 1, 99.0), (13, 5, 9, 100.0), (20, 20, 7, 60.0)],
)
@pytest.mark.parametrize("kept", [0, 150_000, 2**30], ids="{}-bytes".format)
@pytest.mark.parametrize("form", ["float32", "float64", "channels-last"])
def test_thresholds_equal_a_walk_through_every_prefix_to_the_bit(N, batch_size, timesteps, percentile, kept, form, monkeypatch):
    monkeypatch.setattr(calibrate, "KEPT_BYTES", kept)
    torch.manual_seed(N)
    ann = nn.Sequential(
        nn.Conv2d(3, 7, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.AvgPool2d(3, 2),  # of spikes: ninths, not bits
        nn.Conv2d(7, 10, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.AdaptiveAvgPool2d(2),
        nn.Conv2d(10, 12, 2, bias=False),  # [N, 12, 1, 1]: strides that say little
        nn.ReLU(),
        nn.Conv2d(12, 9, 1, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(9, 31, bias=False),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(31, 4, bias=False),
    )
    images = torch.randn(N, 3, 11, 9)
    if form == "float64":
        ann, images = ann.double(), images.double()
    if form == "channels-last":
        ann, images = (part.to(memory_format=torch.channels_last) for part in (ann, images))
    with torch.no_grad():
        expected = thresholds_step_by_step(ann, images, percentile, timesteps, batch_size)
    settings = {"percentile": percentile, "timesteps": timesteps, "batch_size": batch_size}
    if any(threshold <= 0 for threshold in expected.values()):
        with pytest.raises(ConversionError, match="not above 0"):
            calibrate_thresholds(ann, images, **settings)
    else:
        assert calibrate_thresholds(ann, images, **settings) == expected


def test_calibration_runs_each_layer_at_most_twice_a_step(ann, digits, monkeypatch):
    calls = []
    for module in (layer.Conv2d, layer.Linear):
        forward = module.forward
        monkeypatch.setattr(module, "forward", lambda self, x, run=forward: calls.append(self) or run(self, x))
    calibrate_thresholds(ann, digits[0][:20], timesteps=12, batch_size=10)
    shapes = 1  # a call for the shape of what each layer gives
    assert sorted(calls.count(module) - shapes for module in set(calls)) == [0, 2, 2 * 12, 2 * 12]
    calls.clear()
    monkeypatch.setattr(calibrate, "KEPT_BYTES", 0)
    calibrate_thresholds(ann, digits[0][:20], timesteps=12, batch_size=10)
    assert sorted(calls.count(module) - shapes for module in set(calls)) == [0, 2 * 12, 2 * (12 + 1), 4 * 12]


@pytest.mark.parametrize("n", [1, 2, 7, 1000, 4097, 300_000])
@pytest.mark.parametrize("q", [0.1, 37.5, 50.0, 99.7, 100.0])
def test_percentile_equals_numpys(n, q):
    values = torch.randn(n, generator=torch.Generator().manual_seed(n))
    expected = np.percentile(values.numpy(), q, method="nearest")
    assert nearest_percentile([values], q) == expected
    assert nearest_percentile(values.split(max(1, n // 3)), q) == expected
    assert nearest_percentile([values], q, floor=expected - 0.1) == expected
    assert nearest_percentile([values], q, floor=expected + 0.1) == expected + 0.1


@pytest.mark.parametrize("bound", [-np.inf, -1.0, 0.0, 5.0, np.inf, np.nan])
def test_a_bad_guess_costs_time_alone(bound, monkeypatch):
    monkeypatch.setattr(percentiles, "likely_bound", lambda flat, share: bound)
    values = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    values[::2] = 0.0  # many ties
    for q in (1.0, 60.0, 99.7):
        assert nearest_percentile([values], q) == np.percentile(values.numpy(), q, method="nearest")


def test_the_guess_leaves_few_numbers():
    for shape in ((8, 64, 40, 40), (8, 64, 41, 39)):
        scale = torch.linspace(0.1, 2, 64).view(-1, 1, 1)  # channels of different ranges, which lie last in memory
        values = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * scale).to(memory_format=torch.channels_last)
        bound = percentiles.likely_bound([percentiles.in_memory_order(values)], 0.003)
        assert 0.003 < (values > bound).float().mean() < 0.006


@pytest.mark.parametrize("steps", [1, 7, 8, 9, 21])
def test_spike_bits_give_back_what_went_in(steps):
    s_seq = (torch.rand(steps, 3, 4, 6, 5) > 0.5).double().movedim(-1, 2)  # each step [3, 5, 4, 6] with channels last
    bits = SpikeBits()
    for cut in s_seq.split(8):
        bits.append(cut)
    for step, expected in enumerate(s_seq):
        found = bits.at(step)
        assert torch.equal(found, expected)
        assert (found.dtype, found.stride()) == (expected.dtype, expected.stride())
    assert sum(packed.nbytes for packed in bits.bytes) == 3 * 5 * 4 * 6 * ceil(steps / 8)


def test_conversion_scales_thresholds_copies_weights_and_leaves_the_ann(ann, digits, thresholds):
    before = {name: value.clone() for name, value in ann.state_dict().items()}
    network = convert(ann, digits[0][:64], T=4, threshold_scale=0.3, leak=0.9, thresholds=thresholds)
    nodes = network.nodes()
    assert list(nodes) == list(thresholds)
    for name, node in nodes.items():
        assert node.v_threshold.item() == pytest.approx(0.3 * thresholds[name])
        assert node.leak.item() == pytest.approx(0.9)
    weights = [p for name, p in network.named_parameters() if name.endswith("weight")]
    for own, original in zip(weights, ann.parameters(), strict=True):
        assert torch.equal(own, original)
        assert own.data_ptr() != original.data_ptr()
    with torch.no_grad():
        for weight in weights:
            weight.zero_()
    assert all(torch.equal(value, before[name]) for name, value in ann.state_dict().items())
    assert network.training is False
    ann.train()
    assert convert(ann, digits[0][:64], thresholds=thresholds).training is True
    ann.eval()


def test_the_output_threshold_is_the_median_half_way(ann, digits, thresholds):
    images = digits[0][:100]
    network = convert(ann, images, T=5, thresholds=thresholds, batch_size=17)
    with torch.no_grad():
        v_seq = network.currents(images).cumsum(0)
    expected = v_seq[: ceil(5 / 2)].amax(0).median()
    assert network.readout.v_threshold.item() == pytest.approx(max(expected.item(), network.readout.beta))
    silent = convert(ann, images, thresholds=dict.fromkeys(thresholds, 1e6))
    assert silent.readout.v_threshold.item() == pytest.approx(silent.readout.beta)


@pytest.mark.parametrize(
    "flatten",
    [
        lambda x: torch.flatten(x, 1),
        lambda x: x.flatten(1),
        lambda x: x.flatten(start_dim=1),
        lambda x: x.view(x.size(0), -1),
        lambda x: x.reshape(x.shape[0], -1),
        lambda x: torch.reshape(x.contiguous(), (x.shape[0], -1)),
    ],
    ids=["torch.flatten", "flatten", "start_dim", "view", "reshape", "torch.reshape"],
)
def test_an_ann_written_as_a_class_converts_as_well(ann, digits, thresholds, flatten):
    written = Written(flatten).eval()
    written.load_state_dict(dict(zip(written.state_dict(), ann.state_dict().values(), strict=True)))
    x = digits[0][:40]
    torch.testing.assert_close(written(x), ann(x))
    expected = convert(ann, x, timesteps=8)
    found = convert(written, x, timesteps=8)
    assert list(found.nodes()) == ["act", "relu", "act_1"]
    assert torch.equal(found(x).potential, expected(x).potential)
    assert "features.first" in found.named_layers()


def test_the_network_is_its_parts(ann, digits, thresholds):
    x = digits[0][:20]
    network = convert(ann, digits[0][:64], thresholds=thresholds)
    readout = network(x)
    low, high = digits[0][:64].min(), digits[0][:64].max()
    assert torch.equal(network.encoder(x), hybrid_encode(x, 5, intensity_range=(low, high)))
    network.reset()
    by_parts = network.readout(network.body(network.encoder(x)))
    assert torch.equal(readout.potential, by_parts.potential)
    assert torch.equal(network.currents(x).cumsum(0)[-1], readout.potential)
    assert torch.equal(network(x).potential, readout.potential), "a second call starts from a clean state"
    network.T = 9
    assert network.T == network.currents(x).shape[0] == 9


def test_the_network_steps(ann, digits, thresholds):
    x = digits[0][:20]
    network = convert(ann, digits[0][:64], thresholds=thresholds)
    expected = network(x)
    functional.reset_net(network)
    functional.set_step_mode(network, "s")
    for _ in range(network.T):
        found = network(x)
    assert torch.equal(found.potential, expected.potential)
    assert torch.equal(found.spike_time, expected.spike_time)


def test_dropout_is_one_mask_for_all_steps(ann, digits, thresholds):
    network = convert(ann, digits[0][:64], thresholds=thresholds, encoder=DirectEncoder(4), dropout=0.5, neuron=multi_spike)
    assert network.named_layers()["5"].p == 0.5
    seen = []
    network.named_layers()["5"].register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    network.train()(digits[0][:20])
    spikes, dropped = seen[0]
    kept = (dropped != 0).any(0)
    assert torch.equal(dropped, spikes * kept * 2)
    assert 0.1 < kept[spikes.any(0)].float().mean() < 0.9
    network(digits[0][:20])
    assert not torch.equal((seen[1][1] != 0).any(0), kept), "each call draws a new mask"


def test_the_default_encoder_takes_each_channels_range():
    images = torch.rand(30, 3, 8, 8) * torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1) - 1
    ann = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2, bias=False))
    network = convert(ann, images, timesteps=3)
    low, high = network.encoder.intensity_range
    assert torch.equal(low.flatten(), images.amin((0, 2, 3)))
    assert torch.equal(high.flatten(), images.amax((0, 2, 3)))


def test_a_converted_network_compiles_and_trains(ann, digits, thresholds):
    network = convert(ann, digits[0][:64], thresholds=thresholds).train()
    x, y = digits[0][:30], digits[1][:30]
    eager = network.eval()(x)
    compiled = torch.compile(network, fullgraph=True)(x)
    torch.testing.assert_close(compiled.potential, eager.potential)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        loss = F.cross_entropy(network(x).potential, y)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        network.project_()
    assert losses[-1] < 0.8 * losses[0]
    assert all(0 <= node.leak <= 1 for node in network.nodes().values())


def conv(bias=False):
    return nn.Conv2d(3, 4, 3, bias=bias)


@pytest.mark.parametrize("training", [True, False])
def test_a_map_is_no_output(training):
    ann = nn.Sequential(conv(), nn.ReLU(), nn.Conv2d(4, 2, 1, bias=False)).train(training)
    with pytest.raises(
        ConversionError, match=r"2 \(Conv2d\) must give logits \[N, K\], got shape \(1, 2, 6, 6\): pool and flatten"
    ):
        convert(ann, torch.rand(8, 3, 8, 8), timesteps=3)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = conv()

    def forward(self, x):
        return self.conv(x) if x.sum() > 0 else x


class FixedView(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = conv(), nn.Linear(144, 2, bias=False)

    def forward(self, x):
        return self.head(F.relu(self.conv(x)).view(4, -1))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.Linear(192, 2, bias=False)

    def forward(self, x):
        return self.head(F.relu(self.conv(F.relu(self.conv(x)))).flatten(1))


TAIL = (nn.ReLU(), nn.Flatten(), nn.Linear(144, 2, bias=False))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.BatchNorm2d(3), conv(), *TAIL), r"0 \(BatchNorm2d\) does not follow a Conv or Linear layer"),
        (nn.Sequential(conv(), nn.ReLU(), nn.BatchNorm2d(4), *TAIL[1:]), r"2 \(BatchNorm2d\) does not follow a Conv"),
        (
            nn.Sequential(conv(), nn.BatchNorm2d(4, track_running_stats=False), *TAIL),
            r"1 \(BatchNorm2d\) has no running statistics to fold: train it with track_running_stats=True",
        ),
        (nn.Sequential(conv(), nn.LayerNorm(6), *TAIL), r"1 \(LayerNorm\) cannot be converted: only BatchNorm in eval mode"),
        (nn.Sequential(nn.MaxPool2d(2), conv(), *TAIL), r"0 \(MaxPool2d\) pools the image itself"),
        (nn.Sequential(conv(), nn.MaxPool2d(2), *TAIL), r"1 \(MaxPool2d\) stands before the ReLU: put it behind"),
        (
            nn.Sequential(conv(), nn.ReLU(), nn.AvgPool2d(2), nn.MaxPool2d(2), *TAIL[1:]),
            r"3 \(MaxPool2d\) pools averages or sums of spikes",
        ),
        (
            nn.Sequential(conv(), nn.ReLU(), nn.MaxPool2d(2, return_indices=True), *TAIL[1:]),
            r"2 \(MaxPool2d\) returns indices",
        ),
        (nn.Sequential(conv(), nn.ReLU(), nn.AdaptiveMaxPool2d(2), *TAIL[1:]), r"2 \(AdaptiveMaxPool2d\) .*: use MaxPool with"),
        (nn.Sequential(conv(), nn.GELU(), nn.Flatten()), r"1 \(GELU\) cannot be converted: use ReLU"),
        (nn.Sequential(conv(), *TAIL, nn.Softmax(1)), r"4 \(Softmax\) .*: remove it"),
        (nn.Sequential(conv(), nn.Upsample(2), *TAIL), r"1 \(Upsample\) .*: only Conv, Linear, BatchNorm, ReLU"),
        (nn.Sequential(conv(), *TAIL, nn.ReLU()), r"must end in the Conv or Linear layer .* ends in 4 \(ReLU\)"),
        (nn.Sequential(conv(), nn.Flatten(), TAIL[-1]), r"0 \(Conv2d\) has no ReLU before 2"),
        (nn.Sequential(nn.ReLU(), conv(), *TAIL), r"0 \(ReLU\) does not follow a Conv or Linear layer"),
        (nn.Sequential(nn.Flatten(0), nn.Linear(4, 2, bias=False)), r"0 \(Flatten\) flattens the batch"),
        (Branching(), r"Branching cannot be traced by torch\.fx"),
        (FixedView(), r"view cannot be converted: use torch.flatten\(x, 1\)"),
        (Twice(), r"conv_1 \(Conv2d\) is used twice"),
    ],
)
def test_what_cannot_be_converted_is_named_with_the_remedy(model, message):
    for call in (convert, calibrate_thresholds):
        with pytest.raises(ConversionError, match=message):
            call(model, torch.rand(4, 3, 8, 8))


def test_a_silent_layer_is_named():
    model = nn.Sequential(conv(), *TAIL)
    with torch.no_grad():
        model[0].weight.abs_().neg_()
    with pytest.raises(ConversionError, match=r"1: the 99.7 percentile of its input current is .* not above 0"):
        calibrate_thresholds(model, torch.rand(4, 3, 8, 8), timesteps=2)


IMAGES = torch.rand(4, 1, 8, 8)


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"T": 0}, ValueError, "T must be >= 1, got 0"),
        ({"T": 2.5}, TypeError, "T must be an int, got 2.5"),
        ({"threshold_scale": 0}, ValueError, "threshold_scale must be > 0, got 0"),
        ({"leak": 1.1}, ValueError, r"leak must be in \[0, 1\], got 1.1"),
        ({"percentile": 0}, ValueError, r"percentile must be in \(0, 100\], got 0"),
        ({"percentile": 101}, ValueError, r"percentile must be in \(0, 100\], got 101"),
        ({"timesteps": 0}, ValueError, "timesteps must be >= 1, got 0"),
        ({"batch_size": 0}, ValueError, "batch_size must be >= 1, got 0"),
        ({"dropout": 1.0}, ValueError, r"dropout must be in \[0, 1\) or None, got 1.0"),
        ({"thresholds": {"1": 1.0}}, ValueError, "thresholds must name every ReLU of the ANN, 4, 9 missing"),
        ({"images": IMAGES[:0]}, ValueError, "images must hold at least one image"),
        (
            {"images": IMAGES[:0], "thresholds": {"1": 1.0, "4": 1.0, "9": 1.0}},
            ValueError,
            "images must hold at least one image",
        ),
        ({"images": IMAGES[0]}, ValueError, r"images must have 4 dimensions, \[N, C, \*\], for Conv2d, got \(1, 8, 8\)"),
        ({"images": IMAGES.byte()}, TypeError, "images must be a floating-point tensor, got torch.uint8"),
        ({"images": IMAGES * float("nan")}, ValueError, "images must be finite, got 256 NaN or Inf values"),
    ],
)
def test_bad_input_is_named(ann, keywords, error, message):
    arguments = {"images": IMAGES, "timesteps": 2, **keywords}
    with pytest.raises(error, match=message):
        convert(ann, arguments.pop("images"), **arguments)


@pytest.fixture
def network(ann, digits, thresholds):
    return convert(ann, digits[0][:64], thresholds=thresholds, leak=0.95)


def test_saved_and_loaded_networks_are_equal(network, digits, tmp_path):
    network.readout.beta, network.readout.time_gradient = 0.7, "full"
    network.encoder.temporal = False
    network.nodes()["4"].gamma = 0.4
    network.nodes()["4"].leak.requires_grad_(False)
    network.save(tmp_path / "new" / "folder")
    loaded = SpikingNetwork.load(tmp_path / "new" / "folder").eval()
    x = digits[0][:20]
    for a, b in zip(loaded(x), network(x), strict=True):
        assert torch.equal(a, b)
    assert repr(loaded.eval()) == repr(network.eval())
    assert loaded.nodes()["4"].gamma == 0.4
    assert not loaded.nodes()["4"].leak.requires_grad
    assert (loaded.readout.beta, loaded.readout.time_gradient) == (0.7, "full")
    assert loaded.encoder.temporal is False


@pytest.mark.parametrize(
    "encoder", [DirectEncoder(6), HybridEncoder(3, "image"), HybridEncoder.for_normalized(4, [0.5], [0.2])]
)
def test_every_encoder_can_be_saved(ann, digits, thresholds, encoder, tmp_path):
    network = convert(ann, digits[0][:20], thresholds=thresholds, encoder=encoder)
    network.save(tmp_path)
    loaded = SpikingNetwork.load(tmp_path).eval()
    assert torch.equal(loaded(digits[0][:5]).potential, network(digits[0][:5]).potential)
    assert loaded.T == encoder.T


class OfOurs(SpikingNetwork):
    """A subclass without a constructor of its own."""


class OfAnAnn(SpikingNetwork):
    """One that is made of something else."""

    def __init__(self, ann, images):
        network = convert(ann, images)
        super().__init__(network.encoder, list(network.layers), list(network.body), network.readout)


class WithMore(SpikingNetwork):
    """One that may be made of more."""

    def __init__(self, *parts, extra=3):
        super().__init__(*parts)
        self.extra = extra


def test_a_subclass_is_saved_if_it_can_be_loaded_again(ann, network, digits, tmp_path):
    network.__class__, network.note = OfOurs, "what is no part of a network is not saved"
    network.save(tmp_path / "plain")
    loaded = OfOurs.load(tmp_path / "plain")
    assert type(loaded) is OfOurs
    assert torch.equal(loaded(digits[0][:5]).potential, network.eval()(digits[0][:5]).potential)
    with pytest.raises(TypeError, match="OfAnAnn must be made of encoder, layers, modules and readout, as SpikingNetwork is"):
        OfAnAnn(ann, digits[0][:20]).save(tmp_path / "other")
    with pytest.raises(TypeError, match="extra must be what the constructor of WithMore makes it, 3, to be saved, got 7"):
        WithMore(network.encoder, list(network.layers), list(network.body), network.readout, extra=7).save(tmp_path / "other")
    WithMore(network.encoder, list(network.layers), list(network.body), network.readout).save(tmp_path / "more")
    assert WithMore.load(tmp_path / "more").extra == 3
    assert not (tmp_path / "other").exists()


def test_a_second_save_replaces_the_first_and_leaves_other_files(network, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    network.save(tmp_path)
    first = {path.name for path in tmp_path.iterdir()}
    with torch.no_grad():
        network.readout.v_threshold.fill_(3.0)
    network.save(tmp_path)
    assert len(list(tmp_path.iterdir())) == len(first) == 3
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert SpikingNetwork.load(tmp_path).readout.v_threshold == 3.0


def test_a_save_that_breaks_off_leaves_the_old_network(network, tmp_path, monkeypatch):
    network.save(tmp_path)
    old = network.readout.v_threshold.item()
    with torch.no_grad():
        network.readout.v_threshold.fill_(3.0)
    write = storage.write_atomically

    def break_off(path, content):
        if path.name == storage.FILE:
            raise OSError("no space left on device")
        write(path, content)

    monkeypatch.setattr(storage, "write_atomically", break_off)
    with pytest.raises(OSError, match="no space"):
        network.save(tmp_path)
    assert SpikingNetwork.load(tmp_path).readout.v_threshold == old


def test_every_flipped_bit_and_every_truncation_is_noticed(network, tmp_path):
    network.save(tmp_path)
    (weights,) = tmp_path.glob("*.safetensors")
    description = tmp_path / "network.json"
    expected = json.loads(description.read_text())
    generator = np.random.default_rng(0)
    for path in (weights, description):
        whole = path.read_bytes()
        positions = generator.choice(len(whole), 40, replace=False)
        for position in positions:
            damaged = bytearray(whole)
            damaged[position] ^= 1 << int(generator.integers(8))
            path.write_bytes(damaged)
            try:
                # White space of the JSON file may change: then everything else must be what was saved.
                harmless = path == description and json.loads(damaged) == expected
            except ValueError:
                harmless = False
            if not harmless:
                with pytest.raises(CorruptModelError, match=r"network\.json|weights"):
                    SpikingNetwork.load(tmp_path)
        for length in (0, 1, len(whole) // 2, len(whole) - 2):
            path.write_bytes(whole[:length])
            with pytest.raises(CorruptModelError):
                SpikingNetwork.load(tmp_path)
        path.unlink()
        with pytest.raises(CorruptModelError, match="cannot be read: No such file"):
            SpikingNetwork.load(tmp_path)
        path.write_bytes(whole)
    SpikingNetwork.load(tmp_path)


def test_foreign_descriptions_are_refused(network, tmp_path):
    network.save(tmp_path)
    description = tmp_path / "network.json"
    document = json.loads(description.read_text())
    for change, message in (
        ({"format": 99}, "has format 99, this version of onespike reads formats 1 to 2"),
        ({"weights": "../weights.safetensors"}, "names a weights file outside its folder"),
        ({"structure": []}, "does not match its own SHA-256"),
    ):
        description.write_text(json.dumps(document | change))
        with pytest.raises(CorruptModelError, match=message):
            SpikingNetwork.load(tmp_path)


def test_a_loaded_network_is_in_eval_mode_with_its_dtype_and_frozen_weights(network, tmp_path):
    network.double().train()
    network.body[0].weight.requires_grad_(False)
    network.save(tmp_path)
    loaded = SpikingNetwork.load(tmp_path)
    assert not any(module.training for module in loaded.modules())
    assert {p.dtype for p in loaded.parameters()} == {torch.float64}
    assert [n for n, p in loaded.named_parameters() if not p.requires_grad] == ["body.0.weight"]


def test_names_that_look_alike_keep_their_neurons():
    class Alike(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU())
            self.a_1, self.append, self.out = nn.Linear(5, 4, bias=False), nn.ReLU(), nn.Linear(4, 3, bias=False)

        def forward(self, x):
            return self.out(self.append(self.a_1(self.a(x))))

    torch.manual_seed(0)
    network = convert(Alike(), torch.rand(20, 6), timesteps=4)
    assert list(network.nodes()) == ["a.1", "append"]
    assert list(network.named_layers()) == ["a.0", "a.1", "a_1", "append", "out"]


def test_misuse_of_the_network_is_named(network):
    for x, message in ((IMAGES[0], "x must have 4 dimensions"), (IMAGES * float("nan"), "x must be finite")):
        with pytest.raises(ValueError, match=message):
            network(x)
    with pytest.raises(TypeError, match=r"x must be a floating-point tensor, got torch.uint8"):
        network(IMAGES.byte())
    with pytest.raises(ValueError, match="images must hold at least one image"):
        network.calibrate_readout(IMAGES[:0])
    with pytest.raises(ValueError, match="batch_size must be >= 1, got 0"):
        network.calibrate_readout(IMAGES, 0)
    assert network(IMAGES[:0]).potential.shape == (0, 10)
    functional.set_step_mode(network, "s")
    with pytest.raises(RuntimeError, match='step_mode must be "m"'):
        network.currents(IMAGES)
    network.train().readout.eval()
    with pytest.raises(RuntimeError, match='step_mode must be "m"'):
        network.calibrate_readout(IMAGES)
    assert [network.training, network.body.training, network.readout.training] == [True, True, False]


def test_leaks_are_set_to_where_a_layer_fires_least_later(network, digits):
    x = digits[0][:200]
    network.train().body.eval()
    first = network.currents(x)[0].clone()
    before = spikes_by_layer(network, x)
    network.calibrate_leaks(x, batch_size=64)
    assert network.training
    assert not network.body.training
    assert all(not torch.is_tensor(node.v) for node in network.nodes().values())
    assert torch.equal(network.currents(x)[0], first), "what is decided at t = 1 does not depend on leaks"
    after = spikes_by_layer(network, x)
    assert sum(after.values()) < sum(before.values())
    for name, node in network.nodes().items():  # by brute force, the layers behind left alone
        kept = node.leak.clone()
        counts = {}
        for leak in (0.95, *LEAKS):
            node.leak.data.fill_(leak)
            counts[leak] = spikes_by_layer(network, x)[name]
        node.leak.data.copy_(kept)
        assert after[name] == min(counts.values())


def spikes_by_layer(network, x):
    with SpikingActivity(network) as activity:
        network(x)
    return {name: round(zeta * 10**6) for name, zeta in activity.zeta.items()}


def test_a_leak_that_no_other_betters_stays(network, digits):
    network.encoder.T = 1
    network.calibrate_leaks(digits[0][:50])
    assert [node.leak.item() for node in network.nodes().values()] == pytest.approx([0.95] * 3)
    for leaks in ([], [0.5, 1.5]):
        with pytest.raises(ValueError, match=r"leaks must be one or more numbers in \[0, 1\], got \["):
            network.calibrate_leaks(digits[0][:50], leaks)
    with pytest.raises(ValueError, match="images must hold at least one image"):
        network.calibrate_leaks(IMAGES[:0])
    for leaks in (0.5, ["a"], [None]):
        with pytest.raises(TypeError, match=r"leaks must be one or more numbers in \[0, 1\], got "):
            network.calibrate_leaks(digits[0][:50], leaks)
    network.encoder.T = 5
    network.body[1] = neuron.LIFNode(step_mode="m")
    with pytest.raises(TypeError, match="1 must be a SingleSpikeLIFNode, which has a leak, got LIFNode"):
        network.calibrate_leaks(digits[0][:50])


def test_leaks_are_as_they_were_where_they_cannot_be_calibrated(network, digits, monkeypatch):
    own = [node.leak.item() for node in network.nodes().values()]

    def interrupted(_, node, *others):
        node.leak.fill_(0.3)
        raise KeyboardInterrupt

    monkeypatch.setattr(SpikingNetwork, "spikes_at", interrupted)
    with pytest.raises(KeyboardInterrupt):
        network.calibrate_leaks(digits[0][:50])
    monkeypatch.undo()
    parametrize.register_parametrization(network.nodes()["9"], "leak", nn.Identity())
    with pytest.raises(ValueError, match=r"9: leak must be a plain parameter, got one under torch\.nn\.utils\.parametrize"):
        network.calibrate_leaks(digits[0][:50])
    assert [node.leak.item() for node in network.nodes().values()] == own


def test_neurons_that_keep_their_state_get_the_same_leaks(network, digits):
    other = copy.deepcopy(network)
    for node in other.nodes().values():
        node.keep_state = True
    for one in (network, other):
        one.calibrate_leaks(digits[0][:100])
    assert [node.leak.item() for node in other.nodes().values()] == [node.leak.item() for node in network.nodes().values()]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("timesteps", [5, None])
@pytest.mark.parametrize("encoder", [DirectEncoder(5), HybridEncoder(5)])
def test_an_ann_of_another_dtype_converts_with_its_biases(dtype, timesteps, encoder):
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).to(dtype)
    x = torch.rand(6, 1, 4, 4, dtype=dtype)
    thresholds = calibrate_thresholds(ann, x, timesteps=timesteps)
    network = convert(ann, x, thresholds=thresholds, encoder=copy.deepcopy(encoder))
    assert {parameter.dtype for parameter in network.body.parameters() if parameter.dim()} == {dtype}
    assert network(x).potential.isfinite().all()


def changed(network, how):
    """Change a network of Conv - neuron - AvgPool - Conv - neuron - ... in a way that its description must refuse."""
    first = network.body[0]
    if how == "a foreign encoder":
        network.encoder = nn.Identity()
    elif how == "an encoder of a subclass":
        network.encoder.__class__ = type("Other", (HybridEncoder,), {})
    elif how == "a foreign neuron":
        network.body[1] = nn.Identity()
    elif how == "a neuron of a subclass":
        network.body[1].__class__ = type("Other", (SingleSpikeLIFNode,), {})
    elif how == "a readout of a subclass":
        network.readout.__class__ = type("Other", (SpikeTimeReadout,), {})
    elif how == "a parametrisation":
        parametrizations.weight_norm(first)
    elif how == "a hook":
        first.register_forward_hook(lambda module, inputs, output: 2 * output)
    elif how == "pruning":
        prune.l1_unstructured(first, "weight", 0.5)
    elif how == "a forward of its own":
        first.forward = lambda x: x
    elif how == "a module inside":
        first.extra = nn.Linear(1, 1)
    elif how == "another weight":
        first.extra = nn.Parameter(torch.ones(1))
    elif how == "a module beside":
        network.extra = nn.Linear(1, 1)
    elif how == "one module more":
        network.body.append(layer.Linear(10, 10, step_mode="m"))
    elif how == "an argument that is not the weights'":
        first.out_channels += 1
    elif how == "a layer in another step mode":
        first.step_mode = "s"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("a foreign encoder", "encoder must be a HybridEncoder or a DirectEncoder to be saved, got <class .*Identity"),
        ("an encoder of a subclass", "encoder must be a HybridEncoder or a DirectEncoder to be saved, got <class .*Other"),
        (
            "a foreign neuron",
            "must be a SingleSpikeLIFNode or a layer that conversion makes to be saved, got <class .*Identity",
        ),
        ("a neuron of a subclass", "must be a SingleSpikeLIFNode or a layer that conversion makes.* got <class .*Other"),
        ("a readout of a subclass", "readout must be a SpikeTimeReadout to be saved, got <class .*Other"),
        ("a parametrisation", "ParametrizedConv2d"),
        ("a hook", r"\(Conv2d\) must have no forward hooks to be saved"),
        ("pruning", r"\(Conv2d\) must have no forward hooks to be saved"),
        ("a forward of its own", r"\(Conv2d\) must be a plain module to be saved"),
        ("a module inside", r"\(Conv2d\) must be a plain module to be saved"),
        ("another weight", "network must hold the weights of its layers and no others to be saved.*body.0.extra"),
        ("a module beside", "network must hold the weights of its layers and no others to be saved.*extra.weight"),
        ("one module more", r"body must hold its \d+ modules to be saved, got \d+"),
        ("an argument that is not the weights'", "network must hold the weights of its layers.*body.0.weight"),
        ("a layer in another step mode", 'step_mode must be "m" throughout the network, got "s" at body.0'),
    ],
)
def test_what_cannot_be_described_is_refused_and_the_folder_stays_as_it_was(how, message, network, digits, tmp_path):
    network.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    changed(network, how)
    with pytest.raises((TypeError, RuntimeError), match=message):
        network.save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises((TypeError, RuntimeError), match=message):
        network.save(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("how", ["a new head", "a new head with a bias", "another dropout", "another pool", "step mode s"])
def test_what_was_changed_after_conversion_is_saved_as_it_is(how, network, digits, tmp_path):
    x = digits[0][:20]
    if how.startswith("a new head"):
        network.body[-1] = layer.Linear(network.body[-1].in_features, 3, bias="bias" in how, step_mode="m")
    elif how == "another dropout":
        drops = [module for module in network.body if isinstance(module, layer.Dropout)]
        assert drops
        drops[0].p = 0.37
    elif how == "another pool":
        at = [type(module).__name__ for module in network.body].index("AvgPool2d")
        network.body[at] = layer.AdaptiveAvgPool2d(network.body[:at](network.encoder(x)).shape[-1] // 2, step_mode="m")
    else:
        functional.set_step_mode(network, "s")
    network.eval().save(tmp_path)
    loaded = SpikingNetwork.load(tmp_path)
    network.reset()
    for a, b in zip(loaded(x), network(x), strict=True):
        assert torch.equal(a, b)
    assert repr(loaded) == repr(network)


@pytest.mark.parametrize("scale", [1e-5, 1e-3, 0.1, 255.0])
def test_networks_of_any_unit_convert_and_train_as_others(scale):
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Flatten(), nn.Linear(16, 12, bias=False), nn.ReLU(), nn.Linear(12, 4, bias=False))
    images, found = torch.rand(64, 1, 4, 4), {}
    images[0], images[1], scale = 0, 1, np.float32(scale).item()
    for unit, encoder in ((1.0, None), (scale, None), (scale, HybridEncoder(5, (0.0, scale), unit=scale))):
        network = convert(ann, images * unit, T=5, timesteps=20, encoder=encoder)
        network.project_()
        before = network(images * unit).potential
        optimizer = torch.optim.Adam(parameter_groups(network, 0.3), eps=1e-16)
        for _ in range(5):
            optimizer.zero_grad()
            hybrid_cross_entropy(network(images * unit), torch.arange(64) % 4).backward()
            optimizer.step()
            network.project_()
        found[unit, encoder] = before, network(images * unit).potential, next(iter(network.nodes().values())).v_threshold
    first, *others = found.values()
    assert (first[0] - first[1]).abs().max() > 0.1
    for other in others:
        for a, b in zip(first, other, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)


def test_an_encoders_unit_is_saved_and_the_one_given_is_left(tmp_path):
    ann = nn.Sequential(nn.Flatten(), nn.Linear(16, 12, bias=False), nn.ReLU(), nn.Linear(12, 4, bias=False))
    images, encoder = torch.rand(20, 1, 4, 4) * 1e-3, HybridEncoder(5, (0.0, 1e-3))
    network = convert(ann, images, timesteps=10, encoder=encoder)
    assert encoder.unit is None
    assert network.encoder.unit.item() == pytest.approx(1e-3)
    network.save(tmp_path)
    loaded = SpikingNetwork.load(tmp_path)
    assert torch.equal(loaded(images).potential, network.eval()(images).potential)
    twin = convert(ann, images * 1e3, timesteps=10, encoder=HybridEncoder(5))
    twin.load_state_dict(network.state_dict())
    assert torch.equal(twin.eval()(images).potential, loaded(images).potential)


def test_a_network_made_on_the_meta_device_takes_a_state_dict(network, digits, tmp_path):
    expected = network.eval()(digits[0][:20]).potential
    empty = copy.deepcopy(network).to("meta").to_empty(device="cpu")
    empty.load_state_dict(network.state_dict())
    assert torch.equal(empty(digits[0][:20]).potential, expected)
    other = copy.deepcopy(network).to("meta")
    other.load_state_dict(network.state_dict(), assign=True)
    assert torch.equal(other(digits[0][:20]).potential, expected)


def test_a_save_removes_its_own_old_weights_alone(network, tmp_path):
    network.save(tmp_path)
    (old,) = tmp_path.glob("weights-*")
    other = tmp_path / "weights-resnet50.safetensors"
    other.write_bytes(b"another model")
    with torch.no_grad():
        network.readout.v_threshold.fill_(3.0)
    network.save(tmp_path)
    assert other.read_bytes() == b"another model"
    assert not old.exists()
    (tmp_path / "network.json").write_text("{")  # which weights were its own can no longer be told
    network.save(tmp_path)
    assert SpikingNetwork.load(tmp_path).readout.v_threshold == 3.0
    assert other.exists()


def test_a_small_vgg_converts_and_saves(tmp_path):
    torch.manual_seed(0)
    ann = vgg("vgg9", 10, width=1 / 16, hidden=16).eval()
    images = torch.randn(8, 3, 32, 32)
    network = convert(ann, images, timesteps=60)
    network.save(tmp_path)
    assert torch.equal(SpikingNetwork.load(tmp_path).eval()(images).potential, network(images).potential)


def test_a_vgg_with_batch_norm_and_max_pools_is_as_good_as_its_ann(digits):
    torch.manual_seed(0)
    ann = nn.Sequential()
    for inputs, outputs in ((1, 8), (8, 16)):
        ann.extend([nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)])
    ann.extend([nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)])
    x, y = digits[0][:1400], digits[1][:1400]
    optimizer = torch.optim.Adam(ann.parameters(), 3e-3)
    for _ in range(5):
        for batch in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            F.cross_entropy(ann(x[batch]), y[batch]).backward()
            optimizer.step()
    ann.eval()
    found = calibrate_thresholds(ann, x[:128], timesteps=50)
    network = convert(ann, x[:2], threshold_scale=1, thresholds=found, encoder=DirectEncoder(200), neuron=multi_spike)
    x, y = digits[0][1400:], digits[1][1400:]
    with torch.no_grad():
        expected = accuracy(ann(x).argmax(1), y)
        assert expected > 90
        assert abs(accuracy(torch.cat([predict(network(batch)) for batch in x.split(50)]), y) - expected) <= 1
