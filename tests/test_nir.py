"""Networks through NIR: the graph as NumPy runs it, our own reader, SpikingJelly's, files, and what cannot be expressed."""

import subprocess
import sys

import nir
import numpy as np
import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn
from torch.nn.utils import parametrizations, prune

from onespike.conversion import convert
from onespike.models import resnet, vgg
from onespike.nir import from_nir, to_nir
from onespike.spikingjelly import (
    DirectEncoder,
    HybridEncoder,
    SingleSpikeLIFNode,
    SpikeMaxPool,
    SpikeTimeReadout,
    project_net,
)
from onespike.spikingjelly.wiring import Add, Bias, Scale, Wiring

T, DT = 6, 1e-4


def fully_connected(leak: float, dyadic: bool) -> nn.Sequential:
    """Two hidden layers; dyadic weights make potentials meet the threshold exactly."""
    torch.manual_seed(0)
    net = nn.Sequential(
        layer.Linear(12, 30, bias=False),
        SingleSpikeLIFNode(leak, 0.5),
        nn.Dropout(0.3),
        layer.Linear(30, 20, bias=False),
        SingleSpikeLIFNode(leak, 0.25),
        layer.Linear(20, 4, bias=False),
    )
    for module in net:
        if isinstance(module, nn.Linear) and dyadic:
            module.weight.data = torch.randint(-4, 6, module.weight.shape) / 16
    functional.set_step_mode(net, "m")
    return net.eval()


def convolutional() -> nn.Sequential:
    torch.manual_seed(1)
    net = nn.Sequential(
        layer.Conv2d(2, 6, 3, padding=1, bias=False),
        SingleSpikeLIFNode(1.0, 0.4),
        layer.AvgPool2d(2),
        layer.Conv2d(6, 5, 3, stride=2, padding=1, bias=False),
        SingleSpikeLIFNode(0.9, 0.1),
        layer.Flatten(),
        layer.Linear(20, 4, bias=False),
    )
    functional.set_step_mode(net, "m")
    return net.eval()


def run(net, x_seq):
    functional.reset_net(net)
    with torch.no_grad():
        out = net(x_seq)
    functional.reset_net(net)
    return out


def in_numpy(graph, x_seq, dtype=np.float32):
    """Run a fully connected graph one step and one node at a time; a connection back acts at the next step."""
    following = {}
    for source, target in graph.edges:
        following.setdefault(source, []).append(target)
    v, back, outputs = {}, {}, []
    for x in x_seq.numpy().astype(dtype):
        name, value = "input", x
        while True:
            name = next(target for target in following[name] if not target.endswith("_silence"))
            node = graph.nodes[name]
            if isinstance(node, nir.Output):
                break
            if isinstance(node, nir.Linear):
                value = value @ node.weight.T.astype(dtype)
                continue
            decay = DT / node.tau if isinstance(node, nir.LIF) else 0 * node.r
            gain = node.r * (decay if isinstance(node, nir.LIF) else DT)
            current = value + back.get(name, 0)
            v[name] = ((1 - decay).astype(dtype) * v.get(name, 0) + gain.astype(dtype) * current).astype(dtype)
            value = (v[name] > node.v_threshold).astype(dtype)
            v[name] = np.where(value > 0, node.v_reset, v[name]).astype(dtype)
            back[name] = value @ graph.nodes[f"{name}_silence"].weight.T
        outputs.append(value)
    return torch.from_numpy(np.stack(outputs))


def encoded(*shape):
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 9, (T, 5, *shape), generator=generator) / 8


@pytest.mark.parametrize("leak", [1.0, 0.5])
def test_numpy_runs_the_graph_spike_for_spike_ties_included(leak):
    net, x_seq = fully_connected(leak, dyadic=True), encoded(12)
    _, v_seq = trace(net, x_seq)
    assert (v_seq == net[1].v_threshold).any()  # some potentials lie exactly at the threshold
    expected = run(net, x_seq)
    assert expected.abs().sum() > 0
    assert torch.equal(in_numpy(to_nir(net, (12,), T=T), x_seq), expected)


