"""Images as sums of cosines, one frequency a step (DCT-SNN; Garg et al., 2020)."""

from math import cos, pi, sqrt
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from onespike.functional.checks import check_finite, check_floating, shown
from onespike.kernels.reference import state_dtype
from onespike.peers.encoders import SpikeEncoder
from onespike.peers.numbers import as_real

BLOCK = 4
"""Side of a block of pixels, which has BLOCK^2 frequencies."""
YCBCR = (0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312)
"""Brightness and the two differences of colour from red, green and blue (ITU-R BT.601, as JPEG has it)."""


def ycbcr_blocks(x: Tensor) -> Tensor:
    """Lay out images as overlapping blocks of 4 x 4 pixels, side by side, in YCbCr.

    Blocks begin at every second pixel of the image with its border doubled, so that each pixel inside lies in four of them;
    those of the outermost row or column lie in two, the corners in one, beside their doubles. (Garg et al. have no border, and
    2 pixels less on each side: 60 x 60 for 32 x 32, which four pools cannot halve.)

    Args:
        x: RGB images around 0, [N, 3, H, W], H and W even.

    Returns:
        [N, 3, 2 H, 2 W].

    Raises:
        TypeError: `x` is not floating point.
        ValueError: `x` has another shape.
    """
    check_floating("x", x, 4, "[N, 3, H, W]")
    if not lies_in_blocks(x, 2) or x.shape[1] != 3:
        raise ValueError(f"x must be [N, 3, H, W] with even H and W, got shape {tuple(x.shape)}")
    n, _, height, width = x.shape
    ycbcr = torch.einsum("ij,njhw->nihw", x.new_tensor(YCBCR), x)
    padded = F.pad(ycbcr, (1, 1, 1, 1), mode="replicate")
    blocks = padded.unfold(2, BLOCK, 2).unfold(3, BLOCK, 2)  # [N, 3, H/2, W/2, 4, 4]
    return blocks.permute(0, 1, 2, 4, 3, 5).reshape(n, 3, 2 * height, 2 * width)


def lies_in_blocks(x: Tensor, side: int) -> bool:
    """Whether x is [N, C, H, W], H and W being multiples of `side` above 0."""
    return x.dim() == 4 and all(size and size % side == 0 for size in x.shape[2:])


def zigzag(size: int = BLOCK) -> list[tuple[int, int]]:
    """Return the frequencies of a block, (row, column), from the lowest to the highest, along its diagonals in turn."""
    places = [(row, column) for row in range(size) for column in range(size)]
    return sorted(places, key=lambda place: (sum(place), place[0] if sum(place) % 2 else place[1]))


def check_blocks(name: str, x: Tensor) -> None:
    """Raise unless `x` is floating-point images [N, C, H, W] that blocks of 4 x 4 pixels fill."""
    check_floating(name, x, 4, "[N, C, H, W]")
    if not lies_in_blocks(x, BLOCK):
        raise ValueError(f"{name} must be [N, C, H, W] with H and W multiples of {BLOCK}, got shape {tuple(x.shape)}")


def dct_components(x: Tensor) -> Tensor:
    """Split images into their cosines: the sum over the frequencies is the image.

    Equation, for a block B and the orthonormal cosine transform Q:
        component (i, j) = (Q B Q^T)_ij * q_i q_j^T,   q_i being row i of Q

    Args:
        x: images, [N, C, H, W], H and W multiples of 4.

    Returns:
        [16, N, C, H, W], the frequencies in the order of `zigzag`.

    Raises:
        TypeError: `x` is not floating point.
        ValueError: `x` has another shape.
    """
    check_blocks("x", x)
    blocks = x.unfold(2, BLOCK, BLOCK).unfold(3, BLOCK, BLOCK)  # [N, C, H/4, W/4, 4, 4]
    waves = x.new_tensor(
        [
            [sqrt((1 + (row > 0)) / BLOCK) * cos((2 * column + 1) * pi * row / (2 * BLOCK)) for column in range(BLOCK)]
            for row in range(BLOCK)
        ]
    )
    bases = torch.stack([torch.outer(waves[row], waves[column]) for row, column in zigzag()])
    coefficients = torch.einsum("nchwij,fij->fnchw", blocks, bases)
    return torch.einsum("fnchw,fij->fnchiwj", coefficients, bases).reshape(BLOCK**2, *x.shape)


