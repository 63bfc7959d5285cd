"""What a user may do to a neuron or a network in any order: its answers stay those of the equations."""

import copy
import pickle
import tempfile
from functools import cache
from pathlib import Path

import oracle
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from spikingjelly.activation_based import functional
from torch import nn

import onespike.snntorch as for_snntorch
from onespike.conversion import SpikingNetwork, convert
from onespike.functional import hybrid_encode
from onespike.metrics import SpikingActivity
from onespike.spikingjelly import SingleSpikeLIFNode

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
NEURONS = 3
currents = st.lists(st.sampled_from([-0.5, 0.0, 0.25, 0.5, 1.0, 1.5]), min_size=NEURONS, max_size=NEURONS)


class Neuron(RuleBasedStateMachine):
    """One layer of neurons, handled as people do; the scalar oracle runs over all currents since the last reset."""

    @initialize(
        leak=st.sampled_from([0.0, 0.5, 1.0]), threshold=st.sampled_from([0.5, 1.0]), single=st.booleans(), host=st.booleans()
    )
    def make(self, leak, threshold, single, host):
        self.single, self.of_snntorch = single, host
        self.history, self.spikes = [], []
        if host:
            self.node = for_snntorch.SingleSpikeLeaky(leak, threshold, init_hidden=True, single_spike=single)
        else:
            self.node = SingleSpikeLIFNode(leak, threshold, single_spike=single)
        self.node.double()  # as the oracle computes

    def parameters(self):
        beta, threshold = ("beta", "threshold") if self.of_snntorch else ("leak", "v_threshold")
        return getattr(self.node, beta), getattr(self.node, threshold)

    @rule(x=currents)
    def step(self, x):
        if not self.of_snntorch:
            self.node.step_mode = "s"
        self.history.append(x)
        self.spikes.append(self.node(torch.tensor([x], dtype=torch.float64))[0].tolist())

    @precondition(lambda self: not self.of_snntorch)
    @rule(x=st.lists(currents, min_size=1, max_size=3), trace=st.booleans())
    def chunk(self, x, trace):
        self.node.step_mode, self.node.store_v_seq = "m", trace
        self.history += x
        self.spikes += self.node(torch.tensor(x, dtype=torch.float64).unsqueeze(1))[:, 0].tolist()

    @precondition(lambda self: self.of_snntorch)
    @rule(x=currents)
    def sequence_apart(self, x):
        self.node.sequence(torch.tensor([[x]], dtype=torch.float64))  # keeps no state, and touches none

    @rule(how=st.sampled_from(["host", "own"]))
    def reset(self, how):
        if how == "own":
            self.node.reset()
        elif self.of_snntorch:
            for_snntorch.reset(nn.Sequential(self.node))
        else:
            functional.reset_net(nn.Sequential(self.node))
        self.history, self.spikes = [], []

    @rule(how=st.sampled_from([copy.deepcopy, lambda node: pickle.loads(pickle.dumps(node))]))
    def replace_by_a_copy(self, how):
        old, self.node = self.node, how(self.node)
        x = torch.ones(1, NEURONS, dtype=torch.float64)
        old(x.unsqueeze(0) if old.step_mode == "m" else x)  # a copy shares no state

    @rule()
    def load_its_own_state_dict(self):
        self.node.load_state_dict(copy.deepcopy(self.node.state_dict()))

    @rule(leak=st.sampled_from([-0.5, 0.25, 1.0, 1.5]), threshold=st.sampled_from([0.25, 1.0]))
    def train(self, leak, threshold):
        for parameter, value in zip(self.parameters(), (leak, threshold), strict=True):
            parameter.data.fill_(value)
        self.node.project_()
        self.reset("own")

    @precondition(lambda self: not self.of_snntorch)
    @rule()
    def detach(self):
        self.node.detach()

    @rule(images=st.integers(2, 3))
    def forget_a_reset(self, images):
        """Another batch size is refused and changes nothing; without a state it is a sequence of its own."""
        if self.history:
            x = torch.ones(images, NEURONS, dtype=torch.float64)
            with pytest.raises(ValueError, match="reset"):
                self.node(x.unsqueeze(0) if self.node.step_mode == "m" else x)

    @invariant()
    def spikes_and_potentials_are_those_of_the_equations(self):
        if not getattr(self, "history", None):
            return
        leak, threshold = (parameter.item() for parameter in self.parameters())
        assert 0 <= leak <= 1
        for n, x in enumerate(zip(*self.history, strict=True)):
            expected = oracle.run(
                x, leak, threshold, 0.0, False, [0.0] * len(x), 0.0,
                gamma=0.3, single_spike=self.single, grad_after_spike=True, temporal_gradient=True,
            )  # fmt: skip
            assert [spikes[n] for spikes in self.spikes] == expected.spikes
            assert (self.node.mem if self.of_snntorch else self.node.v)[0, n].item() == expected.potentials[-1]
            assert self.node.fired[0, n].item() == expected.fired


@cache
def images():
    return torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def small_ann():
    torch.manual_seed(1)
    ann = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(96, 5, bias=False),
    )
    return ann.double().eval()  # no spike depends on how a sum was rounded


@cache
def fitted():
    return convert(small_ann(), images(), timesteps=10, threshold_scale=0.3, leak=0.75)


