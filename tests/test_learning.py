"""Whether a spiking network can learn: its health, rates in the unit of its thresholds, the spikes that say most."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from spikingjelly.activation_based import layer, neuron
from torch import nn
from torch.nn.utils import prune

import onespike.snntorch
from onespike.conversion import ConversionError, convert, fit_one_spike
from onespike.metrics import NetworkHealth
from onespike.models import vgg
from onespike.optim import ADAM_EPS, centralize_gradients, parameter_groups
from onespike.spikingjelly import HybridCrossEntropyLoss, SingleSpikeLIFNode, SpikeTimeReadout, project_net


@pytest.fixture
def deep():
    """A converted VGG-16 of five hundredths of the width, with its images and labels."""
    torch.manual_seed(0)
    ann = vgg("vgg16", 10, width=0.05, hidden=32, dropout=0, fc_dropout=0, init="centred")
    images, target = torch.randn(32, 3, 32, 32), torch.arange(32) % 10
    fitted, thresholds = fit_one_spike(ann, images)
    return convert(fitted, images, thresholds=thresholds, threshold_scale=1.0), images, target


def hidden(currents, v_threshold=1.0, **settings):
    """One layer of neurons with weights of 1, on so many inputs."""
    weights = layer.Linear(1, currents, bias=False, step_mode="m")
    nn.init.ones_(weights.weight)
    return nn.Sequential(weights, SingleSpikeLIFNode(v_threshold=v_threshold, **settings))


def test_health_counts_what_can_be_counted_by_hand():
    network = hidden(4, v_threshold=2.0)
    network[0].weight.data = torch.tensor([[-1.0], [1.0], [3.0], [5.0]])
    x_seq = torch.ones(1, 6, 1)
    with NetworkHealth(network) as health:
        (network(x_seq) * torch.tensor([1.0, 2.0, 4.0, 8.0])).sum().backward()
    found = health.layers["1"]
    assert (found.silent, found.inhibited, found.support, found.saturated) == (0.5, 0.25, 0.5, 0.25)
    # z = -1.5, -0.5, 0.5, 1.5; the surrogate is 0.3 / 2 where |z| = 0.5; times V = 2
    expected = [0.3 * share * weight for share, weight in ((0, 1), (0.5, 2), (0.5, 4), (0, 8))]
    assert found.gradient == pytest.approx(math.sqrt(sum(g**2 for g in expected) / 4))
    assert health.dead == []
    assert "dead" not in str(health)
    assert str(health).splitlines()[1].split() == ["1", "0.500", "0.250", "0.500", "0.250", f"{found.gradient:.1e}"]


def test_health_is_the_same_in_both_step_modes_and_hosts_and_leaves_no_trace():
    torch.manual_seed(0)
    x_seq, weights = torch.randn(5, 7, 3), torch.randn(4, 3)
    many = nn.Sequential(layer.Linear(3, 4, bias=False, step_mode="m"), SingleSpikeLIFNode(0.9, 0.7))
    stepped = nn.Sequential(layer.Linear(3, 4, bias=False), SingleSpikeLIFNode(0.9, 0.7, step_mode="s", store_v_seq=True))
    leaky = nn.Sequential(nn.Linear(3, 4, bias=False), onespike.snntorch.SingleSpikeLeaky(0.9, 0.7, init_hidden=True))
    reports = []
    for network in (many, stepped, leaky):
        network[0].weight.data = weights
        with NetworkHealth(network) as health:
            spikes = network(x_seq) if network is many else torch.stack([network(x) for x in x_seq])
        spikes.sum().backward()  # gradients that flow after the block count as well
        reports.append(health.as_dict())
        assert not network[1]._forward_hooks
    assert reports[0]["silent"] == reports[1]["silent"] == reports[2]["silent"]
    for name, shares in reports[0].items():
        assert reports[1][name]["1"] == pytest.approx(shares["1"])
        assert reports[2][name]["1"] == pytest.approx(shares["1"])
    assert sum(reports[0][share]["1"] for share in ("inhibited", "support", "saturated")) == pytest.approx(1)
    assert (many[1].store_v_seq, stepped[1].store_v_seq) == (False, True)


def test_health_knows_thresholds_per_channel():
    node = SingleSpikeLIFNode(per_channel=2)
    node.v_threshold.data = torch.tensor([0.5, 4.0])
    with NetworkHealth(nn.Sequential(node)) as health:
        node(torch.ones(1, 3, 2, 5))
    assert health.layers["0"].saturated == 0.5
    assert health.layers["0"].support == 0.5
    assert health.layers["0"].gradient is None


def test_health_names_the_dead_layer(deep):
    network, images, target = deep
    [p for p in network.parameters() if p.dim() > 1][-2].data.abs_().neg_()
    with NetworkHealth(network) as health:
        HybridCrossEntropyLoss()(network(images), target).backward()
    last = list(network.nodes())[-1]
    assert health.dead == [last]
    assert str(health).splitlines()[-1].endswith("dead")
    assert all(found.gradient == 0 for found in health.layers.values())


def test_health_refuses_what_it_cannot_watch():
    with pytest.raises(ValueError, match="network must hold single-spike neurons, got Linear without any"):
        NetworkHealth(nn.Linear(1, 1))
    with pytest.raises(RuntimeError, match="1 has not run: call the network inside"):
        _ = NetworkHealth(hidden(1)).dead


def test_a_step_moves_currents_by_a_share_of_the_threshold(deep):
    network, images, target = deep
    optimizer = torch.optim.Adam(parameter_groups(network, 0.2), eps=ADAM_EPS)
    before = {name: node.v_threshold.item() for name, node in network.nodes().items()}
    weights = [p.detach().clone() for p in network.parameters() if p.dim() > 1]
    HybridCrossEntropyLoss()(network(images), target).backward()
    optimizer.step()
    project_net(network)
    after = [p for p in network.parameters() if p.dim() > 1]
    thresholds = [*before.values(), network.readout.v_threshold.item()]
    moved = [  # of the neuron that moves the most, if all its inputs spike
        (new - old).abs().flatten(1).sum(1).max().item() / threshold
        for old, new, threshold in zip(weights, after, thresholds, strict=True)
    ]
    assert max(moved) == pytest.approx(0.2, rel=0.01), "where every input has spiked for some image"
    for name, node in network.nodes().items():
        assert node.v_threshold.item() == pytest.approx(before[name], rel=0.0021)
        assert node.leak.item() >= 1 - 0.2 * 0.01 * 0.1 - 1e-6


def test_groups_of_networks_of_both_hosts():
    own = nn.Sequential(nn.Linear(8, 4), SingleSpikeLIFNode(v_threshold=0.5), nn.Linear(4, 2), SpikeTimeReadout(2.0))
    host = nn.Sequential(nn.Linear(8, 4), onespike.snntorch.SingleSpikeLeaky(threshold=0.5), nn.Linear(4, 2))
    own[1].leak.requires_grad_(False)
    rates = {name: group["lr"] for (name, _), group in zip(trained(own), parameter_groups(own, 0.1), strict=True)}
    assert rates == pytest.approx(
        {
            "0.weight": 0.1 * 0.5 / 8,
            "0.bias": 5e-4,
            "1.v_threshold": 5e-4,
            "2.weight": 0.1 * 2 / 4,
            "2.bias": 2e-3,
            "3.v_threshold": 2e-3,
        }
    )
    groups = parameter_groups(host, 0.1, neuron_lr=0.1)
    assert [group["lr"] for group in groups] == pytest.approx([0.1 * 0.5 / 8, 5e-3, 5e-3, 1e-3, 0.1 * 0.5 / 4, 5e-3])
    assert all(group["weight_decay"] == 0 for group in groups)


def trained(network):
    return [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": 0.0}, "lr must be > 0, got 0.0"),
        ({"neuron_lr": -1.0}, "neuron_lr must be > 0, got -1.0"),
        ({"network": nn.Linear(1, 1)}, "network must hold neurons with a threshold, got Linear without any"),
    ],
)
def test_bad_rates_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        parameter_groups(**{"network": hidden(1), **arguments})


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(6, 4),
        nn.Conv2d(3, 4, 3, bias=False).to(memory_format=torch.channels_last),
        nn.Conv2d(4, 6, 3, groups=2),
        nn.ConvTranspose2d(4, 3, 3),
        nn.ConvTranspose1d(4, 6, 3, groups=2),
    ],
    ids=lambda module: f"{type(module).__name__}, {getattr(module, 'groups', 1)} groups",
)
def test_gradients_without_what_a_neurons_weights_share(module):
    """What is left moves no neuron's current where all its inputs are the same; what was taken is one number a neuron."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter)
    before = copy.deepcopy(module)
    before.weight.data = module.weight.grad.clone()
    bias = None if module.bias is None else module.bias.grad.clone()
    centralize_gradients(nn.Sequential(module, nn.ReLU()))
    after = copy.deepcopy(module)
    after.weight.data = module.weight.grad
    pixels = module.weight.dim() - 2
    same = torch.full((1, getattr(module, "in_channels", 6), *[9] * pixels), 3.0)
    inner = (..., *[slice(2, -2)] * pixels)  # without the borders of a transposed one
    if bias is not None:
        before.bias.data.zero_()
        after.bias.data.zero_()
        assert torch.equal(module.bias.grad, bias)
    assert after(same)[inner].abs().max() < 1e-4
    x = torch.randn_like(same)
    taken, total = before(x) - after(x), copy.deepcopy(before)
    total.weight.data.fill_(1.0)
    mean = before(same)[inner] / total(same)[inner]
    assert torch.allclose(taken[inner], mean * total(x)[inner], atol=1e-4)


