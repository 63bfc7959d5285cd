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


def test_a_network_without_neurons_is_named():
    for function in (to_single_spike, to_single_spike_snntorch):
        with pytest.raises(ValueError, match="net must hold a neuron of the host to exchange, got Linear without one"):
            function(nn.Linear(3, 2))
