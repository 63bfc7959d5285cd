"""Bias-free VGG networks with average pools and no batch norm, as ANN-to-SNN conversion needs them (Section V)."""

from math import pi, sqrt

from torch import nn

from onespike.functional.checks import check_positive

POOL = "A"
LAYERS: dict[str, tuple[int | str, ...]] = {
    "vgg6": (64, "A", 128, 128, "A"),
    "vgg9": (64, "A", 128, 256, "A", 256, 512, "A", 512, "A", 512),
    "vgg11": (64, "A", 128, 256, "A", 512, 512, "A", 512, "A", 512, 512),
    "vgg16": (64, 64, "A", 128, 128, "A", 256, 256, 256, "A", 512, 512, 512, "A", 512, 512, 512),
}
"""Output channels of each 3x3 convolution; "A" is a 2x2 average pool."""
INITS = ("paper", "centred")
CENTRED_VARIANCE = 2 * pi / (pi - 1)
"""That of fan_in weights together: a ReLU makes of N(0, v) a variance of (1 - 1 / pi) v / 2 about its mean."""


def vgg(
    name: str,
    num_classes: int,
    *,
    in_channels: int = 3,
    image_size: int = 32,
    width: float = 1.0,
    hidden: int = 4096,
    dropout: float = 0.2,
    fc_dropout: float = 0.5,
    init: str = "paper",
) -> nn.Sequential:
    """Build an untrained, bias-free VGG.

    Every 3x3 convolution (stride 1, padding 1) is followed by a ReLU and then by dropout, or by the pool in its place; the head
    is Linear - ReLU - Dropout twice and a Linear.

    Args:
        name: "vgg6", "vgg9", "vgg11" or "vgg16".
        num_classes: number of classes K.
        in_channels: channels of the images.
        image_size: height and width of the images in pixels; divisible by 2 to the number of pools.
        width: factor on the convolutions' channels.
        hidden: units in each of the two hidden fully-connected layers.
        dropout: dropout probability after convolutions.
        fc_dropout: dropout probability in the head.
        init: first weights. "paper", its lineage's: N(0, 2 / (9 C_out)), in the head N(0, 0.01^2), which leave a deep network
            logits of some 0.002 and at chance for an epoch; or "centred": N(0, 2.93 / fan_in), less, from the second layer on,
            the mean of each neuron's weights. What ReLUs give is never negative, and what all images have of it in common grows
            from layer to layer; weights that add up to 0 pass less of it on. 2.93 = 2 pi / (pi - 1) keeps the size of what is
            left from one ReLU to the next; pools still shrink it.

    Returns:
        A network mapping images [N, in_channels, image_size, image_size] to logits [N, num_classes].

    Raises:
        ValueError: `name` or `init` is unknown, `image_size` does not fit, or a size is below 1.
    """
    if name not in LAYERS:
        raise ValueError(f"name must be one of {', '.join(LAYERS)}, got {name!r}")
    if init not in INITS:
        raise ValueError(f"init must be one of {', '.join(INITS)}, got {init!r}")
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "hidden": hidden, "width": width}
    for argument, value in sizes.items():
        check_positive(argument, value)
    layers, shrink = LAYERS[name], 2 ** LAYERS[name].count(POOL)
    if image_size < shrink or image_size % shrink:
        raise ValueError(f"image_size must be a multiple of {shrink} for {name}, got {image_size}")

    modules: list[nn.Module] = []
    channels = in_channels
    for layer, following in zip(layers, (*layers[1:], None), strict=True):
        if isinstance(layer, int):
            out_channels = max(1, round(layer * width))
            modules += [nn.Conv2d(channels, out_channels, 3, padding=1, bias=False), nn.ReLU()]
            if following != POOL:
                modules.append(nn.Dropout(dropout))
            channels = out_channels
        else:
            modules.append(nn.AvgPool2d(2))
    features = channels * (image_size // shrink) ** 2
    modules.append(nn.Flatten())
    for _ in range(2):
        modules += [nn.Linear(features, hidden, bias=False), nn.ReLU(), nn.Dropout(fc_dropout)]
        features = hidden
    modules.append(nn.Linear(features, num_classes, bias=False))

    initialise([module for module in modules if isinstance(module, (nn.Conv2d, nn.Linear))], init)
    return nn.Sequential(*modules)


def initialise(layers: list[nn.Conv2d | nn.Linear], init: str) -> None:
    """Draw the first weights of a network's layers, given in their order."""
    for layer in layers:
        weight = layer.weight.data
        if init == "centred":
            nn.init.normal_(weight, 0, sqrt(CENTRED_VARIANCE / weight[0].numel()))
            if layer is not layers[0]:  # images have either sign
                weight -= weight.flatten(1).mean(1).view(-1, *[1] * (weight.dim() - 1))
        elif isinstance(layer, nn.Conv2d):
            nn.init.normal_(weight, 0, sqrt(2 / (9 * layer.out_channels)))
        else:
            nn.init.normal_(weight, 0, 0.01)
