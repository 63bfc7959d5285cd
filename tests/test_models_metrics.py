"""Networks, operation counts, activity and energy against the paper's arithmetic and hand counts."""

import pytest
import torch
from spikingjelly.activation_based import functional, layer
from torch import nn

from onespike.conversion import convert
from onespike.conversion.rules import read_ann
from onespike.metrics import TECHNOLOGIES, SpikingActivity, count_macs, energy
from onespike.models import vgg
from onespike.snntorch import SingleSpikeLeaky
from onespike.spikingjelly import DirectEncoder, HybridEncoder, SingleSpikeLIFNode


@pytest.mark.parametrize(
    ("name", "mega_macs", "weighted"), [("vgg6", 108.8, 6), ("vgg9", 281.8, 10), ("vgg11", 404.5, 11), ("vgg16", 338.4, 16)]
)
def test_vgg_shapes(name, mega_macs, weighted):
    ann = vgg(name, 10)
    macs = count_macs(ann, (3, 32, 32))
    assert sum(macs.values()) / 1e6 == pytest.approx(mega_macs, abs=0.05)
    assert len(macs) == weighted
    assert not any("bias" in parameter for parameter, _ in ann.named_parameters())
    assert isinstance(ann[-1], nn.Linear)


def test_vgg16_is_the_papers():
    ann = vgg("vgg16", 10)
    macs = sum(count_macs(ann, (3, 32, 32)).values())
    assert round(macs / 1e6, 2) == 338.40
    assert round(sum(p.numel() for p in ann.parameters()) / 1e6, 1) == 39.9
    assert round(macs * TECHNOLOGIES["int32_45nm"].mac_pj * 1e-9, 3) == 1.083

    thresholds = {entry.name: 1e9 for entry in read_ann(ann).layers if entry.kind == "neuron"}
    silent = convert(ann, torch.rand(1, 3, 32, 32), thresholds=thresholds).eval()
    with torch.no_grad(), SpikingActivity(silent) as activity:
        silent(torch.rand(1, 3, 32, 32))
    assert sum(activity.neurons.values()) == 284_672
    assert activity.mean == 0
    report = energy(activity)
    assert report.ann_pj * 1e-9 == pytest.approx(1.083, abs=5e-4)
    assert round(report.ceiling) == 191
    assert report.ratio == pytest.approx(191, abs=0.5)
    # Section VI: at which FLOP-weighted activity the ratios of Fig. 5 are reached
    first, rest = count_macs(ann, (3, 32, 32))["0"], macs - count_macs(ann, (3, 32, 32))["0"]
    for zeta, ratio in ((0.291, 70), (0.089, 125)):
        assert macs * 3.2 / (first * 3.2 + rest * zeta * 0.1) == pytest.approx(ratio, rel=0.005)


def test_vgg_initialisation_dropout_and_scaling():
    torch.manual_seed(0)
    ann = vgg("vgg11", 7, dropout=0.15, fc_dropout=0.4)
    deep = [m for m in ann if isinstance(m, nn.Conv2d)][-1]
    assert deep.weight.std().item() == pytest.approx((2 / (9 * 512)) ** 0.5, rel=0.01)
    assert ann[-1].weight.std().item() == pytest.approx(0.01, rel=0.03)
    kinds = [type(m) for m in ann]
    for i, kind in enumerate(kinds):
        if kind is nn.AvgPool2d:  # the pool stands in dropout's place
            assert kinds[i - 2 : i] == [nn.Conv2d, nn.ReLU]
    assert [m.p for m in ann if isinstance(m, nn.Dropout)][-3:] == [0.15, 0.4, 0.4]
    small = vgg("vgg6", 10, in_channels=1, image_size=28, width=0.25, hidden=64)
    assert small(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    assert small[0].out_channels == 16


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vgg("vgg7", 10), "name must be one of vgg6, vgg9, vgg11, vgg16, got 'vgg7'"),
        (lambda: vgg("vgg6", 0), "num_classes must be > 0, got 0"),
        (lambda: vgg("vgg6", 10, width=-1), "width must be > 0, got -1"),
        (lambda: vgg("vgg16", 10, image_size=20), "image_size must be a multiple of 16 for vgg16, got 20"),
        (lambda: count_macs(nn.ReLU(), (3,)), "ann must hold a Conv or Linear layer, got ReLU"),
        (lambda: count_macs(nn.Linear(3, 2), (0,)), "input_shape must be > 0, got 0"),
        (lambda: SpikingActivity(nn.Linear(3, 2)), "network must hold spiking neurons of .*, got Linear without any"),
        (
            lambda: SpikingActivity(nn.Sequential(layer.Linear(3, 2), SingleSpikeLeaky(init_hidden=True))),
            "network must hold spiking neurons of SpikingJelly's kind.*, got snnTorch's SingleSpikeLeaky",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_macs_of_other_layers():
    ann = nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 5))
    expected = {"0": 9 * 2 * 8 * 4, "3": 160}
    assert count_macs(ann, (4, 4, 4)) == expected
    assert count_macs(ann, (1, 4, 4, 4)) == expected
    assert count_macs(nn.Conv1d(2, 4, 3), (2, 10)) == {"": 3 * 2 * 4 * 8}
    assert count_macs(nn.Linear(6, 2), (6,)) == {"": 12}
    assert ann.training


