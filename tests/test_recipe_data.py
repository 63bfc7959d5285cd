"""The CIFAR recipe's images: the same as torchvision's, each in one part, cropped and mirrored alike."""

from pathlib import Path

import pytest
import torch
import torchvision.transforms.functional as transforms
from recipe_runs import DIGITS

from cifar.config import ConfigError
from cifar.data import DataError, Epoch, Split, load_data, read_digits
from cifar.reading import load_config


@pytest.fixture
def split():
    images = torch.randint(256, (40, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return images, Split(images, torch.arange(40), (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), crop=4)


def test_batches_equal_torchvisions(split):
    images, ours = split
    epoch = Epoch.draw(40, torch.Generator().manual_seed(1), crop=4, flip=True)
    x, labels = ours.augmented(epoch)
    plain, _ = ours.plain(slice(0, 40))
    for position, (index, top, left, mirrored, *_) in enumerate(zip(*(values.tolist() for values in epoch), strict=True)):
        image = transforms.to_pil_image(images[index])
        whole = transforms.normalize(transforms.to_tensor(image), (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
        torch.testing.assert_close(plain[index], whole)
        image = transforms.hflip(image) if mirrored else image
        image = transforms.crop(transforms.pad(image, 4), top, left, 32, 32)
        expected = transforms.normalize(transforms.to_tensor(image), (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
        torch.testing.assert_close(x[position], expected)
        assert labels[position] == index


@pytest.mark.parametrize("side", [1, 5, 8, 32])
def test_a_square_of_each_image_is_cut_out(side):
    data = load_data(load_config([DIGITS], [f"cutout={side}"]), Path("nowhere"), torch.device("cpu"))
    whole = load_data(load_config([DIGITS]), Path("nowhere"), torch.device("cpu"))
    epoch = Epoch.draw(len(data.train), torch.Generator().manual_seed(3), crop=4, flip=True)
    x, expected = (part.train.augmented(epoch)[0] for part in (data, whole))
    for image, row, column in zip(expected, epoch.row.tolist(), epoch.column.tolist(), strict=True):
        top, left = row - side // 2, column - side // 2
        image[:, max(0, top) : top + side, max(0, left) : left + side] = 0
    assert torch.equal(x, expected)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert {*epoch.row.tolist()} == {*epoch.column.tolist()} == set(range(32)), "anywhere"
    for split, other in ((data.validation, whole.validation), (data.test, whole.test)):
        assert torch.equal(split.plain(slice(0, 9))[0], other.plain(slice(0, 9))[0]), "of training images alone"


def test_augmentation_is_spread_as_torchvisions():
    epoch = Epoch.draw(40_000, torch.Generator().manual_seed(2), crop=4, flip=True)
    assert torch.equal(epoch.index.sort().values, torch.arange(40_000))
    counts = torch.zeros(9, 9).index_put_((epoch.top, epoch.left), torch.ones(40_000), accumulate=True)
    expected = 40_000 / 81
    assert ((counts - expected) ** 2 / expected).sum() < 130  # chi-squared, 80 degrees of freedom: 1 in 4000 by chance
    assert abs(epoch.mirrored.double().mean() - 0.5) < 0.01
    still = Epoch.draw(100, torch.Generator().manual_seed(2), crop=0, flip=False)
    assert not still.top.any()
    assert not still.left.any()
    assert not still.mirrored.any()


def test_every_image_is_in_one_part():
    data = load_data(load_config([DIGITS]), Path("nowhere"), torch.device("cpu"))
    parts = [split.plain(slice(0, None))[0] for split in (data.train, data.validation, data.test)]
    assert [len(part) for part in parts] == [1300, 137, 360]
    assert len(load_data(load_config([DIGITS], ["test_images=7"]), Path("nowhere"), torch.device("cpu")).test) == 7
    whole = Split(*(torch.cat(both) for both in zip(*read_digits(), strict=True)), data.mean, data.std)
    labels = torch.cat([split.plain(slice(0, None))[1] for split in (data.train, data.validation, data.test)])
    found, expected = (
        sorted(zip(x.flatten(1).double().mv(torch.arange(3072).double()).tolist(), y.tolist(), strict=True))
        for x, y in ((torch.cat(parts), labels), whole.plain(slice(0, None)))
    )
    assert found == expected, "each image with its label"
    assert (data.train.crop, data.validation.crop, data.test.crop) == (4, 0, 0)


@pytest.mark.parametrize("channels_last", [False, True])
def test_batches_are_laid_out_as_asked(channels_last):
    data = load_data(load_config([DIGITS], [f"channels_last={channels_last}"]), Path("nowhere"), torch.device("cpu"))
    epoch = Epoch.draw(1300, torch.Generator().manual_seed(0), crop=4, flip=True)
    for x in (data.train.augmented(epoch.take(slice(0, 5)))[0], data.test.plain(slice(0, 5))[0]):
        assert x.is_contiguous(memory_format=torch.channels_last) == channels_last
        assert x.is_contiguous() != channels_last


def test_a_split_that_takes_all_images_is_named():
    with pytest.raises(ConfigError, match="validation must be below the 1437 training images of digits, got 1437"):
        load_data(load_config([DIGITS], ["validation=1437"]), Path("nowhere"), torch.device("cpu"))


def test_missing_and_damaged_images_are_named(tmp_path, monkeypatch):
    config = load_config([DIGITS], ["dataset=cifar10"])
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"cifar10 in .* is missing or damaged .*--data-root, or delete .*cifar-10-batches-py"):
        load_data(config, tmp_path, torch.device("cpu"))

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.CIFAR100.download", offline)
    with pytest.raises(DataError, match=r"cifar100 in .* \(no network\)"):
        load_data(load_config([DIGITS], ["dataset=cifar100"]), tmp_path, torch.device("cpu"))
