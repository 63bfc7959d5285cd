"""ANNs to convert: the bias-free VGGs of the paper, and residual networks."""

from onespike.models.resnet import resnet
from onespike.models.vgg import vgg

__all__ = ["resnet", "vgg"]
