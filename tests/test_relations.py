"""Relations that hold whatever the numbers are: between a neuron's answers, and between one run and the next."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from onespike.conversion import convert
from onespike.functional import available_backends, single_spike_lif
from onespike.spikingjelly import SingleSpikeLIFNode

BACKENDS = available_backends("cpu")
shapes = st.tuples(st.sampled_from([1, 4]), st.integers(1, 3), st.integers(1, 9))  # few T: "inductor" compiles for each


def case(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator) * 0.6 + 0.3
    return x, torch.rand((), generator=generator), torch.rand((), generator=generator) + 0.2


def spikes_and_gradients(x, leak, threshold, grad, backend, **switches):
    """Spikes, gradient of x, of the leak and of the threshold."""
    x, leak, threshold = (tensor.detach().clone().requires_grad_() for tensor in (x, leak, threshold))
    s_seq = run(x, leak, threshold, backend, **switches)
    return s_seq.detach(), *torch.autograd.grad(s_seq, (x, leak, threshold), grad)


def run(x, leak, threshold, backend, **switches):
    return single_spike_lif(x, leak, threshold, backend=backend, **switches).s_seq


@pytest.mark.parametrize("backend", BACKENDS)
@given(shape=shapes, seed=st.integers(0, 2**31), power=st.integers(-12, 12), single_spike=st.booleans())
def test_units_change_no_spike_and_no_gradient_in_units_of_the_threshold(backend, shape, seed, power, single_spike):
    x, leak, threshold = case(shape, seed)
    grad, unit = torch.ones_like(x), 2.0**power
    s, grad_x, grad_leak, grad_v = spikes_and_gradients(x, leak, threshold, grad, backend, single_spike=single_spike)
    again = spikes_and_gradients(x * unit, leak, threshold * unit, grad, backend, single_spike=single_spike)
    for ours, expected in zip(again, (s, grad_x / unit, grad_leak, grad_v / unit), strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@given(shape=shapes, seed=st.integers(0, 2**31), data=st.data())
def test_neurons_in_another_order_do_the_same(backend, shape, seed, data):
    x, leak, threshold = case(shape, seed)
    order = torch.tensor(data.draw(st.permutations(range(shape[2]))))
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(seed + 1))
    s, grad_x, grad_leak, grad_v = spikes_and_gradients(x, leak, threshold, grad, backend)
    again = spikes_and_gradients(x[..., order], leak, threshold, grad[..., order], backend)
    assert torch.equal(again[0], s[..., order])
    assert torch.equal(again[1], grad_x[..., order])
    torch.testing.assert_close(again[2:], (grad_leak, grad_v), rtol=1e-4, atol=1e-4)  # summed in another order


@pytest.mark.parametrize("backend", BACKENDS)
@given(seed=st.integers(0, 2**31), T=st.sampled_from([1, 4, 5]))
def test_a_larger_constant_current_never_fires_later(backend, seed, T):
    _, leak, threshold = case((1, 1, 1), seed)
    current = torch.linspace(-0.5, 2.5, 61)
    s_seq = run(current.expand(T, 1, 61).contiguous(), leak, threshold, backend)[:, 0]
    time = torch.where(s_seq.any(0), s_seq.argmax(0), T)
    assert (time.diff() <= 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@given(shape=shapes, seed=st.integers(0, 2**31), steps=st.sampled_from([1, 3]))
def test_steps_appended_change_no_earlier_spike(backend, shape, seed, steps):
    x, leak, threshold = case(shape, seed)
    longer = torch.cat([x, torch.zeros(steps, *shape[1:])])
    appended = run(longer, leak, threshold, backend)
    assert torch.equal(appended[: len(x)], run(x, leak, threshold, backend))
    assert appended.sum(0).max() <= 1


@pytest.mark.parametrize("backend", BACKENDS)
@given(shape=shapes, seed=st.integers(0, 2**31), at=st.integers(1, 3))
def test_wherever_a_sequence_is_cut_its_halves_are_the_whole(backend, shape, seed, at):
    x, leak, threshold = case((4, *shape[1:]), seed)
    first, state = single_spike_lif(x[:at], leak, threshold, backend=backend)
    second = single_spike_lif(x[at:], leak, threshold, state=state, backend=backend).s_seq
    assert torch.equal(torch.cat([first, second]), run(x, leak, threshold, backend))


@pytest.mark.parametrize("backend", BACKENDS)
@given(seed=st.integers(0, 2**31), batch=st.integers(2, 5))
def test_an_image_does_not_depend_on_its_batch(backend, seed, batch):
    x, leak, threshold = case((5, batch, 17), seed)
    whole = run(x, leak, threshold, backend)
    for n in range(batch):
        assert torch.equal(run(x[:, n : n + 1].contiguous(), leak, threshold, backend), whole[:, n : n + 1])


def test_deterministic_algorithms_are_all_that_is_used():
    torch.manual_seed(0)
    ann = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64, 3, bias=False)
    )
    torch.use_deterministic_algorithms(True)
    try:
        network = convert(ann, torch.rand(8, 1, 8, 8), timesteps=5).train()
        network(torch.rand(4, 1, 8, 8)).potential.sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


TRAINING = """
import hashlib, torch
from torch import nn
from onespike.conversion import convert
from onespike.spikingjelly import HybridCrossEntropyLoss

torch.manual_seed(3)
x, y = torch.rand(32, 1, 8, 8), torch.arange(32) % 4
layers = [nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Dropout(0.2)]
network = convert(nn.Sequential(*layers, nn.Linear(96, 4, bias=False)), x, timesteps=8).train()
optimizer = torch.optim.Adam(network.parameters(), 1e-2)
for _ in range(5):
    HybridCrossEntropyLoss()(network(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()
    network.project_()
digest = hashlib.sha256()
for tensor in network.state_dict().values():
    digest.update(tensor.numpy().tobytes())
print(digest.hexdigest())
"""


def test_the_same_seed_gives_the_same_bits_in_another_process(capsys):
    other = subprocess.run([sys.executable, "-c", TRAINING], capture_output=True, text=True, check=False)
    assert other.returncode == 0, other.stderr
    exec(TRAINING, {})
    here = capsys.readouterr().out
    assert len(here) == 65
    assert other.stdout == here


def test_copies_of_a_node_in_one_process_give_the_same_bits():
    x = torch.randn(5, 8, 40, generator=torch.Generator().manual_seed(0))
    for backend in BACKENDS:
        nodes = [SingleSpikeLIFNode(0.9, 0.4, backend=backend) for _ in range(2)]
        results = [node(x) for node in nodes]
        for s_seq in results:
            s_seq.sum().backward()
        assert torch.equal(*results)
        assert torch.equal(nodes[0].leak.grad, nodes[1].leak.grad)