def toy():
    """1 x 4 x 4 images, all-ones 3x3 convolution to 2 channels, pool, Linear to 3, Linear to 2."""
    net = nn.Sequential(
        HybridEncoder(3),
        layer.Conv2d(1, 2, 3, padding=1, bias=False),
        SingleSpikeLIFNode(v_threshold=2.5),
        layer.AvgPool2d(2),
        layer.Flatten(),
        layer.Linear(8, 3, bias=False),
        SingleSpikeLIFNode(v_threshold=0.1),
        layer.Linear(3, 2, bias=False),
    )
    functional.set_step_mode(net, "m")
    with torch.no_grad():
        net[1].weight[0].fill_(1.0)
        net[1].weight[1].fill_(-1.0)
        net[5].weight.copy_(torch.tensor([1.0, -1.0, 0.0]).view(3, 1).expand(3, 8))
        net[7].weight.fill_(1.0)
    return net.eval()


def test_events_equal_a_hand_count_with_borders_and_pooling():
    # One bright pixel in the corner (0, 0), the rest dark: spike times 2 (bright) and 3 (dark), at T = 3.
    image = torch.zeros(1, 1, 4, 4)
    image[0, 0, 0, 0] = 1.0
    net = toy()
    with torch.no_grad(), SpikingActivity(net) as activity:
        net(image)
    # Fan-out of a pixel under a 3 x 3 kernel with padding 1, two output channels: corner 4, edge 6, inside 9, times 2.
    dense = 2 * (4 * 4 + 8 * 6 + 4 * 9)
    first = activity.synapses["1"]
    assert first.analogue_events == dense == 200
    assert first.events == dense, "each of the 16 pixels spikes once, the frame's fan-out again"
    assert first.spikes == 16
    assert first.macs == 16 * 9 * 2
    # Channel 0: at t = 1 and 2 the corner's four neighbours have U = 1, 2; at t = 3 each neuron receives its number of dark
    # neighbours, at least 3: every neuron passes 2.5. Channel 1 is negative.
    assert activity.layers["2"].spikes == 16
    assert activity.neurons == {"2": 32, "6": 3}
    assert activity.zeta["2"] == 0.5
    # Linear 8 -> 3: the 16 spikes of channel 0, each pooled spike counted once, times 3 outputs.
    assert activity.synapses["5"].events == 16 * 3
    # Its first output is positive and fires once, the second negative, the third zero.
    assert activity.layers["6"].spikes == 1
    assert activity.synapses["7"].events == 1 * 2
    assert activity.mean == 17 / 35

    cost = TECHNOLOGIES["int32_45nm"]
    events = energy(activity, accounting="events")
    assert events.snn_pj == pytest.approx(200 * cost.mac_pj + (200 + 48 + 2) * cost.ac_pj)
    assert events.first_layer_ac_pj == pytest.approx(200 * cost.ac_pj)
    macs = {"1": 288, "5": 24, "7": 6}
    assert events.ann_pj == pytest.approx(sum(macs.values()) * cost.mac_pj)
    paper = energy(activity, accounting="paper", technology="fp32_45nm")
    assert paper.snn_pj == pytest.approx(288 * 4.6 + 0.9 * (24 * (1 / 3) + 6 * 1.0))
    assert paper.first_layer_ac_pj == pytest.approx(288 * 1.0 * 0.9), "shown, not included"
    by_input = energy(activity, accounting="input")
    assert by_input.snn_pj == pytest.approx(288 * 3.2 + 0.1 * (288 * 1.0 + 24 * 0.5 + 6 / 3))
    assert by_input.ratio == pytest.approx(by_input.ann_pj / by_input.snn_pj)
    assert activity.flop_weighted_mean == pytest.approx(1 / 3)


