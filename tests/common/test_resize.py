"""Bicubic resampling against Pillow and a direct float64 sum."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torch import Tensor

from andfast.resize import bicubic_downscale, bicubic_upscale, cubic


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", ["astronaut", "coffee"])
def test_upscale_equals_pillow(name: str, scale: int) -> None:
    """Up to two levels, and 0.4 on average, since Pillow rounds to 8 bits after each of its two passes."""
    # Pillow also clips between its passes, which lower contrast avoids.
    lr = Image.fromarray(getattr(data, name)() // 2 + 64).resize((90, 70), Image.Resampling.BOX)
    expected = np.asarray(lr.resize((90 * scale, 70 * scale), Image.Resampling.BICUBIC)).astype(float)
    actual = bicubic_upscale(torch.from_numpy(np.asarray(lr).copy()).permute(2, 0, 1)[None], scale)
    assert actual.shape == (1, 3, 70 * scale, 90 * scale)
    error = np.abs((actual[0].permute(1, 2, 0) * 255).numpy() - expected)
    assert error.max() <= 2
    assert error.mean() < 0.4


def direct(x: Tensor, factor: float) -> Tensor:
    """The definition along the last axis: normalized weights, stretched for downscaling, of pixels inside the image."""
    size = round(x.shape[-1] * factor)
    centers = (torch.arange(size, dtype=torch.float64) + 0.5) / factor - 0.5
    distance = (centers[:, None] - torch.arange(x.shape[-1], dtype=torch.float64)).abs()
    weights = cubic(distance * min(factor, 1.0))
    return x @ (weights / weights.sum(1, keepdim=True)).T


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_matches_direct_sum(scale: int) -> None:
    x = torch.rand(2, 3, 12, 24, dtype=torch.float64)
    for actual, factor, tolerance in (
        (bicubic_upscale(x, scale), float(scale), 1e-5),
        (bicubic_downscale(x, scale), 1 / scale, 1e-12),
    ):
        expected = direct(direct(x, factor).mT, factor).mT
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=tolerance)


def test_dtypes_and_constants() -> None:
    levels = torch.full((1, 3, 8, 8), 51, dtype=torch.uint8)
    constant = torch.full((1, 3, 8, 8), 0.2)
    for x in (levels, constant):
        torch.testing.assert_close(bicubic_upscale(x, 4), torch.full((1, 3, 32, 32), 0.2))
    for x in (constant, constant.double()):
        torch.testing.assert_close(bicubic_downscale(x, 4), torch.full((1, 3, 2, 2), 0.2, dtype=x.dtype))
    assert bicubic_upscale(torch.rand(1, 3, 8, 8).bfloat16(), 2).dtype == torch.float32


def test_rejects_invalid_arguments() -> None:
    for resample in (bicubic_upscale, bicubic_downscale):
        with pytest.raises(ValueError, match=r"x must have shape \(N, C, H, W\), was \(3, 8, 8\)"):
            resample(torch.rand(3, 8, 8), 4)
        with pytest.raises(ValueError, match="scale must be at least 1, was 0"):
            resample(torch.rand(1, 3, 8, 8), 0)
        with pytest.raises(TypeError, match=r"scale must be an integer, was 2\.0"):
            resample(torch.rand(1, 3, 8, 8), 2.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="x must"):
        bicubic_downscale(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), 2)
