"""Decoding: formats, bit depths, modes, transparency, orientation, unusable files."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageFile

from andfast.data.images import UnusableImageError, decode

HEIGHT, WIDTH = 7, 11


def photo(channels=3, dtype=np.uint8, seed=0):
    top = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, top + 1, (HEIGHT, WIDTH, channels), dtype=dtype)


def to_eight_bits(values):
    """Round 16-bit values to the nearest 8-bit level, in float64."""
    return np.rint(values.astype(np.float64) / 257).astype(np.uint8)


def over_white(color, alpha):
    """Composite (H, W, 3) over white with (H, W) alpha, both in [0, 1], to 8 bits."""
    return np.rint(255 * (color * alpha[..., None] + 1 - alpha[..., None]))


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(samples, color_type, *, extra=b"", size=None):
    """A PNG of (H, W, C) uint8 or uint16 samples (Pillow writes no 16-bit RGB), cycling through the row filters."""
    height, width, channels = samples.shape
    depth = samples.dtype.itemsize
    rows = np.ascontiguousarray(samples.astype(samples.dtype.newbyteorder(">"))).view(np.uint8)
    rows = rows.reshape(height, -1).astype(np.int64)
    step, raw = channels * depth, b""
    for y, row in enumerate(rows):
        above = rows[y - 1] if y else np.zeros_like(row)
        left = np.concatenate([np.zeros(step, np.int64), row[:-step]])
        predicted = [0 * row, left, above, (left + above) // 2][y % 4]
        raw += bytes([y % 4]) + (row - predicted).astype(np.uint8).tobytes()
    header = struct.pack(">IIBBBBB", *(size or (width, height)), 8 * depth, color_type, 0, 0, 0)
    data = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".bmp", ".webp"])
def test_lossless_formats_keep_every_value(tmp_path, suffix):
    pixels, file = photo(), tmp_path / f"a{suffix}"
    Image.fromarray(pixels).save(file, **({"lossless": True} if suffix == ".webp" else {}))
    result = decode(file)
    assert result.dtype == np.uint8
    assert result.flags.c_contiguous
    np.testing.assert_array_equal(result, pixels)


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_lossy_formats_come_close(tmp_path, suffix):
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None] * 3, (64, 48, 3))
    Image.fromarray(ramp).save(tmp_path / f"a{suffix}", quality=95)
    result = decode(tmp_path / f"a{suffix}")
    assert result.shape == (64, 48, 3)
    assert np.abs(result.astype(int) - ramp).max() <= 6


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr"])
def test_modes_match_pillow(tmp_path, mode):
    image = Image.fromarray(photo()).convert(mode)
    file = tmp_path / ("a.jpg" if mode == "YCbCr" else "a.tif" if mode == "CMYK" else "a.png")
    image.save(file)
    with Image.open(file) as saved:
        expected = np.asarray(saved.convert("RGB"))
    np.testing.assert_array_equal(decode(file), expected)


def test_grey_becomes_three_equal_channels(tmp_path):
    grey = photo(1)
    Image.fromarray(grey[..., 0]).save(tmp_path / "a.png")
    np.testing.assert_array_equal(decode(tmp_path / "a.png"), np.repeat(grey, 3, 2))


@pytest.mark.parametrize(("channels", "color_type"), [(1, 0), (2, 4), (3, 2), (4, 6)])
def test_16_bit_png_is_rounded(tmp_path, channels, color_type):
    samples = photo(channels, np.uint16)
    if channels in {2, 4}:
        samples[..., -1] = 65535
    (tmp_path / "a.png").write_bytes(png(samples, color_type))
    color = samples[..., : 3 if channels > 2 else 1]
    expected = np.broadcast_to(to_eight_bits(color), (HEIGHT, WIDTH, 3))
    assert (expected != color // 256).any()  # rounding differs from truncation
    np.testing.assert_array_equal(decode(tmp_path / "a.png"), expected)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("compression", ["raw", "tiff_adobe_deflate"])
def test_16_bit_tiff_is_rounded(tmp_path, order, channels, compression):
    samples = photo(channels, np.uint16)
    samples[..., 3:] = 65535
    kinds = {1: {"photometric": "minisblack"}, 3: {"photometric": "rgb"}, 4: {"photometric": "rgb"}}
    kind = kinds[channels] | ({"extrasamples": ["unassalpha"]} if channels == 4 else {})
    if compression != "raw":
        kind |= {"compression": "deflate", "predictor": False}
    tifffile.imwrite(tmp_path / "a.tif", samples.squeeze(), byteorder=order, **kind)
    expected = np.broadcast_to(to_eight_bits(samples[..., :3]), (HEIGHT, WIDTH, 3))
    np.testing.assert_array_equal(decode(tmp_path / "a.tif"), expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_is_zero_tiff_is_inverted(tmp_path, dtype):
    samples = photo(1, dtype)[..., 0]
    tifffile.imwrite(tmp_path / "a.tif", samples, photometric="miniswhite")
    inverted = np.iinfo(dtype).max - samples
    expected = inverted if dtype == np.uint8 else to_eight_bits(inverted)
    np.testing.assert_array_equal(decode(tmp_path / "a.tif")[..., 1], expected)


def test_tiff_with_separate_planes(tmp_path):
    pixels = photo()
    tifffile.imwrite(tmp_path / "a.tif", pixels.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(decode(tmp_path / "a.tif"), pixels)
    deep = photo(3, np.uint16).transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "b.tif", deep, photometric="rgb", planarconfig="separate")
    with pytest.raises(UnusableImageError, match="16 bits in separate planes"):
        decode(tmp_path / "b.tif")


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.int16, np.uint32])
def test_rejects_samples_of_unknown_range(tmp_path, dtype):
    tifffile.imwrite(tmp_path / "a.tif", photo(1)[..., 0].astype(dtype))
    with pytest.raises(UnusableImageError, match="range is unknown"):
        decode(tmp_path / "a.tif")


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_is_composited_over_white(tmp_path, depth, channels):
    dtype = np.uint8 if depth == 8 else np.uint16
    samples = photo(channels, dtype)
    (tmp_path / "a.png").write_bytes(png(samples, {2: 4, 4: 6}[channels]))
    unit = samples / np.iinfo(dtype).max
    expected = over_white(unit[..., :-1], unit[..., -1])
    difference = decode(tmp_path / "a.png") - expected
    assert np.abs(difference).max() <= (0 if depth == 8 else 1)  # 16 bits are rounded twice
    assert np.mean(difference != 0) < 0.02


def test_palette_with_transparent_entries(tmp_path):
    image = Image.fromarray(np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH) % 4, "L")
    image = image.convert("L")
    palette = Image.new("P", image.size)
    palette.putdata(list(np.asarray(image).ravel()))
    colors = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 20, 30]], np.uint8)
    palette.putpalette(colors.ravel().tolist())
    alpha = np.array([255, 0, 128, 255], np.uint8)
    palette.save(tmp_path / "a.png", transparency=alpha.tobytes())
    index = np.asarray(image)
    expected = over_white(colors[index] / 255, alpha[index] / 255)
    np.testing.assert_array_equal(decode(tmp_path / "a.png"), expected)


def test_transparent_key_colors_become_white(tmp_path):
    deep = np.full((HEIGHT, WIDTH, 3), 20000, np.uint16)
    deep[0] = (20000, 20000, 20001)  # same high bytes: only all 16 bits differ from the key
    key = chunk(b"tRNS", struct.pack(">HHH", 20000, 20000, 20001))
    (tmp_path / "deep.png").write_bytes(png(deep, 2, extra=key))
    result = decode(tmp_path / "deep.png")
    assert (result[0] == 255).all()
    assert (result[1:] == 78).all()
    grey = np.full((HEIGHT, WIDTH, 1), 9, np.uint16)
    grey[:, 0] = 65000
    (tmp_path / "grey.png").write_bytes(png(grey, 0, extra=chunk(b"tRNS", struct.pack(">H", 9))))
    result = decode(tmp_path / "grey.png")
    assert (result[:, 0] == 253).all()
    assert (result[:, 1:] == 255).all()


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, suffix, orientation):
    # As in the EXIF standard: where row 0 and column 0 of the stored image are on the upright one.
    places = [
        "top left",
        "top right",
        "bottom right",
        "bottom left",
        "left top",
        "right top",
        "right bottom",
        "left bottom",
    ]
    row, column = places[orientation - 1].split()
    upright = photo()
    stored = upright if row in {"top", "bottom"} else upright.swapaxes(0, 1)
    stored = stored[::-1] if row in {"bottom", "right"} else stored
    stored = stored[:, ::-1] if column in {"bottom", "right"} else stored
    exif = Image.Exif()
    exif[274] = orientation
    file = tmp_path / f"a{suffix}"
    options = {"lossless": True} if suffix == ".webp" else {}
    Image.fromarray(np.ascontiguousarray(stored)).save(file, exif=exif, **options)
    np.testing.assert_array_equal(decode(file), upright)


def test_orientation_of_16_bit_tiff_is_applied_once(tmp_path):
    samples = photo(3, np.uint16)
    stored = np.ascontiguousarray(np.rot90(samples))  # orientation 6: turn clockwise to see it upright
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", extratags=[(274, 3, 1, 6, True)])
    np.testing.assert_array_equal(decode(tmp_path / "a.tif"), to_eight_bits(samples))


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff"])
def test_damaged_exif_is_ignored(tmp_path, exif):
    Image.fromarray(photo()).save(tmp_path / "a.jpg", exif=exif)
    assert decode(tmp_path / "a.jpg").shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp", ".tif"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_rejects_truncated_files(tmp_path, suffix, part):
    buffer = io.BytesIO()
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(buffer, {".jpg": "JPEG", ".tif": "TIFF"}.get(suffix, suffix[1:]))
    data = buffer.getvalue()
    (tmp_path / f"a{suffix}").write_bytes(data[: int(len(data) * part)])
    with pytest.raises(UnusableImageError) as caught:
        decode(tmp_path / f"a{suffix}")
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_rejects_load_truncated_images(tmp_path, monkeypatch):
    Image.fromarray(photo()).save(tmp_path / "a.png")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(UnusableImageError, match="LOAD_TRUNCATED_IMAGES"):
        decode(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"These are words.", "starts with b'These ar'"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "header is damaged"),
        (b"GIF89a" + b"\0" * 50, "not a PNG, JPEG"),
    ],
)
def test_rejects_other_files_with_a_reason(tmp_path, data, reason):
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(UnusableImageError, match=reason):
        decode(tmp_path / "a.png")


@pytest.mark.parametrize("size", [(100_000, 100_000), (12_000, 10_000)])
def test_rejects_decompression_bombs(tmp_path, size):
    (tmp_path / "a.png").write_bytes(png(photo(), 2, size=size))
    with pytest.raises(UnusableImageError, match="too many pixels"):
        decode(tmp_path / "a.png")


def test_rejects_small_missing_and_unreadable_files(tmp_path):
    Image.fromarray(photo()).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png", min_size=HEIGHT).shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(UnusableImageError, match=r"11x7 pixels, smaller than the minimum of 8"):
        decode(tmp_path / "a.png", min_size=HEIGHT + 1)
    with pytest.raises(UnusableImageError, match="No such file"):
        decode(tmp_path / "b.png")
    with pytest.raises(UnusableImageError, match="directory"):
        decode(tmp_path)


def test_decodes_first_frame(tmp_path):
    first, second = Image.fromarray(photo(seed=1)), Image.fromarray(photo(seed=2))
    for name in ("a.tif", "a.png", "a.webp"):
        options = {"lossless": True} if name.endswith("webp") else {}
        first.save(tmp_path / name, save_all=True, append_images=[second], **options)
        np.testing.assert_array_equal(decode(tmp_path / name), np.asarray(first))
