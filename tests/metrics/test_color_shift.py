"""PSNR in RGB against scikit-image, and the color shift of known tints."""

import math

import numpy as np
import pytest
import torch
from skimage import data
from skimage.metrics import peak_signal_noise_ratio

from andfast.metrics import color_shift, psnr_rgb, psnr_y


def photograph():
    return torch.from_numpy(np.asarray(data.coffee())[40:140, 60:190].transpose(2, 0, 1).copy())


@pytest.mark.parametrize("border", [0, 4])
def test_psnr_rgb_matches_scikit_image(border):
    hr = photograph()
    sr = (hr + 8 * torch.randn(hr.shape)).clamp(0, 255).byte()
    cropped = (..., slice(border, -border or None), slice(border, -border or None))
    expected = peak_signal_noise_ratio(hr[cropped].numpy(), sr[cropped].numpy(), data_range=255)
    assert psnr_rgb(sr, hr, crop_border=border).item() == pytest.approx(expected, rel=1e-12)
    assert psnr_rgb(sr.float() / 255, hr, crop_border=border).item() == pytest.approx(expected, rel=1e-6)


def test_tint_of_equal_luma_shows_in_rgb_only():
    """(142, 121, 113) in place of (128, 128, 128), the tint of an early network."""
    hr = torch.full((1, 3, 16, 16), 128, dtype=torch.uint8)
    sr = torch.tensor([142, 121, 113], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    assert color_shift(sr, hr).tolist() == [[14, -7, -15]]
    mse = (14**2 + 7**2 + 15**2) / 3
    assert psnr_rgb(sr, hr).item() == pytest.approx(10 * math.log10(255**2 / mse), rel=1e-12)
    offset_y = (65.481 * 14 - 128.553 * 7 - 24.966 * 15) / 255
    assert psnr_y(sr, hr).item() == pytest.approx(20 * math.log10(255 / abs(offset_y)), rel=1e-9)
    assert psnr_y(sr, hr) > psnr_rgb(sr, hr) + 15


def test_color_shift_ignores_zero_mean_errors_and_the_border():
    hr = torch.rand(2, 3, 16, 18, dtype=torch.float64)
    noise = torch.randn(2, 3, 16, 18, dtype=torch.float64)
    noise -= noise.mean((2, 3), keepdim=True)
    offset = torch.tensor([0.01, 0.0, -0.02], dtype=torch.float64).view(3, 1, 1)
    expected = (255 * offset.flatten()).expand(2, 3)
    torch.testing.assert_close(color_shift(hr + noise + offset, hr), expected)
    framed = hr + offset
    framed[..., :3, :] = 0
    torch.testing.assert_close(color_shift(framed, hr, crop_border=3), expected)


def test_equal_images():
    assert psnr_rgb(photograph(), photograph()).item() == math.inf
    assert color_shift(photograph(), photograph()).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("metric", [psnr_rgb, color_shift])
def test_rejects_invalid_pairs(metric):
    with pytest.raises(ValueError, match="sr must have shape that of hr"):
        metric(torch.rand(3, 8, 8), torch.rand(3, 8, 9))
    with pytest.raises(ValueError, match="after cropping 4 on each side"):
        metric(torch.rand(3, 8, 8), torch.rand(3, 8, 8), crop_border=4)
