"""Time the ways to pool 2x2, forward and backward: the four pools of VGG-16 at T = 5, one after the other.

    python benchmarks/bench_pool.py [--device cuda] [--batch 128] [--rounds 15]

For each dtype and layout: milliseconds of all four pools, median of interleaved rounds, and how often faster than avg_pool2d.
On a GPU the passes are replayed as CUDA graphs, so that the host's time does not count.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from measure import interleave, ratio, summary, usable_device
from torch import Tensor

from onespike.spikingjelly.pool import Halve

SIZES = ((64, 32), (128, 16), (256, 8), (512, 4))
"""Channels and pixels a side of what VGG-16 pools."""
T = 5


class Broadcast(torch.autograd.Function):
    """Torch's pool, and a backward pass that writes each gradient to its window in one copy."""

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        ctx.like = images.new_empty(0), images.shape, images.stride()
        return F.avg_pool2d(images, 2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        maker, shape, stride = ctx.like
        images = maker.new_empty_strided(shape, stride)
        windows = images.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
        torch.mul(grad[:, :, :, None, :, None].expand_as(windows), 0.25, out=windows)
        return images


class Nearest(Broadcast):
    """Torch's pool, and nearest-neighbour enlargement as its backward pass."""

    @staticmethod
    def backward(_: Any, grad: Tensor) -> Tensor:
        return F.interpolate(grad * 0.25, scale_factor=2, mode="nearest")


def mean(images: Tensor) -> Tensor:
    """The mean over a view of the windows."""
    return images.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5))


WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "avg_pool2d": partial(F.avg_pool2d, kernel_size=2),
    "onespike": Halve.apply,
    "avg_pool2d, backward by broadcast": Broadcast.apply,
    "avg_pool2d, backward by nearest": Nearest.apply,
    "mean of windows": mean,
}


def both_ways(way: Callable[[Tensor], Tensor], cases: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Pool every case forward and backward; return the gradients."""
    return [torch.autograd.grad(way(images), images, grad)[0] for images, grad in cases]


def forward_only(way: Callable[[Tensor], Tensor], cases: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Pool every case."""
    return [way(images) for images, _ in cases]


def graphed(work: Callable[[], Any]) -> Callable[[], Any]:
    """Return the replay of `work` as a CUDA graph."""
    work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="default %(default)s")
    parser.add_argument("--batch", type=int, default=128, help="images, each for T = 5 steps (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="default %(default)s")
    arguments = parser.parse_args()
    device = usable_device(arguments.device, "the ways to pool 2x2 in VGG-16")
    for dtype in (torch.bfloat16, torch.float32):
        for layout in (torch.channels_last, torch.contiguous_format):
            cases = []
            for channels, side in SIZES:
                spikes = torch.rand(T * arguments.batch, channels, side, side, device=device) < 0.2
                images = spikes.to(dtype).contiguous(memory_format=layout).requires_grad_()
                cases.append((images, torch.randn_like(F.avg_pool2d(images, 2))))
            for way in WAYS.values():  # nothing is timed that is not right
                for wanted, got in zip(both_ways(WAYS["avg_pool2d"], cases), both_ways(way, cases), strict=True):
                    assert torch.equal(wanted, got)
            print(f"\n{dtype}, {layout}, {'GPU' if device.type == 'cuda' else 'CPU'} ms: forward | forward + backward")
            passes = []
            for run in (forward_only, both_ways):
                works: dict[str, Callable[[], Any]] = {name: partial(run, way, cases) for name, way in WAYS.items()}
                if device.type == "cuda":
                    works = {name: graphed(work) for name, work in works.items()}
                passes.append(interleave(works, arguments.rounds, device))
            for name in WAYS:
                cells = [
                    f"{summary(times[name].elapsed)['median_ms']:9.3f} "
                    f"({ratio(times['avg_pool2d'].elapsed, times[name].elapsed):5.2f}x)"
                    for times in passes
                ]
                print(f"  {name:<36}{' '.join(cells)}")


if __name__ == "__main__":
    main()
