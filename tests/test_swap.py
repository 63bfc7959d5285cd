"""Networks of the hosts' neurons turned into single-spike ones: first spikes are kept, and the report says what happened."""

import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from onespike.snntorch import SingleSpikeLeaky, reset
from onespike.snntorch import to_single_spike as to_single_spike_snntorch
from onespike.spikingjelly import SingleSpikeLIFNode, to_single_spike


@pytest.fixture
def x_seq():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-32, 64, (8, 6, 50), generator=generator) / 64  # dyadic: exact in every order of operations


def first_spikes(s_seq):
    return (s_seq > 0) & (s_seq.cumsum(0) == 1)


SETTINGS = [
    lambda: neuron.IFNode(v_threshold=0.7, v_reset=None),
    lambda: neuron.IFNode(v_threshold=0.7, v_reset=0.0),
    lambda: neuron.LIFNode(tau=2.0, decay_input=False, v_threshold=0.7, v_reset=None),
    lambda: neuron.LIFNode(tau=2.0, decay_input=True, v_threshold=0.35, v_reset=0.0),
    lambda: neuron.LIFNode(tau=4.0, decay_input=True, v_threshold=0.2, v_reset=None),
    lambda: neuron.ParametricLIFNode(init_tau=2.0, decay_input=True, v_threshold=0.3, v_reset=None),
]


@pytest.mark.parametrize("make", SETTINGS)
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_first_spikes_are_those_of_spikingjelly(make, step_mode, x_seq):
    node = make()
    node.step_mode = step_mode
    ours, report = to_single_spike(node)
    assert isinstance(ours, SingleSpikeLIFNode)
    assert ours.step_mode == step_mode
    assert report.left == ()
    results = []
    for each in (node, ours):
        results.append(each(x_seq) if step_mode == "m" else torch.stack([each(x) for x in x_seq]))
    assert 0.05 < first_spikes(results[0]).any(0).float().mean() < 0.95
    assert torch.equal(results[1] > 0, first_spikes(results[0]))


def test_a_network_keeps_its_weights_and_the_original(x_seq):
    torch.manual_seed(0)
    net = nn.Sequential(
        layer.Linear(50, 30, bias=False),
        neuron.LIFNode(tau=2.0, v_threshold=0.3),
        nn.Sequential(layer.Linear(30, 20, bias=False), neuron.ParametricLIFNode(v_reset=None)),
        neuron.IFNode(v_reset=-0.1),
        neuron.IzhikevichNode(),
    )
    functional.set_step_mode(net, "m")
    ours, report = to_single_spike(net)
    assert isinstance(net[1], neuron.LIFNode)
    assert isinstance(ours[1], SingleSpikeLIFNode)
    assert isinstance(ours[2][1], SingleSpikeLIFNode)
    assert torch.equal(ours[2][0].weight, net[2][0].weight)
    assert (ours[1].leak.item(), ours[1].v_threshold.item()) == pytest.approx((0.5, 0.6))
    assert not ours[1].leak.requires_grad
    assert ours[2][1].leak.requires_grad
    assert [swap.path for swap in report.left] == ["3", "4"]
    text = str(report)
    assert text.startswith(
        "3 of 5 neurons exchanged" if isinstance(ours[3], SingleSpikeLIFNode) else "2 of 4 neurons exchanged"
    )
    assert "1: LIFNode -> SingleSpikeLIFNode(leak=0.5, v_threshold=0.6" in text
    assert "the threshold takes up decay_input's 1 / tau; the reset to 0 became a subtraction" in text
    assert "v_reset must be None or 0, where the potential starts and decays to, got -0.1" in text
    assert "have a single-spike counterpart, not IzhikevichNode" in text
    assert ours[2](ours[1](ours[0](x_seq))).sum(0).max() <= 1


def test_a_neuron_in_two_places_stays_one():
    node = neuron.IFNode(v_reset=None)
    ours, report = to_single_spike(nn.Sequential(node, layer.Linear(4, 4), node))
    assert ours[0] is ours[2]
    assert isinstance(ours[0], SingleSpikeLIFNode)
    assert [swap.path for swap in report.swaps] == ["0", "2"]