def trace(net, x_seq):
    node = net[1]
    node.store_v_seq = True
    s_seq = node(net[0](x_seq))
    v_seq = node.v_seq
    node.store_v_seq = False
    functional.reset_net(net)
    assert 0.05 < s_seq.any(0).float().mean() < 0.95
    return s_seq, v_seq


def oblong() -> nn.Sequential:
    """Strides, paddings, dilations and pools that differ along the two dimensions."""
    torch.manual_seed(3)
    net = nn.Sequential(
        layer.Conv2d(2, 6, 3, stride=(2, 1), padding=(1, 0), dilation=(1, 2), bias=False),
        SingleSpikeLIFNode(1.0, 0.2),
        layer.AvgPool2d((1, 2), (2, 1), (0, 1)),
        layer.Conv2d(6, 5, 3, padding=(1, 0), bias=False),
        SingleSpikeLIFNode(0.9, 0.05),
        layer.AvgPool2d(2, padding=(0, 1)),
        layer.Flatten(),
        layer.Linear(10, 4, bias=False),
    )
    functional.set_step_mode(net, "m")
    return net.eval()


def trained(net: nn.Sequential, shape: tuple[int, ...]) -> nn.Sequential:
    """Move every weight, leak and threshold off its round initial value."""
    torch.manual_seed(4)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(5):
        torch.nn.functional.cross_entropy(net(encoded(*shape)).sum(0), torch.arange(5) % 4).backward()
        optimizer.step()
        optimizer.zero_grad()
        project_net(net)
        functional.reset_net(net)
    return net


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (fully_connected(0.9, False), (12,)),
        (fully_connected(1.0, True), (12,)),
        (convolutional(), (2, 8, 8)),
        (oblong(), (2, 8, 8)),
    ],
)
def test_our_reader_gives_the_same_network_back(net, shape, tmp_path):
    x_seq = encoded(*shape)
    nir.write(tmp_path / "net.nir", to_nir(net, shape, T=T))
    read = from_nir(nir.read(tmp_path / "net.nir"))
    nodes = [module for module in net if isinstance(module, SingleSpikeLIFNode)]
    again = [module for module in read if isinstance(module, SingleSpikeLIFNode)]
    for one, other in zip(nodes, again, strict=True):
        assert torch.equal(one.leak, other.leak)
        assert torch.equal(one.v_threshold, other.v_threshold)
    assert run(net, x_seq).abs().sum() > 0
    assert torch.equal(run(read, x_seq), run(net, x_seq))


def test_spikingjellys_importer_runs_the_graph():
    exchange = pytest.importorskip(
        "spikingjelly.activation_based.nir_exchange", reason="SpikingJelly before 2.0 has no NIR import"
    )
    nets = [(fully_connected(0.9, False), (12,)), (convolutional(), (2, 8, 8)), (oblong(), (2, 8, 8))]
    for net, shape in nets + [(trained(net, shape), shape) for net, shape in nets[:2]]:
        x_seq = encoded(*shape)
        imported = exchange.import_from_nir(to_nir(net, shape, T=T), dt=DT)
        state, outputs = None, []
        with torch.no_grad():
            for x in x_seq:
                out, state = imported(x, state)
                outputs.append(out)
        expected = run(net, x_seq)
        assert expected.abs().sum() > 0
        torch.testing.assert_close(torch.stack(outputs), expected)


def test_the_step_mode_does_not_matter():
    net = convolutional()
    graphs = []
    for step_mode in ("m", "s"):
        functional.set_step_mode(net, step_mode)
        graphs.append(to_nir(net, (2, 8, 8), T=T))
    assert graphs[0].edges == graphs[1].edges
    assert all(
        np.array_equal(graphs[0].nodes[n].output_type["output"], graphs[1].nodes[n].output_type["output"])
        for n in graphs[0].nodes
    )


