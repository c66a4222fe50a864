"""benchmarks/ablation/damage.py: each kind of damage against its definition or skimage's."""

import io
import math

import numpy as np
import pytest
import torch
from evaluation_cases import photograph
from PIL import Image
from skimage.filters import gaussian, unsharp_mask

from andfast.functional import blur_pool
from benchmarks.ablation.damage import (
    CLEAN,
    DAMAGES,
    add_noise,
    alias,
    blur,
    damaged,
    fringe,
    jpeg,
    round_to_8_bits,
    sharpen,
)
from benchmarks.ablation.upper_bound import random_damage

HR = torch.stack([photograph("astronaut", 96, 80), photograph("coffee", 96, 80)])
LR = blur_pool(HR.float() / 255, 4)


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_images(name, scale):
    lr = damaged(name, HR, scale)
    assert lr.dtype == torch.uint8
    assert lr.shape == (2, 3, 96 // scale, 80 // scale)
    assert torch.equal(lr, damaged(name, HR, scale))
    assert torch.equal(lr[:1], damaged(name, HR[:1], scale))
    clean = damaged(CLEAN, HR, scale)
    assert torch.equal(lr, clean) == (name == CLEAN)


@pytest.mark.parametrize(("weak", "strong"), [
    ("noise 3", "noise 10"), ("blur 0.7", "blur 1.2"), ("jpeg 75", "jpeg 40"), ("halos 1", "halos 2"),
    ("aliasing 50%", "aliasing 100%"), ("fringes 0.5", "fringes 1"),
])  # fmt: skip
def test_strengths_are_ordered(weak, strong):
    clean = damaged(CLEAN, HR, 4).double()
    distances = [(damaged(name, HR, 4).double() - clean).square().mean() for name in (weak, strong)]
    assert 1.5 * distances[0] < distances[1]


def test_clean_is_pooled():
    assert torch.equal(damaged(CLEAN, HR, 4), (LR.clamp(0, 1) * 255).round().to(torch.uint8))


def test_noise_level():
    difference = add_noise(torch.zeros(1, 3, 256, 256), 10, torch.Generator().manual_seed(0)) * 255
    assert difference.std().item() == pytest.approx(10, rel=0.01)
    assert abs(difference.mean().item()) < 0.1


@pytest.mark.parametrize("sigma", [0.7, 1.2])
def test_blur_against_skimage(sigma):
    image = LR[0].permute(1, 2, 0).double().numpy()
    expected = gaussian(image, sigma, mode="nearest", truncate=round(4 * sigma) / sigma, channel_axis=2)
    np.testing.assert_allclose(blur(LR, sigma)[0].permute(1, 2, 0).numpy(), expected, atol=1e-6)


def test_sharpen_against_skimage():
    image = LR[0].permute(1, 2, 0).double().numpy()
    expected = unsharp_mask(image, radius=1, amount=1.5, channel_axis=2)
    result = sharpen(LR, 1.5)[0].clamp(0, 1).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(result[4:-4, 4:-4], expected[4:-4, 4:-4], atol=1e-5)


def test_jpeg_against_pillow():
    image = Image.fromarray(round_to_8_bits(LR)[1].permute(1, 2, 0).numpy())
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=40)  # 4:2:0 is Pillow's default
    expected = np.asarray(Image.open(buffer))
    np.testing.assert_array_equal((jpeg(LR, 40)[1] * 255).round().permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_decimation_does_not_shift(scale):
    """A linear ramp is its own pooling and its own decimation, away from borders."""
    side = 12 * scale
    ramp = (torch.arange(side) / side)[None, None, None, :].expand(1, 3, side, side)
    result = alias(ramp, scale, 1.0)
    torch.testing.assert_close(result[..., 2:-2], blur_pool(ramp, scale)[..., 2:-2])
    wave = torch.sin(2 * math.pi * 0.75 / scale * torch.arange(side))  # above LR's Nyquist frequency
    wave = wave[None, None, None, :].expand(1, 3, side, side)
    assert alias(wave, scale, 1.0).std() > 2 * blur_pool(wave, scale).std()


def test_fringes_move_red_out_and_blue_in():
    """Of a ramp, red at a place shows what was nearer the center, blue what was farther, by the shift's share."""
    side, scale, shift = 128, 4, 0.5
    ramp = torch.linspace(0.2, 0.8, side)[None, None, None, :].expand(1, 3, side, side)
    clean, result = blur_pool(ramp, scale), fringe(ramp, scale, shift)
    torch.testing.assert_close(result[:, 1], clean[:, 1])
    step = 0.6 / (side - 1) * scale  # per LR pixel
    moved = (result - clean)[0, :, 16, 24] / step  # LR column 24.5 from the left edge, center at 16
    expected = shift * (24.5 - 16) / (0.5 * (32**2 + 32**2) ** 0.5)
    assert moved[0].item() == pytest.approx(-expected, rel=0.1)
    assert moved[2].item() == pytest.approx(expected, rel=0.1)


def test_random_damage_is_the_tests_with_other_noise():
    hr, generator = HR[0].float() / 255, np.random.default_rng(0)
    drawn = {random_damage(hr, 4, generator).mul(255).round().byte().numpy().tobytes() for _ in range(150)}
    expected = {name: damaged(name, HR[:1], 4)[0].numpy().tobytes() for name in DAMAGES}
    noisy = {"noise 3", "noise 10", "mixture camera", "mixture website"}
    assert {name for name, image in expected.items() if image in drawn} == set(DAMAGES) - noisy
    assert len(drawn) > len(DAMAGES) + 10  # each noise is new
    same = [random_damage(hr, 4, np.random.default_rng(1)) for _ in range(2)]
    assert torch.equal(*same)
    assert same[0].shape == (3, 24, 20)
    assert same[0].dtype == torch.float32