def test_what_is_no_neurons_weight_and_what_has_one_input_keeps_its_gradient():
    network = nn.Sequential(
        nn.Embedding(5, 3), nn.LayerNorm((2, 3)), nn.Conv1d(2, 2, 1, groups=2), nn.Linear(3, 4), nn.Linear(4, 1)
    )
    network[:4](torch.tensor([[1, 4]])).square().sum().backward()
    before = [None if p.grad is None else p.grad.clone() for p in network.parameters()]
    centralize_gradients(network)
    changed = [
        name for (name, p), old in zip(network.named_parameters(), before, strict=True) if not same_gradient(p.grad, old)
    ]
    assert changed == ["3.weight"]


def same_gradient(one, other):
    return one is other if one is None or other is None else torch.equal(one, other)


def test_relative_rates_train_where_one_rate_kills(deep):
    network, images, target = deep
    alive = {}
    for name, groups in (
        ("relative", parameter_groups(network, 0.3)),
        ("one rate", [{"params": list(network.parameters()), "lr": 1.0}]),
    ):
        state = {key: value.clone() for key, value in network.state_dict().items()}
        optimizer = torch.optim.Adam(groups, eps=ADAM_EPS)
        for _ in range(8):
            optimizer.zero_grad()
            HybridCrossEntropyLoss()(network(images), target).backward()
            optimizer.step()
            project_net(network)
        with torch.no_grad(), NetworkHealth(network) as health:
            network(images)
        alive[name] = min(found.support for found in health.layers.values())
        network.load_state_dict(state)
    assert alive["relative"] > 0.1
    assert alive["one rate"] == 0