def test_a_converted_network():
    torch.manual_seed(0)
    images = torch.rand(16, 3, 32, 32)
    network = convert(vgg("vgg6", 4, width=1 / 16, hidden=8), images, T=T, timesteps=10).eval()
    read = from_nir(to_nir(network, (3, 32, 32), T=T))
    whole = nn.Sequential(network.encoder, read, SpikeTimeReadout())
    assert torch.equal(run(whole, images).potential, run(network, images).potential)


def test_a_residual_network_with_biases():
    torch.manual_seed(0)
    ann = resnet("resnet8", 4, in_channels=2, width=0.25).eval()
    ann.insert(3, nn.Identity())
    images = torch.rand(16, 2, 8, 8)
    network = convert(ann, images, timesteps=10, encoder=DirectEncoder(T))
    graph = to_nir(network, (2, 8, 8), T=T)
    assert any(isinstance(node, nir.Affine) for node in graph.nodes.values())
    with torch.no_grad():
        network.body.append(Scale())[-1].weight.fill_(0.5)  # a factor at the end
    for net in (to_nir(network, (2, 8, 8), T=T), graph):
        read = from_nir(net)
        expected = run(network.body if net is not graph else network.body[:-1], network.encoder(images))
        assert expected.abs().sum() > 0
        assert torch.equal(run(read, network.encoder(images)), expected)


def encoder_and_readout():
    return nn.Sequential(nn.Identity(), HybridEncoder(T), *fully_connected(0.9, False), nn.Dropout(), SpikeTimeReadout())


def test_an_encoder_in_front_and_a_readout_behind_are_left_out():
    alone, whole = (to_nir(net, (12,), T=T) for net in (fully_connected(0.9, False), encoder_and_readout()))
    assert [type(node) for node in whole.nodes.values()] == [type(node) for node in alone.nodes.values()]


def test_weights_that_a_parametrization_computes_are_written_as_they_act():
    net = fully_connected(0.9, False)
    parametrizations.spectral_norm(net[0])
    parametrizations.weight_norm(net[3])
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    graph = to_nir(net, (12,), T=T)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    expected = run(net.eval(), encoded(12))
    assert expected.abs().sum() > 0
    assert torch.equal(run(from_nir(graph), encoded(12)), expected)


def test_inhibition_that_leaks_away_lets_a_neuron_fire_again():
    leak, steps = 0.1, 12
    net = sequential(layer.Linear(1, 1, bias=False), SingleSpikeLIFNode(leak, 1.0))
    net[0].weight.data.fill_(2.0)
    graph, x_seq = to_nir(net, (1,), T=steps), torch.ones(steps, 1, 1)
    assert in_numpy(graph, x_seq).sum() == run(from_nir(graph), x_seq).sum() == 1
    graph.nodes["1_SingleSpikeLIFNode_silence"].weight[:] = -1e6
    assert in_numpy(graph, x_seq).sum() == 2
    with pytest.raises(ValueError, match=r"1_SingleSpikeLIFNode_silence: weight must be at most .* 12 steps at a leak of 0.1"):
        from_nir(graph)


def test_inhibition_is_measured_by_the_threshold():
    net = sequential(layer.Linear(1, 1, bias=False), SingleSpikeLIFNode(1.0, 1e7))
    net[0].weight.data.fill_(2e7)
    graph, x_seq = to_nir(net, (1,), T=T), torch.ones(T, 1, 1)
    assert in_numpy(graph, x_seq).sum() == run(from_nir(graph), x_seq).sum() == 1


def test_the_graph_carries_its_number_of_steps_through_files(tmp_path):
    nir.write(tmp_path / "net.nir", to_nir(fully_connected(0.9, False), (12,), T=T))
    graph = nir.read(tmp_path / "net.nir")
    from_nir(graph)
    with pytest.raises(ValueError, match=r"weight must be at most .* for 60 steps at a leak of 0.9"):
        from_nir(graph, T=10 * T)


