"""The SpikingJelly modules under what the host and its users do to a module; run on each host generation."""

import copy
import io
import json
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from spikingjelly.activation_based import base, functional, layer, monitor, neuron, surrogate
from spikingjelly.activation_based.model import spiking_resnet, spiking_vgg
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.nn.utils import parametrize

from onespike import snntorch as in_snntorch
from onespike.functional import BackendUnavailableError, Readout, hybrid_encode, single_spike_lif, spike_time_readout
from onespike.spikingjelly import (
    DirectEncoder,
    HybridCrossEntropyLoss,
    HybridEncoder,
    SingleSpikeLIFNode,
    SpikeTimeReadout,
    Triangle,
    ac_rules,
    mac_rules,
    project_net,
    register,
)

T = 5
explicit_state = pytest.mark.skipif(
    not hasattr(base, "to_functional_forward"), reason="SpikingJelly before 2.0 has no explicit-state protocol"
)


def network(step_mode="m", **node):
    """An ordinary SpikingJelly network with our encoder, nodes and readout dropped in."""
    torch.manual_seed(0)
    net = nn.Sequential(
        HybridEncoder(T),
        layer.Conv2d(2, 6, 3, padding=1, bias=False),
        SingleSpikeLIFNode(v_threshold=0.4, **node),
        layer.AvgPool2d(2),
        layer.Flatten(),
        layer.Linear(6 * 16, 20, bias=False),
        SingleSpikeLIFNode(leak=0.9, v_threshold=0.2, **node),
        layer.Linear(20, 4, bias=False),
        SpikeTimeReadout(0.1),
    )
    functional.set_step_mode(net, step_mode)
    return net


@pytest.fixture
def images():
    return torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(1))


def steps(net, x):
    for _ in range(T):
        out = net(x)
    return out


def loss_gradients(net, readout):
    loss = HybridCrossEntropyLoss()(readout, torch.tensor([0, 3, 1]))
    return torch.autograd.grad(loss, list(net.parameters()))


def test_single_steps_equal_the_sequence(images):
    multi, single = network("m"), network("s")
    whole, last = multi(images), steps(single, images)
    assert 0.05 < multi[2].fired.float().mean() < 0.95
    assert torch.equal(whole.potential, last.potential)
    assert torch.equal(whole.spike_time, last.spike_time)
    for a, b in zip(loss_gradients(multi, whole), loss_gradients(single, last), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_modules_are_the_functions(images):
    net = network()
    x_seq = net[:2](images)
    node = net[2]
    s_seq, state = single_spike_lif(x_seq, node.leak, node.v_threshold)
    assert torch.equal(net[0](images), hybrid_encode(images, T, intensity_range=(0.0, 1.0)))
    assert torch.equal(node(x_seq), s_seq)
    assert torch.equal(node.v, state.v)
    assert torch.equal(node.fired, state.fired)
    currents = torch.randn(T, 3, 4)
    expected = spike_time_readout(currents, 0.1)
    for found, wanted in zip(net[8](currents), expected, strict=True):
        assert torch.equal(found, wanted)
    assert isinstance(net[8](currents), Readout)


def test_reset_gives_the_first_result_again(images):
    for mode, run in (("m", lambda net, x: net(x)), ("s", steps)):
        net = network(mode)
        first = run(net, images)
        assert isinstance(net[2].v, torch.Tensor)
        functional.reset_net(net)
        assert net[2].v == 0.0
        assert net[2].fired is False
        assert torch.equal(run(net, images).potential, first.potential)


def test_without_reset_the_state_is_carried_on():
    node, x = SingleSpikeLIFNode(0.9, 1.0), torch.rand(6, 2, 5, generator=torch.Generator().manual_seed(2))
    whole = node(x)
    functional.reset_net(node)
    parts = torch.cat([node(x[:2]), node(x[2:])])
    assert torch.equal(parts, whole)
    assert whole.sum() > 0


def test_a_changed_batch_needs_a_reset(images):
    for mode in ("m", "s"):
        net = network(mode)
        net(images)
        with pytest.raises((ValueError, RuntimeError), match="reset"):
            net(images[:2]) if mode == "m" else net[1:](images[:2])
        functional.reset_net(net)
        net(images[:2])


def test_deepcopy_pickle_and_torch_save_keep_state_and_settings(images):
    net = network(gamma=0.5, store_v_seq=True)
    net(images)  # the state is now part of a graph
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), torch.load(buffer, weights_only=False)):
        assert torch.equal(twin[2].v, net[2].v)
        assert torch.equal(twin[2].v_seq, net[2].v_seq)
        assert not twin[2].v.requires_grad
        assert twin[2].gamma == 0.5
        functional.reset_net(net)
        functional.reset_net(twin)
        assert torch.equal(twin(images).potential, net(images).potential)