def test_the_spike_says_the_most():
    """Against a search over every threshold of one channel, and the moments that define what a spike stands for."""
    torch.manual_seed(1)
    ann = nn.Sequential(nn.Linear(6, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False))
    images = torch.randn(40, 6)
    fitted, _ = fit_one_spike(ann, images)
    current, activation = ann[0](images).detach(), ann[:2](images).detach()
    rescaled = fitted[0](images).detach()
    for channel in range(3):
        fires = rescaled[:, channel] > 1
        ordered = sorted(current[:, channel].tolist())
        gaps = [(low + high) / 2 for low, high in pairwise(ordered)]
        best = max(explained(activation[:, channel], current[:, channel] > v) for v in gaps if v > 0.01 * current.max())
        assert explained(activation[:, channel], fires) == pytest.approx(best, rel=1e-5)
        gain = activation[fires, channel].mean() - activation[~fires, channel].mean()
        assert torch.allclose(fitted[2].weight[:, channel], ann[2].weight[:, channel] * gain, rtol=1e-5)


def explained(activation, bit):
    share = bit.double().mean().item()
    if share in (0, 1):
        return -1.0
    together = (activation.double() * bit).mean() - activation.double().mean() * share
    return (together**2 / (share * (1 - share))).item()


def test_factors_reach_the_weights_behind_pools_groups_and_flatten():
    torch.manual_seed(0)
    ann = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(24, 5, bias=False),
    )  # fmt: skip
    images = torch.randn(16, 3, 8, 8)
    kept = [p.clone() for p in ann.parameters()]
    fitted, thresholds = fit_one_spike(ann, images)
    assert all(torch.equal(a, b) for a, b in zip(kept, ann.parameters(), strict=True))
    network = convert(fitted, images, thresholds=thresholds, threshold_scale=1.0, T=1)
    # Channel by channel, with the factors left out of the weights: rows by comparing, columns by what a spike is worth.
    rows = [fitted[0].weight / ann[0].weight, fitted[2].weight / ann[2].weight, fitted[6].weight / ann[6].weight]
    gain_1 = (rows[1] / rows[1].amax((1, 2, 3), keepdim=True)).flatten(2)[..., 0]
    assert torch.allclose(gain_1[:3], gain_1[:1].expand(3, -1), rtol=1e-4), "each input's gain is the same for all outputs"
    assert torch.allclose(gain_1[3:], gain_1[3:4].expand(3, -1), rtol=1e-4)
    gain_2 = rows[2].view(5, 6, 4)
    assert torch.allclose(gain_2, gain_2[:1, :, :1].expand_as(gain_2), rtol=1e-4), "a channel's pixels share its gain"
    with torch.no_grad():
        first = (fitted[0](images) > thresholds["1"]).float()
        second = (fitted[2](first) > thresholds["3"]).float()
        assert torch.allclose(network(images).potential, fitted[4:](second), atol=1e-5)


