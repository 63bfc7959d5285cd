"""Known architectures: what converts follows its ANN, else each obstacle is named; docs/conversion.md has the table."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from onespike.conversion import ConversionError, convert
from onespike.models import resnet
from onespike.spikingjelly import DirectEncoder, SingleSpikeLIFNode

DOCS = Path(__file__).parent.parent / "docs" / "conversion.md"
CONVERT = {
    "resnet18": (32, 40, 100),
    "vgg11": (32, 20, 100),
    "vgg11_bn": (32, 20, 100),
    "alexnet": (64, 10, 40),
    "squeezenet1_1": (32, 60, 150),
    "googlenet": (32, 60, 100),
}
"""Those that convert: the side of the images that they are tried on, the steps of calibration and those of the network."""
REFUSED = {
    "densenet121": "features.denseblock1.denselayer1.norm1 (BatchNorm2d)",
    "mobilenet_v2": "(ReLU6); has no ReLU before",
    "shufflenet_v2_x1_0": "chunk; transpose; view; has no ReLU before",
    "regnet_y_400mf": "(Sigmoid); (mul)",
    "efficientnet_b0": "(SiLU); (mul); (stochastic_depth); has no ReLU before",
    "convnext_tiny": "(LayerNorm2d); (GELU); (permute); (stochastic_depth); has no ReLU before",
}
"""The others, and what the message names."""


def built(name):
    """Build it with random weights, at which activations neither vanish nor grow; the VGGs with heads of 256 units."""
    models = pytest.importorskip("torchvision.models", reason="torchvision ships these architectures")
    torch.manual_seed(0)
    with torch.device("meta" if name in CONVERT else "cpu"):  # large ones draw their weights once
        ann = getattr(models, name)(num_classes=10, **({"init_weights": False} if name.startswith(("vgg", "goog")) else {}))
        if name.startswith("vgg"):
            sizes = [ann.classifier[0].in_features, 256, 256, 10]
            for at, inputs, outputs in zip((0, 3, 6), sizes, sizes[1:], strict=False):
                ann.classifier[at] = nn.Linear(inputs, outputs)
    if name in CONVERT:
        ann.to_empty(device="cpu")
    for module in ann.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return ann.eval()


@pytest.mark.parametrize("name", CONVERT)
def test_what_converts_follows_its_ann(name):
    side, timesteps, T = CONVERT[name]
    ann, images = built(name), torch.randn(2, 3, side, side)
    network = convert(
        ann,
        images,
        timesteps=timesteps,
        threshold_scale=1,
        encoder=DirectEncoder(T),
        neuron=partial(SingleSpikeLIFNode, single_spike=False, backend="torch"),
    )
    with torch.no_grad():
        rates, logits = network(images).potential, ann(images)
    assert torch.corrcoef(torch.stack([rates.flatten(), logits.flatten()]))[0, 1] > 0.9
    assert f"| `{name}` | converts |" in DOCS.read_text()


@pytest.mark.parametrize("name", REFUSED)
def test_for_the_others_every_obstacle_is_named_at_once(name):
    with pytest.raises(ConversionError) as refused:
        convert(built(name), torch.randn(2, 3, 32, 32))
    for part in REFUSED[name].split("; "):
        assert part in str(refused.value), str(refused.value)
    lines = [line.strip() for line in str(refused.value).splitlines()]
    assert len(set(lines)) == len(lines) < 30
    assert f"| `{name}` | refused: {REFUSED[name]} |" in DOCS.read_text()


def test_a_residual_network_of_our_own_has_the_papers_size():
    assert round(sum(parameter.numel() for parameter in resnet("resnet20", 10).parameters()) / 1e6, 2) == 0.27
    with pytest.raises(ValueError, match=r"name must be one of resnet8, .*, got 'resnet50'"):
        resnet("resnet50", 10)
    with pytest.raises(ValueError, match="width must be > 0, got 0"):
        resnet("resnet8", 10, width=0)
