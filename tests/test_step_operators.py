"""What encoder, readout, loss and projection ask of a GPU in a training step: few operators, no waiting, no copies to it."""

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from onespike import snntorch as in_snntorch
from onespike.functional import Readout, hybrid_cross_entropy, hybrid_encode, spike_time_readout
from onespike.spikingjelly import HybridCrossEntropyLoss, HybridEncoder, SingleSpikeLIFNode, SpikeTimeReadout, project_net

T, N, K = 5, 4, 10
LOOKS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal")
COPIES = ("aten::_to_copy", "aten::copy_")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def devices(values):
    return {leaf.device.type for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)}


class Operators(TorchDispatchMode):
    """Record the operators on a device that are no views, and those that would make its host wait."""

    def __init__(self):
        super().__init__()
        self.launched, self.waits = [], []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator.name().split(".")[0]
        where = devices((args, kwargs))
        if name in LOOKS and where - {"cpu"}:
            self.waits.append(name)
        out = operator(*args, **(kwargs or {}))
        where |= devices(out)
        if name in COPIES and len(where) > 1:
            self.waits.append(name)
        if name.startswith("aten::") and where - {"cpu"} and not operator.is_view:
            self.launched.append(name)
        return out


def encode(device, steps=T):
    encoder = HybridEncoder.for_normalized(steps, MEAN, STD).to(device)
    images = torch.empty(N, 3, 8, 8, device=device)
    with Operators() as seen:
        encoder(images)
    return seen


def read_out(device, time_gradient="threshold"):
    x_seq = torch.empty(T, N, K, device=device, requires_grad=True)
    threshold = torch.empty((), device=device, requires_grad=True)
    with Operators() as seen:
        outputs = [
            output for output in spike_time_readout(x_seq, threshold, time_gradient=time_gradient) if output.requires_grad
        ]
        torch.autograd.grad(outputs, x_seq if time_gradient == "off" else (x_seq, threshold), outputs)
    return seen


def lose(device):
    readout = Readout(*(torch.empty(N, K, device=device, requires_grad=True) for _ in range(2)))
    target = torch.empty(N, dtype=torch.int64, device=device)
    with Operators() as seen:
        torch.autograd.grad(hybrid_cross_entropy(readout, target), tuple(readout))
    return seen


def project(device, layers=15):
    net = nn.Sequential(*(SingleSpikeLIFNode() for _ in range(layers)), SpikeTimeReadout(), in_snntorch.SingleSpikeLeaky())
    net.to(device)
    with Operators() as seen:
        project_net(net)
    return seen


@pytest.mark.parametrize(
    ("step", "most"),
    [
        (encode, 14),
        (lambda device: encode(device, 20), 14),
        (read_out, 14),
        (lambda device: read_out(device, "full"), 19),
        (lambda device: read_out(device, "off"), 9),
        (lose, 12),
        (project, 3),
        (lambda device: project(device, 1), 3),
    ],
    ids=["encoder", "encoder at T = 20", "readout", "readout, full", "readout, off", "loss", "projection", "of one layer"],
)
def test_forward_and_backward_stay_within_a_budget(step, most):
    seen = step("meta")  # without values, and by the same operators as on a GPU
    assert 0 < len(seen.launched) <= most, seen.launched
    assert seen.waits == []


@pytest.mark.parametrize("time_gradient", ["threshold", "full", "off", "eq17"])
def test_nothing_waits_for_a_gpu_and_nothing_is_copied_to_it(time_gradient):
    encoder, readout = HybridEncoder.for_normalized(T, MEAN, STD), SpikeTimeReadout(time_gradient=time_gradient)
    net = nn.Sequential(encoder, SingleSpikeLIFNode(), readout)
    loss = HybridCrossEntropyLoss(weight=torch.ones(K))
    host_loss = in_snntorch.ce_spike_time_potential_loss(weight=torch.ones(K))
    with FakeTensorMode(allow_non_fake_inputs=True):  # CUDA tensors without a device; a backward pass it cannot have
        net.to("cuda"), loss.to("cuda")
        images = torch.empty(N, 3, 8, 8, device="cuda")
        x_seq, target = torch.empty(T, N, K, device="cuda"), torch.zeros(N, dtype=torch.int64, device="cuda")
        host_loss(readout(x_seq), target)  # the first call moves its weight
        with Operators() as seen:
            encoder(images)
            for intensity_range in ((-2.0, 2.0), "image", "image_channel"):
                hybrid_encode(images, T, intensity_range=intensity_range)
            spike_time_readout(x_seq, 0.5, time_gradient=time_gradient)
            loss(readout(x_seq), target)
            host_loss(readout(x_seq), target)
            project_net(net)
        assert seen.waits == []
        assert len(seen.launched) > 50


def test_the_watch_sees_what_would_wait():
    with FakeTensorMode(), Operators() as seen:
        torch.as_tensor(0.5, device="cuda")
        torch.zeros(2).to("cuda")
        torch.zeros(2, device="cuda").copy_(torch.zeros(2))
        with pytest.raises(Exception, match="_local_scalar_dense"):
            torch.ones((), device="cuda").item()
    assert seen.waits == ["aten::_to_copy", "aten::_to_copy", "aten::copy_", "aten::_local_scalar_dense"]
