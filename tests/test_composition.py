"""The neuron inside what users wrap networks in, on every backend that runs on the CPU."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from spikingjelly.activation_based import functional, layer
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint_sequential

from onespike.functional import available_backends
from onespike.spikingjelly import HybridCrossEntropyLoss, HybridEncoder, SingleSpikeLIFNode, SpikeTimeReadout

BACKENDS = available_backends("cpu")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def make_net(backend: str) -> nn.Sequential:
    """A small convolutional network with dropout-free, thus repeatable, training steps."""
    torch.manual_seed(0)
    net = nn.Sequential(
        HybridEncoder(5, (0.0, 1.0)),
        layer.Conv2d(3, 8, 3, padding=1, bias=False),
        SingleSpikeLIFNode(0.9, 0.3, backend=backend),
        layer.AvgPool2d(2),
        layer.Conv2d(8, 8, 3, padding=1, bias=False),
        SingleSpikeLIFNode(0.9, 0.1, per_channel=8, backend=backend),
        layer.Flatten(),
        layer.Linear(128, 10, bias=False),
        SpikeTimeReadout(),
    )
    functional.set_step_mode(net, "m")
    return net


def batch(images: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(images, 3, 8, 8, generator=generator), torch.randint(10, (images,), generator=generator)


def results(net: nn.Module, call=None, x: torch.Tensor | None = None) -> list[torch.Tensor]:
    """Potentials, loss and the gradient of every parameter of one training step."""
    images, target = batch()
    functional.reset_net(net)
    net.zero_grad()
    readout = (call or net)(images if x is None else x)
    loss = HybridCrossEntropyLoss()(readout, target)
    loss.backward()
    functional.reset_net(net)
    assert readout.potential.abs().sum() > 0
    return [readout.potential.detach(), loss.detach(), *(parameter.grad.clone() for parameter in net.parameters())]


@pytest.fixture(params=BACKENDS)
def net(request):
    return make_net(request.param)


def test_every_backend_trains_alike():
    expected = results(make_net("torch"))
    for backend in BACKENDS:
        torch.testing.assert_close(results(make_net(backend)), expected)


def test_the_whole_network_compiles_without_a_graph_break(net):
    torch._dynamo.reset()
    torch.testing.assert_close(results(net, torch.compile(net, fullgraph=True)), results(net), rtol=1e-4, atol=1e-5)


def test_a_compiled_network_takes_batches_of_any_size(net):
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True)  # the second size makes torch treat the batch as a variable
    for images in (6, 4, 3):
        x = batch(images)[0]
        found = compiled(x).potential
        functional.reset_net(net)
        torch.testing.assert_close(found, net(x).potential, rtol=1e-4, atol=1e-5)
        functional.reset_net(net)


def test_channels_last(net):
    expected = results(net)
    functional.reset_net(net)
    net.to(memory_format=torch.channels_last)
    images = batch()[0].to(memory_format=torch.channels_last)
    s_seq = net[:3](images)
    assert s_seq[0].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(results(net, x=images), expected, rtol=1e-4, atol=1e-5)


def test_a_deep_copy_is_the_same_network_on_its_own(net):
    twin = copy.deepcopy(net)
    torch.testing.assert_close(results(twin), results(net))
    with torch.no_grad():
        twin[2].leak.fill_(0.1)
    assert net[2].leak.item() == pytest.approx(0.9)


def test_activation_checkpointing(net):
    def by_segments(x):
        # Each segment starts from a reset, so that computing it again gives the same spikes.
        for module in net:
            module.register_forward_pre_hook(lambda module, _: functional.reset_net(module))
        return net[-1](checkpoint_sequential(net[:-1], 3, x, use_reentrant=False))

    expected = results(net)
    torch.testing.assert_close(results(net, by_segments), expected)


def test_autocast_keeps_the_state_in_float32(net):
    images, target = batch()
    with torch.autocast("cpu", torch.bfloat16):
        s_seq = net[:3](images)
        assert s_seq.dtype == torch.bfloat16
        assert net[2].v.dtype == torch.float32
        functional.reset_net(net)
        loss = HybridCrossEntropyLoss()(net(images), target)
    loss.backward()
    assert all(torch.isfinite(parameter.grad).all() and parameter.grad.dtype == torch.float32 for parameter in net.parameters())


def train_a_shard(rank: int, backend: str, store: str, expected: list[torch.Tensor]) -> None:
    """One of two processes: its half of the batch must leave the gradients of the whole."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    net = make_net(backend)
    images, target = (half.chunk(2)[rank] for half in batch())
    parallel = DistributedDataParallel(net)
    HybridCrossEntropyLoss()(parallel(images), target).backward()
    torch.testing.assert_close([parameter.grad for parameter in net.parameters()], expected, rtol=1e-4, atol=1e-6)
    dist.destroy_process_group()


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_processes_share_a_batch(backend, tmp_path):
    expected = results(make_net(backend))[2:]
    mp.spawn(train_a_shard, args=(backend, str(tmp_path / "store"), expected), nprocs=2)
