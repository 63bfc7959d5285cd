"""The 2x2 pool of converted networks, against torch's."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import layer
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from onespike.conversion import convert
from onespike.spikingjelly import pool
from onespike.spikingjelly.pool import AvgPool2d

LAYOUTS = (torch.contiguous_format, torch.channels_last)


def pooled(module, images):
    """Values and gradient of a pool of these images, each with its strides."""
    leaf = images.detach().requires_grad_()
    output = module(leaf)
    weights = torch.linspace(-3, 2, output.numel(), dtype=output.dtype, device=output.device).view(output.shape)
    (grad,) = torch.autograd.grad(output, leaf, weights.to(memory_format=layout_of(output)))
    return (output.detach(), output.stride()), (grad, grad.stride())


def layout_of(images):
    return torch.channels_last if images.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_equals_torch(layout, dtype, monkeypatch):
    monkeypatch.setattr(pool, "quicker_by_quarters", lambda _: True)
    monkeypatch.setattr(F, "avg_pool2d", None)  # whose turn it is not
    images = torch.rand(6, 5, 8, 12, dtype=dtype).to(memory_format=layout)
    if dtype == torch.bfloat16:
        images = images.round()  # spikes: sums of four are exact
    got = pooled(AvgPool2d(2), images)
    monkeypatch.undo()
    want = pooled(nn.AvgPool2d(2), images)
    for (value, stride), (expected, expected_stride) in zip(got, want, strict=True):
        assert torch.equal(value, expected)
        assert stride == expected_stride


def test_sequences(monkeypatch):
    monkeypatch.setattr(pool, "quicker_by_quarters", lambda _: True)
    x_seq = torch.rand(3, 2, 6, 6, 4).permute(0, 1, 4, 2, 3).requires_grad_()
    got, want = (kind(2, step_mode="m")(x_seq) for kind in (AvgPool2d, layer.AvgPool2d))
    assert torch.equal(got, want)
    assert got.stride() == want.stride()


@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        ({}, (7, 8)),
        ({"stride": 1}, (8, 8)),
        ({"padding": 1}, (8, 8)),
        ({"divisor_override": 3}, (8, 8)),
        ({"kernel_size": 3}, (9, 9)),
    ],
    ids=str,
)
def test_other_pools_are_torchs(arguments, size, monkeypatch):
    monkeypatch.setattr(pool.Halve, "apply", None)
    arguments = {"kernel_size": 2, **arguments}
    images = torch.rand(2, 3, *size).requires_grad_()
    assert torch.equal(AvgPool2d(**arguments)(images), nn.AvgPool2d(**arguments)(images))


class Seen(TorchDispatchMode):
    """Notes the operators that a counter would see."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_counters_see_torchs_pool():
    images = torch.rand(2, 3, 4, 4)
    with Seen() as seen:
        output = AvgPool2d(2)(images)
    assert seen.names == ["avg_pool2d"]
    assert torch.equal(output, AvgPool2d(2)(images))


def test_dimensions_are_the_hosts():
    assert AvgPool2d(2)(torch.rand(3, 4, 4)).shape == (3, 2, 2)
    with pytest.raises(ValueError, match=r"\[T, N, C, H, W\]"):
        AvgPool2d(2, step_mode="m")(torch.rand(3, 4, 4, 4))


def test_converted_networks_have_it():
    ann = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(18, 3, bias=False))
    network = convert(ann, torch.rand(4, 1, 8, 8), timesteps=4)
    assert type(network.body[2]) is AvgPool2d


def test_the_benchmark_runs():
    script = Path(__file__).parents[1] / "benchmarks" / "bench_pool.py"
    command = [sys.executable, str(script), "--device", "cpu", "--batch", "1", "--rounds", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("  onespike ")]
    assert len(rows) == 4, "two dtypes in two layouts"


def test_torchs_transforms_and_batched_gradients_pass():
    pool, images = AvgPool2d(2, step_mode="m"), torch.rand(2, 3, 4, 8, 8, requires_grad=True)
    want = torch.autograd.grad(pool(images).square().sum(), images)[0]
    assert torch.equal(torch.func.grad(lambda images: pool(images).square().sum())(images.detach()), want)
    pooled, grads = pool(images), torch.randn(5, 2, 3, 4, 4, 4)
    batched = torch.autograd.grad(pooled, images, grads, is_grads_batched=True)[0]
    for grad, found in zip(grads, batched, strict=True):
        assert torch.equal(torch.autograd.grad(pool(images), images, grad)[0], found)


def test_float16_does_not_overflow():
    images = torch.full((1, 1, 2, 2), 4e4, dtype=torch.float16, requires_grad=True)
    assert AvgPool2d(2)(images).item() == 4e4
