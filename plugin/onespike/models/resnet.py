"""Residual networks for small images, of torchvision's blocks: batch norm, identity and 1x1 shortcuts."""

from torch import nn

from onespike.functional.checks import check_positive

BLOCKS = {"resnet8": 1, "resnet14": 2, "resnet20": 3, "resnet32": 5}
"""Blocks of two convolutions in each of the three stages."""
CHANNELS = (16, 32, 64)


def resnet(name: str, num_classes: int, *, in_channels: int = 3, width: float = 1.0) -> nn.Sequential:
    """Build an untrained residual network for images of CIFAR's size and smaller (He et al. 2015, Section 4.2).

    A 3x3 convolution, three stages of torchvision's `BasicBlock` with 16, 32 and 64 channels, of which the second and the third
    halve the image, a mean over the image, and a Linear layer.

    Args:
        name: "resnet8", "resnet14", "resnet20" or "resnet32".
        num_classes: number of classes K.
        in_channels: channels of the images.
        width: factor on all channels.

    Returns:
        A network mapping images [N, in_channels, H, W] to logits [N, num_classes].

    Raises:
        ImportError: torchvision is missing.
        ValueError: `name` is unknown, or a size is below 1.
    """
    try:
        from torchvision.models.resnet import BasicBlock  # noqa: PLC0415  (nothing else needs torchvision)
    except ImportError as error:
        raise ImportError("resnet needs torchvision's blocks: pip install torchvision") from error
    if name not in BLOCKS:
        raise ValueError(f"name must be one of {', '.join(BLOCKS)}, got {name!r}")
    for argument, value in {"num_classes": num_classes, "in_channels": in_channels, "width": width}.items():
        check_positive(argument, value)
    sizes = [max(1, round(channels * width)) for channels in CHANNELS]
    modules: list[nn.Module] = [nn.Conv2d(in_channels, sizes[0], 3, padding=1, bias=False), nn.BatchNorm2d(sizes[0]), nn.ReLU()]
    channels = sizes[0]
    for stage, size in enumerate(sizes):
        for block in range(BLOCKS[name]):
            stride = 2 if stage and not block else 1
            shortcut = None
            if stride != 1 or size != channels:
                shortcut = nn.Sequential(nn.Conv2d(channels, size, 1, stride, bias=False), nn.BatchNorm2d(size))
            modules.append(BasicBlock(channels, size, stride, shortcut))
            channels = size
    modules += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes)]
    for module in nn.Sequential(*modules).modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(*modules)
