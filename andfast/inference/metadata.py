"""Metadata of image files that upscaled images keep: ICC profile, EXIF, XMP, resolution, PNG's color chunks.

Whatever is not kept is reported by a note, one line each.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from PIL import ExifTags, Image, ImageFile

COLOR_CHUNKS: Final = (b"cICP", b"gAMA", b"cHRM", b"sRGB")
"""PNG chunks that define the color space; kept in PNGs only."""

_TRANSPOSED: Final = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_ORIENTATION, _EXIF, _GPS = 274, 34665, 34853
_TEXTS: Final = (270, 271, 272, 305, 306, 315, 33432)  # description, make, model, software, date, artist, copyright
_RESOLUTION: Final = (282, 283, 296)  # kept apart from EXIF
_STRUCTURE: Final = frozenset(  # describe the stored pixels, not the photograph
    {254, 255, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 330, 338, 339, 531}
)
_SEPARATE: Final = frozenset({700, 34675})  # XMP and ICC profile in a TIFF
_STALE: Final = frozenset({40962, 40963, 40965})  # old width and height, Interoperability
_MAKER_NOTE: Final = 37500  # may hold absolute offsets
_MAX_EXIF: Final = 65533 - 6  # fits in a JPEG segment
_XMP_SEGMENT: Final = b"http://ns.adobe.com/xap/1.0/\0"
_MAX_XMP: Final = 65533 - len(_XMP_SEGMENT)  # likewise
_MAX_PROFILE: Final = 1 << 24
_INCH: Final = 0.0254  # metres
_IGNORED_CHUNKS: Final = frozenset(  # pixels, kept elsewhere, or of no meaning for the result
    {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"bKGD", b"hIST", b"sBIT", b"sPLT", b"tIME", b"eXIf", b"iCCP"}
    | {b"acTL", b"fcTL", b"fdAT"}
)


@dataclass(frozen=True)
class Metadata:
    """Metadata of an image file.

    Attributes:
        profile: ICC profile that fits the channels, or None.
        exif: EXIF block as Pillow writes it, or None; without orientation, sizes, thumbnail and maker notes.
        xmp: XMP packet, or None.
        density: Content of PNG's pHYs chunk: horizontal and vertical pixels per unit, and 1 for metres or 0 for an
            aspect ratio; or None.
        color_chunks: Contents of PNG's color chunks, by name.
    """

    profile: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    density: tuple[int, int, int] | None = None
    color_chunks: dict[bytes, bytes] = field(default_factory=dict)

    @property
    def dpi(self) -> tuple[float, float] | None:
        """Pixels per inch, horizontally and vertically."""
        if self.density is None or self.density[2] != 1:
            return None
        return self.density[0] * _INCH, self.density[1] * _INCH

    def fit(self, format_: str, channels: int) -> tuple["Metadata", list[str]]:
        """Drop what a format cannot hold.

        Args:
            format_: "PNG", "TIFF", "JPEG" or "WEBP".
            channels: Number of channels of the result.

        Returns:
            The metadata to write, and a note for each loss.
        """
        kept, notes = self, []
        if self.profile is not None and format_ == "WEBP" and channels < 3:
            kept = replace(kept, profile=None)
            notes.append("its grey ICC profile is not kept, as WEBP is always RGB")
        if self.exif is not None and format_ == "TIFF":
            kept = replace(kept, exif=None)
            notes.append("its EXIF is not kept in a TIFF")
        if self.xmp is not None and format_ == "JPEG" and len(self.xmp) > _MAX_XMP:
            kept = replace(kept, xmp=None)
            notes.append("its XMP is too long for a JPEG and not kept")
        if self.density is not None and (format_ == "WEBP" or (format_ != "PNG" and self.dpi is None)):
            kept = replace(kept, density=None)
            notes.append(f"its resolution is not kept in a {format_}")
        if self.color_chunks and format_ != "PNG":
            names = ", ".join(name.decode() for name in self.color_chunks)
            kept = replace(kept, color_chunks={})
            notes.append(f"its color space ({names}) is not kept in a {format_}")
        return kept, notes


NO_METADATA: Final = Metadata()


def read_metadata(path: str | Path, image: ImageFile.ImageFile, channels: int) -> tuple[Metadata, int, list[str]]:
    """Read the metadata of a loaded image.

    Args:
        path: Image file.
        image: The same file, opened by Pillow, with its pixels loaded.
        channels: Number of decoded channels; an ICC profile must be for grey (1, 2) or RGB (3, 4).

    Returns:
        The metadata, the EXIF orientation (1 to 8) that the caller applies, and a note for each loss.
    """
    notes: list[str] = []
    orientation, exif = 1, None
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
        exif, dropped = _kept_exif(image)
        if dropped:
            notes.append(f"its EXIF tags {', '.join(dropped)} are not kept")
    except Exception:  # Pillow raises arbitrary exceptions on damaged EXIF; the pixels are intact
        notes.append("its EXIF is damaged and not kept")
    if exif is not None and len(exif) > _MAX_EXIF:
        exif = None
        notes.append("its EXIF is too long and not kept")
    profile = image.info.get("icc_profile") or None
    if profile is not None and not _fits(profile, channels):
        profile = None
        notes.append("its ICC profile is damaged or does not fit the channels, and is not kept")
    chunks: dict[bytes, bytes] = {}
    if image.format == "PNG":
        chunks, unknown = _png_chunks(path)
        if unknown:
            notes.append(f"its PNG chunks {', '.join(unknown)} are not kept")
    density = _density(image, chunks.pop(b"pHYs", None))
    if density is not None and orientation in _TRANSPOSED:
        density = density[1], density[0], density[2]
    return Metadata(profile, exif, _xmp(image), density, chunks), orientation, notes


def png_chunks(metadata: Metadata) -> Iterator[tuple[bytes, bytes]]:
    """Ancillary PNG chunks, in an order valid before PLTE and IDAT; without iCCP and eXIf."""
    yield from metadata.color_chunks.items()
    if metadata.density is not None:
        yield b"pHYs", struct.pack(">IIB", *metadata.density)
    if metadata.xmp is not None:
        yield b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + metadata.xmp


def jpeg_segment(xmp: bytes) -> bytes:
    """JPEG's APP1 segment of an XMP packet."""
    content = _XMP_SEGMENT + xmp
    return b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content


