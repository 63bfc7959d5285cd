"""CIFAR resident on the device: uint8 images, cropped, mirrored and cut out there a batch at a time.

Files, download and checksums are torchvision's. What a batch holds is a function of the seed, the epoch and the position alone,
so that a run resumes exactly and does not depend on the number of processes.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100

from cifar.config import Config, ConfigError
from onespike.peers import ycbcr_blocks

IMAGE = 32
STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "digits": ((0.305, 0.305, 0.305), (0.376, 0.376, 0.376)),
}
"""Mean and standard deviation of each channel of images in [0, 1]."""
CLASSES = {"cifar10": 10, "cifar100": 100, "digits": 10}
TEST_DIGITS = 360


class DataError(RuntimeError):
    """The images are missing or damaged."""


class Epoch(NamedTuple):
    """In which order images are taken, and how each of them is cropped, mirrored and cut out; all [N]."""

    index: Tensor
    top: Tensor
    left: Tensor
    mirrored: Tensor
    row: Tensor
    column: Tensor

    @classmethod
    def draw(cls, images: int, generator: torch.Generator, *, crop: int, flip: bool) -> Self:
        """Draw one pass over so many images, with crops `crop` pixels around the centre."""
        index = torch.randperm(images, generator=generator)
        top, left = torch.randint(2 * crop + 1, (2, images), generator=generator)
        mirrored = torch.rand(images, generator=generator) < 0.5 if flip else torch.zeros(images, dtype=torch.bool)
        row, column = torch.randint(IMAGE, (2, images), generator=generator)
        return cls(index, top, left, mirrored, row, column)

    def take(self, part: slice) -> Self:
        """Return a part of the pass."""
        return type(self)(*(values[part] for values in self))

    def to(self, device: torch.device) -> Self:
        """Move it to a device."""
        return type(self)(*(values.to(device, non_blocking=True) for values in self))


class Split:
    """Images and labels on one device.

    Args:
        images: uint8, [N, C, H, W].
        labels: int64, [N].
        mean, std: of each channel of images in [0, 1].
        crop: pixels of black border to crop from.
        memory_format: of the batches.
        cutout: side of the square that augmentation sets to the mean colour, in pixels.
        blocks: lay batches out as overlapping YCbCr blocks, [B, 3, 2 H, 2 W].
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        crop: int = 0,
        memory_format: torch.memory_format = torch.contiguous_format,
        cutout: int = 0,
        *,
        blocks: bool = False,
    ) -> None:
        self.labels = labels
        self.blocks = blocks
        self.crop = crop
        self.cutout = cutout
        self.memory_format = memory_format
        height, width = images.shape[-2:]
        both = torch.stack([images, images.flip(-1)])
        # Every crop of every image and of its mirror image, as views: [2, N, 2 crop + 1, 2 crop + 1, H, W, C].
        padded = F.pad(both, [crop] * 4).permute(0, 1, 3, 4, 2).contiguous()
        self._crops = padded.unfold(2, height, 1).unfold(3, width, 1).permute(0, 1, 2, 3, 5, 6, 4)
        self._shift = torch.tensor(mean, device=images.device).mul(255)
        self._scale = torch.tensor(std, device=images.device).mul(255).reciprocal()

    def __len__(self) -> int:
        return len(self.labels)

    def head(self, images: int) -> Self:
        """Return the split's first images as a split of their own."""
        first = copy.copy(self)
        first.labels, first._crops = self.labels[:images], self._crops[:, :images]
        return first

    def augmented(self, part: Epoch) -> tuple[Tensor, Tensor]:
        """Return normalised images [B, C, H, W], mirrored, cropped and then cut out as `part` says, and their labels [B]."""
        images = self._normalised(self._crops[part.mirrored.long(), part.index, part.top, part.left])
        if self.cutout:
            rows, columns = (
                within(centre, length, self.cutout)
                for centre, length in zip((part.row, part.column), images.shape[2:], strict=True)
            )
            images.masked_fill_((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)
        return self._laid_out(images), self.labels[part.index]

    def plain(self, part: slice) -> tuple[Tensor, Tensor]:
        """Return a slice of the normalised images, as they are, and their labels."""
        return self._laid_out(self._normalised(self._crops[0, part, self.crop, self.crop])), self.labels[part]

    def _laid_out(self, images: Tensor) -> Tensor:
        """Lay normalised images [B, C, H, W] out as the network takes them."""
        return ycbcr_blocks(images).contiguous(memory_format=self.memory_format) if self.blocks else images

    def _normalised(self, images: Tensor) -> Tensor:
        """Turn bytes [B, H, W, C] into normalised images [B, C, H, W]."""
        normalised = images.float().sub_(self._shift).mul_(self._scale)
        return normalised.permute(0, 3, 1, 2).contiguous(memory_format=self.memory_format)


def within(centre: Tensor, length: int, side: int) -> Tensor:
    """Say which of `length` pixels lie in the stretch of `side` around each centre [B] -> [B, length]; it may reach beyond."""
    distance = torch.arange(length, device=centre.device) - (centre[:, None] - side // 2)
    return (distance >= 0) & (distance < side)


@dataclass(frozen=True)
class Data:
    """A data set in its three parts."""

    train: Split
    validation: Split
    test: Split
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def load_data(config: Config, root: Path, device: torch.device) -> Data:
    """Load a data set onto a device; the validation split is the same for every seed.

    Raises:
        DataError: files are missing and cannot be downloaded, or damaged.
        ConfigError: `config.validation` leaves no image to train on.
    """
    (images, labels), (test_images, test_labels) = read_digits() if config.dataset == "digits" else read_cifar(config, root)
    if config.validation >= len(images):
        raise ConfigError(
            f"validation must be below the {len(images)} training images of {config.dataset}, got {config.validation}"
        )
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    held_out, rest = order[: config.validation], order[config.validation :]
    mean, std = STATISTICS[config.dataset]
    layout = torch.channels_last if config.channels_last else torch.contiguous_format

    def split(images: Tensor, labels: Tensor, crop: int = 0, cutout: int = 0) -> Split:
        blocks = config.encoder == "dct"
        return Split(images.to(device), labels.to(device), mean, std, crop, layout, cutout, blocks=blocks)

    return Data(
        split(images[rest], labels[rest], config.crop, config.cutout),
        split(images[held_out], labels[held_out]),
        split(test_images[: config.test_images], test_labels[: config.test_images]),
        CLASSES[config.dataset],
        mean,
        std,
    )


def read_cifar(config: Config, root: Path) -> list[tuple[Tensor, Tensor]]:
    """Return training and test images [N, 3, 32, 32] and labels of CIFAR, downloaded if they are not there."""
    dataset = {"cifar10": CIFAR10, "cifar100": CIFAR100}[config.dataset]
    parts = []
    for train in (True, False):
        try:
            part = dataset(root, train=train, download=not (root / dataset.base_folder).is_dir())
        except Exception as error:  # torchvision raises what urllib, tarfile or pickle do
            raise DataError(
                f"{config.dataset} in {root} is missing or damaged ({error}): give its folder by --data-root, or delete "
                f"{root / dataset.base_folder} to download it again"
            ) from error
        parts.append((torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets)))
    return parts


def read_digits() -> list[tuple[Tensor, Tensor]]:
    """Return training and test images of scikit-learn's digits, enlarged to [N, 3, 32, 32]."""
    pixels, labels = load_digits(return_X_y=True)
    small = torch.tensor(pixels).mul(255 / 16).round().to(torch.uint8).view(-1, 1, 8, 8)
    images = small.repeat_interleave(IMAGE // 8, 2).repeat_interleave(IMAGE // 8, 3).expand(-1, 3, -1, -1).contiguous()
    targets = torch.tensor(labels, dtype=torch.int64)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    test, train = order[:TEST_DIGITS], order[TEST_DIGITS:]
    return [(images[train], targets[train]), (images[test], targets[test])]