def test_more_threshold_fewer_spikes():
    torch.manual_seed(0)
    ann = vgg("vgg6", 10, width=0.1, hidden=32, init="centred")
    images = torch.randn(32, 3, 32, 32)
    spikes = []
    for factor in (0.8, 1.0, 1.3):
        fitted, thresholds = fit_one_spike(ann, images, threshold_factor=factor)
        with torch.no_grad(), NetworkHealth(convert(fitted, images, thresholds=thresholds, threshold_scale=1.0)) as health:
            health.network(images)
        spikes.append(sum(found.spikes.sum().item() for found in health.layers.values()))
    assert spikes == sorted(spikes, reverse=True)


def test_bad_images_and_factors_are_named():
    ann = nn.Sequential(nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False))
    with pytest.raises(ValueError, match="threshold_factor must be > 0, got 0"):
        fit_one_spike(ann, torch.randn(8, 4), threshold_factor=0)
    with pytest.raises(ValueError, match="images must hold at least two images"):
        fit_one_spike(ann, torch.randn(1, 4))
    with pytest.raises(ConversionError, match="1: no threshold divides its currents on these images: train the ANN further"):
        fit_one_spike(ann, torch.zeros(8, 4))


def test_images_stay_apart_in_a_vgg_of_centred_weights():
    """In the last hidden layer of one with the paper's weights, drawn with mean 0 but not of mean 0, they all look the same."""
    images = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    alike, size = {}, {}
    for init in ("paper", "centred"):
        torch.manual_seed(0)
        network = vgg("vgg16", 10, width=0.25, hidden=256, init=init).eval()
        with torch.no_grad():
            hidden = nn.functional.normalize(network[:-1](images), dim=1)
            size[init] = network(images).std().item()
        alike[init] = (hidden @ hidden.T).mean().item()
    assert alike["centred"] < 0.8 < 0.9 < alike["paper"], "mean cosine of two images' activations"
    assert size["paper"] < 0.003 < 0.01 < size["centred"] < 5, "standard deviation of the logits"
    first, *others = (module.weight for module in network if hasattr(module, "weight"))
    assert all(weight.flatten(1).sum(1).abs().max() < 1e-4 for weight in others)
    assert first.flatten(1).sum(1).abs().max() > 0.1


