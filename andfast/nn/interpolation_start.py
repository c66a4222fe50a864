"""Weights with which an RRDBNet begins as plain interpolation, for runs too short to learn to copy a picture first."""

import torch
from torch import Tensor, nn

from andfast.nn.rrdbnet import RRDBNet

_BILINEAR = (0.25, 0.5, 0.25)  # after nearest upsampling by 2 this is bilinear upsampling, pixel centers aligned
# Against the blur of bilinear upsampling; 0.2 came out best on photographs, and about as good as bicubic.
_SHARPEN = (-0.2, 1.4, -0.2)


@torch.no_grad()
def start_as_interpolation(generator: RRDBNet) -> None:
    """Let the first three features carry RGB through the network, so that it sharpens, then upsamples bilinearly.

    What feeds these three features elsewhere is set to zero; all other features keep their random weights and begin
    to contribute through the gradients of the last layer. The network remains an ordinary RRDBNet.

    Args:
        generator: for scale 4, with as many output as input channels, and at least as many features.

    Raises:
        ValueError: it is for another scale, where pixel-unshuffling stands in front of the first convolution, or its
            channels do not fit.
    """
    colours = generator.conv_first.in_channels
    if generator.scale != 4:
        raise ValueError(f"generator must be for scale 4 to start as interpolation, was for {generator.scale}")
    if generator.conv_last.out_channels != colours or generator.conv_first.out_channels < colours:
        raise ValueError(
            f"generator must have as many output as input channels, {colours}, and at least as many features, had "
            f"{generator.conv_last.out_channels} and {generator.conv_first.out_channels}"
        )
    one = torch.tensor([0.0, 1.0, 0.0])
    blur, sharpen = torch.tensor(_BILINEAR), torch.tensor(_SHARPEN)
    for convolution, taps in (
        (generator.conv_first, sharpen),
        (generator.conv_up1, blur),
        (generator.conv_up2, blur),
        (generator.conv_hr, one),
        (generator.conv_last, one),
    ):
        _pass_through(convolution, colours, torch.outer(taps, taps))
    # The trunk's skip connection has RGB already; its branch must add nothing to it.
    _pass_through(generator.conv_body, colours, torch.zeros(3, 3))


def _pass_through(convolution: nn.Conv2d, colours: int, kernel: Tensor) -> None:
    """Make the first output channels the filtered first input channels, and nothing else."""
    convolution.weight[:colours] = 0
    for channel in range(colours):
        convolution.weight[channel, channel] = kernel.to(convolution.weight)
    if convolution.bias is not None:
        convolution.bias[:colours] = 0
