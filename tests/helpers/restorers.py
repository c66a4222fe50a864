"""Restorers and photographs for the tests of inference."""

import torch
from skimage import data
from torch import Tensor

from andfast.inference.models import Restorer, from_network
from andfast.nn import RRDBNet
from andfast.nn.interpolation_start import start_as_interpolation


def photograph(height: int, width: int) -> Tensor:
    """(1, 3, height, width) in [0, 1]."""
    image = torch.from_numpy(data.astronaut()[:height, :width].copy())
    return image.permute(2, 0, 1)[None].float() / 255


def network_restorer(scale: int) -> Restorer:
    """An RRDBNet that interpolates and adds the output of random blocks with five times the usual gain."""
    torch.manual_seed(3)
    network = RRDBNet(scale, features=16, blocks=4, growth=8)
    if scale == 4:
        start_as_interpolation(network)
    with torch.no_grad():
        torch.nn.init.kaiming_normal_(network.conv_body.weight)
        network.conv_body.weight.mul_(0.3)
        for name, parameter in network.body.named_parameters():
            if name.endswith("weight"):
                parameter.mul_(5)
    return from_network(network, "net", device=torch.device("cpu"))
