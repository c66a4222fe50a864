"""Restoration, scores and bicubic upscaling."""

import math

import numpy as np
import pytest
import torch
from skimage import data
from torch import nn

from andfast.metrics import color_shift, psnr_rgb, psnr_y, ssim_y
from andfast.training.scoring import bicubic, quantize, restore, score, values
from andfast.training.validation_set import ValidationSet

NAMES = ["astronaut", "chelsea", "coffee"]


def images():
    return [np.asarray(getattr(data, name)()) for name in NAMES]


def crops():
    """(5, 3, 64, 64) uint8."""
    return ValidationSet.from_images(images(), NAMES, crop_size=64, crops=5, scale=4, seed=0).hr


class Nearest(nn.Module):
    """A generator with batch normalization and dropout, whose outputs depend on eval mode."""

    def __init__(self, scale=4, gain=1.0):
        super().__init__()
        self.up = nn.Upsample(scale_factor=scale)
        self.norm = nn.BatchNorm2d(3, affine=False)
        self.norm.eval()
        self.drop = nn.Dropout(0.5)
        self.gain = nn.Parameter(torch.tensor(gain))
        self.sizes = []

    def forward(self, x):
        self.sizes.append(len(x))
        assert torch.is_inference_mode_enabled()
        assert not any(module.training for module in self.modules())
        return self.drop(self.norm(self.up(x))) * self.gain


def test_score_is_the_mean_over_8_bit_images():
    hr = crops()
    lr = nn.functional.avg_pool2d(hr.float() / 255, 4)
    result = score(restore(Nearest(gain=1.3), lr), hr, crop_border=4)
    sr = (lr.repeat_interleave(4, 2).repeat_interleave(4, 3) * 1.3 / math.sqrt(1 + 1e-5)).clamp(0, 1)
    sr = (sr * 255).round().to(torch.uint8)
    assert result["psnr_y"] == pytest.approx(psnr_y(sr, hr, crop_border=4).mean().item(), abs=0.01)
    assert result["ssim_y"] == pytest.approx(ssim_y(sr, hr, crop_border=4).mean().item(), abs=1e-3)
    assert result["psnr_rgb"] == pytest.approx(psnr_rgb(sr, hr, crop_border=4).mean().item(), abs=0.01)
    shift = color_shift(sr, hr, crop_border=4).mean(0)
    assert [result[f"color_shift_{channel}"] for channel in "rgb"] == pytest.approx(shift.tolist(), abs=0.05)


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_batch_size_does_not_change_the_result(batch):
    hr = crops()
    lr = hr[:, :, ::4, ::4]
    generator = Nearest()
    result = score(restore(generator, lr, batch=batch), hr)
    assert result == pytest.approx(score(restore(Nearest(), lr, batch=5), hr), rel=1e-12)
    assert generator.sizes == {1: [1] * 5, 2: [2, 2, 1], 8: [5]}[batch]


def test_consecutive_images_of_equal_size_share_a_batch():
    generator = Nearest()
    lr = [torch.rand(3, *size) for size in [(8, 8), (8, 8), (8, 12), (8, 8)]]
    sr = restore(generator, lr)
    assert generator.sizes == [2, 1, 1]
    assert [image.shape for image in sr] == [(3, 32, 32), (3, 32, 32), (3, 32, 48), (3, 32, 32)]


def test_restore_resets_module_modes_even_after_an_error():
    generator = Nearest()
    generator.train()
    generator.norm.eval()
    lr = torch.rand(2, 3, 8, 8)
    restore(generator, lr)
    assert (generator.training, generator.norm.training, generator.drop.training) == (True, False, True)
    with pytest.raises(RuntimeError):
        restore(generator, torch.rand(2, 4, 8, 8))
    assert (generator.training, generator.norm.training, generator.drop.training) == (True, False, True)


def test_restored_images_accept_autograd():
    (sr,) = restore(Nearest(), torch.rand(1, 3, 8, 8))
    assert not sr.is_inference()
    weight = torch.ones((), requires_grad=True)
    (sr * weight).sum().backward()
    assert weight.grad is not None


def test_restore_uses_the_callers_autocast():
    class Convolution(nn.Conv2d):
        seen = None

        def forward(self, x):
            out = super().forward(x)
            self.seen = out.dtype
            return out

    generator = Convolution(3, 3, 1)
    hr = torch.rand(1, 3, 16, 16)
    assert restore(generator, hr)[0].dtype == torch.float32
    assert generator.seen == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        restore(generator, hr)
    assert generator.seen == torch.bfloat16


def test_score_of_perfect_nan_and_mismatched_images():
    hr = crops()
    perfect = {"psnr_y": math.inf, "psnr_rgb": math.inf, "ssim_y": 1.0}
    assert score(hr, hr) == {**perfect, **{f"color_shift_{channel}": 0.0 for channel in "rgb"}}
    # Errors below half a level vanish when saved.
    assert score(hr.float() / 255 + 0.001, hr)["psnr_y"] == math.inf
    broken = hr.float() / 255
    broken[2, 0, 5, 5] = float("nan")
    assert math.isnan(score(broken, hr)["psnr_y"])
    with pytest.raises(ValueError, match="the same number of images, at least 1, was 4 and 5"):
        score(hr[:4], hr)
    with pytest.raises(ValueError, match="at least 1, was 0 and 0"):
        score([], [])
    with pytest.raises(ValueError, match="sr must have shape that of hr"):
        score([torch.rand(3, 16, 16)], [torch.rand(3, 16, 32)])
    with pytest.raises(ValueError, match="batch must be at least 1"):
        restore(Nearest(), hr, batch=0)


def test_score_averages_values():
    hr = crops()
    sr = bicubic(hr[:, :, ::4, ::4], 4)
    each = [values(a, b) for a, b in zip(sr, hr, strict=True)]
    assert score(sr, hr)["psnr_y"] == pytest.approx(np.mean([image["psnr_y"] for image in each]), rel=1e-12)


def test_quantize_clamps_and_rounds():
    x = torch.tensor([-0.5, 0.0, 0.501 / 255, 127.4 / 255, 1.0, 2.0])
    assert (quantize(x) * 255).round().tolist() == [0, 0, 1, 127, 255, 255]
    assert torch.equal(quantize(torch.tensor([7], dtype=torch.uint8)), torch.tensor([7 / 255], dtype=torch.float64))


def test_bicubic_clamps():
    step = torch.zeros(1, 3, 8, 8)
    step[..., 4:] = 1
    up = bicubic(step, 4)
    assert (up.min(), up.max()) == (0, 1)
