"""Our counts against a count synapse by synapse, by hand, and against NeuroBench's and SpikingJelly's own counters."""

from itertools import product

import pytest
import torch
from spikingjelly.activation_based import functional, layer
from torch import nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader, TensorDataset

from onespike.metrics import MEMORIES, SpikingActivity, energy, neurobench_report, quantised_baseline
from onespike.peers import PoissonEncoder
from onespike.spikingjelly import DirectEncoder, HybridEncoder, SingleSpikeLIFNode


def counted(net, images, T):
    """Watch a network over images, step by step."""
    functional.set_step_mode(net.eval(), "s")
    functional.reset_net(net)
    with torch.no_grad(), SpikingActivity(net) as activity:
        for _ in range(T):
            net(images)
    return activity


def small(T, *, pool=True, single_spike=True, padding=1, stride=1, dilation=1, groups=1, encoder=None):
    """2 x 6 x 6 images, a convolution to 4 channels, dropout, a pool, Linear to 5, dropout, Linear to 3; random weights."""
    convolution = layer.Conv2d(2, 4, 3, stride, padding, dilation, groups, bias=False)
    side = (6 + 2 * padding - 2 * dilation - 1) // stride + 1
    net = nn.Sequential(
        encoder or HybridEncoder(T),
        convolution,
        SingleSpikeLIFNode(v_threshold=0.3, single_spike=single_spike),
        layer.Dropout(0.5),
        layer.AvgPool2d(2) if pool else nn.Identity(),
        layer.Flatten(),
        layer.Linear(4 * (side // 2 if pool else side) ** 2, 5, bias=False),
        SingleSpikeLIFNode(v_threshold=0.1, single_spike=single_spike),
        layer.Dropout(0.5),
        layer.Linear(5, 3, bias=False),
    )
    return net.eval()


def synapse_by_synapse(x, convolution):
    """Count the synapses that a convolution's inputs reach, each value as that many spikes, one input after another."""
    k, stride = convolution.kernel_size[0], convolution.stride[0]
    padding, dilation = convolution.padding[0], convolution.dilation[0]
    height, width = x.shape[2:]
    sides = [(size + 2 * padding - dilation * (k - 1) - 1) // stride + 1 for size in (height, width)]
    fan_out_channels = convolution.out_channels // convolution.groups
    events = 0
    for _, _, row, column in x.nonzero().tolist():
        for i, j in product(range(k), repeat=2):
            at = [row + padding - i * dilation, column + padding - j * dilation]
            events += fan_out_channels * all(p % stride == 0 and 0 <= p // stride < n for p, n in zip(at, sides, strict=True))
    return events


@pytest.mark.parametrize("T", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "shape", [{}, {"padding": 0}, {"stride": 2}, {"padding": 2, "dilation": 2}, {"groups": 2}, {"padding": 2, "stride": 3}]
)
def test_events_equal_a_count_synapse_by_synapse(T, shape):
    torch.manual_seed(T)
    net, seen = small(T, **shape), {name: [] for name in ("0", "2", "7")}
    images = torch.rand(3, 2, 6, 6) + 0.01
    for name, kept in seen.items():
        net[int(name)].register_forward_hook(lambda module, inputs, output, kept=kept: kept.append(output))
    activity = counted(net, images, T)
    frame, spikes = seen["0"][0], seen["0"][1:]
    assert activity.synapses["1"].analogue_events == synapse_by_synapse(frame, net[1]) > 0
    assert activity.synapses["1"].events == sum(synapse_by_synapse(x, net[1]) for x in spikes)
    covered = 2 * ((seen["2"][0].shape[2]) // 2)  # what a pool of 2 reads of an odd side
    assert activity.synapses["6"].events == sum(s[..., :covered, :covered].sum().item() for s in seen["2"]) * 5 > 0
    assert activity.synapses["9"].events == sum(s.sum().item() for s in seen["7"]) * 3
    assert activity.steps == T
    assert activity.synapses["1"].dense == synapse_by_synapse(torch.ones(1, 2, 6, 6), net[1])


@pytest.mark.parametrize("T", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("single_spike", [True, False])
def test_events_equal_a_hand_count_for_every_T(T, single_spike):
    """3 x 3 images of one value: a pixel's fan-out under a 3 x 3 kernel is 4 in the corner, 6 at an edge, 9 in the middle."""
    net = nn.Sequential(
        HybridEncoder(T),
        layer.Conv2d(1, 2, 3, padding=1, bias=False),
        SingleSpikeLIFNode(v_threshold=1.0, single_spike=single_spike),
        layer.Dropout(0.5),
        layer.AvgPool2d(3),
        layer.Flatten(),
        layer.Linear(2, 4, bias=False),
        SingleSpikeLIFNode(v_threshold=1.0, single_spike=single_spike),
        layer.Linear(4, 3, bias=False),
    )
    for index, weight in ((1, 100.0), (6, 10.0), (8, 1.0)):
        nn.init.constant_(net[index].weight, weight)
    activity = counted(net, torch.full((2, 1, 3, 3), 0.5), T)
    fan_out = 2 * (4 * 4 + 4 * 6 + 9)
    times = 1 if single_spike else T  # with so large a current, potentials never come below their threshold again
    assert activity.synapses["1"].analogue_events == 2 * fan_out == 2 * 98
    assert activity.synapses["1"].events == (2 * fan_out if T > 1 else 0), "each pixel spikes once at t >= 2"
    assert activity.layers["2"].spikes == 2 * 18 * times
    assert activity.synapses["6"].events == 2 * 18 * 4 * times, "nine spikes of a pool are nine, not one"
    assert activity.synapses["8"].events == 2 * 4 * 3 * times
    assert activity.layers["2"].updates == 2 * 18 * T


def test_spikingjellys_counters_agree_step_by_step_and_differ_at_pools():
    counters = pytest.importorskip("spikingjelly.activation_based.op_counter", reason="SpikingJelly below 2 counts nothing")
    for T, pool in ((1, False), (4, False), (4, True)):
        torch.manual_seed(0)
        net, images = small(T, pool=pool), torch.rand(3, 2, 6, 6) + 0.01
        ours = counted(net, images, T)
        functional.reset_net(net)
        synops, macs = counters.SynOpCounter(), counters.MACCounter()
        with torch.no_grad(), counters.DispatchCounterMode([synops, macs]):
            for _ in range(T):
                net(images)
        of_pool = ours.synapses["6"].events if pool else 0
        frame = 3 * ours.synapses["1"].macs  # it counts a frame's borders as if they were inside
        assert ours.synapses["9"].events > 0
        if not pool:
            assert synops.get_total() == sum(layer.events for layer in ours.synapses.values())
            assert macs.get_total() == frame
        else:  # values k / 4 are no spikes to it: it takes the whole step's layer for MACs
            taken_for_macs, rest = divmod(macs.get_total() - frame, 3 * ours.synapses["6"].macs)
            assert (taken_for_macs, rest) in {(t, 0) for t in range(1, T + 1)}
            assert of_pool > 0
            assert synops.get_total() < sum(layer.events for layer in ours.synapses.values())


def by_neurobench(net, images, T):
    """Run NeuroBench's harness on a network, stepped."""
    models = pytest.importorskip("neurobench.models", reason="NeuroBench is not installed: pip install neurobench")
    from neurobench.benchmarks import Benchmark  # noqa: PLC0415
    from neurobench.metrics.static import ConnectionSparsity, Footprint  # noqa: PLC0415
    from neurobench.metrics.workload import ActivationSparsity, SynapticOperations  # noqa: PLC0415

    class Stepped(models.TorchModel):
        def __call__(self, batch):
            functional.reset_net(self.net)
            return sum(self.net(batch) for _ in range(T))

    functional.set_step_mode(net, "s")
    model = Stepped(net)
    model.add_activation_module(SingleSpikeLIFNode)
    loader = DataLoader(TensorDataset(images, torch.zeros(len(images))), batch_size=2)
    metrics = [[Footprint, ConnectionSparsity], [ActivationSparsity, SynapticOperations]]
    with torch.no_grad():
        results = Benchmark(model, loader, [], [], metrics).run(quiet=True)
    model.cleanup_hooks()
    functional.reset_net(net)
    return {name: value for name, value in results.items() if name != "SynapticOperations"} | results["SynapticOperations"]


@pytest.mark.parametrize("T", [1, 3, 5])
@pytest.mark.parametrize("single_spike", [True, False])
def test_neurobench_agrees_to_the_unit(T, single_spike):
    torch.manual_seed(0)
    net, images = small(T, pool=False, single_spike=single_spike), torch.rand(4, 2, 6, 6) + 0.01
    theirs = by_neurobench(net, images, T)
    ours = neurobench_report(net, counted(net, images, T))
    assert list(ours) == ["Footprint", "ConnectionSparsity", "ActivationSparsity", "Effective_MACs", "Effective_ACs", "Dense"]
    assert ours["ActivationSparsity"] == pytest.approx(theirs.pop("ActivationSparsity"), rel=1e-12)
    assert 0 < ours.pop("ActivationSparsity") < 1
    assert ours == theirs


def test_where_neurobench_says_something_else():
    torch.manual_seed(0)
    images = torch.rand(4, 2, 6, 6) + 0.01
    net = small(4)
    theirs, activity = by_neurobench(net, images, 4), counted(net, images, 4)
    ours = neurobench_report(net, activity)
    pooled = activity.synapses["6"].events / 4
    assert theirs["Dense"] == ours["Dense"]
    assert theirs["Effective_ACs"] == ours["Effective_ACs"] - pooled, "values k / 4 are MACs there"
    assert 0 < theirs["Effective_MACs"] - ours["Effective_MACs"] < pooled, "and each one, not k"

    net = small(4, pool=False, encoder=DirectEncoder(4))
    theirs, ours = by_neurobench(net, images, 4), neurobench_report(net, counted(net, images, 4))
    assert theirs["Effective_MACs"] == 4 * ours["Effective_MACs"], "a direct frame counts at every step"
    assert theirs["Effective_ACs"] == ours["Effective_ACs"]

    net = small(4, pool=False)
    with torch.no_grad():
        net[6].weight[:, ::2] = 0
    theirs, ours = by_neurobench(net, images, 4), neurobench_report(net, counted(net, images, 4))
    assert round(ours["ConnectionSparsity"], 4) == theirs["ConnectionSparsity"] > 0.3
    assert theirs["Effective_ACs"] < ours["Effective_ACs"], "a synapse with weight 0 is none there"
    assert theirs["Dense"] == ours["Dense"]


def test_memory_access_equals_a_hand_count():
    net = nn.Sequential(
        HybridEncoder(3),
        layer.Flatten(),
        layer.Linear(4, 5, bias=False),
        SingleSpikeLIFNode(v_threshold=1.0),
        layer.Linear(5, 2, bias=False),
    )
    for index in (2, 4):
        nn.init.constant_(net[index].weight, 10.0)
    activity = counted(net, torch.full((6, 1, 2, 2), 0.5), 3)
    macs, accumulates, neurons, spikes = 4 * 5, 4 * 5 + 5 * 2, 5, 5
    for memory, pj in (("sram_8KB", 5.0), ("sram_32KB", 10.0), ("sram_1MB", 50.0), ("dram", 650.0)):
        report = energy(activity, accounting="events", memory=memory)
        assert report.memory == memory
        assert report.ann_memory_pj == pytest.approx(pj * (2 * (20 + 10) + neurons))
        assert report.snn_memory_pj == pytest.approx(pj * (2 * macs + 3 * accumulates + 2 * neurons * 3 + 2 * spikes))
        assert report.ratio == pytest.approx((30 * 3.2 + report.ann_memory_pj) / (20 * 3.2 + 3 + report.snn_memory_pj))
        silent = 20 * 3.2 + pj * (2 * macs + 2 * neurons * 3)
        assert report.ceiling == pytest.approx((30 * 3.2 + report.ann_memory_pj) / silent)
    paper = energy(activity, memory="sram_8KB")
    assert paper.snn_memory_pj == pytest.approx(5 * (2 * macs + 3 * 5 * 2 + 2 * neurons * 3 + 2 * spikes)), "no AC of layer 1"
    plain = energy(activity)
    assert (plain.memory, plain.ann_memory_pj, plain.snn_memory_pj) == (None, 0, 0)
    assert (plain.ann_pj, plain.snn_pj) == (paper.ann_pj, paper.snn_pj)
    with pytest.raises(ValueError, match=r"memory must be one of \('sram_8KB', .*\), got 'tape'"):
        energy(activity, memory="tape")


def test_the_quantised_baseline_equals_a_hand_count():
    net = nn.Sequential(HybridEncoder(5), layer.Flatten(), layer.Linear(4, 100, bias=False), SingleSpikeLIFNode())
    net += nn.Sequential(layer.Linear(100, 40, bias=False))
    with torch.no_grad():
        net[2].weight.fill_(-1.0)
        net[2].weight[:10] = 10.0
    activity = counted(net, torch.full((3, 1, 2, 2), 0.5), 5)
    bit, found = MEMORIES["sram_32KB"], quantised_baseline(activity)
    assert (found.activation_bits, found.steps, found.spike_rate) == (3, 5, pytest.approx(10 / 100 / 5))
    first = 400 * (3.1 * 8 * 8 / 1024 + 0.1 + bit * 16)
    assert found.ann_pj == pytest.approx(first + 4000 * (3.1 * 8 * 3 / 1024 + 0.1 + bit * (8 + 3)) + bit * 3 * 100)
    events = 400 + 10 * 40
    snn = first + events * (0.1 + bit * (8 + 32)) + bit * 32 * (100 * 5 + 10)
    assert found.snn_pj == pytest.approx(snn)
    assert found.ratio == pytest.approx(found.ann_pj / snn)
    # At the limit both are equal: the part that grows with the neurons' spikes, stretched to the limit's rate.
    growing = 10 * 40 * (0.1 + bit * 40) + bit * 32 * 10
    assert found.limit > 0
    assert snn - growing + growing * found.limit / found.spike_rate == pytest.approx(found.ann_pj)
    assert (found.spike_rate < found.limit) == (found.ratio > 1)
    assert found.spike_rate < found.published_limit == 0.057
    assert f"2.0 % spikes per neuron and step: {'below' if found.ratio > 1 else 'above'} " in str(found)
    assert "and below 5.7 %, the limit of arXiv:2409.08290" in str(found)
    assert quantised_baseline(activity, memory="dram", weight_bits=4).ann_pj > found.ann_pj
    for T, bits in ((1, 1), (2, 2), (3, 2), (4, 3), (7, 3), (8, 4)):
        net[0] = HybridEncoder(T)
        assert quantised_baseline(counted(net, torch.full((3, 1, 2, 2), 0.5), T)).activation_bits == bits
    with pytest.raises(ValueError, match=r"memory must be one of .* got 'tape'"):
        quantised_baseline(activity, memory="tape")
    with pytest.raises(ValueError, match="weight_bits must be >= 1, got 0"):
        quantised_baseline(activity, weight_bits=0)


def test_the_ceiling_leaves_the_biases():
    net = nn.Sequential(HybridEncoder(3), layer.Flatten(), layer.Linear(4, 5), SingleSpikeLIFNode(), layer.Linear(5, 2))
    for index in (2, 4):
        nn.init.constant_(net[index].weight, -1.0)
        nn.init.constant_(net[index].bias, -1.0)
    activity = counted(net, torch.full((6, 1, 2, 2), 0.5), 3)
    macs, biases, ann, updates = 4 * 5, (5 + 2) * 3, (20 + 10) * 3.2, 2 * 5 * 3
    assert energy(activity, accounting="events").ceiling == pytest.approx(ann / (macs * 3.2 + biases * 0.1))
    for accounting in ("paper", "input"):
        assert energy(activity, accounting=accounting).ceiling == pytest.approx(ann / (macs * 3.2))
    report = energy(activity, accounting="events", memory="sram_8KB")
    floor = macs * 3.2 + biases * 0.1 + 5 * (2 * macs + 3 * biases + updates)
    assert report.ceiling == pytest.approx((ann + 5 * (2 * 30 + 5)) / floor)
    assert report.snn_memory_pj + report.snn_pj == pytest.approx(floor + 20 * (0.1 + 15)), "no spikes but the pixels'"


@pytest.mark.parametrize("encoder", [PoissonEncoder(5), HybridEncoder(5)])
def test_the_limit_scales_what_spikes_of_neurons_cause(encoder):
    """Where fewer neurons fire, their own events and words are missing, and pixels and biases cost the same."""
    net = nn.Sequential(encoder, layer.Flatten(), layer.Linear(4, 10), SingleSpikeLIFNode())
    net += nn.Sequential(layer.Linear(10, 300, bias=False))
    nn.init.constant_(net[2].bias, 0.1)
    found = {}
    for firing in (2, 4):
        net[2].weight.data.fill_(-1.0)
        net[2].weight.data[:firing] = 10.0
        found[firing] = quantised_baseline(counted(net, torch.ones(3, 1, 2, 2), 5))
    two, four = found[2], found[4]
    assert (two.spike_rate, four.spike_rate) == (pytest.approx(2 / 50), pytest.approx(4 / 50))
    slope = (four.snn_pj - two.snn_pj) / (four.spike_rate - two.spike_rate)
    assert two.ann_pj == four.ann_pj
    limit = two.spike_rate + (two.ann_pj - two.snn_pj) / slope
    assert limit > 0
    assert (two.limit, four.limit) == (pytest.approx(limit), pytest.approx(limit))


def test_a_silent_network_that_wins_has_no_limit():
    net = nn.Sequential(HybridEncoder(1), layer.Flatten(), layer.Linear(4, 6, bias=False), SingleSpikeLIFNode())
    net += nn.Sequential(layer.Linear(6, 100, bias=False))
    nn.init.constant_(net[2].weight, -1.0)
    found = quantised_baseline(counted(net, torch.full((1, 1, 2, 2), 0.5), 1))
    assert found.ratio > 1
    assert (found.spike_rate, found.limit) == (0, float("inf"))
    assert str(found).startswith(
        "0.0 % spikes per neuron and step: less energy than an ANN of 1-bit activations takes (sram_32KB, 8-bit weights), "
        "and below 5.7 %, the limit"
    )


@pytest.mark.parametrize("bits", [float("nan"), float("inf"), True, 1.5, "8", None])
def test_bits_of_a_weight_are_whole(bits):
    activity = counted(small(2), torch.rand(1, 2, 6, 6), 2)
    with pytest.raises(TypeError, match=rf"weight_bits must be an int, got {bits!r}"):
        quantised_baseline(activity, weight_bits=bits)


class Masked(layer.Linear):
    """A layer whose forward leaves out half of its synapses."""

    def forward(self, x):
        return nn.functional.linear(x, self.weight * (torch.arange(self.in_features) % 2))


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_synapses_that_are_cut_off_are_not_counted(step_mode):
    """One layer behind another's spikes: what reaches every output, every other one, and a third of them."""
    pruned, convolution = layer.Linear(12, 6), layer.Conv2d(4, 6, 3, padding=1, groups=2)
    for module in (pruned, convolution):
        prune.random_unstructured(module, "weight", 0.6)
    convolution.register_forward_hook(lambda module, inputs, output: output + 1)  # is not a synapse either
    x = (torch.rand(5, 12, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    image = (torch.rand(5, 4, 6, 6, generator=torch.Generator().manual_seed(2)) < 0.5).float()
    every_other = x * (torch.arange(12) % 2)
    grouped = nn.functional.conv2d(image, convolution.weight_mask, padding=1, groups=2)
    for module, spikes, expected in (
        (layer.Linear(12, 6), x, 6 * x.sum()),
        (Masked(12, 6), x, 6 * every_other.sum()),
        (pruned, x, (x @ pruned.weight_mask.T).sum()),
        (convolution, image, grouped.sum()),
    ):
        node, second = SingleSpikeLIFNode(v_threshold=0.5), SingleSpikeLIFNode()
        net = nn.Sequential(node, module, second).eval()
        functional.set_step_mode(net, step_mode)
        with torch.no_grad(), SpikingActivity(net) as activity:
            net(spikes if step_mode == "s" else spikes[None])
        assert activity.synapses["1"].events == expected.item(), type(module)
        assert activity.synapses["1"].spikes == spikes.sum().item()


def test_layers_that_standardise_their_weights_are_refused():
    net = nn.Sequential(layer.WSLinear(12, 6), SingleSpikeLIFNode()).eval()
    functional.set_step_mode(net, "m")
    with (
        pytest.raises(ValueError, match=r"0 \(WSLinear\) must use its weights as they are to be counted"),
        SpikingActivity(net),
    ):
        net((torch.rand(3, 4, 12) < 0.5).float())


def test_counts_of_another_network_are_refused():
    net, other = small(2), small(2)
    activity = counted(net, torch.rand(1, 2, 6, 6), 2)
    with pytest.raises(ValueError, match="network must be the one that activity watched, got Sequential, which differs in 10"):
        neurobench_report(other, activity)
    with pytest.raises(ValueError, match="which differs in 2 layers and neurons"):
        neurobench_report(net[:7], activity)
    with pytest.raises(TypeError, match=r"network must be a torch.nn.Module, got SpikingActivity"):
        neurobench_report(activity, net)
    with pytest.raises(TypeError, match="activity must be a SpikingActivity, got Sequential"):
        neurobench_report(net, net)
    with pytest.raises(TypeError, match="activity must be a SpikingActivity, got Sequential"):
        quantised_baseline(net)
    assert neurobench_report(nn.Sequential(net), activity) == neurobench_report(net, activity)


def test_a_network_that_loses_without_a_spike_has_no_limit():
    net = nn.Sequential(HybridEncoder(9), layer.Flatten(), layer.Linear(4, 6, bias=False), SingleSpikeLIFNode())
    nn.init.constant_(net[2].weight, -1.0)
    found = quantised_baseline(counted(net, torch.full((1, 1, 2, 2), 0.5), 9))
    assert (found.spike_rate, found.limit) == (0, 0)
    assert found.ratio < 1
    assert "0.0 % spikes per neuron and step: even without a spike no less energy than an ANN of 4-bit" in str(found)
    with pytest.raises(ValueError, match="network must hold a Conv or Linear layer, got ReLU"):
        neurobench_report(nn.ReLU(), None)
    with pytest.raises(RuntimeError, match="no image was counted"):
        quantised_baseline(SpikingActivity(net))
