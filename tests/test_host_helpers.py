"""Our neurons inside the hosts' and PyTorch's helpers for memory, precision, distribution, monitoring and conversion."""

import copy
import json

import pytest
import torch
from spikingjelly.activation_based import ann2snn, functional, layer, monitor, neuron
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from onespike.snntorch import SingleSpikeLeaky
from onespike.spikingjelly import (
    HybridCrossEntropyLoss,
    HybridEncoder,
    SingleSpikeLIFNode,
    SpikeTimeReadout,
    register,
    to_single_spike,
)

T = 5
old = not hasattr(ann2snn, "FXConverter")
since_2 = pytest.mark.skipif(old, reason="SpikingJelly before 2.0 has no such helper")


def network(step_mode="m", **node):
    torch.manual_seed(0)
    net = nn.Sequential(
        HybridEncoder(T),
        layer.Conv2d(2, 4, 3, padding=1, bias=False),
        SingleSpikeLIFNode(v_threshold=0.4, **node),
        layer.Flatten(),
        layer.Linear(4 * 36, 4, bias=False),
        SpikeTimeReadout(0.1),
    )
    functional.set_step_mode(net, step_mode)
    return net


@pytest.fixture
def images():
    return torch.rand(3, 2, 6, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def x_seq():
    return torch.randn(T, 3, 8, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def process_group(tmp_path_factory):
    store = distributed.FileStore(str(tmp_path_factory.mktemp("gloo") / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def step(net, images):
    """Return the readout of a fresh sequence and every parameter's gradient."""
    functional.reset_net(net)
    readout = net(images)
    loss = HybridCrossEntropyLoss()(readout, torch.tensor([0, 3, 1]))
    return readout, torch.autograd.grad(loss, list(net.parameters()))


def assert_same_step(net, other, images, **tolerances):
    (expected, wanted), (found, gradients) = step(net, images), step(other, images)
    assert 0.05 < net[2].fired.float().mean() < 0.95
    assert torch.equal(found[0], expected.potential)
    assert torch.equal(found[1], expected.spike_time)
    for a, b in zip(gradients, wanted, strict=True):
        assert b.any()
        torch.testing.assert_close(a, b, **tolerances or {"rtol": 0, "atol": 0})


@since_2
@pytest.mark.parametrize("compress", [True, False])
def test_optimize_memory_changes_no_bit(images, compress):
    from spikingjelly.activation_based import memopt  # noqa: PLC0415

    net, lean = network(), network()
    memopt.optimize_memory(lean, (SingleSpikeLIFNode, layer.Linear), lambda net: net(images), level=1, compress=compress)
    assert type(lean[2]) is not SingleSpikeLIFNode
    assert lean.state_dict().keys() == net.state_dict().keys()
    assert_same_step(net, lean, images)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same_step(net, lean, images)


@since_2
@pytest.mark.parametrize("chunks", [2, 3])
def test_a_checkpoint_in_chunks_carries_the_state_on(images, chunks):
    from spikingjelly.activation_based import memopt  # noqa: PLC0415

    net, lean = network(), network()
    lean[2] = memopt.checkpoint_module(lean[2], chunks=chunks)
    assert_same_step(net, lean, images, rtol=1e-5, atol=1e-6)
    assert_same_step(net, memopt.checkpoint_module(network()), images)


@since_2
def test_a_checkpoint_leaves_the_state_of_the_last_step(x_seq):
    from spikingjelly.activation_based import memopt  # noqa: PLC0415

    node, lean = SingleSpikeLIFNode(0.9, 0.5), SingleSpikeLIFNode(0.9, 0.5)
    checkpointed = memopt.checkpoint_module(lean)
    expected = node(x_seq)
    assert torch.equal(torch.cat([checkpointed(x_seq[:2]), checkpointed(x_seq[2:])]), expected)
    assert torch.equal(lean.v, node.v)
    assert torch.equal(lean.fired, node.fired)


@since_2
def test_precision_policies(images):
    from spikingjelly.activation_based.precision import PrecisionConfig, prepare_model_for_precision  # noqa: PLC0415

    expected, _ = step(network(), images)
    policies = {mode: prepare_model_for_precision(network(), "cpu", PrecisionConfig(mode=mode)) for mode in ("fp32", "bf16")}
    for mode, policy in policies.items():
        with policy.autocast_context():
            readout, gradients = step(policy.model, images)
        assert policy.model[2].v.dtype == torch.float32
        assert torch.equal(readout.potential, expected.potential) == (mode == "fp32")
        torch.testing.assert_close(readout.potential, expected.potential, rtol=0.05, atol=0.05)
        assert all(gradient.isfinite().all() for gradient in gradients)
    with pytest.raises(RuntimeError, match="no multi-step IF/LIF/PLIF nodes were found"):  # the host's own nodes by their class
        prepare_model_for_precision(network(), "cpu", PrecisionConfig(mode="fp32", neuron_storage="bf16"))


@since_2
def test_a_sequence_without_state_leaves_the_node_alone(x_seq):
    from spikingjelly.activation_based.distributed.llm.temporal import run_functional_sequence  # noqa: PLC0415

    node = SingleSpikeLIFNode(0.9, 0.5)
    expected = SingleSpikeLIFNode(0.9, 0.5)(x_seq)
    for _ in range(2):
        assert torch.equal(run_functional_sequence(node, (x_seq,))[0], expected)
    assert node.v == 0.0


@since_2
@pytest.mark.parametrize("memopt_level", [0, 1])
def test_a_vision_configuration_builds_the_hosts_network_with_our_node(memopt_level):
    from spikingjelly.activation_based.distributed.vision import ModelConfig, NeuronConfig  # noqa: PLC0415
    from spikingjelly.activation_based.model.sew_resnet import SEWResNet34Config  # noqa: PLC0415

    register()
    node = NeuronConfig(f"{SingleSpikeLIFNode.__module__}.SingleSpikeLIFNode", {"leak": 0.9, "v_threshold": 0.3})
    config = SEWResNet34Config(time_steps=2, num_classes=3, image_size=16, neuron_config=node)
    restored = ModelConfig.from_dict(json.loads(json.dumps(config.as_dict())))
    assert restored == config
    net, *_ = restored.get_builder_cls()(restored).build(
        process_group=None,
        memopt_process_group=None,
        pipeline_rank=0,
        pipeline_size=1,
        pipeline_microbatches=1,
        device=torch.device("cpu"),
        micro_batch_size=2,
        memopt_level=memopt_level,
        memopt_compress_inputs=True,
        memopt_checkpoint_budget="memory",
    )
    nodes = [module for module in net.modules() if isinstance(module, SingleSpikeLIFNode)]
    assert len(nodes) > 30
    assert all(node.leak == torch.tensor(0.9) for node in nodes)
    net(torch.rand(2, 2, 3, 16, 16)).square().mean().backward()
    assert nodes[0].v_threshold.grad is not None


def test_data_parallel_training(process_group, images):
    net = network()
    parallel = DistributedDataParallel(network())
    (expected, wanted), target = step(net, images), torch.tensor([0, 3, 1])
    for _ in range(2):
        parallel.zero_grad()
        readout = parallel(images)
        HybridCrossEntropyLoss()(readout, target).backward()
        assert torch.equal(readout.potential, expected.potential)
        for parameter, gradient in zip(parallel.parameters(), wanted, strict=True):
            assert torch.equal(parameter.grad, gradient)
        functional.reset_net(parallel)
        assert parallel.module[2].v == 0.0


def test_data_parallel_training_in_snntorch(process_group, x_seq):
    def build():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 6, bias=False), SingleSpikeLeaky(0.9, 0.3, init_hidden=True))

    def spikes(net):
        s_seq = torch.stack([net(x) for x in x_seq])
        s_seq.square().sum().backward()
        return s_seq

    net, parallel = build(), DistributedDataParallel(build())
    expected = spikes(net)
    assert expected.any()
    assert torch.equal(spikes(parallel), expected)
    for a, b in zip(parallel.parameters(), net.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_sharding_takes_parameters_per_channel_alone(process_group, x_seq):
    """FSDP2 shards along the first dimension: a parameter per layer has none, as in the host's ParametricLIFNode."""
    mesh = init_device_mesh("cpu", (1,))
    for node in (SingleSpikeLIFNode(), neuron.ParametricLIFNode()):
        with pytest.raises(ValueError, match="fully_shard doesn't support scalar parameters"):
            fully_shard(node, mesh=mesh)
    node, sharded = (SingleSpikeLIFNode(0.9, 0.5, per_channel=8) for _ in range(2))
    fully_shard(sharded, mesh=mesh)
    expected, found = node(x_seq), sharded(x_seq)
    assert torch.equal(found, expected)
    assert expected.any()
    expected.sum().backward()
    found.sum().backward()
    torch.testing.assert_close(sharded.v_threshold.grad.full_tensor(), node.v_threshold.grad)


@pytest.mark.parametrize("step_mode", ["m", "s"])
def test_every_monitor_records_the_node(images, step_mode):
    net = network(step_mode)
    currents, spikes, fired, grad_currents, grad_spikes = monitors = [
        monitor.InputMonitor(net, SingleSpikeLIFNode),
        monitor.OutputMonitor(net, SingleSpikeLIFNode),
        monitor.AttributeMonitor("fired", False, net, SingleSpikeLIFNode),
        monitor.GradInputMonitor(net, SingleSpikeLIFNode),
        monitor.GradOutputMonitor(net, SingleSpikeLIFNode),
    ]
    for _ in range(1 if step_mode == "m" else T):
        readout = net(images)
    HybridCrossEntropyLoss()(readout, torch.tensor([0, 3, 1])).backward()
    assert all(len(each["2"]) == len(each.records) == (1 if step_mode == "m" else T) for each in monitors)

    def sequence(records):
        return records[0] if step_mode == "m" else torch.stack(records)

    node, x_seq = SingleSpikeLIFNode(v_threshold=0.4), sequence(currents.records).detach().requires_grad_()
    s_seq = node(x_seq)
    assert torch.equal(sequence(spikes.records), s_seq)
    assert torch.equal(fired.records[-1], s_seq.any(0))
    upstream = sequence(grad_spikes.records[::-1])
    assert upstream.any()
    (expected,) = torch.autograd.grad(s_seq, x_seq, upstream)
    torch.testing.assert_close(sequence(grad_currents.records[::-1]), expected)
    for each in monitors:
        each.remove_hooks()
    functional.reset_net(net)
    net(images)
    assert len(spikes.records) == (1 if step_mode == "m" else T)


@since_2
def test_a_monitor_before_the_step_sees_the_state_that_it_starts_from(x_seq):
    """In 0.0.0.0.14 the host's own hook for it cannot be called."""
    node = SingleSpikeLIFNode(0.9, 0.5, step_mode="s")
    before, after = (monitor.AttributeMonitor("v", first, node) for first in (True, False))
    for x in x_seq:
        node(x)
    assert before.records[0] == 0.0
    for v, same in zip(before.records[1:], after.records[:-1], strict=True):
        assert torch.equal(v, same)


def test_stepping_helpers(x_seq):
    expected = SingleSpikeLIFNode(0.9, 0.5)(x_seq)
    assert expected.any()
    node = SingleSpikeLIFNode(0.9, 0.5, step_mode="s")
    assert torch.equal(functional.multi_step_forward(x_seq, node), expected)
    functional.reset_net(node)
    assert torch.equal(layer.MultiStepContainer(node)(x_seq), expected)
    if old:
        assert torch.equal(functional.chunk_multi_step_forward(2, x_seq, SingleSpikeLIFNode(0.9, 0.5)), expected)


def test_a_threshold_margin_is_refused(x_seq):
    with pytest.raises(TypeError, match=r"cannot assign .* as parameter 'v_threshold'"):
        functional.set_threshold_margin(SingleSpikeLIFNode(), torch.eye(3))


def convert(ann, images, **recipe):
    """Convert by the host's ann2snn; the largest input stays off the threshold, a tie that the host fires at and we do not."""
    batches = [(1.1 * images, torch.zeros(len(images)))]
    ann = copy.deepcopy(ann)
    if old:
        return ann2snn.Converter(batches, mode="Max")(ann)
    return ann2snn.FXConverter(ann2snn.RateCodingRecipe(batches, mode="Max", **recipe)).convert(ann)


@pytest.fixture
def ann():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False)).eval()


def hidden_spikes(net, images, kind):
    """Step a converted network; return its one hidden layer's spikes, [8, N, 8]."""
    (node,) = (module for module in net.modules() if isinstance(module, kind))
    spikes = monitor.OutputMonitor(node)
    for _ in range(8):
        net(images)
    return torch.stack(spikes.records)


def test_a_network_converted_by_the_host_becomes_single_spike(ann, images):
    images = images.flatten(0, 1)[:, 0]
    converted = convert(ann, images)
    ours, report = to_single_spike(converted)
    assert not report.left
    many, one = hidden_spikes(converted, images, neuron.IFNode), hidden_spikes(ours, images, SingleSpikeLIFNode)
    assert many.sum(0).max() > 1
    assert torch.equal(one, ((many.cumsum(0) == 1) & (many > 0)).float())


@since_2
def test_the_hosts_conversion_builds_our_node(ann, images):
    images = images.flatten(0, 1)[:, 0]
    ours = convert(ann, images, neuron_factory=lambda scale: SingleSpikeLIFNode(v_threshold=1.0, step_mode="s"))
    swapped, _ = to_single_spike(convert(ann, images))
    spikes = hidden_spikes(ours, images, SingleSpikeLIFNode)
    assert spikes.any()
    assert torch.equal(spikes, hidden_spikes(swapped, images, SingleSpikeLIFNode))
