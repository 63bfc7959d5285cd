"""What a user who puts the parts together wrongly reads: mixed step modes, mixed hosts, forgotten resets."""

import copy
import warnings

import pytest
import torch
from spikingjelly.activation_based import functional, layer
from torch import nn

from onespike import snntorch as in_snntorch
from onespike import spikingjelly as in_spikingjelly
from onespike.conversion import convert
from onespike.functional import predict
from onespike.functional.sequences import Presenter
from onespike.spikingjelly import DirectEncoder, HybridCrossEntropyLoss, HybridEncoder, SingleSpikeLIFNode

T = 5
IMAGES = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
CURRENTS = torch.rand(T, 3, 4, generator=torch.Generator().manual_seed(1))
TARGET = torch.tensor([0, 1, 2])
PASS_SPK = r"must be a torch.Tensor, got tuple: a snnTorch neuron returns \(spk, mem\), pass spk alone"
STACK = "must be a torch.Tensor, got list: make one tensor of the steps with torch.stack"
PAIR = r"readout must be the pair \(potential, spike_time\) that SpikeTimeReadout returns, got"


def chain(step_mode="m", **odd):
    """A SpikingJelly network in one step mode but for the layers named in `odd`, such as readout="s"; its neurons fire."""
    torch.manual_seed(0)
    parts = {
        "encoder": HybridEncoder(T),
        "flatten": layer.Flatten(),
        "hidden": layer.Linear(16, 8, bias=False),
        "node": SingleSpikeLIFNode(v_threshold=0.2),
        "output": layer.Linear(8, 4, bias=False),
        "readout": in_spikingjelly.SpikeTimeReadout(),
    }
    net = nn.Sequential(*parts.values())
    functional.set_step_mode(net, step_mode)
    for name, mode in odd.items():
        parts[name].step_mode = mode
    return net


def converted(step_mode="m", **odd):
    """A converted network, likewise."""
    ann = nn.Sequential(nn.Flatten(), nn.Linear(16, 8, bias=False), nn.ReLU(), nn.Linear(8, 4, bias=False))
    network = convert(ann, IMAGES, timesteps=10)
    functional.set_step_mode(network, step_mode)
    for name, mode in odd.items():
        {"network": network, "encoder": network.encoder, "node": network.body[2], "readout": network.readout}[
            name
        ].step_mode = mode
    return network


def after_a_step(net, *inputs):
    """Run a network once, with its state left as it is."""
    net(*inputs)
    return net


