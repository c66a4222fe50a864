"""Write upscaled pictures from top to bottom: PNG and TIFF as they come, JPEG and WebP from memory."""

from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from andfast.inference.png import PngWriter
from andfast.inference.tiff import TiffWriter

FORMATS: Final = {
    "png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP", "tif": "TIFF", "tiff": "TIFF",
}  # fmt: skip
"""What files are called, without the dot, and Pillow's name of the format."""

_LONGEST_SIDE: Final = {"PNG": (1 << 31) - 1, "TIFF": (1 << 31) - 1, "JPEG": 65500, "WEBP": 16383}
_MOST_PIXELS: Final = 1 << 28
"""What JPEG and WebP may have: Pillow holds them in memory, 4 bytes a pixel, 1 GB."""

_MODES: Final = {1: "L", 3: "RGB", 4: "RGBA"}


class Writer(Protocol):
    """What takes a picture's rows, (n, width, channels) of uint8 or uint16, from top to bottom."""

    def write(self, rows: NDArray[Any]) -> None:
        """Append rows."""

    def close(self) -> None:
        """Finish the picture; the file stays open."""


def format_of(name: str | Path) -> str:
    """Pillow's name of the format that a file's ending asks for.

    Raises:
        ValueError: the ending is none of a format that can be written.
    """
    ending = Path(name).suffix.lower().removeprefix(".")
    if ending not in FORMATS:
        raise ValueError(f"{name}: pictures are written as {', '.join(f'.{key}' for key in FORMATS)}, was {ending!r}")
    return FORMATS[ending]


def check_writable(format_: str, width: int, height: int, channels: int) -> None:
    """Refuse a picture that its format cannot hold, before it is made.

    Raises:
        ValueError: it is too large for the format, or has transparency that the format has not.
    """
    longest = _LONGEST_SIDE[format_]
    if max(width, height) > longest:
        raise ValueError(f"{width}x{height} pixels are too many for {format_}, which has {longest} a side: write a PNG")
    if format_ in {"JPEG", "WEBP"} and width * height > _MOST_PIXELS:
        raise ValueError(
            f"{width}x{height} pixels are too many for {format_}, which is made in memory, {_MOST_PIXELS:,} at most: "
            "write a PNG or TIFF"
        )
    if format_ == "JPEG" and channels % 2 == 0:
        raise ValueError("JPEG has no transparency: write a PNG, WebP or TIFF")


def open_writer(
    file: BinaryIO,
    format_: str,
    width: int,
    height: int,
    *,
    channels: int,
    bits: int,
    quality: int = 95,
    profile: bytes | None = None,
    exif: bytes | None = None,
) -> Writer:
    """Begin a picture.

    Args:
        file: where to, a seekable file open for writing bytes.
        format_: "PNG", "TIFF", "JPEG" or "WEBP".
        width, height: the picture's; see :func:`check_writable`.
        channels: 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha).
        bits: 8 or 16; JPEG and WebP take 8.
        quality: of JPEG and WebP, 1 to 100; WebP of 100 is lossless.
        profile: an ICC profile.
        exif: an EXIF block; TIFF does without.
    """
    if format_ == "PNG":
        return PngWriter(file, width, height, channels=channels, bits=bits, profile=profile, exif=exif)
    if format_ == "TIFF":
        return TiffWriter(file, width, height, channels=channels, bits=bits, profile=profile)
    return _PillowWriter(file, format_, (width, height), channels, quality, profile, exif)


class _PillowWriter:
    """Collects the rows in a picture of Pillow's and has it encode them."""

    def __init__(
        self,
        file: BinaryIO,
        format_: str,
        size: tuple[int, int],
        channels: int,
        quality: int,
        profile: bytes | None,
        exif: bytes | None,
    ) -> None:
        self._file, self._format = file, format_
        self._image = Image.new("RGBA" if channels == 2 else _MODES[channels], size)
        self._row = 0
        self._options: dict[str, Any] = {"quality": quality}
        if format_ == "JPEG":
            self._options["subsampling"] = 0  # full resolution of colours
        else:
            self._options["lossless"] = quality == 100
        if profile:
            self._options["icc_profile"] = profile
        if exif:
            self._options["exif"] = exif

    def write(self, rows: NDArray[Any]) -> None:
        if rows.shape[2] == 2:  # grey with alpha, which WebP has not
            rows = rows[..., [0, 0, 0, 1]]
        if rows.shape[2] == 1:
            rows = rows[..., 0]
        self._image.paste(Image.fromarray(np.ascontiguousarray(rows)), (0, self._row))
        self._row += len(rows)

    def close(self) -> None:
        self._image.save(self._file, self._format, **self._options)
