"""PSNR and SSIM against scikit-image, and the conventions of the SR field."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage import data
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from andfast.metrics import luma, protocol, psnr_y, ssim_y


def photograph(name):
    """A scikit-image photograph and a degraded copy, (H, W, 3) uint8."""
    hr = np.asarray(getattr(data, name)())[37:217, 60:291]
    rng = np.random.default_rng(0)
    blurred = (hr.astype(float) + np.roll(hr, 1, 0) + np.roll(hr, 1, 1)) / 3
    sr = np.clip(np.round(blurred + rng.normal(0, 6, hr.shape)), 0, 255).astype(np.uint8)
    return sr, hr


def tensor(image):
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def expected_y(image, y_range="studio"):
    rgb = image.astype(np.float64)
    if y_range == "studio":
        return (65.481 * rgb[..., 0] + 128.553 * rgb[..., 1] + 24.966 * rgb[..., 2]) / 255 + 16
    return 0.299 * rgb[..., 0] + 0.587 * rgb[..., 1] + 0.114 * rgb[..., 2]


PHOTOGRAPHS = ["astronaut", "chelsea", "coffee"]


@pytest.mark.parametrize("y_range", ["studio", "full"])
@pytest.mark.parametrize("border", [0, 4])
@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_matches_scikit_image(name, border, y_range):
    sr, hr = photograph(name)
    cut = slice(border, -border or None)
    a, b = expected_y(sr, y_range)[cut, cut], expected_y(hr, y_range)[cut, cut]
    psnr = peak_signal_noise_ratio(b, a, data_range=255)
    _, ssim_map = structural_similarity(
        a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, full=True
    )
    options = {"crop_border": border, "y_range": y_range}
    assert psnr_y(tensor(sr), tensor(hr), **options).item() == pytest.approx(psnr, rel=1e-10)
    assert ssim_y(tensor(sr), tensor(hr), **options).item() == pytest.approx(ssim_map[5:-5, 5:-5].mean(), rel=1e-10)


def test_studio_luma_matches_scikit_image():
    _, hr = photograph("astronaut")
    np.testing.assert_allclose(luma(tensor(hr)[None])[0, 0].numpy(), rgb2ycbcr(hr)[..., 0], rtol=1e-12)


def test_luma_of_black_and_white():
    ends = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1)
    assert luma(ends).flatten().tolist() == pytest.approx([16, 235], abs=1e-12)
    assert luma(ends, y_range="full").flatten().tolist() == pytest.approx([0, 255], abs=1e-12)


def test_full_range_is_1_32_db_below_studio_range():
    """Studio-range Y spans 219 levels with a peak of 255."""
    sr, hr = map(tensor, photograph("coffee"))
    difference = (psnr_y(sr, hr) - psnr_y(sr, hr, y_range="full")).item()
    assert difference == pytest.approx(20 * math.log10(255 / 219), abs=1e-9)
    assert difference == pytest.approx(1.32, abs=0.005)


def test_rounded_rounds_y_half_up():
    sr, hr = photograph("chelsea")
    a, b = np.floor(expected_y(sr) + 0.5), np.floor(expected_y(hr) + 0.5)
    rounded = psnr_y(tensor(sr), tensor(hr), rounded=True).item()
    assert rounded == pytest.approx(peak_signal_noise_ratio(b, a, data_range=255), rel=1e-12)
    assert rounded != psnr_y(tensor(sr), tensor(hr)).item()
    half = torch.full((1, 3, 1, 1), (100.5 - 16) / 219, dtype=torch.float64)
    assert luma(half, rounded=True).item() == 101
    assert ssim_y(tensor(sr), tensor(hr), rounded=True).item() == pytest.approx(
        ssim_y(tensor(sr), tensor(hr)).item(), abs=1e-3
    )


def test_psnr_of_a_constant_offset():
    hr = torch.zeros(1, 3, 16, 16, dtype=torch.float64)
    # 219 levels of Y per unit of grey: an offset of 0.1 is 21.9 levels.
    assert psnr_y(hr + 0.1, hr).item() == pytest.approx(20 * math.log10(255 / 21.9), rel=1e-12)


def test_equal_images_give_infinite_psnr_and_ssim_one():
    _, hr = photograph("coffee")
    assert psnr_y(tensor(hr), tensor(hr)).item() == math.inf
    assert ssim_y(tensor(hr), tensor(hr)).item() == 1.0


def test_nan_pixel_propagates():
    hr = torch.rand(2, 3, 16, 16)
    sr = hr.clone()
    sr[1, 0, 8, 8] = float("nan")
    assert psnr_y(sr, hr).isnan().tolist() == [False, True]
    assert ssim_y(sr, hr).isnan().tolist() == [False, True]


def test_uint8_floats_single_images_and_batches_agree():
    pairs = [photograph(name) for name in PHOTOGRAPHS]
    sr = torch.stack([tensor(a) for a, _ in pairs])
    hr = torch.stack([tensor(b) for _, b in pairs])
    for metric in (psnr_y, ssim_y):
        batch = metric(sr, hr)
        assert batch.shape == (3,)
        assert batch.dtype == torch.float64
        torch.testing.assert_close(torch.cat([metric(a, b) for a, b in zip(sr, hr, strict=True)]), batch)
        torch.testing.assert_close(metric(sr.double() / 255, hr), batch, rtol=1e-10, atol=0)
        torch.testing.assert_close(metric(sr.float() / 255, hr.float() / 255), batch, rtol=1e-5, atol=0)
        torch.testing.assert_close(metric(sr.to(memory_format=torch.channels_last), hr), batch)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(metric(sr, hr), batch)


def test_works_on_meta_tensors():
    x = torch.empty(2, 3, 32, 32, device="meta")
    assert psnr_y(x, x).shape == ssim_y(x, x).shape == (2,)


@given(
    height=st.integers(11, 24),
    width=st.integers(11, 24),
    border=st.integers(0, 3),
    noise=st.floats(0.01, 0.3),
    seed=st.integers(0, 1000),
)
def test_bounds_and_symmetry(height, width, border, noise, seed):
    generator = torch.Generator().manual_seed(seed)
    size = (height + 2 * border, width + 2 * border)
    hr = torch.rand(2, 3, *size, generator=generator)
    sr = hr + noise * torch.randn(2, 3, *size, generator=generator)
    ssim = ssim_y(sr, hr, crop_border=border)
    assert (ssim.abs() <= 1).all()
    torch.testing.assert_close(ssim, ssim_y(hr, sr, crop_border=border))
    torch.testing.assert_close(psnr_y(sr, hr, crop_border=border), psnr_y(hr, sr, crop_border=border))
    assert (psnr_y(hr + (sr - hr) / 2, hr) > psnr_y(sr, hr)).all()
    if border:  # excluded pixels have no effect
        framed = sr.clone()
        framed[..., :border, :] = 7
        framed[..., -border:] = 7
        assert torch.equal(ssim_y(framed, hr, crop_border=border), ssim)


def test_protocol_description():
    assert protocol() == "Y of studio-range BT.601, unrounded, border 0"
    assert protocol(crop_border=4, y_range="full", rounded=True) == "Y of full-range BT.601, rounded, border 4"


@pytest.mark.parametrize("metric", [psnr_y, ssim_y])
@pytest.mark.parametrize(
    ("sr", "hr", "options", "error", "message"),
    [
        (torch.zeros(3, 16, 16), torch.zeros(3, 16, 17), {}, ValueError, "sr must have shape that of hr"),
        (
            torch.zeros(1, 16, 16),
            torch.zeros(1, 16, 16),
            {},
            ValueError,
            r"sr must have shape \(N, 3, H, W\) or",
        ),
        (torch.zeros(3, 16, 16), torch.zeros(16, 16), {}, ValueError, "hr must have shape"),
        (
            np.zeros((3, 16, 16)),
            torch.zeros(3, 16, 16),
            {},
            TypeError,
            "sr must be a torch.Tensor, was ndarray",
        ),
        (
            torch.zeros(3, 16, 16, dtype=torch.int32),
            torch.zeros(3, 16, 16),
            {},
            TypeError,
            "sr must be uint8, or float",
        ),
        (
            torch.zeros(3, 16, 16),
            torch.zeros(3, 16, 16),
            {"crop_border": 8},
            ValueError,
            "after cropping 8 on each side",
        ),
        (
            torch.zeros(3, 16, 16),
            torch.zeros(3, 16, 16),
            {"crop_border": -1},
            ValueError,
            "must be at least 0, was -1",
        ),
        (
            torch.zeros(3, 16, 16),
            torch.zeros(3, 16, 16),
            {"crop_border": 1.5},
            TypeError,
            "must be an integer, was 1.5",
        ),
        (
            torch.zeros(3, 16, 16),
            torch.zeros(3, 16, 16),
            {"y_range": "tv"},
            ValueError,
            "y_range must be one of",
        ),
        (
            torch.zeros(3, 16, 16),
            torch.zeros(3, 16, 16, device="meta"),
            {},
            ValueError,
            "on the device of hr",
        ),
    ],
)
def test_rejects_invalid_arguments(metric, sr, hr, options, error, message):
    with pytest.raises(error, match=message):
        metric(sr, hr, **options)


def test_ssim_requires_a_whole_window():
    assert ssim_y(torch.rand(3, 11, 11), torch.rand(3, 11, 11)).shape == (1,)
    with pytest.raises(ValueError, match="at least 11 pixels"):
        ssim_y(torch.rand(3, 10, 32), torch.rand(3, 10, 32))
    with pytest.raises(ValueError, match=r"at least 11 pixels .* after cropping 3"):
        ssim_y(torch.rand(3, 16, 32), torch.rand(3, 16, 32), crop_border=3)
