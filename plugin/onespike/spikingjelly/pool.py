"""Average pooling that is quick where torch's is slow: windows of 2x2 on GPUs, and of contiguous images."""

from typing import Any

import torch
from spikingjelly.activation_based import layer
from torch import Tensor

from onespike.functional.checks import is_traced


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