def test_deepcopy_between_single_steps(images):
    net = network("s")
    for _ in range(3):
        net(images)
    twin = copy.deepcopy(net)
    for _ in range(2):
        expected, found = net(images), twin(images)
    assert torch.equal(found.potential, expected.potential)


def test_state_dict_is_strict_and_holds_parameters_and_the_range_alone(images):
    net, twin = network(), network()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(0.9)
    net(images)
    floors = {f"{place}.threshold_floor" for place in (2, 6, 8)}
    assert set(net.state_dict()) == {name for name, _ in net.named_parameters()} | {"0.low", "0.high"} | floors
    assert {"2.leak", "2.v_threshold", "8.v_threshold"} <= set(net.state_dict())
    twin.load_state_dict(net.state_dict())
    functional.reset_net(net)
    assert torch.equal(twin(images).potential, net(images).potential)


def test_store_v_seq_in_both_modes(images):
    multi, single = network("m", store_v_seq=True), network("s", store_v_seq=True)
    multi(images)
    steps(single, images)
    assert multi[2].v_seq.shape == (T, 3, 6, 8, 8)
    assert torch.equal(multi[2].v_seq, single[2].v_seq)
    assert torch.equal(multi[2].v_seq[-1], multi[2].v)
    functional.reset_net(multi)
    assert multi[2].v_seq is None


def test_monitors_see_spikes_and_potentials(images):
    net = network(store_v_seq=True)
    spikes = monitor.OutputMonitor(net, SingleSpikeLIFNode)
    potentials = monitor.AttributeMonitor("v_seq", False, net, SingleSpikeLIFNode)
    net(images)
    assert len(spikes.records) == len(potentials.records) == 2
    assert torch.equal(spikes["2"][0].sum(0) > 0, net[2].fired)
    assert torch.equal(potentials["2"][0], net[2].v_seq)
    spikes.remove_hooks()
    potentials.remove_hooks()


@explicit_state
@pytest.mark.parametrize("step_mode", ["m", "s"])
def test_explicit_state_form_is_pure_and_equal(images, step_mode):
    net = network(step_mode)
    expected = net(images) if step_mode == "m" else steps(net, images)
    functional.reset_net(net)
    forward, states = base.to_functional_forward(net), tuple(base.extract_memories(net))
    before = list(states)
    for _ in range(1 if step_mode == "m" else T):
        outputs, states = forward((images,), states)
    assert torch.equal(outputs[0], expected.potential)
    assert torch.equal(outputs[1], expected.spike_time)
    assert base.extract_memories(net) == before
    with pytest.raises(ValueError, match=r"expected .* states"):
        forward((images,), states[:-1])


@pytest.mark.parametrize("intensity_range", [(0.0, 1.0), "image"])
def test_step_by_step_a_network_does_not_compile_anew_at_every_step(images, intensity_range):
    torch.compiler.reset()
    steps = 12
    net = nn.Sequential(
        HybridEncoder(steps, intensity_range),
        layer.Flatten(),
        layer.Linear(images[0].numel(), 10, bias=False),
        SingleSpikeLIFNode(v_threshold=0.1, store_v_seq=True),
        SpikeTimeReadout(0.1),
    )
    functional.set_step_mode(net, "s")
    expected = [net(images) for _ in range(steps)]
    counter = CompileCounter()
    compiled = torch.compile(net, fullgraph=True, backend=counter)
    for _ in range(2):
        functional.reset_net(net)
        found = [compiled(images) for _ in range(steps)]
    assert counter.frame_count <= 3  # from a reset, from a state, and from one of any number of recorded steps
    assert net[0].t == steps
    for got, want in zip(found, expected, strict=True):
        assert torch.equal(got.potential, want.potential)
        assert torch.equal(got.spike_time, want.spike_time)
    for too_far in (compiled, net):
        with pytest.raises(RuntimeError, match=f"t must stay below T = {steps} in step mode 's'.*call reset_net first"):
            too_far(images)