def sequential(*modules):
    net = nn.Sequential(*modules)
    functional.set_step_mode(net, "m")
    return net


class Standardised(layer.Linear):
    """A layer whose weight is not what acts."""

    def forward(self, x):
        return nn.functional.linear(x, self.weight - self.weight.mean())


class Eager(SingleSpikeLIFNode):
    """A neuron of its own kind."""


def pruned():
    return prune.l1_unstructured(layer.Linear(3, 3, bias=False), "weight", amount=0.5)


LINEAR = layer.Linear(3, 3, bias=False)
LINEAR_NET = nn.Sequential(LINEAR)
ENLARGED = nn.ModuleDict({"body": LINEAR_NET, "head": LINEAR})
NEURON, SILENCE, LOOP = "2_SingleSpikeLIFNode", "2_SingleSpikeLIFNode_silence", "1_SingleSpikeLIFNode_silence"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: to_nir(LINEAR, (3,), T=T), "network must be a SpikingNetwork, .* got Linear of no modules"),
        (lambda: to_nir(ENLARGED, (3,), T=T), "network must be a SpikingNetwork, .* got ModuleDict of body, head"),
        (lambda: to_nir(sequential(SingleSpikeLIFNode(single_spike=False)), (3,), T=T), "0: single_spike must be True"),
        (lambda: to_nir(sequential(SingleSpikeLIFNode(per_channel=3)), (3,), T=T), "0: per_channel must be None, got 3"),
        (lambda: to_nir(sequential(SingleSpikeLIFNode(0.0)), (3,), T=T), r"0: leak must be in \(0, 1\], got 0.0"),
        (lambda: to_nir(sequential(SingleSpikeLIFNode(1e-3)), (3,), T=20), "0: leak must be above .* for T = 20"),
        (lambda: to_nir(sequential(Bias(3)), (3,), T=T), "0: Bias has no counterpart .* at every step needs none"),
        (lambda: to_nir(sequential(layer.Conv2d(2, 2, 3), SpikeMaxPool(2)), (2, 8, 8), T=T), "1: SpikeMaxPool has no counter"),
        (lambda: to_nir(Wiring([LINEAR, Add()], {1: (1, 1)}), (3,), T=T), "1: a sum must be of different branches"),
        (lambda: to_nir(sequential(neuron.IFNode()), (3,), T=T), "0: IFNode has no counterpart"),
        (lambda: to_nir(sequential(layer.Flatten(2)), (3, 2, 2), T=T), "0: Flatten has no counterpart"),
        (lambda: to_nir(LINEAR_NET, (3,), T=0), "T must be >= 1, got 0"),
        (lambda: to_nir(LINEAR_NET, (3,), T=T, dt=0), "dt must be > 0, got 0"),
        (lambda: to_nir(LINEAR_NET, (4,), T=T), r"0: Linear does not take inputs of shape \[4\]"),
        (
            lambda: to_nir(sequential(layer.Conv2d(1, 2, 3, bias=False)), (2, 1, 8, 8), T=T),
            r"0: Conv2d takes \[C, H, W\], got \[2, 1, 8, 8\]: input_shape is that of one image",
        ),
        (lambda: to_nir(sequential(layer.AvgPool2d(2)), (8,), T=T), r"0: AvgPool2d takes \[C, H, W\], got \[8\]"),
        (lambda: to_nir(sequential(layer.Flatten()), (), T=T), r"0: Flatten does not take inputs of shape \[\]"),
        (lambda: to_nir(sequential(LINEAR, HybridEncoder(T)), (3,), T=T), "1: HybridEncoder must stand first"),
        (lambda: to_nir(sequential(LINEAR, DirectEncoder(T), LINEAR), (3,), T=T), "1: DirectEncoder must stand first"),
        (lambda: to_nir(sequential(SpikeTimeReadout(), LINEAR), (3,), T=T), "0: SpikeTimeReadout must stand last"),
        (
            lambda: to_nir(sequential(Standardised(3, 3, bias=False)), (3,), T=T),
            "0: Standardised has no counterpart .* no subclasses",
        ),
        (lambda: to_nir(sequential(Eager()), (3,), T=T), "0: Eager has no counterpart"),
        (lambda: to_nir(sequential(pruned()), (3,), T=T), r"0: weight must be a parameter, .*\(prune.remove\)"),
        (lambda: to_nir(sequential(layer.Linear(3, 3, bias=False).double()), (3,), T=T), "0: weight must be float32"),
        (
            lambda: to_nir(sequential(layer.Conv2d(2, 2, (3, 1), bias=False)), (2, 8, 8), T=T),
            r"0: kernel_size must be square, got \(3, 1\)",
        ),
        (lambda: from_nir(broken(silence=nir.Linear(-np.eye(3)))), f"{SILENCE}: weight must be at most -.*, got -1"),
        (lambda: from_nir(broken(silence=nir.Linear(-1e9 * np.ones((3, 3))))), f"{SILENCE}: weight must be diagonal"),
        (lambda: from_nir(broken(silence=nir.Affine(-1e9 * np.eye(3), np.ones(3)))), f"{SILENCE}: .* got Affine"),
        (lambda: from_nir(broken(metadata={})), f"{SILENCE}: T must be given, .* at a leak of 0.9"),
        (lambda: from_nir(broken(), T=0), "T must be >= 1, got 0"),
        (lambda: from_nir(broken(), dt=-1.0), "dt must be > 0, got -1.0"),
        (lambda: from_nir(broken(silence=None)), f"{NEURON}: a neuron must silence itself through one connection back, got 0"),
        (lambda: from_nir(broken(v_reset=np.full(3, -0.5))), f"{NEURON}: v_reset must be 0, got -0.5"),
        (lambda: from_nir(broken(v_leak=np.full(3, 0.5))), f"{NEURON}: v_leak must be 0, got 0.5"),
        (lambda: from_nir(broken(tau=np.full(3, 1e-5))), f"{NEURON}: tau must be above dt = 0.0001, got 1e-05"),
        (lambda: from_nir(broken(threshold=np.full(3, -1.0))), f"{NEURON}: v_threshold must be > 0 and finite, got -1.0"),
        (lambda: from_nir(broken(stray=True)), "stray: every node must lie between input and output"),
        (lambda: from_nir(broken(beyond=True)), "output: the output must be the end of the graph, got successors"),
        (lambda: from_nir(broken_loop(bias=np.ones(2))), f"{LOOP}: bias must be 0 .* got up to 1"),
        (lambda: from_nir(broken_loop(stride=(2, 2))), rf"{LOOP}: stride must be 1 .* got \(2, 2\)"),
        (lambda: from_nir(broken_loop(padding=(1, 0))), rf"{LOOP}: padding must be 0 .* got \(1, 0\)"),
        (lambda: from_nir(broken_loop(padding="same")), f"{LOOP}: padding must be given in numbers, got 'same'"),
        (lambda: from_nir(broken_loop(dilation=(1, 2))), rf"{LOOP}: dilation must be 1 .* got \(1, 2\)"),
        (lambda: from_nir(broken_loop(groups=2)), f"{LOOP}: groups must be 1, got 2"),
        (lambda: from_nir(broken_loop(weight=np.ones((2, 2, 3, 3)))), rf"{LOOP}: kernel_size must be 1 .* got \(3, 3\)"),
        (lambda: from_nir(broken_loop("0_Conv2d", groups=2)), "0_Conv2d: groups must be 1, got 2"),
        (lambda: from_nir(broken_loop("0_Conv2d", padding="same")), "0_Conv2d: padding must be given in numbers, got 'same'"),
        (
            lambda: from_nir(broken_loop("2_Flatten", start_dim=1)),
            "2_Flatten: start_dim and end_dim must be 0 and -1, got 1 and -1",
        ),
        (
            lambda: from_nir(broken(threshold=np.array([1.0, 1.0, 2.0]))),
            "v_threshold must be one value for the layer, got 1.0 to 2",
        ),
        (lambda: from_nir(broken(r=np.full(3, 1.0))), "r must be tau / dt"),
        (
            lambda: to_nir(sequential(layer.AvgPool2d(2, ceil_mode=True)), (3, 3, 3), T=T),
            "0: ceil_mode, .* must be the defaults",
        ),
        (lambda: to_nir(sequential(layer.Conv2d(2, 2, 3, groups=2, bias=False)), (2, 8, 8), T=T), "0: groups must be 1"),
        (
            lambda: to_nir(sequential(SingleSpikeLIFNode()), (3, 4), T=T),
            r"0: neurons must be \[K\] or \[C, H, W\], got \[3, 4\]",
        ),
        (lambda: from_nir(nir.NIRGraph({}, [], type_check=False)), "the graph must have one input, got 0"),
        (lambda: from_nir(broken(loop=True)), "the graph must have one output|no cycle but neurons|must lie between"),
    ],
)
def test_what_cannot_be_expressed_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


