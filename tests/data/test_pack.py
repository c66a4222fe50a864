"""Packing: contents, reuse, filters, space."""

import os
import pickle

import numpy as np
import pytest
from packs import build, check_pack, save_noise
from PIL import Image

from andfast.data import pack_update, store
from andfast.data.pack import pack_images
from andfast.data.sources import resolve_source
from andfast.data.store import PackedImages


@pytest.mark.parametrize("workers", [0, 2])
def test_pack_holds_all_images(photos, tmp_path, workers):
    folder, pixels = photos
    report = build(folder, tmp_path / "pack", workers=workers)
    assert (report.packed, report.reused, report.removed, report.skipped) == (4, 0, 0, [])
    assert report.bytes == sum(image.size for image in pixels.values())
    check_pack(tmp_path / "pack", pixels)
    images = PackedImages(tmp_path / "pack")
    assert images.names == sorted(pixels)
    np.testing.assert_array_equal(images.sizes, [pixels[name].shape[:2] for name in images.names])
    assert images[0].dtype == np.uint8
    assert not images[0].flags.writeable
    np.testing.assert_array_equal(images[-1], images[3])
    with pytest.raises(IndexError):
        images[4]


def test_pack_does_not_depend_on_workers(photos, tmp_path):
    for workers in (0, 1, 3):
        build(photos[0], tmp_path / str(workers), workers=workers)
    for name in ("index.json", "pixels-0000.bin"):
        assert len({(tmp_path / str(workers) / name).read_bytes() for workers in (0, 1, 3)}) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_unusable_files_are_reported_and_skipped(photos, tmp_path, workers):
    folder, pixels = photos
    (folder / "words.png").write_text("These are words.")
    (folder / "empty.jpg").touch()
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:700])
    save_noise(folder / "small.png", (7, 30))
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    (folder / "notes.txt").write_text("not a picture, not meant to be one")
    (folder / "._a.png").write_text("what macOS leaves")
    report = build(folder, tmp_path / "pack", workers=workers)
    reasons = dict(report.skipped)
    assert list(reasons) == ["cut.png", "empty.jpg", "gone.png", "small.png", "words.png"]
    assert "truncated" in reasons["cut.png"]
    assert reasons["empty.jpg"] == "an empty file"
    assert reasons["gone.png"] == "No such file or directory"
    assert reasons["small.png"] == "30x7 pixels, smaller than the minimum of 8"
    assert reasons["words.png"].startswith("not a PNG")
    assert report.packed == 4
    check_pack(tmp_path / "pack", pixels)
    assert "skipped cut.png: truncated" in str(report)


def test_no_usable_image_raises(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        build(tmp_path / "nowhere", tmp_path / "pack")
    (tmp_path / "one").mkdir()
    with pytest.raises(ValueError, match=r"no image files: .*one"):
        build(tmp_path / "one", tmp_path / "pack")
    (tmp_path / "one" / "a.png").write_text("words")
    with pytest.raises(ValueError, match=r"no usable images: .*one; a\.png: not a PNG"):
        build(tmp_path / "one", tmp_path / "pack")
    with pytest.raises(FileNotFoundError, match="holds no pack"):
        PackedImages(tmp_path / "pack")


def test_no_usable_image_keeps_previous_pack(photos, tmp_path):
    folder, pixels = photos
    build(folder, tmp_path / "pack")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").touch()
    with pytest.raises(ValueError, match="no usable images"):
        build(tmp_path / "bad", tmp_path / "pack")
    check_pack(tmp_path / "pack", pixels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_size": 0}, "min_size must be an integer of at least 1, was 0"),
        ({"workers": -1}, "workers must be an integer of at least 0, was -1"),
        ({"include": "*.png"}, "include must be a list of patterns"),
        ({"exclude": "*.png"}, "exclude must be a list of patterns"),
        ({"sources": "photos"}, "sources must be a list"),
        ({"sources": []}, "sources must be a list"),
    ],
)
def test_rejects_invalid_arguments(photos, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        pack_images(**{"sources": [photos[0]], "output": tmp_path / "pack", "min_size": 8} | options)


def test_unchanged_sources_decode_and_write_nothing(photos, tmp_path, monkeypatch):
    folder, pixels = photos
    build(folder, tmp_path / "pack")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "pack").iterdir()}
    monkeypatch.setattr(pack_update, "decode_files", lambda paths, **_: iter_of_none(paths))
    report = build(folder, tmp_path / "pack")
    assert (report.packed, report.reused, report.removed) == (0, 4, 0)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "pack").iterdir()} == before
    check_pack(tmp_path / "pack", pixels)


def iter_of_none(paths):
    assert not paths
    yield from ()


