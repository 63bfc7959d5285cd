"""The snnTorch modules: the host's conventions, the same numbers as the SpikingJelly node, users' mistakes."""

import copy
import io
import pickle

import pytest
import snntorch as snn
import torch
from snntorch import spikegen, utils
from torch import nn

from onespike.functional import BackendUnavailableError, hybrid_cross_entropy, predict, spike_time_readout
from onespike.snntorch import (
    SingleSpikeLeaky,
    SpikeTimeReadout,
    accuracy_combined,
    accuracy_potential,
    accuracy_time,
    ce_spike_time_potential_loss,
    hybrid,
    reset,
)
from onespike.spikingjelly import SingleSpikeLIFNode

T, B = 5, 6


@pytest.fixture
def x_seq():
    generator = torch.Generator().manual_seed(0)
    return 0.6 * torch.randn(T, B, 40, generator=generator) + 0.3


def stepped(node: SingleSpikeLeaky, x_seq: torch.Tensor) -> torch.Tensor:
    """Run a node step by step with its state inside."""
    return torch.stack([node(x) for x in x_seq])


class Net(nn.Module):
    """A network as snnTorch's tutorials write it, with one neuron a module deeper than the host's reset looks."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(40, 20, bias=False)
        self.lif1 = SingleSpikeLeaky(0.9, 0.3, init_hidden=True)
        self.deep = nn.Sequential(nn.Linear(20, 20, bias=False), SingleSpikeLeaky(0.8, 0.2, init_hidden=True))
        self.host = snn.Leaky(0.9, threshold=0.05, init_hidden=True)
        self.fc2 = nn.Linear(20, 4, bias=False)

    def forward(self, x_seq):
        reset(self)
        return torch.stack([self.fc2(self.host(self.deep(self.lif1(self.fc1(x))))) for x in x_seq])


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def test_every_form_gives_the_same(x_seq):
    node = SingleSpikeLeaky(0.9, 0.8)
    spk_seq, mem_seq = node.sequence(x_seq)
    assert 0.05 < spk_seq.any(0).float().mean() < 0.95
    assert spk_seq.sum(0).max() == 1
    fired, mem = node.reset_mem()
    for t, x in enumerate(x_seq):
        spk, fired, mem = node(x, fired, mem)
        assert torch.equal(spk, spk_seq[t])
        assert torch.equal(mem, mem_seq[t])
        assert torch.equal(fired, spk_seq[: t + 1].any(0))
    assert torch.equal(node(x_seq[0])[0], spk_seq[0])  # no state at the first step is the same as the initial one

    hidden = SingleSpikeLeaky(0.9, 0.8, init_hidden=True)
    assert torch.equal(stepped(hidden, x_seq), spk_seq)
    assert torch.equal(hidden.mem, mem_seq[-1])
    assert torch.equal(hidden.sequence(x_seq)[0], spk_seq)
    assert torch.equal(hidden.mem, mem_seq[-1])
    last = SingleSpikeLeaky(0.9, 0.8, init_hidden=True, output=True)
    spk, fired, mem = last(x_seq[0])
    assert torch.equal(spk, spk_seq[0])
    assert torch.equal(fired, spk_seq[0] > 0)
    assert torch.equal(mem, mem_seq[0])


def test_the_membrane_is_that_of_the_hosts_leaky(x_seq):
    leaky = snn.Leaky(beta=0.9, threshold=0.8, reset_mechanism="subtract")
    mem, crossings = leaky.reset_mem(), []
    _, mem_seq = SingleSpikeLeaky(0.9, 0.8).sequence(x_seq)
    for t, x in enumerate(x_seq):
        spk, mem = leaky(x, mem)
        crossings.append(spk)
        torch.testing.assert_close(mem_seq[t], mem)
    many = SingleSpikeLeaky(0.9, 0.8, single_spike=False).sequence(x_seq)[0]
    assert torch.equal(many, torch.stack(crossings))
    first = (many.cumsum(0) == 1) & (many > 0)
    assert torch.equal(SingleSpikeLeaky(0.9, 0.8).sequence(x_seq)[0], first.float())


@pytest.mark.parametrize("switches", [{}, {"grad_after_spike": False}, {"temporal_gradient": False}, {"single_spike": False}])
def test_equals_the_spikingjelly_node(x_seq, switches):
    ours, theirs = SingleSpikeLeaky(0.9, 0.8, gamma=0.4, **switches), SingleSpikeLIFNode(0.9, 0.8, gamma=0.4, **switches)
    weights = torch.linspace(-1, 1, x_seq.numel()).view_as(x_seq)
    inputs, results = [x_seq.clone().requires_grad_() for _ in range(2)], []
    for x, spikes in zip(inputs, (lambda x: ours.sequence(x)[0], theirs), strict=True):
        results.append(spikes(x))
        (results[-1] * weights).sum().backward()
    assert torch.equal(*results)
    pairs = [(inputs[0], inputs[1]), (ours.beta, theirs.leak), (ours.threshold, theirs.v_threshold)]
    for one, other in pairs:
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-6, atol=1e-6)

    # Step by step, gradients flow through the states in the user's hands.
    stepwise = x_seq.clone().requires_grad_()
    fired, mem = ours.reset_mem()
    spikes = []
    for x in stepwise:
        spk, fired, mem = ours(x, fired, mem)
        spikes.append(spk)
    (torch.stack(spikes) * weights).sum().backward()
    torch.testing.assert_close(stepwise.grad, inputs[0].grad, rtol=1e-5, atol=1e-6)


def test_reset_reaches_nested_neurons_and_the_hosts(net, x_seq):
    first = net(x_seq)
    assert first.any()
    assert torch.equal(net(x_seq), first)
    assert torch.equal(net(x_seq[:, :2]), first[:, :2])
    reset(net)
    assert net.deep[1].mem.shape == net.lif1.fired.shape == (0,)
    assert not net.host.mem.any()


HOSTS = {
    "Leaky": {"beta": 0.9},
    "RLeaky": {"beta": 0.9, "all_to_all": False},
    "Synaptic": {"alpha": 0.8, "beta": 0.9},
    "RSynaptic": {"alpha": 0.8, "beta": 0.9, "all_to_all": False},
    "Alpha": {"alpha": 0.9, "beta": 0.8},
    "Lapicque": {"beta": 0.9},
    "SLSTM": {"input_size": 40, "hidden_size": 40},
}


def state_of(node):
    """Return what a host's neuron remembers, of all names that they have for it."""
    found = [getattr(node, name, None) for name in ("mem", "syn", "syn_exc", "syn_inh", "spk")]
    return [value.clone() for value in found if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize("kind", HOSTS)
def test_reset_reaches_every_neuron_of_the_network_however_deep_and_no_other(kind, x_seq):
    def build():
        torch.manual_seed(0)
        return nn.ModuleDict({"block": nn.Sequential(nn.Sequential(getattr(snn, kind)(**HOSTS[kind], init_hidden=True)))})

    ours, other = build(), build()
    first = torch.stack([ours["block"](x) for x in x_seq])
    assert torch.equal(torch.stack([other["block"](x) for x in x_seq]), first)
    before = state_of(other["block"][0][0])
    assert any(value.any() for value in before)
    reset(ours)
    assert torch.equal(torch.stack([ours["block"](x) for x in x_seq]), first)
    assert all(map(torch.equal, state_of(other["block"][0][0]), before))


def test_a_neuron_that_cannot_be_reset_is_named():
    class Own(snn.SpikingNeuron):
        pass

    with pytest.raises(TypeError, match=r"1 \(Own\) must have reset_mem\(\) to be reset, since it keeps a state"):
        reset(nn.Sequential(nn.Linear(1, 1), Own(init_hidden=True)))
    reset(nn.Sequential(nn.Linear(1, 1), Own()))  # has its state handed to it


def test_every_parameter_gets_a_gradient(net, x_seq):
    net(x_seq).square().sum().backward()
    assert {"lif1.beta", "lif1.threshold", "deep.1.beta", "deep.1.threshold"} <= {name for name, _ in net.named_parameters()}
    assert [name for name, parameter in net.named_parameters() if not parameter.grad.any()] == []


def test_neurons_are_not_kept_alive_by_the_host():
    before = len(snn.SpikingNeuron.instances)
    assert isinstance(SingleSpikeLeaky(), snn.SpikingNeuron)
    assert len(snn.SpikingNeuron.instances) == before


def test_copies_and_pickles_in_the_middle_of_a_sequence(x_seq):
    node = SingleSpikeLeaky(0.9, 0.8, init_hidden=True)
    node(x_seq[0].requires_grad_())
    file = io.BytesIO()
    torch.save(node, file)
    file.seek(0)
    twins = [copy.deepcopy(node), pickle.loads(pickle.dumps(node)), torch.load(file, weights_only=False)]
    expected = node(x_seq[1])
    for twin in twins:
        assert torch.equal(twin(x_seq[1]), expected)


def test_the_hosts_reset_reaches_our_neurons_as_it_does_its_own(x_seq):
    net = nn.Sequential(nn.Linear(x_seq.shape[-1], 8), nn.Sequential(SingleSpikeLeaky(0.9, 0.2, init_hidden=True)))
    net.add_module("last", SingleSpikeLeaky(0.9, 0.2, init_hidden=True))

    def spikes():
        return torch.stack([net(x) for x in x_seq])

    first, going_on = spikes(), spikes()
    assert first.sum() > 0
    assert not torch.equal(going_on, first)
    for _ in range(3):
        utils.reset(net)
        assert torch.equal(spikes(), first)
    utils.reset(net)
    half = net(x_seq[0])
    twin = copy.deepcopy(net)
    for x in x_seq[1:]:
        assert torch.equal(twin(x), net(x)), "a copy goes on from the state"
    assert torch.equal(half, first[0])
    mixed = nn.Sequential(snn.Leaky(0.9, init_hidden=True))  # as with the host's, neurons of other networks forget theirs too
    utils.reset(mixed)
    assert torch.equal(spikes(), first)


@pytest.mark.parametrize("name", ["init_leaky", "init_lapicque", "reset_hidden", "detach_hidden"])
def test_what_the_hosts_neurons_have_besides_is_named_with_the_remedy(name):
    with pytest.raises(AttributeError, match=rf"SingleSpikeLeaky has no {name}: .*(reset_mem|detach)\(\)"):
        getattr(SingleSpikeLeaky(), name)
    with pytest.raises(AttributeError, match="'SingleSpikeLeaky' object has no attribute 'weight'"):
        SingleSpikeLeaky().weight  # noqa: B018


def test_errors_call_the_parameters_as_the_host_does(x_seq):
    node = SingleSpikeLeaky(0.9, 0.5)
    node.beta.data.fill_(1.4)
    with pytest.raises(ValueError, match=r"^beta must be in \[0, 1\], got 1\.39"):
        node(x_seq[0])
    node.project_()
    node.threshold.data.fill_(-0.5)
    with pytest.raises(ValueError, match=r"^threshold must be > 0, got -0\.5"):
        node.sequence(x_seq)


def test_state_dict_is_strict_and_holds_no_state(x_seq):
    node = SingleSpikeLeaky(0.7, 0.6, init_hidden=True)
    node(x_seq[0])
    other = SingleSpikeLeaky(init_hidden=True)
    other.load_state_dict(node.state_dict(), strict=True)
    assert (other.beta.item(), other.threshold.item()) == pytest.approx((0.7, 0.6))
    assert {"beta", "threshold"} <= set(node.state_dict())
    assert not {"mem", "fired"} & set(node.state_dict())


def test_what_is_not_learned_is_a_buffer():
    node = SingleSpikeLeaky(0.7, 0.6, learn_beta=False, learn_threshold=False)
    assert list(node.parameters()) == []
    assert {"beta", "threshold"} <= {name for name, _ in node.named_buffers()}


def test_projection_brings_the_parameters_back():
    node = SingleSpikeLeaky()
    for (beta, threshold), expected in {(1.5, -2.0): (1.0, 1e-3), (-0.5, 0.7): (0.0, 0.7)}.items():
        with torch.no_grad():
            node.beta.fill_(beta)
            node.threshold.fill_(threshold)
        node.project_()
        assert (node.beta.item(), node.threshold.item()) == pytest.approx(expected)


def test_compiles_without_a_graph_break(x_seq):
    torch._dynamo.reset()
    node = SingleSpikeLeaky(0.9, 0.3)

    def forward(x_seq):
        return node.sequence(x_seq)[0] + x_seq

    torch.testing.assert_close(torch.compile(forward, fullgraph=True)(x_seq), forward(x_seq))
    hidden = SingleSpikeLeaky(0.9, 0.3, init_hidden=True)
    compiled = torch.compile(hidden, fullgraph=True)
    found = torch.stack([compiled(x) for x in x_seq])
    assert torch.equal(found, node.sequence(x_seq)[0])


def test_dtypes_and_autocast(x_seq):
    node = SingleSpikeLeaky(0.9, 0.8, init_hidden=True)
    assert node(x_seq[0].bfloat16()).dtype == torch.bfloat16
    assert node.mem.dtype == torch.float32
    reset(node)
    assert node.double()(x_seq[0].double()).dtype == torch.float64
    layer, node = nn.Linear(40, 40, bias=False), SingleSpikeLeaky(0.9, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        spk, mem = node.sequence(layer(x_seq))
    assert (spk.dtype, mem.dtype) == (torch.bfloat16, torch.float32)
    assert 0.05 < spk.float().any(0).float().mean() < 0.95


def test_a_nested_network_copies_pickles_compiles_and_moves(x_seq):
    def run(net):
        reset(net)
        return stepped(net, x_seq.to(next(net.parameters()).dtype))

    torch.manual_seed(0)
    torch._dynamo.reset()
    inner = nn.Sequential(nn.Linear(40, 20, bias=False), SingleSpikeLeaky(0.9, 0.3, init_hidden=True))
    net = nn.Sequential(inner, nn.Linear(20, 4, bias=False), SingleSpikeLeaky(0.8, 0.2, init_hidden=True))
    expected = run(net)
    assert expected.any()
    utils.reset(net)
    assert net[2].mem.any()  # the host's reset knows its own neurons only
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), torch.compile(net, fullgraph=True)):
        assert torch.equal(run(twin), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert run(net).dtype == torch.bfloat16
    assert net[2].mem.dtype == torch.float32
    assert run(net.double()).dtype == net[2].mem.dtype == torch.float64
    assert net.to("meta")[2].mem.device.type == "meta"


def test_hybrid_is_the_analogue_image_then_the_hosts_latency_code():
    data = torch.arange(256).view(1, -1) / 255
    spikes = hybrid(data, 5, intensity_range=(0.0, 1.0))
    latency = spikegen.latency(data, num_steps=5, first_spike_time=1, normalize=True, linear=True)
    assert torch.equal(spikes[0], data)
    assert torch.equal(spikes[1:], latency[1:])


def test_loss_and_accuracies_are_those_of_the_functions():
    generator = torch.Generator().manual_seed(1)
    cur_rec, targets = torch.randn(T, 20, 4, generator=generator), torch.randint(4, (20,), generator=generator)
    layer = SpikeTimeReadout(0.7, time_gradient="full")
    readout = layer(cur_rec)
    expected = spike_time_readout(cur_rec, 0.7, time_gradient="full")
    assert torch.equal(readout.potential, expected.potential)
    assert torch.equal(readout.spike_time, expected.spike_time)
    weight = torch.rand(4, generator=generator)
    loss = ce_spike_time_potential_loss(weight=weight, label_smoothing=0.1)(readout, targets)
    assert loss == hybrid_cross_entropy(expected, targets, weight=weight, label_smoothing=0.1)
    assert ce_spike_time_potential_loss("none")(tuple(readout), targets).shape == (20,)
    loss.backward()
    assert layer.threshold.grad is not None
    rules = {"potential": accuracy_potential, "combined": accuracy_combined, "time": accuracy_time}
    for rule, accuracy in rules.items():
        assert accuracy(readout, targets) == pytest.approx((predict(expected, rule) == targets).float().mean().item())
    with torch.no_grad():
        layer.threshold.fill_(-1)
    layer.project_()
    assert layer.threshold.item() == pytest.approx(0.7e-3)


X = torch.zeros(2, 3)
NODE, HIDDEN = SingleSpikeLeaky(), SingleSpikeLeaky(init_hidden=True)
STATE = torch.zeros(2, 3, dtype=torch.bool), torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: SingleSpikeLeaky(1.5), ValueError, r"beta must be in \[0, 1\], got 1.5"),
        (lambda: SingleSpikeLeaky(0.5, 0.0), ValueError, "threshold must be > 0, got 0.0"),
        (lambda: SingleSpikeLeaky(torch.rand(4)), ValueError, r"beta must be one number for the layer, .* of shape \(4,\)"),
        (lambda: SingleSpikeLeaky(0.5, torch.rand(4)), ValueError, "threshold must be one number for the layer"),
        (lambda: SingleSpikeLeaky(gamma=0), ValueError, "gamma must be > 0, got 0"),
        (lambda: SingleSpikeLeaky(backend="cuda"), ValueError, "backend must be one of .*got 'cuda'"),
        (lambda: SingleSpikeLeaky(backend="cupy")(X), BackendUnavailableError, "runs on CUDA devices"),
        (lambda: HIDDEN(X, *STATE), TypeError, "must not be passed with init_hidden=True"),
        (lambda: NODE(X, STATE[1]), TypeError, "must be passed together, got no mem"),
        (lambda: NODE(X, mem=STATE[1]), TypeError, "must be passed together, got no fired"),
        (lambda: NODE(X, STATE[1], STATE[1]), TypeError, "fired must be a bool tensor"),
        (lambda: NODE(torch.zeros(5, 3), *STATE), ValueError, "the batch or layer size changed, so reset the state"),
        (lambda: NODE((X, X)), TypeError, "input_ must be a tensor, got tuple: take the spikes out of what another neuron"),
        (lambda: hybrid(X, 5, intensity_range=(1.0, 0.0)), ValueError, "intensity_range must have low <= high"),
        (lambda: SpikeTimeReadout(0.0), ValueError, "threshold must be > 0, got 0.0"),
        (lambda: SpikeTimeReadout(half_width=-1), ValueError, "half_width must be > 0, got -1"),
        (lambda: SpikeTimeReadout(time_gradient="both"), ValueError, "time_gradient must be one of"),
        (lambda: ce_spike_time_potential_loss("max"), ValueError, 'reduction must be "mean", "sum" or "none"'),
        (lambda: ce_spike_time_potential_loss(label_smoothing=2), ValueError, r"label_smoothing must be in \[0, 1\], got 2"),
        (
            lambda: ce_spike_time_potential_loss()(torch.zeros(5, 2, 3), torch.zeros(2).long()),
            TypeError,
            r"pair \(potential, spike_time\) that SpikeTimeReadout returns, got a tensor of shape \(5, 2, 3\)",
        ),
    ],
)
def test_mistakes_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_forgotten_reset_is_named_when_the_batch_changes(x_seq):
    node = SingleSpikeLeaky(init_hidden=True)
    node(x_seq[0])
    with pytest.raises(ValueError, match="the batch or layer size changed, so reset the state"):
        node(x_seq[0, :2])
    reset(node)
    assert node(x_seq[0, :2]).shape == (2, 40)
