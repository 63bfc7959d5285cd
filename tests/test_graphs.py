"""Networks that are no chains: what they compute against plain torch, their pools, their spikes and their events."""

import copy
import json
import re
import sys
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from spikingjelly.activation_based import functional, layer
from torch import nn

from onespike.conversion import (
    ConversionError,
    CorruptModelError,
    SpikingNetwork,
    calibrate_thresholds,
    compare,
    convert,
    fit_one_spike,
    storage,
)
from onespike.functional import spike_max_pool
from onespike.metrics import SpikingActivity, energy
from onespike.models import resnet
from onespike.pretrained import load_pretrained
from onespike.spikingjelly import DirectEncoder, HybridEncoder, SingleSpikeLIFNode, SpikeMaxPool
from onespike.spikingjelly.wiring import Bias

multi_spike = partial(SingleSpikeLIFNode, single_spike=False)
CHANNELS = 3
STEPS = 5


class Drawn(nn.Module):
    """A network of the operations in a plan, on images [N, 3, 4, 4]; every value is a tensor of that shape, by number.

    Operations: ("conv", a): relu(conv(a)); ("add", a, b): relu(conv(a) + b); ("shortcut", a, b): relu(conv(a) + conv1x1(b));
    ("cat", a, b): relu(conv([a, b])); ("pool", a): the maximum over 3x3; ("sum", a, b): a + b.
    """

    def __init__(self, plan, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def drawn(*shape):
            return nn.Parameter(torch.randint(-60, 100, shape, generator=generator) / 256)

        self.plan = plan
        self.weights, self.biases, self.relus = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for i, (kind, *_) in enumerate(plan):
            inputs = CHANNELS * (2 if kind == "cat" else 1)
            self.weights[f"{i}"] = nn.Conv2d(inputs, CHANNELS, 3, padding=1)
            self.weights[f"{i}_1x1"] = nn.Conv2d(CHANNELS, CHANNELS, 1)
            self.relus[f"{i}"] = nn.ReLU()
        self.head = nn.Linear(CHANNELS, 4)
        for parameter in self.parameters():
            parameter.data = drawn(*parameter.shape)

    def run(self, x, relu, pool):
        """Follow the plan; `relu` and `pool` are called with the number of the operation and its input."""
        values, kinds = [x], ["image"]
        for i, (kind, *chosen) in enumerate(self.plan):
            a, b = (values[c % len(values)] for c in (chosen * 2)[:2])
            conv, shortcut = self.weights[f"{i}"], self.weights[f"{i}_1x1"]
            spikes = [v for v, k in zip(values, kinds, strict=True) if k == "spikes"]
            if kind == "pool" and spikes:
                values.append(pool(i, spikes[chosen[0] % len(spikes)]))
            elif kind == "sum":
                values.append(a + b)
            else:
                current = conv(torch.cat([a, b], 1) if kind == "cat" else a)
                if kind in ("add", "shortcut"):
                    current = current + (b if kind == "add" else shortcut(b))
                values.append(relu(i, current))
            kinds.append("graded" if kind == "sum" else "spikes")
        return self.head(F.adaptive_avg_pool2d(values[-1], 1).flatten(1))

    def forward(self, x):
        return self.run(x, lambda i, v: self.relus[f"{i}"](v), lambda i, v: F.max_pool2d(v, 3, 1, 1))


def simulated(ann, network, images, scale, leak):
    """Simulate in the ANN's own units: raw weights and biases, a spike being as high as what it stands for."""
    heights = {layer.name: layer.unit for layer in network.layers if layer.kind == "neuron"}
    image_unit = float(getattr(network.encoder, "unit", None) or 1)
    v, fired, counts, outputs = {}, {}, {}, []

    def neuron(i, current):
        height = heights.get(f"relus.{i}", 1.0)  # one on which nothing depends is not there
        threshold = scale * height
        before = v.get(i, torch.zeros_like(current))
        v[i] = leak * before + current - threshold * (before > threshold)
        spike = (v[i] > threshold) & ~fired.get(i, torch.zeros_like(current, dtype=torch.bool))
        fired[i] = fired.get(i, torch.zeros_like(spike)) | spike
        return spike.to(current) * height

    def pool(i, value):  # an OR over time: what the maximum of the counts gains
        seen = counts.get(i, torch.zeros_like(value)) + value
        before = F.max_pool2d(counts[i], 3, 1, 1) if i in counts else 0
        counts[i] = seen
        return F.max_pool2d(seen, 3, 1, 1) - before

    with torch.no_grad():
        for x in network.encoder(images):
            outputs.append(ann.run(image_unit * x.double(), neuron, pool))
            if isinstance(network.encoder, HybridEncoder):  # biases act with the analogue image, and no more
                for name, parameter in ann.named_parameters():
                    parameter.mul_(not name.endswith("bias"))
    return torch.stack(outputs)


OPERATIONS = st.tuples(
    st.sampled_from(["conv", "conv", "add", "shortcut", "cat", "pool", "sum"]), st.integers(0, 9), st.integers(0, 9)
)


@settings(deadline=None, max_examples=40, phases=(Phase.explicit, Phase.generate))
@given(
    plan=st.lists(OPERATIONS, min_size=1, max_size=7),
    seed=st.integers(0, 1000),
    powers=st.lists(st.integers(-2, 1), min_size=7, max_size=7),
    scale=st.sampled_from([1.0, 0.5]),
    leak=st.sampled_from([1.0, 0.5]),
    encoder=st.sampled_from([HybridEncoder(STEPS), HybridEncoder(STEPS, (0.0, 16.0)), DirectEncoder(STEPS)]),
)
def test_random_graphs_equal_a_plain_simulation_to_the_bit(plan, seed, powers, scale, leak, encoder):
    ann = Drawn([("conv", 0, 0), *plan], seed).eval()
    images = torch.randint(0, 256, (3, CHANNELS, 4, 4), generator=torch.Generator().manual_seed(seed)) / 256
    images = images * getattr(encoder, "high", 1)
    thresholds = {f"relus.{i}": 2.0**power for i, power in enumerate([0, *powers])}
    network = convert(ann, images, thresholds=thresholds, threshold_scale=scale, leak=leak, encoder=copy.deepcopy(encoder))
    expected = simulated(copy.deepcopy(ann).double(), network, images, scale, leak)
    unit = network.layers[-1].unit
    assert torch.equal(network.currents(images).double() * unit, expected)
    functional.set_step_mode(network, "s")
    for _ in range(STEPS):
        stepped = network(images)
    assert torch.equal(stepped.potential.double() * unit, expected.sum(0))


@settings(deadline=None, max_examples=40, phases=(Phase.explicit, Phase.generate))
@given(
    plan=st.lists(OPERATIONS, min_size=1, max_size=7),
    seed=st.integers(0, 1000),
    percentile=st.sampled_from([90.0, 99.7, 100.0]),
    batch_size=st.sampled_from([2, 5]),
)
@example(plan=[("pool", 0, 0), ("conv", 2, 0), ("add", 3, 2)], seed=0, percentile=99.7, batch_size=2)
def test_without_steps_a_spike_stands_for_the_percentile_of_the_anns_activations(plan, seed, percentile, batch_size):
    ann = Drawn([("conv", 0, 0), *plan], seed).eval()
    images = torch.rand(5, CHANNELS, 4, 4, generator=torch.Generator().manual_seed(seed))
    currents = {}

    def relu(i, current):
        currents[f"relus.{i}"] = current
        return current.relu()

    with torch.no_grad():
        ann.run(images, relu, lambda i, v: F.max_pool2d(v, 3, 1, 1))
    expected = {name: np.percentile(value.numpy(), percentile, method="nearest") for name, value in currents.items()}
    try:
        thresholds = calibrate_thresholds(ann, images, percentile=percentile, timesteps=None, batch_size=batch_size)
    except ConversionError as error:
        assert any(name in str(error) and value <= 0 for name, value in expected.items())
        return
    network = convert(ann, images, thresholds=thresholds, encoder=DirectEncoder(STEPS))
    found = {layer.name: layer.unit for layer in network.layers if layer.kind == "neuron"}
    assert found == {name: pytest.approx(expected[name], rel=1e-4) for name in found}


def windows_of(size, kernel, stride, padding, dilation):
    """The inputs of each output along one dimension."""
    starts = range(-padding, size + padding - dilation * (kernel - 1), stride)
    return [[i for i in range(s, s + dilation * kernel, dilation) if 0 <= i < size] for s in starts]


def pooled_by_hand(s_seq, kernel, stride, padding, dilation):
    """Step by step, window by window: the spike of the input that has fired most, and got there first."""
    T, N, C, H, W = s_seq.shape
    rows, columns = (windows_of(size, kernel, stride, padding, dilation) for size in (H, W))
    out = torch.zeros(T, N, C, len(rows), len(columns))
    leaders = torch.zeros(T, N, C, len(rows), len(columns), dtype=torch.long)
    for n in range(N):
        for c in range(C):
            for i, window_rows in enumerate(rows):
                for j, window_columns in enumerate(columns):
                    inputs = [(y, x) for y in window_rows for x in window_columns]
                    counts, reached = [0] * len(inputs), [0] * len(inputs)
                    for t in range(T):
                        for k, (y, x) in enumerate(inputs):
                            if s_seq[t, n, c, y, x]:
                                counts[k], reached[k] = counts[k] + 1, t + 1
                        best = min(range(len(inputs)), key=lambda k: (-counts[k], reached[k], k))
                        y, x = inputs[best]
                        out[t, n, c, i, j] = s_seq[t, n, c, y, x]
                        leaders[t, n, c, i, j] = y * W + x
    return out, leaders


WINDOWS = [(2, 2, 0, 1), (3, 2, 1, 1), (3, 1, 1, 1), (2, 1, 0, 2), (2, 3, 1, 1)]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("once", [True, False], ids=["once", "again"])
def test_a_max_pool_passes_the_leaders_spikes(window, once):
    s_seq = (torch.rand(6, 2, 2, 5, 6, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    if once:
        s_seq = s_seq * (s_seq.cumsum(0) == 1)
    s_seq.requires_grad_()
    expected, leaders = pooled_by_hand(s_seq.detach(), *window)
    found, _ = spike_max_pool(s_seq, *window)
    assert torch.equal(found, expected)
    assert 0 < found.sum() < found.numel()
    # the count is the most that an input of the window has, at every step
    counts = s_seq.detach().cumsum(0).flatten(0, 1)
    most = F.max_pool2d(counts, *window).unflatten(0, s_seq.shape[:2])
    assert torch.equal(found.cumsum(0), most)
    if once:
        assert found.detach().sum(0).max() == 1
    weights = torch.rand(found.shape, generator=torch.Generator().manual_seed(1))
    (found * weights).sum().backward()
    to_leaders = torch.zeros_like(s_seq).flatten(3).scatter_add(3, leaders.flatten(3), weights.flatten(3)).view_as(s_seq)
    torch.testing.assert_close(s_seq.grad, to_leaders)


@pytest.mark.parametrize("shape", [(7,), (6, 5), (4, 5, 3)])
def test_max_pools_step_and_go_on_from_their_state(shape):
    s_seq = (torch.rand(7, 2, 3, *shape) < 0.3).float()
    pool = SpikeMaxPool(2, stride=1)
    whole = pool(s_seq)
    functional.reset_net(pool)
    parts = [pool(part) for part in s_seq.split([1, 3, 3])]
    assert torch.equal(torch.cat(parts), whole)
    functional.reset_net(pool)
    functional.set_step_mode(pool, "s")
    assert torch.equal(torch.stack([pool(s) for s in s_seq]), whole)
    again = copy.deepcopy(pool)
    functional.reset_net(again)
    assert again.count is None
    with pytest.raises(ValueError, match=r"s_seq must have the shape of the state.*: reset between sequences"):
        pool(s_seq[0, :1])
    with pytest.raises(ValueError, match="at most 4096 steps in all, got 4097"):
        spike_max_pool(torch.zeros(4097, 1, 1, 2), 2)
    for bad, error in ((torch.zeros(2, 2, 2), ValueError), (torch.zeros(2, 1, 1, 2, dtype=torch.long), TypeError)):
        with pytest.raises(error, match="s_seq must"):
            spike_max_pool(bad, 2)


class Branching(nn.Module):
    """Encoded images into two branches that meet in a sum of spikes, in a sum of currents, and side by side."""

    def __init__(self, pool):
        super().__init__()
        self.encoder = HybridEncoder(4)
        self.stem, self.n1 = layer.Conv2d(1, 4, 3, padding=1, bias=False), SingleSpikeLIFNode(v_threshold=0.3)
        self.conv, self.n2 = layer.Conv2d(4, 4, 3, padding=1, bias=False), SingleSpikeLIFNode(v_threshold=0.2)
        self.both, self.n3 = layer.Conv2d(8, 4, 1, bias=False), SingleSpikeLIFNode(v_threshold=0.2)
        self.head = layer.Linear(4 * 4, 3, bias=False)
        self.pool = pool

    def forward(self, x):
        a = self.n1(self.stem(self.encoder(x)))
        b = self.n2(self.conv(a) + a)  # a shortcut: spikes beside currents
        c = self.n3(self.both(torch.cat([a, b], 1 if self.both.step_mode == "s" else 2)))
        pooled = F.avg_pool2d(a + c, 2) if self.pool is None else self.pool(a + c)  # spikes beside spikes
        return self.head(torch.flatten(pooled, 1 if self.head.step_mode == "s" else 2))


def spikes_of(network, x, names):
    seen = {}
    hooks = [
        network.get_submodule(name).register_forward_hook(lambda m, i, out, name=name: seen.update({name: out}))
        for name in names
    ]
    network(x)
    functional.reset_net(network)
    for hook in hooks:
        hook.remove()
    return [seen[name] for name in names]


def test_events_on_branches_equal_a_hand_count():
    torch.manual_seed(0)
    network = Branching(layer.AvgPool2d(2)).eval()
    functional.set_step_mode(network, "m")
    x = torch.rand(5, 1, 4, 4)
    with torch.no_grad():
        a, b, c = spikes_of(network, x, ["n1", "n2", "n3"])
        with SpikingActivity(network) as activity:
            network(x)
    fan_out = F.conv_transpose2d(torch.ones(1, 4, 4, 4), torch.ones(4, 1, 3, 3), padding=1)[0, 0]  # of a pixel, 4 outputs
    found = {name: float(synapses.events) for name, synapses in activity.synapses.items()}
    assert found["conv"] == (a * fan_out).sum().item()
    assert found["add"] == a.sum().item(), "each spike on the shortcut is one addition"
    assert found["both"] == 4 * (a.sum() + b.sum()).item()
    assert found["head"] == 3 * (a.sum() + c.sum()).item()
    assert activity.synapses["head"].sources == ("n1", "n3")
    assert activity.synapses["both"].source == "n1 + n2"
    assert [activity.synapses[name].target for name in ("conv", "add", "both", "head")] == ["n2", "n2", "n3", None]
    assert 0 < a.mean() < 1
    by_input, by_events = (energy(activity, accounting=kind).layers_pj for kind in ("input", "events"))
    for name, pooled in (("add", 1), ("both", 1), ("head", 4)):  # no borders: the two agree, but for pooled spikes
        assert pooled * by_input[name] == pytest.approx(by_events[name])
    assert energy(activity, accounting="paper").layers_pj["add"] == by_events["add"]
    assert energy(activity).ann_pj == sum(s.macs for s in activity.synapses.values()) * 3.2


def test_functions_and_steps_count_as_modules_and_sequences_do():
    torch.manual_seed(0)
    network = Branching(layer.AvgPool2d(2)).eval()
    functional.set_step_mode(network, "m")
    x = torch.rand(5, 1, 4, 4)
    with torch.no_grad(), SpikingActivity(network) as expected:
        network(x)
    for pool in (network.pool, None):
        network.pool = pool
        functional.reset_net(network)
        functional.set_step_mode(network, "s")
        with torch.no_grad(), SpikingActivity(network) as found:
            for _ in range(4):
                network(x)
        for accounting in ("paper", "input", "events"):
            assert energy(found, accounting=accounting) == energy(expected, accounting=accounting)
        assert found.images == 5


def test_spikes_are_followed_through_a_converted_concatenation():
    ann = Drawn([("conv", 0, 0), ("conv", 1, 1), ("cat", 1, 2)], 3).eval()
    images = torch.rand(6, CHANNELS, 4, 4)
    network = convert(ann, images, timesteps=8)
    with torch.no_grad(), SpikingActivity(network) as activity:
        network(images)
    behind = activity.synapses["weights.2"]
    assert behind.sources == ("relus.0", "relus.1")
    assert behind.spikes == sum(activity.layers[name].spikes for name in behind.sources) > 0


def test_a_converted_graph_is_counted_under_the_anns_names():
    ann = Drawn([("conv", 0, 0), ("pool", 0, 0), ("add", 1, 2), ("sum", 2, 3), ("conv", 4, 4)], 3).eval()
    images = torch.rand(6, CHANNELS, 4, 4)
    network = convert(ann, images, timesteps=8)
    for step_mode, calls in (("m", 1), ("s", network.T)):
        functional.set_step_mode(network, step_mode)
        network.reset()
        with torch.no_grad(), SpikingActivity(network) as activity:
            for _ in range(calls):
                network(images)
        assert list(activity.zeta) == ["relus.0", "relus.2", "relus.4"]
        pools = [name for name, module in network.named_layers().items() if isinstance(module, SpikeMaxPool)]
        assert activity.synapses["weights.2"].sources in (("relus.0",), tuple(pools))
        assert activity.images == 6
        assert 0 < energy(activity, accounting="events").snn_pj < float("inf")


class Untold(Branching):
    def forward(self, x):
        return self.head(self.n1(self.stem(self.encoder(x))).permute(0, 1, 3, 4, 2).flatten(2))


class Looking(Branching):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else x


def test_what_cannot_be_counted_is_named():
    x = torch.rand(2, 1, 2, 2)
    untold = Untold(None).eval()
    functional.set_step_mode(untold, "m")
    with (
        SpikingActivity(untold),
        pytest.raises(ValueError, match=r"head must take spikes or the image .* from permute, through which spikes cannot"),
    ):
        untold(x)
    with pytest.raises(ValueError, match=r"Looking cannot be traced by torch\.fx"):
        SpikingActivity(Looking(None))
    held = nn.Sequential(layer.MultiStepContainer(layer.Linear(4, 4)), SingleSpikeLIFNode())
    with pytest.raises(ValueError, match=r"0 \(MultiStepContainer\) must hold nothing to be counted, got Linear inside"):
        SpikingActivity(held)
    linear = nn.Sequential(layer.Linear(4, 4), layer.Linear(4, 4), SingleSpikeLIFNode()).eval()
    functional.set_step_mode(linear, "m")
    with SpikingActivity(linear), pytest.raises(ValueError, match=r"1 must take spikes .* from 0, which gives currents"):
        linear(torch.rand(2, 3, 4))
    with SpikingActivity(linear), pytest.raises(RuntimeError, match=r"must run as torch.fx traced it.* got 2 in place of"):
        linear[2](torch.rand(2, 3, 4))


def small_resnet():
    """Every value of batch norm drawn, so that folding has something to do."""
    torch.manual_seed(0)
    ann = resnet("resnet8", 5, in_channels=1, width=0.5)
    for module in ann.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                nn.init.normal_(tensor, std=0.1)
    return ann.eval()


def test_batch_norm_is_folded_and_the_ann_is_left_as_it_was():
    ann, images = small_resnet().train(), torch.rand(8, 1, 8, 8)
    before = copy.deepcopy(ann.state_dict())
    thresholds = calibrate_thresholds(ann, images, timesteps=30)
    network = convert(ann, images, thresholds=thresholds, threshold_scale=1, encoder=DirectEncoder(400), neuron=multi_spike)
    assert network.training
    assert ann.training
    assert all(module.training for module in ann.modules())
    for name, value in ann.state_dict().items():
        assert torch.equal(value, before[name])
    assert not any("Norm" in type(module).__name__ for module in network.modules())
    with torch.no_grad():
        rate = network.eval()(images).potential / 400 * network.layers[-1].unit
        logits = ann.eval()(images)
    assert (rate - logits).norm() < 0.05 * logits.norm()


@pytest.mark.parametrize("encoder", [DirectEncoder, HybridEncoder])
def test_a_graph_is_saved_loaded_copied_and_compiled(encoder, tmp_path):
    ann = Drawn([("conv", 0, 0), ("pool", 0, 0), ("conv", 2, 2), ("cat", 1, 3), ("sum", 1, 4), ("shortcut", 5, 2)], 1).eval()
    images = torch.rand(6, CHANNELS, 4, 4)
    network = convert(ann, images, timesteps=10, encoder=encoder(4))
    kinds = {layer.kind for layer in network.layers}
    assert {"SpikeMaxPool", "Concat", "Add", "Scale"} <= kinds
    assert ("Bias" in kinds) == (encoder is HybridEncoder)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.99)
    network.save(tmp_path)
    loaded = SpikingNetwork.load(tmp_path)
    assert [(one.name, one.inputs, one.unit) for one in loaded.layers] == [
        (one.name, one.inputs, one.unit) for one in network.layers
    ]
    expected = network(images).potential
    assert expected.std() > 0
    for again in (loaded, copy.deepcopy(network), torch.compile(network, fullgraph=True, backend="aot_eager")):
        torch.testing.assert_close(again(images).potential, expected, rtol=0, atol=0)
    described = tmp_path / "network.json"
    document = json.loads(described.read_text())
    for at, inputs in ((0, ["head"]), (1, ["nobody"]), (0, [])):  # from behind, from nowhere, from nothing
        structure = copy.deepcopy(document["structure"])
        structure["layers"][at]["inputs"] = inputs
        described.write_text(json.dumps(document | {"structure": structure, "structure_sha256": storage.digest(structure)}))
        with pytest.raises(CorruptModelError, match=r"layer .* takes \w+, which is not before it"):
            SpikingNetwork.load(tmp_path)
    network.body = nn.Sequential(*network.body)
    with pytest.raises(TypeError, match="body must be wired as its layers say to be saved"):
        network.save(tmp_path)
    loaded.train()(images).potential.square().sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.body.parameters())


def test_a_saved_chain_of_the_first_format_loads():
    network = load_pretrained("cifar10_vgg6_small")
    assert [layer.inputs for layer in network.layers[:2]] == [("",), (network.layers[0].name,)]
    assert not network.body.inputs


class Overwriting(nn.Module):
    """Behind an activation in place the shortcut carries what it gave, not what it took."""

    def __init__(self, inplace):
        super().__init__()
        self.stem, self.relu = nn.Conv2d(3, 3, 1), nn.ReLU(inplace)
        self.conv, self.head = nn.Conv2d(3, 3, 1), nn.Linear(192, 2)

    def forward(self, x):
        x = self.stem(x)
        return self.head(torch.flatten(F.relu(self.conv(self.relu(x)) + x), 1))


class Aux(nn.Module):
    def forward(self, x):
        return x, x.flatten(1)


@pytest.mark.parametrize(
    ("ann", "messages"),
    [
        (
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3), nn.Sigmoid(), nn.Flatten()),
            ["2 obstacles", r"1 \(GELU\), 4 \(Sigmoid\) cannot be converted: use ReLU", r"2 \(Conv2d\) has no ReLU before 3"],
        ),
        (Aux(), ["Aux must return logits alone"]),
        (Overwriting(inplace=True), [r"^relu \(in place\) cannot be converted: its input, which it changes, is used again"]),
        (nn.Sequential(nn.BatchNorm2d(3), nn.Softmax(1)), ["2 obstacles", r"0 \(BatchNorm2d\)", r"1 \(Softmax\).* logits"]),
    ],
)
def test_all_obstacles_are_named_at_once(ann, messages):
    for call in (convert, calibrate_thresholds):
        with pytest.raises(ConversionError) as refused:
            call(ann, torch.rand(4, 3, 8, 8))
        for message in messages:
            assert re.search(message, str(refused.value)), str(refused.value)


