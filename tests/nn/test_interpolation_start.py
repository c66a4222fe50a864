"""A generator that begins as interpolation."""

import pytest
import torch
import torch.nn.functional as F

from andfast.nn import RRDBNet
from andfast.nn.interpolation_start import start_as_interpolation


def test_begins_as_sharpened_bilinear_upsampling_and_learns() -> None:
    torch.manual_seed(0)
    generator = RRDBNet(4, features=8, blocks=2, growth=4)
    start_as_interpolation(generator)
    lr = 0.4 + 0.2 * torch.rand(2, 3, 12, 10)  # sharpening stays positive, where LeakyReLU is the identity
    taps = torch.tensor([-0.2, 1.4, -0.2])
    sharp = F.conv2d(lr, torch.outer(taps, taps).expand(3, 1, 3, 3), padding=1, groups=3)
    twice = F.interpolate(sharp, scale_factor=2, mode="bilinear")
    expected = F.interpolate(twice, scale_factor=2, mode="bilinear")
    sr = generator(lr)
    inside = (..., slice(12, -12), slice(12, -12))  # zero padding darkens the border
    torch.testing.assert_close(sr[inside], expected[inside], atol=1e-5, rtol=1e-5)
    # Every parameter that training needs has a gradient; the last layer's reach all features.
    sr.square().mean().backward()
    gradient = generator.conv_last.weight.grad
    assert gradient is not None
    assert (gradient.abs().sum((0, 2, 3)) > 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 2}, "generator must be for scale 4 to start as interpolation, was for 2"),
        ({"features": 2}, "at least as many features, had 3 and 2"),
        ({"out_channels": 1}, "as many output as input channels, 3"),
    ],
)
def test_refuses_what_cannot_interpolate(arguments: dict[str, int], message: str) -> None:
    sizes = {"features": 8, "blocks": 1, "growth": 4, **arguments}
    with pytest.raises(ValueError, match=message):
        start_as_interpolation(RRDBNet(**sizes))  # type: ignore[arg-type]