def test_an_unknown_init_is_named():
    with pytest.raises(ValueError, match="init must be one of paper, centred, got 'xavier'"):
        vgg("vgg6", 10, init="xavier")


def test_bits_of_bits_are_those_bits():
    """A channel whose current is 0 or one other value is divided between the two."""
    ann = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False))
    ann[0].weight.data = torch.diag(torch.tensor([0.3, 1.0, 5.0]))
    images = torch.eye(3).repeat(4, 1)
    fitted, thresholds = fit_one_spike(ann, images)
    assert thresholds == {"1": 1.0}
    assert torch.equal(fitted[0](images) > 1, images > 0)
    assert torch.allclose(fitted[2].weight, ann[2].weight * torch.tensor([0.3, 1.0, 5.0]))


def test_what_has_no_channels_is_named():
    tokens = nn.Sequential(nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False))
    with pytest.raises(ConversionError, match=r"1: its input must be \[N, channels, \*\] of 0 .* got \(8, 3, 3\)"):
        fit_one_spike(tokens, torch.randn(8, 3, 4))
    flat = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.Flatten(), nn.ReLU(), nn.Linear(18, 2, bias=False))
    with pytest.raises(ConversionError, match=r"2: its input must be \[N, channels, \*\] of 0 .* got \(8, 18\)"):
        fit_one_spike(flat, torch.randn(8, 1, 5, 5))
    pruned = nn.Sequential(nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False))
    prune.l1_unstructured(pruned[0], "weight", 0.5)
    with pytest.raises(ConversionError, match="0: its weight must be a plain parameter to be rescaled"):
        fit_one_spike(pruned, torch.randn(8, 4))
    with pytest.raises(ConversionError, match="1: threshold_factor must leave spikes, got 1000"):
        fit_one_spike(tokens, torch.randn(8, 4), threshold_factor=1000)


def test_rates_of_unusual_layers():
    accumulator = neuron.IFNode(v_threshold=float("inf"))
    network = nn.Sequential(
        nn.ConvTranspose2d(64, 8, 2, bias=False), SingleSpikeLIFNode(), nn.Linear(8, 2, bias=False), accumulator
    )
    rates = [group["lr"] for group in parameter_groups(network, 1.0, neuron_lr=0)]
    assert rates == pytest.approx([1 / 256, 0, 0, 1 / 8])


def test_health_holds_one_trace_at_a_time_and_keeps_the_users():
    network = nn.Sequential(SingleSpikeLIFNode(), SingleSpikeLIFNode(store_v_seq=True))
    with NetworkHealth(network) as health:
        network(torch.ones(2, 3, 4))
        assert network[0].v_seq is None
    assert network[1].v_seq is not None
    assert "has not run" not in str(health)
    for node in network:
        node.reset()
    with pytest.raises(ValueError, match=r"must stay the same while it is watched, got \(4,\), then \(5,\)"), health:
        network(torch.ones(2, 3, 5))
    assert "has not run" in str(NetworkHealth(network))


def test_health_sees_small_gradients():
    network = hidden(1).to(torch.float32)
    with NetworkHealth(network) as health:
        (network(torch.ones(1, 1, 1)) * 1e-25).sum().backward()
    assert 0 < health.layers["1"].gradient < 1e-24