def test_an_activation_that_leaves_its_input_alone_is_understood():
    images = torch.rand(4, 3, 8, 8)
    network = convert(Overwriting(inplace=False), images, thresholds={"relu": 1.0, "relu_1": 1.0})
    assert {layer.name: layer.inputs for layer in network.layers}["add"] == ("conv_bias", "stem_bias")


def test_fitting_one_spike_takes_chains_alone():
    images = torch.rand(8, 1, 8, 8)
    for ann, message in (
        (small_resnet(), r"cannot|is no link of a chain|only chains"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 2)), r"1 has a bias"),
    ):
        with pytest.raises(ConversionError, match=message + r".*use calibrate_thresholds"):
            fit_one_spike(ann, images)


def test_a_missing_torchvision_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.models.resnet", None)
    with pytest.raises(ImportError, match="resnet needs torchvision's blocks: pip install torchvision"):
        resnet("resnet8", 10)


def test_a_mean_over_the_image_and_views_are_understood():
    class Written(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 3)

        def forward(self, x):
            x = F.max_pool2d(torch.relu(self.conv(x)), 2)
            return self.head(x.mean((2, 3)).view(x.size(0), 4))

    network = convert(Written(), torch.rand(8, 1, 8, 8), timesteps=5)
    assert [layer.kind for layer in network.layers] == [
        *("Conv2d", "Bias", "neuron", "SpikeMaxPool", "AdaptiveAvgPool2d", "Flatten", "Flatten", "Linear", "Bias")
    ]