class DCTEncoder(SpikeEncoder):
    """DCT-SNN: each step adds one frequency of every block to its pixels, and what passes a threshold is a spike.

    Equations (Garg et al., 2020), with f(t) = (t - 1) mod 16 the frequencies in the order of `zigzag`:
        A^t = A^{t-1} + component f(t) of the image - high * 1[X^{t-1} = 1] - low * 1[X^{t-1} = -1]
        X^t = 1 if A^t > high, -1 if A^t < low, else 0

    so that high and low, summed over the spikes, and A return the image once in 16 steps. The thresholds are percentiles of the
    components of training images, taken once, by `calibrated`: the code of an image does not depend on its batch.

    Args:
        T: number of time steps, at least 1; 16 show all frequencies once.
        low: threshold of the spikes of -1, below 0; a buffer, as the next one.
        high: threshold of the spikes of 1, above 0.
        step_mode: "m" or "s".

    Attributes:
        unit: 8 (high - low): what a spike at every step would stand for; a buffer.
    """

    low: Tensor
    high: Tensor

    def __init__(self, T: int, low: float, high: float, step_mode: str = "m") -> None:
        low, high = as_real("low", low), as_real("high", high)
        if not -float("inf") < low < 0 < high < float("inf"):
            raise ValueError(f"low and high must be finite, with low < 0 < high, got {low} and {high}")
        super().__init__(T, BLOCK**2 * (high - low) / 2, step_mode)
        self.register_number("low", low)
        self.register_number("high", high)

    @classmethod
    def calibrated(cls, T: int, images: Tensor, percentile: float = 93.5, step_mode: str = "m") -> Self:
        """Encoder with the thresholds of which the components of `images` [N, C, H, W] lie below, in so many percent.

        Raises:
            TypeError, ValueError: `images` as `dct_components`, none of them, or too few whose components differ from 0 at the
                percentile; or `percentile` outside (50, 100].
        """
        percentile = as_real("percentile", percentile)
        if not 50 < percentile <= 100:
            raise ValueError(f"percentile must be in (50, 100], got {percentile}")
        check_blocks("images", images)
        if not images.numel():
            raise ValueError(f"images must hold at least one image, got shape {tuple(images.shape)}")
        check_finite("images", images)
        values = dct_components(images.to(state_dtype(images.dtype))).flatten()
        rank = round((100 - percentile) / 100 * (len(values) - 1))
        low, high = (float(values.kthvalue(1 + place).values) for place in (rank, len(values) - 1 - rank))
        if not low < 0 < high:
            raise ValueError(
                f"images must have components of either sign at the percentile {percentile:g}, got {low:g} and {high:g} there: "
                "take images that are not of one colour, or a higher percentile"
            )
        return cls(T, low, high, step_mode)

    def spikes(self, x: Tensor) -> Tensor:
        """Return the spikes of images [N, C, H, W], 1 and -1: [T, N, C, H, W]."""
        components, level, steps = dct_components(x), torch.zeros_like(x), []
        for step in range(self.T):
            level = level + components[step % len(components)]
            above, below = level > self.high, level < self.low
            steps.append(torch.where(level.isnan(), level, above.to(x.dtype) - below.to(x.dtype)))
            level = level - above * self.high - below * self.low
        return torch.stack(steps)

    def extra_repr(self) -> str:
        return f"T={self.T}, low={shown(self.low)}, high={shown(self.high)}, step_mode={self.step_mode}"