def _kept_exif(image: ImageFile.ImageFile) -> tuple[bytes | None, list[str]]:
    """The part of the EXIF block that is still true of an upscaled, upright image; and the names of dropped tags."""
    exif, kept = image.getexif(), Image.Exif()
    dropped = []
    for tag, value in exif.items():
        if tag in _TEXTS:
            kept[tag] = value
        elif tag not in _STRUCTURE | _SEPARATE | {_ORIENTATION, _EXIF, _GPS, *_RESOLUTION}:
            dropped.append(_tag_name(tag))
    for pointer in (_EXIF, _GPS):
        directory = exif.get_ifd(pointer)
        if _MAKER_NOTE in directory and pointer == _EXIF:
            dropped.append("MakerNote")
        remaining = {tag: value for tag, value in directory.items() if tag not in _STALE | {_MAKER_NOTE}}
        if remaining:
            kept[pointer] = remaining
    return (kept.tobytes() if len(kept) else None), dropped


def _tag_name(tag: int) -> str:
    return ExifTags.TAGS.get(tag, f"0x{tag:04x}")


def _fits(profile: object, channels: int) -> bool:
    """Whether ``profile`` is an ICC profile for grey (1 or 2 channels) or RGB."""
    if not isinstance(profile, bytes) or not 128 <= len(profile) <= _MAX_PROFILE:
        return False
    size, space, signature = int.from_bytes(profile[:4]), profile[16:20], profile[36:40]
    return size <= len(profile) and signature == b"acsp" and space == (b"GRAY" if channels < 3 else b"RGB ")


def _xmp(image: ImageFile.ImageFile) -> bytes | None:
    xmp: Any = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp")
    for name, content in getattr(image, "applist", ()):  # JPEG, before Pillow 11
        if xmp is None and name == "APP1" and content.startswith(_XMP_SEGMENT):
            xmp = content.removeprefix(_XMP_SEGMENT)
    if isinstance(xmp, str):
        return str(xmp).encode()
    return bytes(xmp) if isinstance(xmp, bytes) and xmp else None


def _density(image: ImageFile.ImageFile, chunk: bytes | None) -> tuple[int, int, int] | None:
    """The resolution of a file as PNG's pHYs."""
    if chunk is not None and len(chunk) == 9:
        horizontal, vertical, unit = struct.unpack(">IIB", chunk)
        return (horizontal, vertical, unit) if horizontal and vertical and unit in {0, 1} else None
    try:
        dots = [round(float(value) / _INCH) for value in image.info["dpi"]]
    except (KeyError, TypeError, ValueError, OverflowError, ZeroDivisionError):
        return None
    return (dots[0], dots[1], 1) if len(dots) == 2 and all(0 < value < 1 << 31 for value in dots) else None


def _png_chunks(path: str | Path) -> tuple[dict[bytes, bytes], list[str]]:
    """Color and pHYs chunks of a PNG, and the names of chunks that are not kept."""
    chunks: dict[bytes, bytes] = {}
    unknown: list[str] = []
    with open(path, "rb") as file:
        file.seek(8)
        while len(header := file.read(8)) == 8:
            length, name = struct.unpack(">I4s", header)
            if name in {*COLOR_CHUNKS, b"pHYs"} and length <= 64:
                chunks[name] = file.read(length)
                file.seek(4, 1)
                continue
            content = file.read(18) if name == b"iTXt" and length >= 18 else b""
            if name not in _IGNORED_CHUNKS and content != b"XML:com.adobe.xmp\0":
                text = name.decode("latin-1")
                if text.isascii() and text.isalpha() and text not in unknown:
                    unknown.append(text)
            file.seek(length - len(content) + 4, 1)
            if name == b"IEND":
                break
    return {name: chunks[name] for name in (*COLOR_CHUNKS, b"pHYs") if name in chunks}, unknown
