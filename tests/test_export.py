"""Networks as programs of torch.export, which run without operators of ours; and docs/export.md as a reader runs it."""

import re
import warnings
from pathlib import Path

import pytest
import torch
from spikingjelly.activation_based import functional, layer
from torch import nn

from onespike import snntorch as in_snntorch
from onespike.conversion import convert
from onespike.functional import LIFState, Readout, single_spike_lif, spike_time_readout
from onespike.spikingjelly import DirectEncoder, HybridEncoder, SingleSpikeLIFNode, SpikeTimeReadout

TEXT = (Path(__file__).parents[1] / "docs" / "export.md").read_text()
N, SIZE = 4, 8


def converted():
    ann = nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(27, 5, bias=False))
    return convert(ann, torch.rand(16, 1, SIZE, SIZE), T=5)


def sequential(encoder=None, **of_node):
    return nn.Sequential(
        HybridEncoder(5) if encoder is None else encoder,
        layer.Conv2d(1, 3, 3, bias=False, step_mode="m"),
        SingleSpikeLIFNode(0.9, 0.3, **of_node),
        layer.Flatten(step_mode="m"),
        layer.Linear(108, 5, bias=False, step_mode="m"),
        SpikeTimeReadout(0.1),
    )


class InSnnTorch(nn.Module):
    """Both ways of a snnTorch network: a loop over the steps, and a whole sequence."""

    def __init__(self):
        super().__init__()
        self.inner, self.middle = nn.Linear(SIZE**2, 20, bias=False), nn.Linear(20, 5, bias=False)
        self.first, self.second = in_snntorch.SingleSpikeLeaky(0.9, 0.2), in_snntorch.SingleSpikeLeaky(0.9, 0.1)
        self.readout = in_snntorch.SpikeTimeReadout(0.1)

    def forward(self, x):
        fired, mem = self.first.reset_mem()
        spikes = []
        for step in in_snntorch.hybrid(x.flatten(1), 4, intensity_range=(0.0, 1.0)):
            spk, fired, mem = self.first(self.inner(step), fired, mem)
            spikes.append(spk)
        return self.readout(self.second.sequence(self.middle(torch.stack(spikes)))[1])


class StepByStep(nn.Module):
    """A SpikingJelly network in step mode "s", with the loop inside."""

    def __init__(self):
        super().__init__()
        self.net = sequential(HybridEncoder(3), store_v_seq=True)
        functional.set_step_mode(self.net, "s")

    def forward(self, x):
        functional.reset_net(self.net)
        for _ in range(3):
            readout = self.net(x)
        functional.reset_net(self.net)
        return readout


NETWORKS = {
    "converted": converted,
    "nodes that keep their state": sequential,
    "per channel, every spike": lambda: sequential(per_channel=3, single_spike=False, store_v_seq=True),
    "each image's range": lambda: sequential(HybridEncoder(3, "image_channel", temporal=False)),
    "a named backend": lambda: sequential(DirectEncoder(1), backend="inductor"),
    "snnTorch": InSnnTorch,
    "step by step": StepByStep,
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def export(net, *inputs, dynamic=False):
    shapes = tuple({0: torch.export.Dim("n", min=2, max=2**16)} for _ in inputs) if dynamic else None
    return torch.export.export(net, inputs, dynamic_shapes=shapes, strict=False)


@pytest.mark.parametrize(("name", "dynamic"), [*((name, True) for name in NETWORKS), ("nodes that keep their state", False)])
def test_a_program_is_saved_loaded_and_equals_its_network(name, dynamic, tmp_path):
    net = NETWORKS[name]().eval()
    x = torch.rand(N, 1, SIZE, SIZE)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "The tensor attribute")  # state that was assigned
        program = export(net, x, dynamic=dynamic)
    assert "onespike" not in str(program.graph)
    torch.export.save(program, tmp_path / "net.pt2")
    loaded = torch.export.load(tmp_path / "net.pt2").module()
    for images in (x, torch.rand(100, 1, SIZE, SIZE))[: 2 if dynamic else 1]:
        with torch.no_grad():
            expected, found = net(images), loaded(images)
        functional.reset_net(net)
        assert type(found) is Readout
        assert len(expected.spike_time.unique()) > (1 if name != "a named backend" else 0)
        for got, want in zip(found, expected, strict=True):
            assert torch.equal(got, want)


def test_an_export_leaves_the_network_as_it_was():
    net = sequential().eval()
    program = export(net, torch.rand(N, 1, SIZE, SIZE))
    assert net[2].v == 0.0
    assert not net[2].fired
    x = torch.rand(N, 1, SIZE, SIZE)
    assert torch.equal(net(x).potential, program.module()(x).potential)


@pytest.mark.parametrize(("dtype", "time_gradient"), [(torch.float64, "full"), (torch.bfloat16, "eq17")])
def test_functions_and_their_states(dtype, time_gradient, tmp_path):
    class Chunks(nn.Module):
        def forward(self, x_seq, state):
            first, state = single_spike_lif(x_seq[:2], 0.9, 0.3, state=state)
            second = single_spike_lif(x_seq[2:], 0.9, 0.3, state=state)
            readout = spike_time_readout(torch.cat([first, second.s_seq]), 0.2, time_gradient=time_gradient)
            return readout, second

    x_seq, state_dtype = torch.rand(5, N, 6).to(dtype), torch.float64 if dtype == torch.float64 else torch.float32
    state = LIFState(torch.rand(N, 6).to(state_dtype), torch.rand(N, 6) > 0.5)
    torch.export.save(export(Chunks(), x_seq, state), tmp_path / "chunks.pt2")
    found = torch.export.load(tmp_path / "chunks.pt2").module()(x_seq, state)
    assert all(map(torch.equal, *(torch.utils._pytree.tree_leaves(each) for each in (found, Chunks()(x_seq, state)))))
    assert type(found[1].state) is LIFState


def test_a_state_that_is_there_is_refused():
    net, x = sequential(), torch.rand(N, 1, SIZE, SIZE)
    net(x)
    with pytest.raises(RuntimeError, match=r"the state must be clear where torch\.export records a sequence.*call reset_net"):
        export(net, x)


def test_two_calls_of_a_node_without_a_reset_are_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.node = SingleSpikeLIFNode()

        def forward(self, x_seq):
            return self.node(x_seq[:2]), self.node(x_seq[2:])

    with pytest.raises(RuntimeError, match="the state must be clear"):
        export(Twice(), torch.rand(5, N, 3))


def test_a_hidden_state_of_snntorch_that_a_program_loses_is_said():
    node = in_snntorch.SingleSpikeLeaky(init_hidden=True)
    with pytest.warns(UserWarning, match="init_hidden=True keeps is lost between the calls of an exported program"):
        export(node, torch.rand(N, 3))


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"leak must be 0-d or broadcastable"):
        export(SingleSpikeLIFNode(per_channel=2), torch.rand(5, N, 3))
    with pytest.raises(ValueError, match="at least one time step"):
        export(SingleSpikeLIFNode(), torch.rand(0, N, 3))


def test_the_page_as_written():
    there = {}
    exec("".join(re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)), there)
    network, images = there["network"], there["images"]
    expected = network(images)
    assert len(expected.spike_time.unique()) > 1
    assert torch.equal(there["readout"].potential, network(images[:3]).potential)
    for found in (there["compiled_readout"], [torch.from_numpy(there[name]) for name in Readout._fields]):
        torch.testing.assert_close(found[0], expected.potential)
        assert torch.equal(found[1], expected.spike_time)