def test_a_network_compiles_without_a_graph_break(images):
    torch.compiler.reset()  # or sizes differ from those of other tests' Sequentials, and inductor fails on symbolic ones
    net = network()
    expected = net(images)
    wanted = loss_gradients(net, expected)
    functional.reset_net(net)
    compiled = torch.compile(net, fullgraph=True)
    found = compiled(images)
    torch.testing.assert_close(found.potential, expected.potential)
    assert torch.equal(found.spike_time, expected.spike_time)
    for a, b in zip(loss_gradients(net, found), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_cpu_autocast_keeps_the_state_in_float32(images):
    net = network()
    with torch.autocast("cpu", torch.bfloat16):
        readout = net(images)
    assert net[2].v.dtype == torch.float32
    assert readout.potential.dtype == torch.float32
    assert all(gradient.isfinite().all() for gradient in loss_gradients(net, readout))


def test_moving_dtypes(images):
    net = network()
    net(images)
    net.double()
    functional.reset_net(net)
    assert net(images.double()).potential.dtype == torch.float64
    assert net[2].v.dtype == torch.float64


def test_a_nested_network_resets_copies_and_moves_in_the_middle_of_a_sequence(images):
    whole = network("s")
    net = nn.Sequential(nn.Sequential(*whole[:3]), nn.ModuleDict({"rest": whole[3:]})["rest"])
    expected = steps(net, images).potential
    functional.reset_net(net)
    net(images)
    twins = copy.deepcopy(net), pickle.loads(pickle.dumps(net))
    for _ in range(T - 1):
        found = [each(images).potential for each in (net, *twins)]
    assert all(torch.equal(each, expected) for each in found)
    net.to("meta")
    assert net[0][2].v.device.type == net[0][2].fired.device.type == "meta"
    functional.reset_net(net)
    assert net(images.to("meta")).potential.device.type == "meta"
    assert net[0][2].fired.dtype == torch.bool


def test_every_parameter_gets_a_gradient(images):
    for mode, run in (("m", lambda net, x: net(x)), ("s", steps)):
        net = network(mode)
        HybridCrossEntropyLoss()(run(net, images), torch.tensor([0, 3, 1])).backward()
        assert [name for name, parameter in net.named_parameters() if not parameter.grad.any()] == []


def test_training_with_projection_keeps_the_parameters_in_range(images):
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=5.0)
    for _ in range(3):
        functional.reset_net(net)
        HybridCrossEntropyLoss()(net(images), torch.tensor([0, 3, 1])).backward()
        optimizer.step()
        optimizer.zero_grad()
        project_net(net)
        for node in (net[2], net[6]):
            assert 0 <= node.leak <= 1
            assert node.v_threshold >= node.threshold_floor > 0
        assert net[8].v_threshold >= net[8].threshold_floor > 0
    with torch.no_grad():
        net[2].leak.fill_(1.2)
    functional.reset_net(net)
    with pytest.raises(ValueError, match=r"leak must be in \[0, 1\], got 1.2.*project_\(\) after each optimizer step"):
        net(images)


def test_parameters_per_channel():
    shared, channels = SingleSpikeLIFNode(0.9, 0.5), SingleSpikeLIFNode(0.9, 0.5, per_channel=4)
    x = torch.randn(T, 2, 4, 3, 3, generator=torch.Generator().manual_seed(3))
    assert channels.leak.shape == channels.v_threshold.shape == (4,)
    assert torch.equal(channels(x), shared(x))
    with torch.no_grad():
        channels.v_threshold[2] = 100.0
    functional.reset_net(channels)
    s_seq = channels(x)
    assert s_seq[:, :, 2].sum() == 0
    assert s_seq[:, :, 3].sum() > 0
    s_seq.sum().backward()
    assert channels.leak.grad.shape == (4,)
    assert SingleSpikeLIFNode(per_channel=7)(torch.rand(T, 2, 7)).shape == (T, 2, 7)
    with pytest.raises(ValueError, match=r"x_seq must have at least 3 dimensions, \[T, N, C, \*\] for per_channel"):
        SingleSpikeLIFNode(per_channel=7)(torch.rand(2, 7))


