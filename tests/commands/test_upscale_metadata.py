"""Metadata of upscaled images: kept, or reported as lost."""

import struct
import zlib
from pathlib import Path

import pytest
import tifffile
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from andfast.upscale import main

XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF/></x:xmpmeta>'
CHUNKS = {
    "gAMA": struct.pack(">I", 100_000),
    "cHRM": struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000),
    "cICP": bytes([9, 16, 0, 1]),
    "sRGB": b"\1",
    "pHYs": struct.pack(">IIB", 11811, 5906, 1),
}


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def read_chunks(path: Path) -> dict[str, bytes]:
    data, at, chunks = path.read_bytes(), 8, {}
    while at < len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        chunks[name.decode()] = data[at + 8 : at + 8 + length]
        at += length + 12
    return chunks


def save_png(path: Path, *names: str) -> Path:
    """An 8x6 PNG with some of CHUNKS."""
    Image.new("RGB", (8, 6), (90, 120, 150)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[:33] + b"".join(chunk(name.encode(), CHUNKS[name]) for name in names) + data[33:])
    return path


def save(path: Path, **options: object) -> Path:
    """An 8x6 image with resolution 300 x 150 and XMP, where the format has them."""
    image = Image.new("RGB", (8, 6), (90, 120, 150))
    if path.suffix == ".png":
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", XMP.decode())
        options["pnginfo"] = info
    elif path.suffix == ".tif":
        directory = ImageFileDirectory_v2()
        directory[700] = XMP
        options["tiffinfo"] = directory
    else:
        options["xmp"] = XMP
    image.save(path, dpi=(300, 150), **options)
    return path


def upscale(source: Path, target: Path, *arguments: str) -> int:
    command = [str(source), str(target), "--weights", "bicubic", "--scale", "2", "--quiet", "--device", "cpu"]
    return main([*command, *arguments])


@pytest.mark.parametrize("name", CHUNKS)
def test_png_chunks_are_kept(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = save_png(tmp_path / "a.png", name)
    assert upscale(source, tmp_path / "out.png") == 0
    assert read_chunks(tmp_path / "out.png")[name] == CHUNKS[name]
    assert capsys.readouterr().err == ""
    with Image.open(tmp_path / "out.png") as image:
        image.load()
        assert image.size == (16, 12)


@pytest.mark.parametrize("suffix", ["jpg", "webp", "tif"])
def test_color_space_chunks_are_reported(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = save_png(tmp_path / "a.png", "cICP", "gAMA", "cHRM")
    assert upscale(source, tmp_path / f"out.{suffix}") == 0
    format_ = {"jpg": "JPEG", "webp": "WEBP", "tif": "TIFF"}[suffix]
    assert f"a.png: its color space (cICP, gAMA, cHRM) is not kept in a {format_}" in capsys.readouterr().err


def test_unknown_chunks_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = PngInfo()
    info.add_text("Comment", "hello")
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png", pnginfo=info)
    assert upscale(tmp_path / "a.png", tmp_path / "out.png") == 0
    assert "a.png: its PNG chunks tEXt are not kept" in capsys.readouterr().err


@pytest.mark.parametrize("target", [".png", ".jpg", ".webp", ".tif"])
@pytest.mark.parametrize("source", [".png", ".jpg", ".webp", ".tif"])
def test_xmp_and_resolution(source: str, target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = save(tmp_path / f"a{source}")
    assert upscale(file, tmp_path / f"out{target}") == 0
    with Image.open(tmp_path / f"out{target}") as image:
        image.load()
        assert image.info["xmp"] == XMP
        expected = pytest.approx((300, 150), abs=0.1)
        if source != ".webp" and target != ".webp":
            assert image.info["dpi"] == expected
    lost = source != ".webp" and target == ".webp"
    assert ("its resolution is not kept in a WEBP" in capsys.readouterr().err) == lost


def test_resolution_is_rotated(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    save(tmp_path / "a.jpg", exif=exif)
    assert upscale(tmp_path / "a.jpg", tmp_path / "out.png") == 0
    with Image.open(tmp_path / "out.png") as image:
        assert image.size == (12, 16)
        assert image.info["dpi"] == pytest.approx((150, 300), abs=0.1)


def test_tiff_tags_are_read_by_tifffile(tmp_path: Path) -> None:
    assert upscale(save(tmp_path / "a.png"), tmp_path / "out.tif") == 0
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        tags = file.pages[0].tags
        assert [tag.code for tag in tags] == sorted(tag.code for tag in tags)
        assert bytes(tags[700].value) == XMP
        assert tags[296].value == 2


def test_dropped_exif_tags_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exif = Image.Exif()
    exif[271], exif[18246] = "Maker", 5
    Image.new("RGB", (8, 6)).save(tmp_path / "a.jpg", exif=exif)
    assert upscale(tmp_path / "a.jpg", tmp_path / "out.jpg") == 0
    assert capsys.readouterr().err == f"{tmp_path / 'a.jpg'}: its EXIF tags Rating are not kept\n"
    with Image.open(tmp_path / "out.jpg") as image:
        assert dict(image.getexif()) == {271: "Maker"}


def test_long_xmp_in_a_jpeg_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", "x" * 70_000)
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png", pnginfo=info)
    assert upscale(tmp_path / "a.png", tmp_path / "out.jpg") == 0
    assert "its XMP is too long for a JPEG and not kept" in capsys.readouterr().err