def test_updates_changed_new_and_removed_files(photos, tmp_path):
    folder, pixels = photos
    build(folder, tmp_path / "pack")
    pixels["a.png"] = save_noise(folder / "a.png", (25, 25), 11)
    pixels["new.png"] = save_noise(folder / "new.png", (40, 41), 12)
    del pixels["sub/a.png"]
    (folder / "sub/a.png").unlink()
    report = build(folder, tmp_path / "pack")
    assert (report.packed, report.reused, report.removed) == (2, 2, 1)
    check_pack(tmp_path / "pack", pixels)
    total = sum(image.size for image in pixels.values())
    assert sum(path.stat().st_size for path in (tmp_path / "pack").glob("pixels-*")) == total


def test_replaced_file_of_equal_size_is_packed_again(tmp_path):
    save_noise(tmp_path / "photos/a.bmp", seed=1)
    build(tmp_path / "photos", tmp_path / "pack")
    pixels = save_noise(tmp_path / "photos/a.bmp", seed=2)
    os.utime(tmp_path / "photos/a.bmp", ns=(0, 12345))
    assert build(tmp_path / "photos", tmp_path / "pack").packed == 1
    check_pack(tmp_path / "pack", {"a.bmp": pixels})


def test_space_of_removed_files_is_reclaimed(photos, tmp_path):
    folder, pixels = photos
    build(folder, tmp_path / "pack")
    for name in list(pixels)[:3]:
        (folder / name).unlink()
        del pixels[name]
    assert build(folder, tmp_path / "pack").removed == 3
    check_pack(tmp_path / "pack", pixels)
    assert sum(path.stat().st_size for path in (tmp_path / "pack").glob("pixels-*")) == 9 * 40 * 3


def test_filters_and_minimum_size(photos, tmp_path):
    folder = photos[0]
    build(folder, tmp_path / "pack", include=["*.png"])
    assert PackedImages(tmp_path / "pack").names == ["a.png", "sub/a.png"]
    build(folder, tmp_path / "pack", exclude=["sub/*", "F*"])
    assert PackedImages(tmp_path / "pack").names == ["a.png"]
    build(folder, tmp_path / "pack", include=["sub/*"], exclude=["b.*"])
    assert PackedImages(tmp_path / "pack").names == ["sub/a.png"]
    build(folder, tmp_path / "pack")
    report = build(folder, tmp_path / "pack", min_size=17)
    assert (report.reused, [name for name, _ in report.skipped]) == (2, ["Füße 犬.bmp", "sub/deep/b.TIFF"])
    with pytest.raises(ValueError, match=r"no image files: .*; include \*\.gif"):
        build(folder, tmp_path / "pack", include=["*.gif"])


def test_packs_photographs(tmp_path):
    names = ["astronaut.png", "coffee.png", "rocket.jpg"]
    report = build(["package:skimage/data"], tmp_path / "pack", include=names, min_size=256, workers=2)
    assert report.packed == 3
    images = PackedImages(tmp_path / "pack")
    assert images.names == names
    folder = resolve_source("package:skimage/data")
    for i, name in enumerate(names):
        np.testing.assert_array_equal(images[i], np.asarray(Image.open(folder / name).convert("RGB")))


def test_many_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SHARD_BYTES", 5000)
    pixels = {f"{i}.png": save_noise(tmp_path / f"photos/{i}.png", (20, 30), i) for i in range(9)}  # 1800 bytes each
    build(tmp_path / "photos", tmp_path / "pack")
    assert len(list((tmp_path / "pack").glob("pixels-*"))) == 5
    check_pack(tmp_path / "pack", pixels)
    (tmp_path / "photos/3.png").unlink()
    del pixels["3.png"]
    pixels["8.png"] = save_noise(tmp_path / "photos/8.png", (41, 41), 8)  # larger than a shard
    build(tmp_path / "photos", tmp_path / "pack")
    check_pack(tmp_path / "pack", pixels)


def test_pickle_round_trip(photos, tmp_path):
    build(photos[0], tmp_path / "pack")
    images = PackedImages(tmp_path / "pack")
    data = pickle.dumps(images)
    assert len(data) < 2000  # the path only, not the pixels
    again = pickle.loads(data)
    assert again.names == images.names
    np.testing.assert_array_equal(again[2], images[2])


def test_open_pack_stays_readable_when_replaced(photos, tmp_path):
    folder, pixels = photos
    build(folder, tmp_path / "pack")
    images = PackedImages(tmp_path / "pack")
    for seed, name in enumerate(pixels):
        save_noise(folder / name, (50, 50), 20 + seed)
    build(folder, tmp_path / "pack")
    for i, name in enumerate(images.names):
        np.testing.assert_array_equal(images[i], pixels[name])


def test_undecodable_names_are_packed_and_printable(tmp_path):
    folder = tmp_path / "photos"
    pixels = save_noise(folder / "a.png")
    name = os.fsdecode(b"bad\xff\nname.png")
    (folder / "a.png").rename(folder / name)
    (folder / os.fsdecode(b"\xfe.png")).touch()
    report = build(folder, tmp_path / "pack", workers=1)
    check_pack(tmp_path / "pack", {name: pixels})
    assert str(report).encode().endswith(b"skipped \\udcfe.png: an empty file")