def test_a_bias_acts_once_in_every_mode():
    bias, x_seq = Bias(3, 2), torch.rand(4, 2, 3, 5, 5)
    bias.bias.data.copy_(torch.tensor([1.0, -2.0, 3.0]))
    expected = x_seq.clone()
    expected[0] += bias.bias.view(3, 1, 1)
    assert torch.equal(bias(x_seq), expected)
    assert torch.equal(bias(x_seq), x_seq), "the sequence goes on"
    functional.reset_net(bias)
    functional.set_step_mode(bias, "s")
    assert torch.equal(torch.stack([bias(x) for x in x_seq]), expected)


def test_the_report_says_what_became_of_each_module_and_where_most_is_lost():
    ann, images = small_resnet(), torch.rand(20, 1, 8, 8)
    thresholds = calibrate_thresholds(ann, images, timesteps=30)
    reports = {}
    for T in (5, 300):
        network = convert(ann, images, thresholds=thresholds, threshold_scale=1, encoder=DirectEncoder(T), neuron=multi_spike)
        reports[T] = compare(ann, network.train(), images, batch_size=7)
        assert network.training
    rows = {row.name: row for row in reports[300].rows}
    assert rows["0"].became == "Conv2d"
    assert rows["1"].became == "folded into 0"
    assert rows["4.downsample.1"].became == "folded into 4.downsample.0"
    assert rows["2"].became == "SingleSpikeLIFNode"
    assert rows["2"].theta == pytest.approx(thresholds["2"])
    assert rows["2"].threshold == pytest.approx(thresholds["2"])
    with torch.no_grad():
        first = F.relu(ann[:2](images))
        counts = []
        network.nodes()["2"].register_forward_hook(lambda module, inputs, s_seq: counts.append(s_seq.sum(0)))
        network.eval()(images)
    gain = (first * counts[0]).sum() / counts[0].square().sum()
    assert rows["2"].error == pytest.approx(((first - gain * counts[0]).norm() / first.norm()).item(), abs=1e-4)
    assert rows["2"].firing == pytest.approx((counts[0] > 0).any(0).float().mean().item())
    errors = {T: [row.error for row in report.rows if row.error is not None] for T, report in reports.items()}
    assert len(errors[5]) == 7
    assert max(errors[300]) < 0.1 < max(errors[5])
    assert reports[5].worst.error == max(errors[5])
    assert f"{reports[5].worst.name} loses most" in str(reports[5])
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"network must be made of this ANN, whose ReLUs are 2, got 2, 3.relu"):
        compare(other, network, images)
    with pytest.raises(ValueError, match="images must hold at least one image"):
        compare(ann, network, images[:0])
