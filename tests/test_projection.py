"""The projection of a network's leaks and thresholds: the same values as node by node, in a fixed number of calls."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from onespike import snntorch as in_snntorch
from onespike.functional.projection import clamp_together, project_net
from onespike.spikingjelly import SingleSpikeLIFNode, SpikeTimeReadout

OUTSIDE = (float("nan"), -0.5, 0.0, 0.3, 1.0, 1.7, float("inf"), -float("inf"), 1e-4)


class OwnRule(nn.Module):
    """A user's module that is projected by its own rule."""

    def __init__(self):
        super().__init__()
        self.leak = nn.Parameter(torch.tensor(7.0))

    @torch.no_grad()
    def project_(self):
        self.leak.clamp_(max=3.0)


class OwnNode(SingleSpikeLIFNode):
    """A subclass of ours that keeps its thresholds above one half."""

    @torch.no_grad()
    def project_(self):
        super().project_()
        self.v_threshold.clamp_(min=0.5)


def network():
    """Nodes of both hosts, per layer and per channel, frozen and trained, one parameter shared, and modules with own rules."""
    net = nn.Sequential(
        SingleSpikeLIFNode(),
        nn.Linear(2, 2),
        SingleSpikeLIFNode(per_channel=len(OUTSIDE)),
        SingleSpikeLIFNode(learn_leak=False, learn_threshold=False),
        SingleSpikeLIFNode().double(),
        SingleSpikeLIFNode().bfloat16(),
        SpikeTimeReadout(),
        nn.Sequential(in_snntorch.SingleSpikeLeaky(), in_snntorch.SingleSpikeLeaky(1.0, 1.0, False, False)),
        in_snntorch.SpikeTimeReadout(),
        in_snntorch.SpikeTimeReadout(learn_threshold=False),
        OwnNode(),
        OwnRule(),
    )
    net[3].leak = net[0].leak
    return net


def values(net):
    return {name: tensor.detach() for name, tensor in [*net.named_parameters(), *net.named_buffers()]}


def fill(net, shift):
    """Put values in and out of range into everything that is projected."""
    with torch.no_grad():
        for place, (name, tensor) in enumerate(values(net).items()):
            if name.endswith(("leak", "beta", "threshold")):
                outside = torch.tensor(OUTSIDE, dtype=tensor.dtype).roll(place + shift)
                tensor.copy_(outside if tensor.dim() else outside[0])


@pytest.mark.parametrize("shift", range(len(OUTSIDE)))
def test_it_equals_the_projection_of_each_module(shift):
    together = network()
    fill(together, shift)
    before, one_by_one = copy.deepcopy(values(together)), copy.deepcopy(together)
    project_net(together)
    for module in one_by_one.modules():
        if hasattr(module, "project_"):
            module.project_()
    wanted = values(one_by_one)
    for name, tensor in values(together).items():
        assert torch.equal(tensor.nan_to_num(-9), wanted[name].nan_to_num(-9)), name
    assert any(not torch.equal(tensor, before[name]) for name, tensor in wanted.items())


def test_modules_with_rules_of_their_own_keep_them():
    net = network()
    with torch.no_grad():
        net[10].v_threshold.fill_(0.2)
    project_net(net)
    assert net[10].v_threshold.item() == 0.5
    assert net[11].leak.item() == 3.0


def test_a_shared_parameter_is_clamped_once(monkeypatch):
    seen = []
    clamp = torch._foreach_clamp_min_
    monkeypatch.setattr(torch, "_foreach_clamp_min_", lambda tensors, bound: (seen.append(len(tensors)), clamp(tensors, bound)))
    leak, threshold = torch.tensor(-1.0), torch.tensor(0.0)
    clamp_together([leak, leak], dict.fromkeys([threshold, threshold, threshold], torch.tensor(1e-3)))
    assert seen == [1, 1]
    assert (leak.item(), threshold.item()) == (0.0, pytest.approx(1e-3))


def small(v_threshold, made=None):
    """A module of each kind with a threshold, given this one, on a device."""
    with torch.device(made or "cpu"):
        return [
            SingleSpikeLIFNode(v_threshold=v_threshold),
            SingleSpikeLIFNode(v_threshold=v_threshold, per_channel=3, learn_threshold=False),
            SpikeTimeReadout(v_threshold),
            in_snntorch.SingleSpikeLeaky(0.9, v_threshold),
            in_snntorch.SingleSpikeLeaky(0.9, v_threshold, learn_threshold=False),
            in_snntorch.SpikeTimeReadout(v_threshold),
        ]


def threshold_of(module):
    return module.v_threshold if hasattr(module, "v_threshold") else module.threshold


@pytest.mark.parametrize("v_threshold", [1e-6, 3.0, 1e5])
def test_a_threshold_is_kept_above_a_share_of_the_one_given_whatever_its_unit(v_threshold):
    for module in small(v_threshold):
        project_net(module)
        assert threshold_of(module).tolist() == pytest.approx(torch.full_like(threshold_of(module), v_threshold).tolist())
        with torch.no_grad():
            threshold_of(module).fill_(-v_threshold)
        project_net(module)
        floored = threshold_of(module).clone()
        assert floored.flatten()[0].item() == pytest.approx(1e-3 * v_threshold)
        with torch.no_grad():
            threshold_of(module).fill_(-v_threshold)
        module.project_()
        assert torch.equal(threshold_of(module), floored)


def through_torch_save(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "carry",
    [
        lambda module, _: copy.deepcopy(module),
        lambda module, _: pickle.loads(pickle.dumps(module)),
        lambda module, _: through_torch_save(module),
        lambda module, other: (other.load_state_dict(module.state_dict()), other)[1],
        lambda module, other: (other.load_state_dict(module.state_dict(), assign=True), other)[1],
        lambda module, other: (other.to("meta").load_state_dict(module.state_dict(), assign=True), other)[1],
        lambda module, other: (other.to("meta").to_empty(device="cpu").load_state_dict(module.state_dict()), other)[1],
        lambda module, _: copy.deepcopy(module).double().float(),
    ],
)
def test_the_floor_goes_where_the_module_goes(carry):
    for module, other in zip(small(1e-4), small(7.0), strict=True):
        carried = carry(module, other)
        with torch.no_grad():
            threshold_of(carried).fill_(0)
        project_net(carried)
        assert threshold_of(carried).flatten()[0].item() == pytest.approx(1e-7)


def test_modules_made_on_the_meta_device_take_a_floor():
    for module, other in zip(small(1e-4), small(7.0, "meta"), strict=True):
        other.to_empty(device="cpu").load_state_dict(module.state_dict())
        assert other.threshold_floor.item() == pytest.approx(1e-7)


@pytest.mark.parametrize("meta", [False, True])
def test_a_state_dict_from_before_there_was_a_floor_loads_with_one_of_its_own_threshold(meta):
    for module, other in zip(small(2e-4), small(7.0, "meta" if meta else None), strict=True):
        old = {name: value for name, value in module.state_dict().items() if name != "threshold_floor"}
        if meta:
            other.to_empty(device="cpu")
        other.load_state_dict(old)
        assert other.threshold_floor.item() == pytest.approx(2e-7)
        old = {name: -value if "threshold" in name else value for name, value in old.items()}
        other.load_state_dict(old)  # not projected after its last step
        assert other.threshold_floor.item() == pytest.approx(1e-3)


def test_a_network_without_neurons_is_left_as_it_is():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    weight = net[0].weight.clone()
    project_net(net)
    assert torch.equal(net[0].weight, weight)
