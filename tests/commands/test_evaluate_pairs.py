"""Pair validation: sizes and shift."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from andfast.evaluation.layouts import PairFiles
from andfast.evaluation.pairs import InvalidPairError, Pair, check_shift, downscale, estimate_shift, read_pair


def photograph(name):
    image = np.asarray(getattr(data, name)())
    image = image if image.ndim == 3 else np.stack([image] * 3, -1)
    return torch.from_numpy(image.transpose(2, 0, 1).copy())


def save(image, path):
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)


def shifted_pair(name, scale, down, right):
    """A pair whose LR content is shifted by (down, right) HR pixels."""
    image = photograph(name)
    tall, wide = ((side - 40) // 24 * 24 for side in image.shape[1:])
    hr = image[:, 20 : 20 + tall, 20 : 20 + wide].contiguous()
    moved = image[:, 20 - down : 20 - down + tall, 20 - right : 20 - right + wide]
    return Pair(hr, downscale(moved, scale), downscaled=False)


def write(tmp_path, hr, lr):
    save(hr, tmp_path / "hr.png")
    save(lr, tmp_path / "lr.png")
    return PairFiles("name", tmp_path / "hr.png", tmp_path / "lr.png")


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_pair_of_matching_sizes_is_read_unchanged(scale, tmp_path):
    hr = photograph("chelsea")[:, : 60 * scale, : 50 * scale]
    lr = downscale(hr, scale)
    pair = read_pair(write(tmp_path, hr, lr), scale)
    assert torch.equal(pair.hr, hr)
    assert torch.equal(pair.lr, lr)
    assert not pair.downscaled


def test_lr_at_hr_size_is_downscaled_and_hr_cropped(tmp_path):
    hr = photograph("coffee")[:, :203, :301]
    pair = read_pair(write(tmp_path, hr, hr), 4)
    assert pair.downscaled
    assert torch.equal(pair.hr, hr[:, :200, :300])
    assert pair.lr.shape == (3, 50, 75)
    assert torch.equal(pair.lr, downscale(hr[:, :200, :300], 4))


def test_downscale_matches_pillow_bicubic():
    image = photograph("astronaut")[:, :128, :96]
    small = [
        np.asarray(Image.fromarray(channel.float().numpy()).resize((24, 32), Image.Resampling.BICUBIC))
        for channel in image
    ]
    expected = np.stack(small).clip(0, 255)
    assert np.abs(downscale(image, 4).numpy() - expected).max() < 0.501


def test_rejects_mismatched_sizes(tmp_path):
    hr = photograph("chelsea")[:, :80, :80]
    with pytest.raises(InvalidPairError, match=r"HR must have 4 times LR's size .* was 80x80 and 21x20"):
        read_pair(write(tmp_path, hr, hr[:, :20, :21]), 4)
    with pytest.raises(InvalidPairError, match="HR must have 3 times"):
        read_pair(write(tmp_path, hr, downscale(hr, 4)), 3)


def test_modcrop_crops_hr_to_a_multiple(tmp_path):
    hr = photograph("coffee")[:, :203, :301]
    files = write(tmp_path, hr, downscale(hr[:, :200, :300], 4))
    with pytest.raises(InvalidPairError, match=r"was 301x203 and 75x50; --modcrop crops HR"):
        read_pair(files, 4)
    pair = read_pair(files, 4, modcrop=True)
    assert torch.equal(pair.hr, hr[:, :200, :300])
    assert (pair.cropped, pair.downscaled) == (True, False)
    rounded_up = write(tmp_path, hr, photograph("coffee")[:, :51, :76])
    with pytest.raises(InvalidPairError, match=r"was 301x203 and 76x51$"):
        read_pair(rounded_up, 4, modcrop=True)
    whole = write(tmp_path, hr[:, :200, :300], downscale(hr[:, :200, :300], 4))
    assert not read_pair(whole, 4, modcrop=True).cropped


def test_unreadable_image_is_named(tmp_path):
    files = write(tmp_path, photograph("chelsea")[:, :80, :80], photograph("chelsea")[:, :20, :20])
    whole = files.lr.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"GIF89a and more"):
        files.lr.write_bytes(content)
        with pytest.raises(InvalidPairError, match=r"LR image lr.png cannot be read: ") as caught:
            read_pair(files, 4)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("shift", [(0, 0), (1, 0), (0, -2), (5, 9), (-12, 3)])
@pytest.mark.parametrize("name", ["astronaut", "coffee", "brick"])
def test_shift_estimate_is_accurate_to_a_tenth_of_a_pixel(name, shift, scale):
    assert estimate_shift(shifted_pair(name, scale, *shift), scale) == pytest.approx(shift, abs=0.1)


def test_rejects_a_shift_of_one_pixel_but_not_of_half():
    message = r"LR is shifted relative to HR by \+1\.0 pixels down and [+-]0\.0 right"
    with pytest.raises(InvalidPairError, match=message):
        check_shift(shifted_pair("coffee", 4, 1, 0), 4, 1.0)
    check_shift(shifted_pair("coffee", 4, 1, 0), 4, 2.0)
    check_shift(shifted_pair("coffee", 4, 9, 9), 4, float("inf"))
    image = photograph("coffee")[:, :384, :512]
    half = Pair(downscale(image[:, :, 1:505], 2), downscale(image[:, :, :504], 8), downscaled=False)  # half an HR pixel
    assert estimate_shift(half, 4) == pytest.approx((0, 0.5), abs=0.15)
    check_shift(half, 4, 1.0)


def test_noise_and_colour_changes_do_not_bias_the_shift():
    pair = shifted_pair("astronaut", 4, 0, 0)
    generator = torch.Generator().manual_seed(0)
    noisy = (pair.lr * 0.7 + 20 + 8 * torch.randn(pair.lr.shape, generator=generator)).clamp(0, 255).byte()
    assert estimate_shift(Pair(pair.hr, noisy, downscaled=False), 4) == pytest.approx((0, 0), abs=0.3)


@pytest.mark.parametrize("scene", ["flat", "noise", "tiny"])
def test_featureless_images_pass_the_shift_check(scene):
    generator = torch.Generator().manual_seed(0)
    size = 4 if scene == "tiny" else 128
    hr = torch.full((3, size, size), 90, dtype=torch.uint8)
    lr = torch.full((3, size // 4, size // 4), 90, dtype=torch.uint8)
    if scene != "flat":
        hr = torch.randint(0, 256, hr.shape, generator=generator, dtype=torch.uint8)
        lr = torch.randint(0, 256, lr.shape, generator=generator, dtype=torch.uint8)
    check_shift(Pair(hr, lr, downscaled=False), 4, 1.0)