def test_modules_print_without_values_too():
    with torch.device("meta"):
        modules = SingleSpikeLIFNode(), SpikeTimeReadout()
    assert "leak=?, v_threshold=?" in str(modules[0])
    assert "v_threshold=?" in str(modules[1])


def test_a_cast_rounds_no_bound_of_the_encoder():
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    levels = (torch.arange(256).view(256, 1, 1, 1) / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    encoder = HybridEncoder.for_normalized(20, mean, std)
    expected = encoder(levels)
    assert torch.equal(encoder.bfloat16()(levels), expected)
    assert torch.equal(encoder.float()(levels), expected)
    assert encoder.double().to("meta").low.device.type == "meta"


def test_a_state_dict_restores_the_encoders_range(images):
    one, other = HybridEncoder(T, (-1.0, 2.0)), HybridEncoder(T)
    expected = one(images)
    assert not torch.equal(other(images), expected)
    for assign in (False, True):
        other = HybridEncoder(T)
        other.load_state_dict(one.state_dict(), assign=assign)
        assert torch.equal(other(images), expected)
        assert torch.equal(other.bfloat16()(images), expected)
    with torch.device("meta"):
        empty = HybridEncoder(T)
    empty = empty.to_empty(device="cpu")
    empty.load_state_dict(one.state_dict())
    assert torch.equal(empty(images), expected)


def test_a_range_that_does_not_fit_is_an_error():
    channels = HybridEncoder.for_normalized(T, [0.4, 0.5], [0.2, 0.3])
    with pytest.raises(RuntimeError, match="size mismatch for low"):
        HybridEncoder(T).load_state_dict(channels.state_dict())
    assert not HybridEncoder(T, "image").state_dict()
    with pytest.raises(RuntimeError, match=r"Unexpected key.*low"):
        HybridEncoder(T, "image").load_state_dict(HybridEncoder(T).state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key.*low"):
        HybridEncoder(T).load_state_dict(HybridEncoder(T, "image").state_dict())


def test_a_state_dict_from_before_ranges_were_part_of_it_loads(images):
    old, encoder = OrderedDict(), HybridEncoder(T, (-1.0, 2.0))
    old._metadata = OrderedDict({"": {"version": 1}})
    expected = encoder(images)
    for state in (old, {}):  # as pickled, and as files of safetensors have it
        encoder.load_state_dict(state)
        assert torch.equal(encoder(images), expected)


def test_what_is_not_learned_gets_no_gradient(images):
    net = network(learn_leak=False, learn_threshold=False)
    HybridCrossEntropyLoss()(net(images), torch.tensor([0, 3, 1])).backward()
    assert net[2].leak.grad is None
    assert net[2].v_threshold.grad is None
    assert net[1].weight.grad is not None
    readout = SpikeTimeReadout(learn_threshold=False)
    assert not readout.v_threshold.requires_grad


def test_switches_reach_the_neuron():
    x = torch.full((T, 1, 1), 0.7)
    assert SingleSpikeLIFNode()(x).sum() == 1
    assert SingleSpikeLIFNode(single_spike=False)(x).sum() == 3
    gradients = {}
    for switch in ("grad_after_spike", "temporal_gradient"):
        for value in (True, False):
            leaf = x.clone().requires_grad_()
            SingleSpikeLIFNode(**{switch: value})(leaf).sum().backward()
            gradients[switch, value] = leaf.grad
        assert not torch.equal(gradients[switch, True], gradients[switch, False])


@pytest.mark.skipif(not hasattr(functional, "set_backend"), reason="SpikingJelly 2.0 removed set_backend")
def test_the_hosts_set_backend_drives_the_node(images):
    net = network()
    functional.set_backend(net, "torch", SingleSpikeLIFNode)
    assert net[2].backend == "torch"
    functional.set_backend(net, "cupy", SingleSpikeLIFNode)
    assert net[2].backend == "cupy"
    if not torch.cuda.is_available():
        with pytest.raises(BackendUnavailableError, match="CUDA"):
            net(images)


def test_backend_is_validated_when_it_is_set():
    node = SingleSpikeLIFNode(backend="torch")
    with pytest.raises(ValueError, match=r"backend must be one of 'auto', .* got 'lava'"):
        node.backend = "lava"
    assert node.backend == "torch"
    assert "cupy" in node.supported_backends


def test_the_encoder_is_stateless_in_m_and_steps_in_s(images):
    encoder = HybridEncoder(T)
    assert torch.equal(encoder(images), encoder(images))
    assert encoder(images[:1]).shape == (T, 1, 2, 8, 8)
    expected = encoder(images)
    encoder.step_mode = "s"
    assert torch.equal(torch.stack([encoder(images) for _ in range(T)]), expected)
    with pytest.raises(RuntimeError, match=r"t must stay below T = 5 .* call reset_net"):
        encoder(images)
    functional.reset_net(encoder)
    assert torch.equal(encoder(images), images)
    encoder.T = 7
    encoder.step_mode = "m"
    assert encoder(images).shape[0] == 7


def test_encoder_for_normalised_images():
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    raw = torch.randint(256, (2, 3, 4, 4), generator=torch.Generator().manual_seed(4)) / 255
    normalised = (raw - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    encoder = HybridEncoder.for_normalized(T, mean, std)
    assert torch.equal(encoder(normalised)[1:], HybridEncoder(T)(raw)[1:])
    assert torch.equal(encoder(normalised)[0], normalised)
    grey = HybridEncoder.for_normalized(T, 0.5, 0.25)
    assert torch.equal(grey((raw - 0.5) / 0.25)[1:], HybridEncoder(T)(raw)[1:])


def test_encoder_variants(images):
    whole = HybridEncoder(T)(images)
    control = HybridEncoder(T, temporal=False)(images)
    temporal = HybridEncoder(T, analogue=False)(images)
    assert torch.equal(control + temporal, whole)
    assert torch.equal(control[0], images)
    assert control[1:].sum() == 0
    direct = DirectEncoder(T)
    assert torch.equal(direct(images), torch.stack([images] * T))
    direct.step_mode = "s"
    assert torch.equal(direct(images), images)


def test_a_host_network_keeps_working_beside_ours(images):
    torch.manual_seed(0)
    mixed = nn.Sequential(layer.Linear(8, 8), neuron.LIFNode(), layer.Linear(8, 8), SingleSpikeLIFNode())
    functional.set_step_mode(mixed, "m")
    out = mixed(torch.rand(T, 3, 8))
    assert out.shape == (T, 3, 8)
    functional.detach_net(mixed)
    functional.reset_net(mixed)


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_detach_net_cuts_the_graph_of_states_that_are_views(step_mode, images):
    net = network(step_mode, store_v_seq=True)
    net(images)
    functional.detach_net(net)
    states = [value for module in net if isinstance(module, base.MemoryModule) for value in module._memories.values()]
    states += [module.v_seq for module in net if isinstance(module, SingleSpikeLIFNode)]
    assert any(isinstance(value, torch.Tensor) for value in states)
    assert not any(isinstance(value, torch.Tensor) and value.requires_grad for value in states)


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_what_a_snntorch_neuron_returns_is_named(step_mode):
    node = SingleSpikeLIFNode(step_mode=step_mode)
    with pytest.raises(TypeError, match=r"must be a torch.Tensor, got tuple: a snnTorch neuron returns \(spk, mem\)"):
        node((torch.zeros(2, 3), torch.zeros(2, 3)))


def test_the_node_is_one_of_the_hosts():
    node = SingleSpikeLIFNode(0.9, 0.5)
    assert isinstance(node, neuron.BaseNode)
    assert (node.v_reset, node.detach_reset) == (None, True)
    assert [name for name, _ in node.named_parameters()] == ["leak", "v_threshold"]
    assert next(iter(node._memories)) == "v"


def test_register():
    if not hasattr(base, "to_functional_forward"):
        with pytest.raises(RuntimeError, match="register needs SpikingJelly 2"):
            register()
        return
    from spikingjelly.activation_based.distributed.vision import config  # noqa: PLC0415

    for _ in range(2):
        register()
    assert SingleSpikeLIFNode in config._NEURON_REGISTRY.values()
    assert Triangle in config._SURROGATE_REGISTRY.values()


def test_a_bias_changes_no_count():
    op_counter = pytest.importorskip("spikingjelly.activation_based.op_counter", reason="it came with SpikingJelly 2.0")
    torch.manual_seed(0)
    x, counts = torch.rand(3, 10), []
    for bias in (False, True):
        net = nn.Sequential(HybridEncoder(T), layer.Linear(10, 7, bias=bias, step_mode="m"))
        macs = op_counter.MACCounter(extra_rules=mac_rules())
        acs = op_counter.ACCounter(extra_rules=ac_rules(), extra_ignore_modules=[HybridEncoder])
        with op_counter.DispatchCounterMode([macs, acs]), torch.no_grad():
            net(x)
        counts.append((macs.get_total(), acs.get_total()))
    assert counts == [(3 * 10 * 7, 3 * 10 * 7)] * 2  # every pixel is analogue once and spikes once


@pytest.mark.parametrize("step_mode", ["m", "s"])
def test_the_hosts_counters_give_the_hand_count(images, step_mode):
    """Every spike is followed by hand to the weights that it meets."""
    op_counter = pytest.importorskip("spikingjelly.activation_based.op_counter", reason="it came with SpikingJelly 2.0")
    torch.manual_seed(0)
    net = nn.Sequential(
        HybridEncoder(T),
        layer.Conv2d(2, 3, 3, padding=1, bias=False),
        SingleSpikeLIFNode(v_threshold=0.4),
        layer.Conv2d(3, 4, 3, stride=2, bias=False),
        SingleSpikeLIFNode(v_threshold=0.2),
        layer.Flatten(),
        layer.Linear(36, 5, bias=False),
    )
    functional.set_step_mode(net, step_mode)
    seen = []
    hooks = [net[i].register_forward_hook(lambda _, __, out: seen.append(out.detach())) for i in (0, 2, 4)]
    macs = op_counter.MACCounter(extra_rules=mac_rules())
    acs = op_counter.ACCounter(extra_rules=ac_rules(), extra_ignore_modules=[HybridEncoder])
    with op_counter.DispatchCounterMode([macs, acs]), torch.no_grad():
        for _ in range(1 if step_mode == "m" else T):
            net(images)
    for hook in hooks:
        hook.remove()
    sequences = seen if step_mode == "m" else [torch.stack(seen[i::3]) for i in range(3)]
    assert all(0.05 < sequence.any(0).float().mean() < 0.95 for sequence in sequences[1:])

    def meets(size, stride, padding):
        """For each place along one dimension, how many windows of 3 hold it."""
        starts = range(-padding, size + padding - 2, stride)
        return [sum(start <= place < start + 3 for start in starts) for place in range(size)]

    expected = 0
    for spikes, stride, padding, outputs in ((sequences[0][1:], 1, 1, 3), (sequences[1], 2, 0, 4)):
        along = meets(8, stride, padding)
        for *_, row, column in spikes.nonzero().tolist():
            expected += along[row] * along[column] * outputs
    expected += int(sequences[2].sum()) * 5
    assert macs.get_total() == len(images) * 8 * 8 * 3 * (2 * 3 * 3)
    assert acs.get_total() == expected


@pytest.mark.parametrize("gamma", [0.3, 1.0])
def test_the_triangle_is_a_surrogate_of_the_host(gamma):
    x = torch.tensor([-2.0, -1.0, -0.25, 0.0, 0.5, 1.0, 3.0], requires_grad=True)
    spikes = Triangle(gamma)(x)
    assert spikes.tolist() == [0, 0, 0, 1, 1, 1, 1]
    spikes.sum().backward()
    slopes = gamma * torch.tensor([0, 0, 0.75, 1, 0.5, 0, 0])
    assert torch.equal(x.grad, slopes)
    smooth = Triangle(gamma, spiking=False)
    assert smooth(torch.tensor([-5.0, 0.0, 5.0])).tolist() == pytest.approx([0, gamma / 2, gamma])
    (gradient,) = torch.autograd.grad(smooth(x).sum(), x)
    torch.testing.assert_close(gradient[1:-1], slopes[1:-1])


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_the_hosts_neurons_take_the_triangle(step_mode):
    """Of height 1 it is the host's own PiecewiseQuadratic with alpha 1."""
    x_seq = torch.randn(4, 3, 20, generator=torch.Generator().manual_seed(2))
    gradients = []
    for function in (Triangle(1.0), surrogate.PiecewiseQuadratic(1.0), Triangle(0.5)):
        node = neuron.LIFNode(2.0, surrogate_function=function, v_reset=None, detach_reset=True, step_mode=step_mode)
        x = x_seq.clone().requires_grad_()
        spikes = node(x) if step_mode == "m" else torch.stack([node(step) for step in x])
        assert 0.05 < spikes.any(0).float().mean() < 0.95
        spikes.sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[0], gradients[1])
    torch.testing.assert_close(gradients[2], gradients[1] / 2)


def test_weights_of_the_loss_move_with_it():
    loss = HybridCrossEntropyLoss(weight=torch.ones(4)).double()
    assert loss.weight.dtype == torch.float64
    assert set(HybridCrossEntropyLoss().state_dict()) == set()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SingleSpikeLIFNode(leak=1.5), r"leak must be in \[0, 1\], got 1.5"),
        (lambda: SingleSpikeLIFNode(leak=-0.1), r"leak must be in \[0, 1\], got -0.1"),
        (lambda: SingleSpikeLIFNode(v_threshold=0), "v_threshold must be > 0, got 0"),
        (lambda: SingleSpikeLIFNode(gamma=-1), "gamma must be > 0, got -1"),
        (lambda: Triangle(0), "gamma must be > 0, got 0"),
        (lambda: SingleSpikeLIFNode(per_channel=0), "per_channel must be >= 1, got 0"),
        (lambda: SingleSpikeLIFNode(backend="cuda"), "backend must be one of .*got 'cuda'"),
        (lambda: SingleSpikeLIFNode(step_mode="x"), "step_mode"),
        (lambda: HybridEncoder(0), "T must be >= 1, got 0"),
        (lambda: HybridEncoder(T, analogue=False, temporal=False), "analogue and temporal must not both be False"),
        (lambda: HybridEncoder.for_normalized(T, 0.5, 0.0), "std must be > 0, got 0.0"),
        (
            lambda: HybridEncoder.for_normalized(T, (0.5, 0.5), (0.2, 0.2, 0.2)),
            "mean and std must be numbers or one number per",
        ),
        (lambda: HybridEncoder(T, (1.0, 0.0)), "intensity_range must have low <= high"),
        (lambda: HybridEncoder(T, "batch"), "intensity_range must be .*got 'batch'"),
        (lambda: SpikeTimeReadout(0.0), "v_threshold must be > 0, got 0.0"),
        (lambda: SpikeTimeReadout(beta=0.0), "beta must be > 0, got 0.0"),
        (lambda: SpikeTimeReadout(time_gradient="x"), "time_gradient must be one of .*got 'x'"),
        (lambda: HybridCrossEntropyLoss("avg"), "reduction must be .*got 'avg'"),
        (lambda: HybridCrossEntropyLoss(label_smoothing=2), r"label_smoothing must be in \[0, 1\], got 2"),
        (lambda: DirectEncoder(0), "T must be >= 1, got 0"),
        (lambda: SingleSpikeLIFNode(torch.rand(4)), r"leak must be one number for the layer, got a tensor of shape \(4,\)"),
    ],
)
def test_bad_settings_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"surrogate_function": surrogate.ATan()},
            r"takes no surrogate_function, .*triangle of height gamma.*to_single",
        ),
        ({"detach_reset": False}, "takes no detach_reset, got detach_reset=False: its reset is detached, so leave it out, or"),
        ({"v_reset": 0.0}, "takes no v_reset, got v_reset=0.0: its reset subtracts the threshold, so leave it out, or"),
        ({"tau": 2.0}, r"takes no tau, got tau=2.0: give leak=1 - 1 / tau, or"),
        ({"init_tau": 2.0}, r"takes no init_tau, .*give leak=1 - 1 / init_tau, or"),
        ({"decay_input": True}, "takes no decay_input, .*give v_threshold times tau"),
        ({"v_treshold": 2.0}, "takes no v_treshold, got v_treshold=2.0: did you mean v_threshold?"),
        ({"rest": 1}, "takes no rest, got rest=1: there are leak, v_threshold, learn_leak, .*store_v_seq$"),
    ],
)
def test_arguments_of_the_hosts_neurons_are_named_with_the_remedy(arguments, message):
    with pytest.raises(TypeError, match=message):
        SingleSpikeLIFNode(**arguments)


