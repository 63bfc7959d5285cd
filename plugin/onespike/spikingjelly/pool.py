"""Pools: the maximum of spikes, and averages that are quick where torch's are slow, 2x2 on GPUs and of contiguous images."""

from typing import Any

import torch
from spikingjelly.activation_based import layer
from torch import Tensor

from onespike.functional.checks import is_traced
from onespike.functional.pool import PoolState, Size, spike_max_pool
from onespike.spikingjelly.memory import CopyableMemory


class SpikeMaxPool(CopyableMemory):
    """Maximum pool of spikes: the earliest of the window, then silence; where neurons fire again, as many as the busiest one's.

        leader(t) = the input that has fired most so far, and got there first;    out^t = s_leader(t)^t

    See `onespike.functional.spike_max_pool`. Gradients go to the leader. `reset_net` must be called between sequences.

    Args:
        kernel_size, stride, padding, dilation, ceil_mode: as torch's max pools have them; one number serves all dimensions.
        step_mode: "m" for spikes [T, N, C, *], "s" for [N, C, *], with one to three dimensions *.

    Attributes:
        keep_state: whether step mode "m" goes on from the state and keeps it; see `SingleSpikeLIFNode`.
    """

    count: Tensor | None
    last: Tensor | None
    steps: int
    keep_state = True

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        dilation: Size = 1,
        ceil_mode: bool = False,
        step_mode: str = "m",
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel_size, kernel_size if stride is None else stride
        self.padding, self.dilation, self.ceil_mode = padding, dilation, ceil_mode
        self.step_mode = step_mode
        self.register_memory("count", None)
        self.register_memory("last", None)
        self.register_memory("steps", 0)

    def multi_step_forward(self, s_seq: Tensor) -> Tensor:
        """Pool spikes [T, N, C, *], going on from the stored state if it is kept."""
        return self._run(s_seq, self.keep_state)

    def single_step_forward(self, s: Tensor) -> Tensor:
        """Pool the spikes of one step, [N, C, *]."""
        return self._run(s.unsqueeze(0), True)[0]

    def _run(self, s_seq: Tensor, keep_state: bool) -> Tensor:
        known = keep_state and self.count is not None
        state = PoolState(self.count, self.last, self.steps) if known else None  # type: ignore[arg-type]
        window = self.kernel_size, self.stride, self.padding, self.dilation
        pooled, state = spike_max_pool(s_seq, *window, ceil_mode=self.ceil_mode, state=state)
        if keep_state:
            self.count, self.last, self.steps = state
        return pooled

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"ceil_mode={self.ceil_mode}, step_mode={self.step_mode}"
        )


class AvgPool2d(layer.AvgPool2d):
    """SpikingJelly's layer of the same name, arguments and state, which adds up a 2x2 pool's four strided quarters.

    Values and gradients are those of `torch.nn.AvgPool2d`: to the bit in float32 and float64, and in bfloat16 where the sums
    of four are exact, as those of spikes are; elsewhere bfloat16 is rounded at each addition instead of once. Channels-last
    images stay channels last. Other pools, odd sizes, float16, which could overflow, channels-last images on a CPU, where
    torch's pool is quicker, and whatever traces or counts torch's operators take torch's own way.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Pool x [N, C, H, W], or [T, N, C, H, W] in step mode "m"."""
        if x.dim() != (5 if self.step_mode == "m" else 4) or is_traced(x):
            return super().forward(x)  # which raises, or knows more shapes
        images = x.flatten(0, -4)
        if not (self._halves(images) and quicker_by_quarters(images)):
            return super().forward(x)
        return Halve.apply(images).unflatten(0, x.shape[:-3])

    def _halves(self, images: Tensor) -> bool:
        """Whether the pool's windows are 2x2, side by side, and cover all of the images."""
        plain = self.padding in (0, (0, 0)) and not self.divisor_override
        whole = all(size % 2 == 0 for size in images.shape[-2:])
        return plain and whole and all(size in (2, (2, 2)) for size in (self.kernel_size, self.stride))


def quicker_by_quarters(images: Tensor) -> bool:
    """Whether four strided quarters beat torch's pool, and add up as well: on GPUs, and on a CPU for contiguous images."""
    exact = images.dtype != torch.float16 and images.numel() > 0
    return exact and (images.device.type != "cpu" or images.is_contiguous())


class Halve(torch.autograd.Function):
    """The mean over windows of 2x2: images [N, C, 2H, 2W] -> [N, C, H, W]."""

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
        ctx.shape, ctx.layout = images.shape, torch.channels_last if last else torch.contiguous_format
        top, bottom = images[..., ::2, :], images[..., 1::2, :]
        # In torch's order, on which the last bit depends.
        total = top[..., ::2].add(top[..., 1::2]).add_(bottom[..., ::2]).add_(bottom[..., 1::2])
        return total.mul_(0.25)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        quarter = grad * 0.25
        if is_traced(grad):  # a batch of gradients, which writes into no memory of ours
            return quarter.repeat_interleave(2, -1).repeat_interleave(2, -2)
        images = torch.empty(ctx.shape, dtype=grad.dtype, device=grad.device, memory_format=ctx.layout)
        for row in (0, 1):
            for column in (0, 1):
                images[..., row::2, column::2] = quarter
        return images
