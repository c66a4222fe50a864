"""Initialize an RRDBNet as an interpolator, for runs too short to learn to copy the image first."""

import torch
from torch import Tensor, nn

from andfast.nn.rrdbnet import RRDBNet

_BILINEAR = (0.25, 0.5, 0.25)  # after nearest upsampling by 2: bilinear upsampling with aligned pixel centers
# Compensates the blur of bilinear upsampling; 0.2 was best on photographs, about as good as bicubic.
_SHARPEN = (-0.2, 1.4, -0.2)


@torch.no_grad()
def start_as_interpolation(generator: RRDBNet) -> None:
    """Carry RGB through the first three features: the network sharpens, then upsamples bilinearly.

    All other weights into these three features are zeroed; the remaining features keep their random weights and start
    to contribute as the last layer learns. The architecture is unchanged.

    Args:
        generator: of scale 4, with equal numbers of input and output channels and at least as many features.

    Raises:
        ValueError: another scale (pixel-unshuffle precedes the first convolution), or mismatched channels.
    """
    channels = generator.conv_first.in_channels
    if generator.scale != 4:
        raise ValueError(f"generator must have scale 4 to start as interpolation, was {generator.scale}")
    if generator.conv_last.out_channels != channels or generator.conv_first.out_channels < channels:
        raise ValueError(
            f"generator must have {channels} output channels, like its input, and at least as many features, was "
            f"{generator.conv_last.out_channels} and {generator.conv_first.out_channels}"
        )
    identity = torch.tensor([0.0, 1.0, 0.0])
    blur, sharpen = torch.tensor(_BILINEAR), torch.tensor(_SHARPEN)
    for convolution, taps in (
        (generator.conv_first, sharpen),
        (generator.conv_up1, blur),
        (generator.conv_up2, blur),
        (generator.conv_hr, identity),
        (generator.conv_last, identity),
    ):
        _set_depthwise(convolution, channels, torch.outer(taps, taps))
    # The trunk's skip connection carries RGB; its residual branch must add zero.
    _set_depthwise(generator.conv_body, channels, torch.zeros(3, 3))


def _set_depthwise(convolution: nn.Conv2d, channels: int, kernel: Tensor) -> None:
    """Make the first output channels the filtered first input channels."""
    convolution.weight[:channels] = 0
    for channel in range(channels):
        convolution.weight[channel, channel] = kernel.to(convolution.weight)
    if convolution.bias is not None:
        convolution.bias[:channels] = 0