def test_counting_in_steps_and_in_batches_equals_counting_at_once():
    torch.manual_seed(0)
    images = torch.rand(6, 1, 4, 4)
    net = toy()
    with torch.no_grad():
        net[1].weight.normal_()
        net[5].weight.normal_()
    with torch.no_grad(), SpikingActivity(net) as whole:
        net(images)
    stepped = []
    for mode in ("m", "s"):
        functional.set_step_mode(net, mode)
        with torch.no_grad(), SpikingActivity(net) as activity:
            for batch in images.split(4):
                functional.reset_net(net)
                for _ in range(3 if mode == "s" else 1):
                    net(batch)
        stepped.append(activity)
    assert 0 < whole.mean < 1
    for activity in stepped:
        assert activity.images == whole.images == 6
        assert activity.zeta == whole.zeta
        for accounting in ("paper", "input", "events"):
            assert energy(activity, accounting=accounting) == energy(whole, accounting=accounting)


@pytest.mark.parametrize("mode", ["m", "s"])
def test_a_bias_is_no_event(mode):
    counted = []
    for bias in (0.0, -1.0):
        net = nn.Sequential(HybridEncoder(5), layer.Flatten(), layer.Linear(16, 8), SingleSpikeLIFNode(v_threshold=0.2))
        net += nn.Sequential(layer.Linear(8, 4), SingleSpikeLIFNode())
        functional.set_step_mode(net, mode)
        with torch.no_grad():
            for module in (net[2], net[4]):
                module.weight.fill_(0.5)
                module.bias.fill_(bias)
        net[3].v_threshold.data.fill_(0.2 if bias == 0 else 1e-3)
        with torch.no_grad(), SpikingActivity(net.eval()) as activity:
            for _ in range(1 if mode == "m" else 5):
                net(torch.full((10, 1, 4, 4), 0.8))
        assert activity.layers["3"].spikes == 10 * 8, "the same spikes, whatever the bias"
        counted.append([activity.synapses[name].events for name in ("2", "4")])
    assert counted[0] == counted[1] == [10 * 16 * 8, 10 * 8 * 4]


@pytest.mark.parametrize("encoder", [HybridEncoder(3), DirectEncoder(3)])
def test_a_batch_without_a_reset_is_named(encoder):
    net = toy()
    net[0] = encoder
    with torch.no_grad(), SpikingActivity(net) as activity:
        net(torch.rand(2, 1, 4, 4))
        with pytest.raises(RuntimeError, match=r"must be reset between batches to be counted.* call reset_net\(network\)"):
            net(torch.rand(2, 1, 4, 4))
    assert activity.images == 2
    with torch.no_grad(), SpikingActivity(net), pytest.raises(RuntimeError, match="must be reset between batches"):
        net(torch.rand(2, 1, 4, 4))  # it had run before it was watched


def test_a_direct_frame_costs_its_multiplications_once():
    net = toy()
    net[0] = DirectEncoder(3)
    with torch.no_grad(), SpikingActivity(net) as activity:
        net(torch.rand(2, 1, 4, 4))
        functional.reset_net(net)
        net(torch.ones(1, 1, 4, 4))
        functional.reset_net(net)
        net(torch.ones(0, 1, 4, 4))
    assert activity.images == 3
    assert activity.synapses["1"].analogue_events == 3 * 200
    assert activity.synapses["1"].events == 0
    functional.reset_net(net)
    net[0] = HybridEncoder(3, temporal=False)
    functional.reset_net(net)
    with torch.no_grad(), SpikingActivity(net) as activity:
        net(torch.rand(2, 1, 4, 4))
    assert activity.synapses["1"].analogue_events == 2 * 200
    assert activity.synapses["1"].events == 0
    net[0] = HybridEncoder(3, analogue=False)
    functional.reset_net(net)
    with torch.no_grad(), SpikingActivity(net) as activity:
        net(torch.rand(2, 1, 4, 4))
    assert activity.synapses["1"].analogue_events == 0
    assert activity.synapses["1"].events == 2 * 200


@pytest.mark.parametrize("mode", ["m", "s"])
def test_temporal_coding_alone_multiplies_nothing(mode):
    net = toy()
    net[0] = HybridEncoder(3, analogue=False)
    functional.set_step_mode(net, mode)
    with torch.no_grad(), SpikingActivity(net) as activity:
        for _ in range(1 if mode == "m" else 3):
            net(torch.ones(1, 1, 4, 4))
    assert activity.images == 1
    assert (activity.synapses["1"].spikes, activity.synapses["1"].framed) == (16, False)
    zeta = activity.zeta
    paper, by_input = energy(activity), energy(activity, accounting="input")
    assert paper.layers_pj["1"] == pytest.approx(0.1 * 288 * zeta["2"])
    assert by_input.layers_pj["1"] == pytest.approx(0.1 * 288)
    assert paper.ceiling == by_input.ceiling == energy(activity, accounting="events").ceiling == float("inf")
    assert not HybridEncoder(3).emits_spikes