KEPT = object()


def broken(silence=KEPT, threshold=None, metadata=None, loop=False, stray=False, beyond=False, **fields):
    """A good graph with one thing wrong."""
    last = layer.Linear(3, 3, bias=False)
    graph = to_nir(sequential(HybridEncoder(T), LINEAR, SingleSpikeLIFNode(0.9, 1.0), last), (3,), T=T)
    nodes, edges = dict(graph.nodes), list(graph.edges)
    if silence is None:
        del nodes[SILENCE]
        edges = [edge for edge in edges if SILENCE not in edge]
    elif silence is not KEPT:
        nodes[SILENCE] = silence
    if threshold is not None:
        nodes[NEURON].v_threshold = threshold
    for field, value in fields.items():
        setattr(nodes[NEURON], field, value)
    if loop:
        edges = [(source, "1_Linear" if target == "output" else target) for source, target in edges]
    if stray:
        nodes["stray"] = nir.Linear(np.eye(3))
        edges.append(("stray", "3_Linear"))
    if beyond:
        edges.append(("output", "1_Linear"))
    return nir.NIRGraph(nodes, edges, graph.metadata if metadata is None else metadata, type_check=False)


def broken_loop(label=LOOP, **fields):
    """A good convolutional graph with one setting of one node wrong."""
    net = sequential(layer.Conv2d(2, 2, 3, bias=False), SingleSpikeLIFNode(), layer.Flatten())
    graph = to_nir(net, (2, 8, 8), T=T)
    for field, value in fields.items():
        setattr(graph.nodes[label], field, value)
    return graph


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: from_nir("x"), "graph must be a nir.NIRGraph, got str"),
        (lambda: from_nir(broken(metadata={"T": "abc"})), "the graph's metadatum T must be an int, got 'abc'"),
        (lambda: from_nir(broken(metadata={"T": 5.7})), "the graph's metadatum T must be an int, got 5.7"),
        (lambda: from_nir(broken(), T=True), "T must be an int, got True"),
        (lambda: to_nir(LINEAR_NET, 3, T=T), r"input_shape must be the shape of one image, such as \(3, 32, 32\), got 3"),
        (lambda: to_nir(LINEAR_NET, (3.0,), T=T), "input_shape's sizes must be an int, got 3.0"),
    ],
)
def test_what_is_of_another_type_is_named(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_without_nir_the_remedy_is_named():
    code = "import sys; sys.modules['nir'] = None; import onespike.nir"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'ImportError: onespike.nir needs NIR: pip install "onespike[nir]"' in result.stderr