LEAKY = in_snntorch.SingleSpikeLeaky()
HIDDEN = in_snntorch.SingleSpikeLeaky(init_hidden=True)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        # What one host returns, given to the other's parts or to a part that wants something else
        (lambda: SingleSpikeLIFNode()(LEAKY(CURRENTS[0])), TypeError, "x_seq " + PASS_SPK),
        (lambda: SingleSpikeLIFNode(step_mode="s")(LEAKY(CURRENTS[0])), TypeError, "x " + PASS_SPK),
        (lambda: in_spikingjelly.SpikeTimeReadout()(LEAKY.sequence(CURRENTS)), TypeError, "x_seq " + PASS_SPK),
        (lambda: in_spikingjelly.SpikeTimeReadout(step_mode="s")(LEAKY(CURRENTS[0])), TypeError, "x " + PASS_SPK),
        (lambda: in_snntorch.SpikeTimeReadout()(LEAKY.sequence(CURRENTS)), TypeError, "x_seq " + PASS_SPK),
        (lambda: LEAKY.sequence(LEAKY.sequence(CURRENTS)), TypeError, "x_seq " + PASS_SPK),
        (lambda: HybridEncoder(T)((IMAGES, TARGET)), TypeError, "x must be a torch.Tensor, got tuple"),
        (lambda: DirectEncoder(T)((IMAGES, TARGET)), TypeError, "x must be a torch.Tensor, got tuple"),
        (lambda: DirectEncoder(T, "s")((IMAGES, TARGET)), TypeError, "x must be a torch.Tensor, got tuple"),
        (lambda: DirectEncoder(T)(IMAGES.byte()), TypeError, r"got torch.uint8: convert images with x.float\(\) / 255"),
        (lambda: in_snntorch.SpikeTimeReadout()(list(CURRENTS)), TypeError, "x_seq " + STACK),
        (lambda: in_spikingjelly.SpikeTimeReadout()(list(CURRENTS)), TypeError, "x_seq " + STACK),
        (lambda: HybridCrossEntropyLoss()(CURRENTS, TARGET), TypeError, PAIR + r" a tensor of shape \(5, 3, 4\)"),
        (lambda: HybridCrossEntropyLoss()(CURRENTS[:2], TARGET), TypeError, PAIR + r" a tensor of shape \(2, 3, 4\)"),
        (lambda: predict(CURRENTS[0]), TypeError, PAIR + r" a tensor of shape \(3, 4\)"),
        # Step modes that differ
        (
            lambda: chain(readout="s")(IMAGES),
            ValueError,
            r'x must be \[N, K\] in step mode "s", got shape \(5, 3, 4\): call set',
        ),
        (
            lambda: chain("s", readout="m")(IMAGES),
            ValueError,
            r'x_seq must be \[T, N, K\] in step mode "m", got shape \(3, 4\)',
        ),
        (
            lambda: converted(network="s")(IMAGES),
            RuntimeError,
            'step_mode must be "s" throughout .* got "m" at encoder: call set',
        ),
        (
            lambda: converted(encoder="s")(IMAGES),
            RuntimeError,
            'step_mode must be "m" throughout .* got "s" at encoder: call set',
        ),
        (lambda: converted(node="s")(IMAGES), RuntimeError, r'step_mode must be "m" throughout .* got "s" at body.2: call set'),
        (lambda: converted("s", node="m")(IMAGES), RuntimeError, r'step_mode must be "s" throughout .* got "m" at body.2'),
        (lambda: converted(readout="s")(IMAGES), RuntimeError, 'step_mode must be "m" throughout .* got "s" at readout'),
        (lambda: converted("s").currents(IMAGES), RuntimeError, 'step_mode must be "m" .* got "s": call set_step_mode first'),
        (
            lambda: functional.set_step_mode(nn.Sequential(LEAKY), "m"),
            ValueError,
            "step_mode must be .* use SingleSpikeLIFNode",
        ),
        # Resets
        (
            lambda: in_snntorch.reset(chain()),
            TypeError,
            r"0 \(HybridEncoder\) is a SpikingJelly module, .* functional.reset_net",
        ),
        (lambda: in_snntorch.reset(SingleSpikeLIFNode()), TypeError, r"net \(SingleSpikeLIFNode\) is a SpikingJelly module"),
        (lambda: after_a_step(chain(), IMAGES)(IMAGES[:2]), ValueError, "batch or layer size changed, so reset the state"),
        (lambda: after_a_step(chain("s"), IMAGES)(IMAGES[:2]), ValueError, "batch or layer size changed, so reset the state"),
        # State given twice, or in the host's own form
        (lambda: HIDDEN(CURRENTS[0], *HIDDEN.reset_mem()), TypeError, "must not be passed with init_hidden=True"),
        (
            lambda: LEAKY(CURRENTS[0], LEAKY.reset_mem()),
            TypeError,
            r"must be passed together, got no mem: call node\(x, fired, mem\)",
        ),
    ],
)
def test_the_remedy_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def told(call, about=""):
    """Return what is warned of while `call` runs, if it says `about`."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    return [message for warning in found if about in (message := str(warning.message))]


def presentations(net, *, reset=lambda _: None, times=4):
    def call():
        for _ in range(times):
            net(IMAGES)
            reset(net)

    return call


SILENT = nn.Sequential(SingleSpikeLIFNode(v_threshold=100.0), layer.SeqToANNContainer(nn.Linear(4, 4)))


@pytest.mark.parametrize(
    "net",
    [
        pytest.param(nn.Sequential(SILENT, in_spikingjelly.SpikeTimeReadout()), id="spikingjelly"),
        pytest.param(nn.Sequential(SILENT, in_snntorch.SpikeTimeReadout()), id="snntorch"),
    ],
)
def test_a_dead_network_is_said_once(net):
    def run(images=slice(None)):
        functional.reset_net(SILENT)
        net(CURRENTS[:, images])

    assert told(lambda: run(slice(0, 1))) == []  # one image is like itself
    assert told(run) == []  # once may be a look at shapes
    (message,) = told(lambda: [run() for _ in range(3)])
    assert "the same of all 3 images, twice in turn: unless they are equal a layer is silent" in message
    assert "NetworkHealth" in message


def test_a_network_in_which_one_image_spikes_is_not_called_dead():
    readout = in_spikingjelly.SpikeTimeReadout()
    for image in range(3):
        currents = torch.zeros(T, 3, 4)
        currents[1, image] = 1.0
        assert told(lambda currents=currents: [readout(currents) for _ in range(3)]) == []
    readout.step_mode = "s"
    assert told(lambda: [readout(torch.zeros(3, 4)) for _ in range(3)]) == []  # what follows may tell them apart


def test_a_readout_that_was_pickled_before_it_watched_still_reads():
    readout = in_spikingjelly.SpikeTimeReadout()
    del readout.watch
    assert readout(CURRENTS).potential.shape == (3, 4)
    old = in_snntorch.SpikeTimeReadout()
    del old.watch
    assert old(CURRENTS).potential.shape == (3, 4)


@pytest.mark.parametrize("encoder", [HybridEncoder(T), DirectEncoder(T)])
def test_a_forgotten_reset_is_said_once(encoder):
    net = nn.Sequential(copy.deepcopy(encoder), *chain()[1:4], copy.deepcopy(chain()[3]), *chain()[4:])
    assert told(presentations(net, reset=functional.reset_net)) == []
    (message,) = told(presentations(net), "state of the one before")
    assert "functional.reset_net(net) before each sequence" in message
    assert told(presentations(copy.deepcopy(net)), "state of the one before") == []  # a copy goes on as the network would


def test_a_second_network_is_told_too():
    for _ in range(2):
        assert len(told(presentations(chain()), "state of the one before")) == 1


def test_a_sequence_in_chunks_is_no_forgotten_reset():
    encoder, net, x_seq = HybridEncoder(T), chain()[1:], CURRENTS.reshape(T, 3, 4, 1, 1).expand(T, 3, 4, 2, 2) * 0.1

    def call():
        for _ in range(3):
            net[:3](x_seq[:2]), net[:3](x_seq[2:4]), net[:3](x_seq[4:])
            functional.reset_net(net)
            whole = encoder(IMAGES)
            encoder(IMAGES)  # encoded ahead
            net[:3](whole[:2]), net[:3](whole[2:4])
            functional.reset_net(net)

    assert told(call) == []


def test_neurons_that_have_all_fired_are_noticed_where_looking_is_free():
    node, loud = SingleSpikeLIFNode(v_threshold=0.1), torch.ones(T, 3, 16)
    (message,) = told(lambda: [node(loud) for _ in range(3)])
    assert "all neurons of a layer (3, 16) have fired before this call" in message
    assert told(lambda: [SingleSpikeLIFNode(v_threshold=0.1, single_spike=False)(loud) for _ in range(3)]) == []
    chunks = SingleSpikeLIFNode(v_threshold=0.1)
    assert told(lambda: [chunks(loud[:2]), chunks(loud[2:])]) == []
    few = SingleSpikeLIFNode(v_threshold=0.1)
    assert told(lambda: [few(loud[..., :4]) for _ in range(3)]) == []
    steps = SingleSpikeLIFNode(v_threshold=0.1, step_mode="s")
    assert told(lambda: [steps(loud[0]) for _ in range(3)]) == []


def test_networks_that_reset_themselves_have_nothing_to_be_told():
    network = converted()
    assert told(lambda: [network(IMAGES) for _ in range(3)]) == []
    functional.set_step_mode(network, "s")

    def step_by_step():
        for _ in range(2):
            for _ in range(T):
                network(IMAGES)
            functional.reset_net(network)

    assert told(step_by_step) == []


def test_a_forgotten_reset_of_snntorch_neurons_is_said_once(monkeypatch):
    monkeypatch.setattr("onespike.snntorch.functional.PRESENTER", Presenter())
    net = nn.Sequential(nn.Linear(16, 8), *(in_snntorch.SingleSpikeLeaky(0.9, 0.1, init_hidden=True) for _ in range(2)))

    def present(reset):
        for _ in range(3):
            for x in in_snntorch.hybrid(IMAGES.flatten(1), T, intensity_range=(0.0, 1.0)):
                net(x)
            if reset:
                in_snntorch.reset(net)

    assert told(lambda: present(True)) == []
    (message,) = told(lambda: present(False))
    assert "onespike.snntorch.reset(net) before each sequence" in message


def test_spikingjellys_reset_reaches_snntorch_neurons():
    net = nn.Sequential(nn.Linear(4, 4, bias=False), in_snntorch.SingleSpikeLeaky(init_hidden=True))
    first = net(CURRENTS[0])
    functional.set_step_mode(net, "s")
    functional.reset_net(net)
    assert net[1].mem.shape == (0,)
    assert torch.equal(net(CURRENTS[0]), first)
