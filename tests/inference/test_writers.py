"""The PNG and TIFF writers against libpng, zlib, Pillow and tifffile."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms
from torchvision.io import ImageReadMode, decode_png, read_file

from andfast.inference import png, tiff
from andfast.inference.metadata import Metadata

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("block", [1, 999, 1 << 20])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_round_trip(channels: int, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(png, "_BLOCK", block)
    samples = np.random.default_rng(0).integers(0, 65536, (37, 41, channels), np.uint16)
    file = tmp_path / "x.png"
    with file.open("wb") as handle:
        writer = png.PngWriter(handle, 41, 37, channels=channels, bits=16)
        for rows in np.split(samples, [1, 20]):
            writer.write(rows)
        writer.close()
    assert np.array_equal(decode_png(read_file(str(file)), ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy(), samples)
    # libpng ignores a wrong Adler-32 of the stream, zlib does not.
    content, at, data_ = file.read_bytes(), 8, b""
    while at < len(content):
        length, name = struct.unpack_from(">I4s", content, at)
        data_ += content[at + 8 : at + 8 + length] if name == b"IDAT" else b""
        at += length + 12
    assert len(zlib.decompress(data_)) == 37 * (1 + 41 * channels * 2)


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_tiff_round_trip(bits: int, channels: int, big: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiff, "_CLASSIC_LIMIT", 0 if big else 1 << 30)
    kind = np.uint16 if bits == 16 else np.uint8
    samples = np.random.default_rng(0).integers(0, 1 << bits, (150, 41, channels), kind)
    file = tmp_path / "x.tif"
    with file.open("wb") as handle:
        metadata = Metadata(profile=SRGB, xmp=b"<x/>", density=(11811, 5906, 1))
        writer = tiff.TiffWriter(handle, 41, 150, channels=channels, bits=bits, metadata=metadata)
        for rows in np.split(samples, [1, 70, 71, 140]):
            writer.write(rows)
        writer.close()
    with tifffile.TiffFile(file) as opened:
        assert opened.is_bigtiff == big
        assert np.array_equal(opened.asarray().reshape(samples.shape), samples)
        tags = opened.pages[0].tags
        assert tags["InterColorProfile"].value == SRGB
        assert bytes(tags["XMP"].value) == b"<x/>"
        assert [round(np.divide(*tags[name].value), 2) for name in ("XResolution", "YResolution")] == [300, 150.01]
    if bits == 8:
        assert np.array_equal(np.asarray(Image.open(file)).reshape(samples.shape), samples)