def test_the_hosts_models_take_the_node():
    with pytest.raises(TypeError, match="takes no surrogate_function"):
        spiking_vgg.spiking_vgg11_bn(spiking_neuron=SingleSpikeLIFNode, surrogate_function=surrogate.ATan(), detach_reset=True)
    resnet = spiking_resnet.spiking_resnet18(
        spiking_neuron=SingleSpikeLIFNode, v_threshold=0.3, detach_reset=True, v_reset=None, num_classes=4
    )
    functional.set_step_mode(resnet, "m")
    out = resnet(HybridEncoder(2)(torch.rand(2, 3, 32, 32)))
    assert out.shape == (2, 2, 4)
    assert out.isfinite().all()


class Sigmoid(nn.Module):
    def forward(self, x):
        return x.sigmoid()


def test_a_parametrised_leak_does_not_keep_a_node_from_being_copied_after_a_step():
    for node, name in ((SingleSpikeLIFNode(0.9), "leak"), (in_snntorch.SingleSpikeLeaky(0.9, init_hidden=True), "beta")):
        parametrize.register_parametrization(node, name, Sigmoid())
        x = torch.rand(2, 3, 4)
        node(x)
        twin = copy.deepcopy(node)
        assert torch.equal(twin(x), node(x))
        assert twin.parametrizations[name].original is not node.parametrizations[name].original


