"""Held-out images: crops of images, and LR/HR pairs."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from andfast.config.schema import TrainConfig, ValidationConfig
from andfast.training.validation_set import ValidationSet, load_validation_set

NAMES = ["astronaut", "chelsea", "coffee"]


def images():
    return [np.asarray(getattr(data, name)()) for name in NAMES]


def crops(**options):
    defaults = {"crop_size": 64, "crops": 5, "scale": 4, "seed": 0}
    return ValidationSet.from_images(images(), NAMES, **defaults | options)


def test_first_crops_are_centers_and_further_ones_are_seeded():
    validation = crops()
    assert validation.names == ("astronaut", "chelsea", "coffee", "astronaut #2", "chelsea #2")
    assert len(validation) == 5
    assert validation.hr.shape == (5, 3, 64, 64)
    assert validation.hr.dtype == torch.uint8
    assert validation.lr is None
    chelsea = images()[1]
    top, left = (chelsea.shape[0] - 64) // 2, (chelsea.shape[1] - 64) // 2
    np.testing.assert_array_equal(validation.hr[1].permute(1, 2, 0), chelsea[top : top + 64, left : left + 64])
    assert torch.equal(validation.hr, crops().hr)
    seeded = crops(seed=1).hr
    assert torch.equal(validation.hr[:3], seeded[:3])
    assert not torch.equal(validation.hr[3:], seeded[3:])


def test_more_crops_extend_fewer():
    many = crops(crops=12)
    assert torch.equal(many.hr[:3], crops(crops=3).hr)
    assert many.names[-1] == "coffee #4"
    assert len({crop.numpy().tobytes() for crop in many.hr}) == 12


def test_crops_reach_the_borders():
    rows, columns = np.mgrid[:20, :20].astype(np.uint8)
    image = np.stack([rows, columns, rows], axis=-1)
    validation = ValidationSet.from_images([image], ["ramp"], crop_size=16, crops=200, scale=4, seed=0)
    assert set(validation.hr[:, 0, 0, 0].tolist()) == set(validation.hr[:, 1, 0, 0].tolist()) == {0, 1, 2, 3, 4}


def test_fewer_crops_than_images_are_spread_evenly():
    flat = [np.full((16, 16, 3), i, np.uint8) for i in range(10)]
    validation = ValidationSet.from_images(flat, [str(i) for i in range(10)], crop_size=16, crops=4, scale=2, seed=0)
    assert validation.names == ("0", "2", "5", "7")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"crop_size": 62}, ValueError, "crop_size must be a multiple of scale, 4, was 62"),
        (
            {"crop_size": 304},
            ValueError,
            r"at least 304 pixels \(crop_size\) high and wide, chelsea was 451x300",
        ),
        ({"crops": 0}, ValueError, "crops must be at least 1, was 0"),
        ({"scale": 2.0}, TypeError, "scale must be an integer, was 2.0"),
    ],
)
def test_invalid_crops_raise(options, error, message):
    with pytest.raises(error, match=message):
        crops(**options)


def test_invalid_images_raise_by_name():
    options = {"crop_size": 8, "crops": 1, "scale": 2, "seed": 0}
    with pytest.raises(ValueError, match="images must be at least 1 and as many as names, was 0 for 0"):
        ValidationSet.from_images([], [], **options)
    with pytest.raises(ValueError, match=r"shape \(H, W, 3\), grey was \(9, 9\)"):
        ValidationSet.from_images([np.zeros((9, 9), np.uint8)], ["grey"], **options)
    with pytest.raises(TypeError, match="uint8 arrays, deep was uint16"):
        ValidationSet.from_images([np.zeros((9, 9, 3), np.uint16)], ["deep"], **options)


@pytest.fixture
def folders(tmp_path):
    hr, lr = tmp_path / "hr", tmp_path / "lr"
    (hr / "more").mkdir(parents=True)
    (lr / "more").mkdir(parents=True)
    for name, image in zip(["b.png", "a.png", "more/c.bmp"], images(), strict=True):
        cut = Image.fromarray(image[:120, :160])
        cut.save(hr / name)
        cut.resize((40, 30)).save(lr / name)
    (hr / "notes.txt").write_text("not a picture")
    return hr, lr


def test_pairs_match_by_name(folders):
    validation = ValidationSet.from_pairs(*folders, 4)
    assert validation.names == ("a.png", "b.png", "more/c.bmp")
    assert [image.shape for image in validation.hr] == [(3, 120, 160)] * 3
    assert [image.shape for image in validation.lr] == [(3, 30, 40)] * 3
    np.testing.assert_array_equal(validation.hr[1].permute(1, 2, 0), images()[0][:120, :160])


def test_patterns_select_pairs(folders, tmp_path):
    """An image that they leave out needs no counterpart."""
    hr, lr = folders
    (lr / "a.png").unlink()
    (lr / "linked").symlink_to(lr / "more")
    (hr / "linked").symlink_to(hr / "more")
    names = ValidationSet.from_pairs(hr, lr, 4, exclude=["a.*"]).names
    assert names == ("b.png", "linked/c.bmp", "more/c.bmp")
    hr_and_lr = ValidationConfig(hr=[str(hr)], lr=str(lr), include=["b.png", "more/*"], exclude=["*.bmp"])
    assert load_validation_set(TrainConfig(output=tmp_path, validation=hr_and_lr)).names == ("b.png",)
    with pytest.raises(ValueError, match=r"hr_folder must hold images .* that match the patterns, if any"):
        ValidationSet.from_pairs(hr, lr, 4, include=["none.png"])


def test_invalid_pairs_raise_by_name(folders):
    hr, lr = folders
    with pytest.raises(ValueError, match=r"a\.png must be 2 times as wide and high .* was 160x120 and 40x30"):
        ValidationSet.from_pairs(hr, lr, 2)
    (lr / "a.png").rename(lr / "a.bmp")
    with pytest.raises(ValueError, match=r"must be paired by name, but a\.bmp is in .*lr and not in .*hr"):
        ValidationSet.from_pairs(hr, lr, 4)
    (lr / "a.bmp").unlink()
    with pytest.raises(ValueError, match=r"must be paired by name, but a\.png is in .*hr and not in .*lr"):
        ValidationSet.from_pairs(hr, lr, 4)
    (lr / "a.png").write_bytes((hr / "a.png").read_bytes()[:500])
    with pytest.raises(ValueError, match=r"lr/a\.png cannot be used: "):
        ValidationSet.from_pairs(hr, lr, 4)
    with pytest.raises(FileNotFoundError, match=r"lr_folder must be a folder, .* is not"):
        ValidationSet.from_pairs(hr, lr / "nowhere", 4)
    empty = hr / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="hr_folder must hold images"):
        ValidationSet.from_pairs(empty, empty, 4)
