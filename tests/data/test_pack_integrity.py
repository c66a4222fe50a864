"""Digests of packed images, verification, read-only packs, adding sources, recorded image sets."""

import errno
import hashlib
import json
import os
import pickle
from pathlib import Path

import pytest
from packs import build, check_pack, save_noise

from andfast.data import pack, store
from andfast.data.image_set import describe_changes, image_set, image_set_digest
from andfast.data.store import PackedImages, PackError


def flip_byte(file, offset):
    """Change one byte; size and modification time stay."""
    status = file.stat()
    content = bytearray(file.read_bytes())
    content[offset] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def downgrade(output):
    """Turn an index into one of format version 1."""
    data = json.loads((output / "index.json").read_text())
    data["version"] = 1
    assert data["columns"].pop() == "digest"
    data["images"] = [row[:-1] for row in data["images"]]
    (output / "index.json").write_text(json.dumps(data))


@pytest.mark.parametrize("workers", [0, 2])
def test_digests_are_of_the_pixels(photos, tmp_path, workers):
    folder, pixels = photos
    build(folder, tmp_path / "pack", workers=workers)
    images = PackedImages(tmp_path / "pack")
    expected = [hashlib.blake2b(pixels[name].tobytes(), digest_size=16).hexdigest() for name in images.names]
    assert images.digests == expected


@pytest.mark.parametrize("index", [0, 1, 2, 3])
def test_changed_pixels_are_found_at_open(photos, tmp_path, index):
    build(photos[0], tmp_path / "pack")
    images = PackedImages(tmp_path / "pack")
    file, (shard, offset, _, _) = tmp_path / "pack" / "pixels-0000.bin", images._locations[index]
    assert file.name == shard
    flip_byte(file, offset + 7)
    with pytest.raises(PackError, match=r"pixels-0000\.bin is damaged: the pixels of .* differ") as error:
        PackedImages(tmp_path / "pack")
    assert images.names[index] in str(error.value)
    unverified = PackedImages(tmp_path / "pack", verify=False)
    assert pickle.loads(pickle.dumps(unverified)).names == images.names


def test_large_packs_show_progress(photos, tmp_path, capsys, monkeypatch):
    build(photos[0], tmp_path / "pack")
    PackedImages(tmp_path / "pack")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(store, "_LARGE", 100)
    PackedImages(tmp_path / "pack")
    assert "verifying: 100%" in capsys.readouterr().err


def test_version_1_is_read_and_upgraded(photos, tmp_path):
    folder, pixels = photos
    build(folder, tmp_path / "pack")
    before = PackedImages(tmp_path / "pack").digests
    downgrade(tmp_path / "pack")
    old = PackedImages(tmp_path / "pack")
    assert old.digests == [""] * 4
    with pytest.raises(ValueError, match="must have digests, has format version 1"):
        image_set(old)
    report = build(folder, tmp_path / "pack")
    assert (report.packed, report.reused) == (0, 4)
    assert PackedImages(tmp_path / "pack").digests == before
    check_pack(tmp_path / "pack", pixels)


def test_changed_source_changes_the_image_set(photos, tmp_path):
    """Other pixels under the same name and size."""
    folder, _ = photos
    build(folder, tmp_path / "pack")
    recorded = image_set(PackedImages(tmp_path / "pack"))
    save_noise(folder / "a.png", (20, 30), 99)
    save_noise(folder / "new.png", (20, 30), 100)
    (folder / "sub/a.png").unlink()
    build(folder, tmp_path / "pack")
    current = image_set(PackedImages(tmp_path / "pack"))
    assert describe_changes(recorded, current) == "1 missing (sub/a.png), 1 new (new.png), 1 changed (a.png)"
    assert describe_changes(recorded, recorded) is None
    assert describe_changes(recorded, dict(reversed(recorded.items()))) == "another order"
    assert describe_changes({str(i): "" for i in range(5)}, {}) == "5 missing (0, 1, 2 and 2 more)"
    digests = {image_set_digest(images) for images in (recorded, current, dict(reversed(recorded.items())))}
    assert len(digests) == 3


def test_packs_do_not_need_their_sources(photos, tmp_path):
    folder, pixels = photos
    build(folder, tmp_path / "pack")
    recorded = image_set(PackedImages(tmp_path / "pack"))
    folder.rename(tmp_path / "away")
    assert image_set(PackedImages(tmp_path / "pack")) == recorded
    check_pack(tmp_path / "pack", pixels)


@pytest.fixture
def read_only(monkeypatch):
    """Fail every write as a read-only file system does (root ignores permissions)."""
    real = open

    def fail(file, mode="r", *arguments, **options):
        if set(mode) & set("wax+"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(file))
        return real(file, mode, *arguments, **options)

    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def start():
        monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
        for module in (pack, store):
            monkeypatch.setattr(module, "open", fail, raising=False)
        monkeypatch.setattr(Path, "open", lambda self, mode="r", *rest, **options: fail(self, mode, *rest, **options))
        for name in ("unlink", "write_bytes", "rename"):
            monkeypatch.setattr(Path, name, refuse)

    return start


def test_read_only_pack_is_used(photos, tmp_path, read_only):
    folder, pixels = photos
    (folder / "words.png").write_text("not an image")
    build(folder, tmp_path / "pack")
    read_only()
    report = build(folder, tmp_path / "pack")
    assert (report.packed, report.reused, report.removed) == (0, 4, 0)
    assert [name for name, _ in report.skipped] == ["words.png"]
    check_pack(tmp_path / "pack", pixels)


def test_read_only_pack_that_differs_raises(photos, tmp_path, read_only):
    folder, _ = photos
    build(folder, tmp_path / "pack")
    save_noise(folder / "new.png", seed=5)
    (folder / "a.png").unlink()
    read_only()
    with pytest.raises(PackError, match=r"is read-only .*: 1 not packed \(new\.png\), 1 not in the sources \(a\.png\)"):
        build(folder, tmp_path / "pack")


def test_removal_of_another_source_is_logged(photos, tmp_path, caplog):
    folder, _ = photos
    second = {"b.png": save_noise(tmp_path / "other" / "b.png", seed=7)}
    build(folder, tmp_path / "pack")
    assert build(tmp_path / "other", tmp_path / "pack").removed == 4
    (record,) = caplog.records
    assert "4 images that are not in " in record.message
    assert "are removed from the pack: Füße 犬.bmp, a.png, sub/a.png and 1 more" in record.message
    check_pack(tmp_path / "pack", second)


def test_add_keeps_another_source(photos, tmp_path, caplog):
    folder, pixels = photos
    second = {name: save_noise(tmp_path / "other" / name, seed=7) for name in ("a.png", "b.png")}
    build(folder, tmp_path / "pack")
    report = build(tmp_path / "other", tmp_path / "pack", add=True)
    assert (report.packed, report.reused, report.removed) == (2, 4, 0)
    first = str(folder / "a.png")
    check_pack(tmp_path / "pack", {**pixels, **second, first: pixels["a.png"]})
    assert PackedImages(tmp_path / "pack").names[-2:] == ["a.png", "b.png"]
    assert build(tmp_path / "other", tmp_path / "pack", add=True).packed == 0
    assert not caplog.records