@torch.no_grad()
def simulate(network, x):
    """Run the network in plain torch, from its parameters: potentials, spike times, spikes of each layer of neurons."""
    T, layers = network.T, list(network.body)
    spikes = hybrid_encode(x, T, intensity_range=network.encoder.intensity_range)
    total = {}
    for index, module in enumerate(layers):
        if isinstance(module, SingleSpikeLIFNode):
            u, fired, out = torch.zeros_like(spikes[0]), torch.zeros_like(spikes[0], dtype=torch.bool), []
            for x_t in spikes:
                u = module.leak * u + x_t - module.v_threshold * (u > module.v_threshold)
                out.append(((u > module.v_threshold) & ~fired).to(u.dtype))
                fired |= u > module.v_threshold
            spikes = torch.stack(out)
            total[index] = spikes.sum().item()
        elif isinstance(module, nn.Dropout) or "Dropout" in type(module).__name__:
            assert not module.training
        else:
            kind = next(kind for kind in type(module).__mro__ if kind.__module__.startswith("torch.nn"))
            spikes = torch.stack([kind.forward(module, x_t) for x_t in spikes])
    potential = spikes.cumsum(0)
    above = potential >= network.readout.v_threshold - 1e-9  # calibration sets it to one of these potentials
    return potential[-1], torch.where(above.any(0), above.float().argmax(0) + 1, T), total


class Network(RuleBasedStateMachine):
    """A converted network, trained, changed, saved, loaded and counted in any order."""

    @initialize()
    def make(self):
        self.network = copy.deepcopy(fitted())
        self.folder = tempfile.TemporaryDirectory()

    def teardown(self):
        if hasattr(self, "folder"):
            self.folder.cleanup()

    @rule(seed=st.integers(0, 3), rate=st.sampled_from([0.01, 0.3]))
    def train(self, seed, rate):
        network = self.network.train()
        if trained := [parameter for parameter in network.parameters() if parameter.requires_grad]:
            optimizer = torch.optim.SGD(trained, rate)
            torch.manual_seed(seed)
            readout = network(images())
            (readout.potential[:, 0] - readout.spike_time[:, 1]).mean().backward()
            optimizer.step()
            network.project_()
        network.eval()

    @rule(T=st.integers(1, 6))
    def present_for(self, T):
        self.network.T = T

    @rule(index=st.integers(0, 20), trains=st.booleans())
    def freeze(self, index, trains):
        parameters = list(self.network.parameters())
        parameters[index % len(parameters)].requires_grad_(trains)

    @rule(outputs=st.integers(2, 7))
    def new_head(self, outputs):
        head = self.network.body[-1]
        torch.manual_seed(outputs)
        self.network.body[-1] = type(head)(head.in_features, outputs, bias=False, step_mode=head.step_mode)
        self.network.double().eval()
        self.network.calibrate_readout(images())

    @rule(p=st.sampled_from([0.0, 0.5]))
    def drop(self, p):
        self.network.body[5].p = p

    @rule()
    def save_and_load(self):
        before = self.describe()
        self.network.save(Path(self.folder.name))
        again = SpikingNetwork.load(Path(self.folder.name))
        self.network = again
        assert self.describe() == before
        assert len(list(Path(self.folder.name).iterdir())) == 2

    def describe(self):
        return (
            self.network.T,
            [(name, tuple(p.shape), p.requires_grad) for name, p in self.network.named_parameters()],
            [repr(module) for module in self.network.body],
        )

    @rule(assign=st.booleans())
    def through_a_state_dict(self, assign):
        other = copy.deepcopy(self.network)
        for parameter in other.parameters():
            parameter.data.fill_(0.5)
        state = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        other.load_state_dict(state, assign=assign)
        for ours, theirs in zip(self.network.parameters(), other.parameters(), strict=True):
            theirs.requires_grad_(ours.requires_grad)
        self.network = other

    @rule(how=st.sampled_from([copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))]))
    def copy(self, how):
        self.network = how(self.network)

    @rule(resets=st.booleans())
    def step_by_step(self, resets):
        whole = self.network(images())
        functional.set_step_mode(self.network, "s")
        self.network.reset()
        for _ in range(self.network.T):
            readout = self.network(images())
        functional.set_step_mode(self.network, "m")
        if resets:
            functional.reset_net(self.network)
        torch.testing.assert_close(readout.potential, whole.potential)
        assert torch.equal(readout.spike_time.round(), whole.spike_time.round())

    @rule(batches=st.integers(1, 2))
    def count(self, batches):
        _, _, expected = simulate(self.network, images())
        with torch.no_grad(), SpikingActivity(self.network) as activity:
            for _ in range(batches):
                self.network(images())
        assert activity.images == batches * len(images())
        neurons = list(activity.neurons.values())
        assert [round(zeta * n * len(images())) for zeta, n in zip(activity.zeta.values(), neurons, strict=True)] == [
            round(spikes) for spikes in expected.values()
        ]

    @invariant()
    def answers_are_those_of_the_equations(self):
        if not hasattr(self, "network"):
            return
        with torch.no_grad():
            readout = self.network(images())
        potential, time, _ = simulate(self.network, images())
        torch.testing.assert_close(readout.potential, potential)
        assert readout.spike_time.tolist() == time.tolist()


TestNeuron = Neuron.TestCase
TestNetwork = Network.TestCase
TestNeuron.settings = TestNetwork.settings = settings(stateful_step_count=12)