def test_activity_of_a_converted_network_uses_the_anns_names_and_leaves_no_hook():
    torch.manual_seed(0)
    ann = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(3)),
        nn.Flatten(),
        nn.Linear(36, 8, bias=False),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(8, 2, bias=False),
    ).eval()
    network = convert(ann, torch.rand(20, 1, 8, 8), timesteps=5)
    emitted = []
    counting = network.nodes()["3"].register_forward_hook(lambda module, inputs, s_seq: emitted.append(s_seq))
    with torch.no_grad(), SpikingActivity(network) as activity:
        readout = network(torch.rand(20, 1, 8, 8))
    counting.remove()
    assert list(activity.zeta) == ["0.1", "3"]
    assert list(activity.synapses) == ["0.0", "2", "5"]
    assert activity.synapses["2"].source == "0.1"
    assert activity.synapses["2"].inputs == 4 * 36, "neurons before pooling"
    assert activity.synapses["2"].events == activity.synapses["2"].spikes * 8
    assert activity.zeta["3"] == pytest.approx(emitted[0].sum(0).double().mean().item())
    seen = activity.images
    network(torch.rand(20, 1, 8, 8))
    assert activity.images == seen
    assert readout.potential.shape == (20, 2)


class Spare(nn.Module):
    """Linear, neuron and Linear, beside a neuron that is registered before them and never called."""

    def __init__(self):
        super().__init__()
        self.spare, self.neuron = SingleSpikeLIFNode(), SingleSpikeLIFNode(v_threshold=0.1)
        self.first, self.last = layer.Linear(2, 3, bias=False), layer.Linear(3, 2, bias=False)
        nn.init.ones_(self.first.weight)

    def forward(self, x):
        return self.last(self.neuron(self.first(x)))


def test_a_neuron_that_never_runs_is_named():
    net = Spare().eval()
    functional.set_step_mode(net, "s")
    with torch.no_grad(), SpikingActivity(net) as activity:
        for _ in range(2):
            net(torch.ones(4, 2))
    assert (activity.images, activity.steps, activity.mean) == (4, 2, 1)
    with pytest.raises(
        RuntimeError, match="every spiking layer must run to be counted, got spare that the network never calls"
    ):
        _ = activity.zeta
    net.neuron = nn.ReLU()
    with pytest.raises(ValueError, match="network must call a spiking neuron to be counted, got spare that it never calls"):
        SpikingActivity(net)


def test_a_network_that_costs_nothing_is_infinitely_better():
    net = toy()
    net[0] = HybridEncoder(3, analogue=False)
    functional.set_step_mode(net, "s")
    with torch.no_grad(), SpikingActivity(net) as activity:
        net(torch.ones(1, 1, 4, 4))
    assert energy(activity, accounting="events").ratio == float("inf")


def test_misuse_is_named():
    net = toy()
    plain = nn.Sequential(nn.Linear(3, 2), SingleSpikeLIFNode())
    with pytest.raises(TypeError, match=r"0 \(Linear\) must be a layer with a step mode: use spikingjelly's layer.Linear"):
        SpikingActivity(plain)
    with pytest.raises(RuntimeError, match="no image was counted"):
        _ = SpikingActivity(net).mean
    with SpikingActivity(net.train()), pytest.raises(RuntimeError, match=r"needs eval mode: call network.eval\(\)"):
        net(torch.rand(1, 1, 4, 4))
    functional.reset_net(net)
    with torch.no_grad(), SpikingActivity(net.eval()) as activity:
        net(torch.rand(1, 1, 4, 4))
    with pytest.raises(ValueError, match=r"accounting must be one of .* got 'best'"):
        energy(activity, accounting="best")
    with pytest.raises(ValueError, match=r"technology must be one of .* got '7nm'"):
        energy(activity, technology="7nm")
    for name in ("accounting", "technology", "memory"):
        with pytest.raises(ValueError, match=rf"{name} must be one of .* got \[\]"):
            energy(activity, **{name: []})
    with pytest.raises(TypeError, match="activity must be a SpikingActivity, got Sequential"):
        energy(net)
    with pytest.raises(TypeError, match=r"network must be a torch.nn.Module, got SpikingActivity"):
        SpikingActivity(activity)
    padded = nn.Sequential(*toy())
    padded[3] = layer.AvgPool2d(3, 2, padding=1, count_include_pad=False, step_mode="m")
    with pytest.raises(ValueError, match="an average pool must divide by the same number everywhere"), SpikingActivity(padded):
        padded.eval()(torch.rand(1, 1, 4, 4))
