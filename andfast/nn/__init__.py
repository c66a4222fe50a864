"""Networks: degradation network F, restoration network G, discriminators D; weight files."""

from andfast.nn.blur_pool import BlurPool
from andfast.nn.degradation_network import DegradationNetwork, Theta
from andfast.nn.frozen import frozen
from andfast.nn.rrdbnet import RRDBNet
from andfast.nn.unet_discriminator import UNetDiscriminator
from andfast.nn.vgg_discriminator import VGGDiscriminator

__all__ = [
    "BlurPool",
    "DegradationNetwork",
    "RRDBNet",
    "Theta",
    "UNetDiscriminator",
    "VGGDiscriminator",
    "frozen",
]
