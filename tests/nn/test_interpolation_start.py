"""Initialization of a generator as an interpolator."""

import pytest
import torch
import torch.nn.functional as F

from andfast.nn import RRDBNet
from andfast.nn.interpolation_start import start_as_interpolation


def test_starts_as_sharpened_bilinear_upsampling() -> None:
    torch.manual_seed(0)
    generator = RRDBNet(4, features=8, blocks=2, growth=4)
    start_as_interpolation(generator)
    lr = 0.4 + 0.2 * torch.rand(2, 3, 12, 10)  # sharpening stays positive, where LeakyReLU is the identity
    taps = torch.tensor([-0.2, 1.4, -0.2])
    sharpened = F.conv2d(lr, torch.outer(taps, taps).expand(3, 1, 3, 3), padding=1, groups=3)
    upsampled = F.interpolate(sharpened, scale_factor=2, mode="bilinear")
    expected = F.interpolate(upsampled, scale_factor=2, mode="bilinear")
    sr = generator(lr)
    interior = (..., slice(12, -12), slice(12, -12))  # zero padding darkens the border
    torch.testing.assert_close(sr[interior], expected[interior], atol=1e-5, rtol=1e-5)
    # The gradient of the last layer reaches all features, so the others can start to contribute.
    sr.square().mean().backward()
    gradient = generator.conv_last.weight.grad
    assert gradient is not None
    assert (gradient.abs().sum((0, 2, 3)) > 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 2}, "generator must have scale 4 to start as interpolation, was 2"),
        ({"features": 2}, "at least as many features, was 3 and 2"),
        ({"out_channels": 1}, "must have 3 output channels, like its input"),
    ],
)
def test_rejects_other_scales_and_channels(arguments: dict[str, int], message: str) -> None:
    sizes = {"features": 8, "blocks": 1, "growth": 4, **arguments}
    with pytest.raises(ValueError, match=message):
        start_as_interpolation(RRDBNet(**sizes))  # type: ignore[arg-type]
