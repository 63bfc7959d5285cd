"""ANNs to convert: the bias-free VGGs of the paper."""

from onespike.models.vgg import vgg

__all__ = ["vgg"]