def test_whole_numbers_of_numpy_are_taken():
    node = SingleSpikeLIFNode(np.float32(0.9), np.float64(0.5), gamma=np.float32(0.3), per_channel=np.int64(3))
    assert node(torch.rand(2, 2, 3)).shape == (2, 2, 3)
    assert json.dumps([node.per_channel, node.gamma])
    readout = SpikeTimeReadout(np.float64(0.5), beta=np.float32(0.2))(torch.rand(4, 2, 3))
    assert HybridCrossEntropyLoss(ignore_index=np.int64(1))(readout, torch.tensor([0, 1])).isfinite()


def test_a_readout_stepped_with_another_batch_is_named():
    readout = SpikeTimeReadout(step_mode="s")
    readout(torch.rand(3, 4))
    with pytest.raises(ValueError, match=r"x must have the shape of the earlier steps, \(3, 4\), got \(2, 4\): call reset_net"):
        readout(torch.rand(2, 4))


def test_a_node_that_keeps_no_state_starts_every_sequence_afresh():
    node, x = SingleSpikeLIFNode(0.9, 0.5), torch.rand(4, 3, 20) * 0.4
    fresh = node(x)
    assert 0.05 < fresh.any(0).float().mean() < 0.95
    assert not torch.equal(node(x), fresh), "it goes on from its state"
    node.reset()
    node.keep_state = False
    for _ in range(2):
        assert torch.equal(node(x), fresh)
        assert (node.v, node.fired) == (0.0, False)
    node.store_v_seq = True
    assert torch.equal(node(x), fresh)
    assert node.v_seq.shape == x.shape
    node.step_mode = "s"
    assert torch.equal(torch.stack([node(step) for step in x]), fresh), "single steps always keep it"