def test_a_net_that_has_run_is_exchanged_wherever_its_neurons_are_referred_to(x_seq):
    class Referring(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = layer.Linear(50, 30)
            self.node = neuron.LIFNode(v_threshold=0.3)
            self.stages = [self.fc, self.node]

        def forward(self, x):
            for stage in self.stages:
                x = stage(x)
            return x

    net = Referring()
    net(x_seq[0])  # the state is now part of a graph
    ours, _ = to_single_spike(net)
    assert ours.stages[1] is ours.node
    assert ours.stages[0] is not net.fc
    assert torch.stack([ours(x) for x in x_seq]).sum(0).max() == 1
    left = nn.Sequential(layer.Linear(50, 30), neuron.KLIFNode(), neuron.IFNode())
    left(x_seq[0])
    with pytest.raises(RuntimeError, match="net cannot be copied: if it has run, reset it"):
        to_single_spike(left)
    functional.reset_net(left)
    assert len(to_single_spike(left)[1].left) == 1


def test_neurons_go_where_the_layer_before_them_is():
    net = nn.Sequential(neuron.IFNode(), nn.Linear(4, 4, device="meta"), neuron.LIFNode(), nn.Linear(4, 4), neuron.IFNode())
    ours, _ = to_single_spike(net)
    assert [ours[i].leak.device.type for i in (0, 2, 4)] == ["meta", "meta", "cpu"]
    wide = nn.Sequential(neuron.ParametricLIFNode(), snn.Leaky(0.9, init_hidden=True, learn_beta=True)).double()
    assert to_single_spike(wide)[0][0].leak.dtype == torch.float64
    assert to_single_spike_snntorch(wide)[0][1].beta.dtype == torch.float64


def test_the_report_says_what_is_trained():
    report = to_single_spike(nn.Sequential(neuron.LIFNode(), neuron.ParametricLIFNode()))[1]
    assert [swap.note.split(". ")[-1] for swap in report.swaps] == [
        "Leak and v_threshold frozen, as before.",
        "Leak trained, v_threshold frozen, as before.",
    ]
    nets = [snn.Leaky(0.9, init_hidden=True, learn_beta=beta, learn_threshold=True) for beta in (False, True)]
    report = to_single_spike_snntorch(nn.Sequential(*nets))[1]
    assert [swap.note.split(". ")[-1] for swap in report.swaps] == [
        "Threshold trained, beta frozen, as before.",
        "Beta and threshold trained.",
    ]


def test_what_cannot_be_exchanged_is_left_with_its_reason():
    net = nn.Sequential(neuron.IFNode(v_threshold=-1.0), neuron.IFNode())
    assert [(swap.path, swap.note) for swap in to_single_spike(net)[1].left] == [("0", "v_threshold must be > 0, got -1.0")]
    net = nn.Sequential(
        snn.Leaky(0.9, threshold=-1.0, init_hidden=True),
        snn.Leaky(torch.rand(4), init_hidden=True),
        snn.Leaky(0.9, init_hidden=True, learn_graded_spikes_factor=True),
        snn.LeakyParallel(4, 4),
        snn.Leaky(0.9, init_hidden=True, learn_beta=True),
    )
    net[4].beta.requires_grad_(False)
    ours, report = to_single_spike_snntorch(net)
    assert [swap.note for swap in report.left] == [
        "threshold must be > 0, got -1.0",
        "beta and threshold must be one number each",
        "graded_spikes_factor must be 1, and must not learn: our spikes are 0 or 1",
        "only Leaky has a single-spike counterpart, not LeakyParallel",
    ]
    assert not ours[4].beta.requires_grad


@pytest.mark.skipif(not hasattr(neuron, "SimpleIFNode"), reason="SpikingJelly before 2.0 has no neurons beside BaseNode")
def test_neurons_that_are_no_basenode_are_reported():
    report = to_single_spike(nn.Sequential(neuron.NonSpikingIFNode(), neuron.IFNode()))[1]
    assert [swap.was for swap in report.left] == ["NonSpikingIFNode"]


class SnnTorchNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(50, 30, bias=False)
        self.lif1 = snn.Leaky(0.5, threshold=0.2, init_hidden=True, learn_beta=True)
        self.deep = nn.Sequential(snn.Leaky(0.9, init_hidden=True, reset_mechanism="zero"))
        self.visible = snn.Leaky(0.9)
        self.other = snn.Synaptic(0.9, 0.8, init_hidden=True)

    def forward(self, x_seq):
        reset(self)
        return torch.stack([self.lif1(self.fc1(x)) for x in x_seq])


def test_first_spikes_are_those_of_snntorch(x_seq):
    torch.manual_seed(0)
    net = SnnTorchNet()
    ours, report = to_single_spike_snntorch(net)
    assert isinstance(ours.lif1, SingleSpikeLeaky)
    assert isinstance(net.lif1, snn.Leaky)
    assert isinstance(ours.lif1.beta, nn.Parameter)
    assert not isinstance(ours.lif1.threshold, nn.Parameter)
    expected = net(x_seq)
    assert 0.05 < first_spikes(expected).any(0).float().mean() < 0.95
    assert torch.equal(ours(x_seq) > 0, first_spikes(expected))
    assert [swap.path for swap in report.left] == ["visible", "other"]
    text = str(report)
    assert text.startswith("2 of 4 neurons exchanged")
    assert 'reset_mechanism "zero" became "subtract"' in text
    assert "call a SingleSpikeLeaky as spk, fired, mem = node(x, fired, mem)" in text
    assert "only Leaky has a single-spike counterpart, not Synaptic" in text


def test_a_network_without_neurons_is_named_and_whose_it_holds():
    for function, host in ((to_single_spike, "SpikingJelly"), (to_single_spike_snntorch, "snnTorch")):
        with pytest.raises(ValueError, match=f"net must hold a neuron of {host} to exchange, got Linear without one$"):
            function(nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"SpikingJelly .* but with snnTorch's: use to_single_spike of onespike\.snntorch"):
        to_single_spike(nn.Sequential(snn.Leaky(0.9, init_hidden=True)))
    with pytest.raises(ValueError, match=r"snnTorch .* but with SpikingJelly's: use to_single_spike of onespike\.spikingjelly"):
        to_single_spike_snntorch(nn.Sequential(neuron.LIFNode()))
