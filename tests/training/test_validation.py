"""Held-out evaluation: crops, pairs, the evaluation of G and the bicubic baseline."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torch import nn

from andfast.metrics import psnr_y, ssim_y
from andfast.training.validation import ValidationSet, bicubic, evaluate, quantize, restore, score, values

NAMES = ["astronaut", "chelsea", "coffee"]


def photographs():
    return [np.asarray(getattr(data, name)()) for name in NAMES]


class Nearest(nn.Module):
    """A generator with batch normalisation and dropout, which show whether it runs in eval mode."""

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


# ------------------------------------------------------------------------------------------------------ crops


def crops(**options):
    defaults = {"crop_size": 64, "crops": 5, "scale": 4, "seed": 0}
    return ValidationSet.from_photographs(photographs(), NAMES, **defaults | options)


def test_first_crops_are_the_centres_and_further_ones_are_seeded():
    found = crops()
    assert found.names == ("astronaut", "chelsea", "coffee", "astronaut #2", "chelsea #2")
    assert len(found) == 5
    assert found.hr.shape == (5, 3, 64, 64)
    assert found.hr.dtype == torch.uint8
    assert found.lr is None
    chelsea = photographs()[1]
    top, left = (chelsea.shape[0] - 64) // 2, (chelsea.shape[1] - 64) // 2
    np.testing.assert_array_equal(found.hr[1].permute(1, 2, 0), chelsea[top : top + 64, left : left + 64])
    assert torch.equal(found.hr, crops().hr)
    other = crops(seed=1).hr
    assert torch.equal(found.hr[:3], other[:3])
    assert not torch.equal(found.hr[3:], other[3:])


def test_more_crops_keep_the_ones_before_and_are_different_places():
    many = crops(crops=12)
    assert torch.equal(many.hr[:3], crops(crops=3).hr)
    assert many.names[-1] == "coffee #4"
    assert len({crop.numpy().tobytes() for crop in many.hr}) == 12


def test_crops_lie_inside_and_reach_the_borders():
    rows, columns = np.mgrid[:20, :20].astype(np.uint8)
    image = np.stack([rows, columns, rows], axis=-1)
    found = ValidationSet.from_photographs([image], ["ramp"], crop_size=16, crops=200, scale=4, seed=0)
    assert set(found.hr[:, 0, 0, 0].tolist()) == set(found.hr[:, 1, 0, 0].tolist()) == {0, 1, 2, 3, 4}


def test_fewer_crops_than_photographs_are_spread_over_them():
    images = [np.full((16, 16, 3), i, np.uint8) for i in range(10)]
    found = ValidationSet.from_photographs(images, [str(i) for i in range(10)], crop_size=16, crops=4, scale=2, seed=0)
    assert found.names == ("0", "2", "5", "7")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"crop_size": 62}, ValueError, "crop_size must be a multiple of scale, 4, was 62"),
        (
            {"crop_size": 304},
            ValueError,
            r"at least 304 pixels \(crop_size\) high and wide, chelsea was 451x300",
        ),
        ({"crops": 0}, ValueError, "crops must be 1 or more, was 0"),
        ({"scale": 2.0}, TypeError, "scale must be a whole number, was 2.0"),
    ],
)
def test_impossible_crops_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        crops(**options)


def test_impossible_photographs_are_refused_by_name():
    options = {"crop_size": 8, "crops": 1, "scale": 2, "seed": 0}
    with pytest.raises(ValueError, match="images must be one or more, as many as names, was 0 for 0"):
        ValidationSet.from_photographs([], [], **options)
    with pytest.raises(ValueError, match=r"shape \(H, W, 3\), grey was \(9, 9\)"):
        ValidationSet.from_photographs([np.zeros((9, 9), np.uint8)], ["grey"], **options)
    with pytest.raises(TypeError, match="uint8 arrays, deep was uint16"):
        ValidationSet.from_photographs([np.zeros((9, 9, 3), np.uint16)], ["deep"], **options)


# ------------------------------------------------------------------------------------------------------ pairs


@pytest.fixture
def folders(tmp_path):
    hr, lr = tmp_path / "hr", tmp_path / "lr"
    (hr / "more").mkdir(parents=True)
    (lr / "more").mkdir(parents=True)
    for name, image in zip(["b.png", "a.png", "more/c.bmp"], photographs(), strict=True):
        cut = Image.fromarray(image[:120, :160])
        cut.save(hr / name)
        cut.resize((40, 30)).save(lr / name)
    (hr / "notes.txt").write_text("not a picture")
    return hr, lr


def test_pairs_are_read_by_name(folders):
    found = ValidationSet.from_pairs(*folders, 4)
    assert found.names == ("a.png", "b.png", "more/c.bmp")
    assert [image.shape for image in found.hr] == [(3, 120, 160)] * 3
    assert [image.shape for image in found.lr] == [(3, 30, 40)] * 3
    np.testing.assert_array_equal(found.hr[1].permute(1, 2, 0), photographs()[0][:120, :160])
    result = evaluate(Nearest(), found.lr, found.hr)
    assert result["psnr_y"] > 15


def test_pairs_that_do_not_fit_are_refused_by_name(folders):
    hr, lr = folders
    with pytest.raises(ValueError, match=r"a\.png must be 2 times as wide and high .* was 160x120 and 40x30"):
        ValidationSet.from_pairs(hr, lr, 2)
    (lr / "a.png").rename(lr / "a.bmp")
    with pytest.raises(ValueError, match=r"under the same name: a\.bmp is in .*lr, not in .*hr"):
        ValidationSet.from_pairs(hr, lr, 4)
    (lr / "a.bmp").unlink()
    with pytest.raises(ValueError, match=r"under the same name: a\.png is in .*hr, not in .*lr"):
        ValidationSet.from_pairs(hr, lr, 4)
    (lr / "a.png").write_bytes((hr / "a.png").read_bytes()[:500])
    with pytest.raises(ValueError, match=r"lr/a\.png cannot be used: "):
        ValidationSet.from_pairs(hr, lr, 4)
    with pytest.raises(FileNotFoundError, match="lr_folder must be a folder, there is none at"):
        ValidationSet.from_pairs(hr, lr / "nowhere", 4)
    empty = hr / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="hr_folder must hold pictures"):
        ValidationSet.from_pairs(empty, empty, 4)


# --------------------------------------------------------------------------------------------------- evaluate


def test_evaluate_is_the_mean_of_the_metrics_on_8_bit_results():
    hr = crops().hr
    lr = nn.functional.avg_pool2d(hr.float() / 255, 4)
    result = evaluate(Nearest(gain=1.3), lr, hr, crop_border=4)
    sr = (lr.repeat_interleave(4, 2).repeat_interleave(4, 3) * 1.3 / math.sqrt(1 + 1e-5)).clamp(0, 1)
    sr = (sr * 255).round().to(torch.uint8)
    assert result["psnr_y"] == pytest.approx(psnr_y(sr, hr, crop_border=4).mean().item(), abs=0.01)
    assert result["ssim_y"] == pytest.approx(ssim_y(sr, hr, crop_border=4).mean().item(), abs=1e-3)
    assert set(result) == {"psnr_y", "ssim_y"}


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_batches_do_not_change_the_result(batch):
    hr = crops().hr
    lr = hr[:, :, ::4, ::4]
    generator = Nearest()
    result = evaluate(generator, lr, hr, batch=batch)
    assert result == pytest.approx(evaluate(Nearest(), lr, hr, batch=5), rel=1e-12)
    assert generator.sizes == {1: [1] * 5, 2: [2, 2, 1], 8: [5]}[batch]


def test_only_neighbours_of_one_size_share_a_batch():
    generator = Nearest()
    lr = [torch.rand(3, *size) for size in [(8, 8), (8, 8), (8, 12), (8, 8)]]
    sr = restore(generator, lr)
    assert generator.sizes == [2, 1, 1]
    assert [image.shape for image in sr] == [(3, 32, 32), (3, 32, 32), (3, 32, 48), (3, 32, 32)]


def test_modes_of_every_module_come_back_even_after_an_error():
    generator = Nearest()
    generator.train()
    generator.norm.eval()
    lr = torch.rand(2, 3, 8, 8)
    restore(generator, lr)
    assert (generator.training, generator.norm.training, generator.drop.training) == (True, False, True)
    with pytest.raises(RuntimeError):
        restore(generator, torch.rand(2, 4, 8, 8))
    assert (generator.training, generator.norm.training, generator.drop.training) == (True, False, True)


def test_results_are_ordinary_tensors():
    (sr,) = restore(Nearest(), torch.rand(1, 3, 8, 8))
    assert not sr.is_inference()
    weight = torch.ones((), requires_grad=True)
    (sr * weight).sum().backward()
    assert weight.grad is not None


def test_precision_is_the_callers_autocast():
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
        evaluate(generator, hr, hr)
    assert generator.seen == torch.bfloat16


def test_score_of_perfect_broken_and_uneven_results():
    hr = crops().hr
    assert score(hr, hr) == {"psnr_y": math.inf, "ssim_y": 1.0}
    # Less than half a level of error is gone once saved.
    assert score(hr.float() / 255 + 0.001, hr)["psnr_y"] == math.inf
    broken = hr.float() / 255
    broken[2, 0, 5, 5] = float("nan")
    assert math.isnan(score(broken, hr)["psnr_y"])
    with pytest.raises(ValueError, match="equally many images, one at least, was 4 and 5"):
        score(hr[:4], hr)
    with pytest.raises(ValueError, match="one at least, was 0 and 0"):
        score([], [])
    with pytest.raises(ValueError, match="sr must have shape that of hr"):
        score([torch.rand(3, 16, 16)], [torch.rand(3, 16, 32)])
    with pytest.raises(ValueError, match="batch must be 1 or more"):
        restore(Nearest(), hr, batch=0)


def test_values_of_one_image_are_its_share_of_the_score():
    hr = crops().hr
    sr = bicubic(hr[:, :, ::4, ::4], 4)
    each = [values(a, b) for a, b in zip(sr, hr, strict=True)]
    assert score(sr, hr)["psnr_y"] == pytest.approx(np.mean([one["psnr_y"] for one in each]), rel=1e-12)


def test_quantize_clamps_and_rounds_to_8_bits():
    x = torch.tensor([-0.5, 0.0, 0.501 / 255, 127.4 / 255, 1.0, 2.0])
    assert (quantize(x) * 255).round().tolist() == [0, 0, 1, 127, 255, 255]
    assert torch.equal(quantize(torch.tensor([7], dtype=torch.uint8)), torch.tensor([7 / 255], dtype=torch.float64))


# ---------------------------------------------------------------------------------------------------- bicubic


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bicubic_is_pillows(scale):
    """Up to two levels, and 0.4 on average, since Pillow rounds to 8 bits after each of its two passes."""
    for image in photographs():
        # Pillow also clips between its passes; with less contrast nothing needs it.
        lr = Image.fromarray(image // 2 + 64).resize((90, 70), Image.Resampling.BOX)
        expected = np.asarray(lr.resize((90 * scale, 70 * scale), Image.Resampling.BICUBIC)).astype(float)
        found = bicubic(torch.from_numpy(np.asarray(lr).copy()).permute(2, 0, 1)[None], scale)
        assert found.shape == (1, 3, 70 * scale, 90 * scale)
        error = np.abs((found[0].permute(1, 2, 0) * 255).numpy() - expected)
        assert error.max() <= 2
        assert error.mean() < 0.4


def test_bicubic_is_clamped_and_keeps_constants():
    step = torch.zeros(1, 3, 8, 8)
    step[..., 4:] = 1
    up = bicubic(step, 4)
    assert up.min() == 0
    assert up.max() == 1
    torch.testing.assert_close(bicubic(torch.full((1, 3, 8, 8), 0.3), 4), torch.full((1, 3, 32, 32), 0.3))
    torch.testing.assert_close(bicubic(step, 1), step)
    assert bicubic(step.bfloat16(), 2).dtype == torch.float32


def test_bicubic_refuses_what_it_cannot_take():
    with pytest.raises(ValueError, match=r"lr must have shape \(N, C, H, W\), was \(3, 8, 8\)"):
        bicubic(torch.rand(3, 8, 8), 4)
    with pytest.raises(ValueError, match="scale must be 1 or more"):
        bicubic(torch.rand(1, 3, 8, 8), 0)
