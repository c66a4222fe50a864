"""The high-order synthetic degradation: its filters, noises and codec, and the pipeline as a whole."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_steps import crops

from andfast.adversary.strategies.high_order import (
    SHAPES,
    HighOrderDegradation,
    Round,
    blur_kernel,
    filter_image,
    gaussian_noise,
    jpeg,
    poisson_noise,
    sinc_kernel,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_gaussian_kernel_has_its_moments() -> None:
    kernel = blur_kernel(21, (2.0, 1.0), math.pi / 6)
    taps = torch.arange(21, dtype=torch.float64) - 10
    y, x = torch.meshgrid(taps, taps, indexing="ij")
    moments = [(kernel * product).sum().item() for product in (x * x, y * y, x * y)]
    # The covariance diag(4, 1), rotated by 30 degrees.
    assert moments == pytest.approx([4 * 0.75 + 0.25, 4 * 0.25 + 0.75, 3 * math.sqrt(3) / 4], rel=2e-3)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [7, 21])
def test_blur_kernels(shape: str, size: int) -> None:
    for beta in (0.5, 1.0, 4.0):
        kernel = blur_kernel(size, (1.5, 0.2), 0.3, shape, beta)
        assert kernel.sum().item() == pytest.approx(1)
        assert (kernel >= 0).all()
        torch.testing.assert_close(kernel, kernel.flip(0, 1))
    isotropic = blur_kernel(size, (1.5, 1.5), 0.7, shape, 1.5)
    torch.testing.assert_close(isotropic, isotropic.T)
    generalized = blur_kernel(size, (1.5, 0.9), 0.7, "generalized", 1.0)
    torch.testing.assert_close(generalized, blur_kernel(size, (1.5, 0.9), 0.7))


def test_sinc_kernel_is_a_circular_low_pass() -> None:
    """Half of the gain at the cutoff in any direction, close to 1 below and to 0 above."""
    cutoff = math.pi / 2
    kernel = sinc_kernel(81, cutoff)
    taps = torch.arange(81, dtype=torch.float64) - 40
    y, x = torch.meshgrid(taps, taps, indexing="ij")
    for angle in (0.0, 0.5, math.pi / 4):
        along = x * math.cos(angle) + y * math.sin(angle)
        low, half, high = ((kernel * torch.cos(f * cutoff * along)).sum().item() for f in (0.5, 1.0, 1.5))
        assert low == pytest.approx(1, abs=0.05)
        assert half == pytest.approx(0.5, abs=0.05)
        assert high == pytest.approx(0, abs=0.05)


def test_filter_keeps_flat_images_and_replicates_the_border() -> None:
    flat = torch.full((3, 5, 3), 0.25)
    torch.testing.assert_close(filter_image(flat, sinc_kernel(21, 2.0)), flat, rtol=0, atol=1e-6)
    x = torch.rand(3, 6, 7, generator=torch.Generator().manual_seed(0))
    shift = torch.zeros(3, 3, dtype=torch.float64)
    shift[1, 2] = 1  # reads the right neighbour
    torch.testing.assert_close(filter_image(x, shift), torch.cat([x[..., 1:], x[..., -1:]], -1))


@pytest.mark.parametrize("gray", [False, True])
def test_noise_statistics(gray: bool) -> None:
    x = torch.full((3, 200, 200), 0.5)
    x[:, :100] = 0.125
    noise = gaussian_noise(x, 0.1, gray=gray, rng=rng()).expand(3, -1, -1)
    assert noise.std().item() == pytest.approx(0.1, rel=0.02)
    shot = poisson_noise(x, gray=gray, rng=rng()).expand(3, -1, -1)
    for part, rate in ((shot[:, :100], 0.125), (shot[:, 100:], 0.5)):
        assert part.var().item() == pytest.approx(rate / 255, rel=0.05)
        assert part.mean().item() == pytest.approx(0, abs=2e-3)
    assert torch.equal(shot[0], shot[1]) == torch.equal(noise[0], noise[1]) == gray


def test_jpeg_is_a_codec() -> None:
    x = crops(1, 64)[0]
    errors = [(jpeg(x, quality) - x).square().mean().item() for quality in (95, 60, 30)]
    assert 0 < errors[0] < errors[1] < errors[2]
    assert jpeg(x * 3 - 1, 95).min() >= 0


@pytest.mark.parametrize(("scale", "size"), [(4, (8, 8)), (4, (32, 20)), (2, (26, 14))])
def test_output_is_an_8_bit_image_of_the_right_size(scale: int, size: tuple[int, int]) -> None:
    degrade, hr = HighOrderDegradation(), crops(1)[0][:, : size[0], : size[1]]
    for seed in range(8):
        lr = degrade(hr, scale, rng(seed))
        assert lr.shape == (3, size[0] // scale, size[1] // scale)
        levels = lr * 255
        torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
        assert 0 <= lr.min() <= lr.max() <= 1
        assert torch.equal(lr, degrade(hr, scale, rng(seed)))


def test_probabilities_select_the_stages() -> None:
    """Without blur, noise, enlargement and filters at JPEG's best quality little is left of the degradation."""
    still = Round(blur=0.0, resize=(0.0, 0.0, 1.0), gaussian=1.0, gaussian_sigma=(0.0, 0.0))
    hr = crops(1, 64)[0]
    mild = HighOrderDegradation(still, still, quality=(100, 100), final_sinc=0.0)
    severe = replace(mild, quality=(5, 5))
    target = torch.nn.functional.interpolate(hr[None], size=(16, 16), mode="area")[0]
    distance = [(pipeline(hr, 4, rng(3)) - target).square().mean().item() for pipeline in (mild, severe)]
    assert distance[0] < 0.2 * distance[1]


def test_kernels_follow_the_paper() -> None:
    """Sizes 7 to 21, a tenth sinc filters, which are the only ones with negative taps."""
    degrade, generator = HighOrderDegradation(), rng()
    kernels = [degrade.kernel(degrade.first, generator) for _ in range(400)]
    assert {kernel.shape[0] for kernel in kernels} == set(range(7, 22, 2))
    share = sum(bool((kernel < 0).any()) for kernel in kernels) / len(kernels)
    assert share == pytest.approx(0.1, abs=0.05)
    assert all(kernel.sum().item() == pytest.approx(1) for kernel in kernels)
