"""Write images from top to bottom: PNG and TIFF as a stream, JPEG and WebP from memory through Pillow."""

from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from andfast.inference.metadata import NO_METADATA, Metadata, jpeg_segment
from andfast.inference.png import PngWriter
from andfast.inference.tiff import TiffWriter

FORMATS: Final = {
    "png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP", "tif": "TIFF", "tiff": "TIFF",
}  # fmt: skip
"""Suffixes without the dot, and Pillow's name of the format."""

_MAX_SIDE: Final = {"PNG": (1 << 31) - 1, "TIFF": (1 << 31) - 1, "JPEG": 65500, "WEBP": 16383}
_MAX_PIXELS_IN_MEMORY: Final = 1 << 28
"""Limit for JPEG and WebP, which Pillow holds in memory: 4 bytes per pixel, 1 GB."""

_MODES: Final = {1: "L", 3: "RGB", 4: "RGBA"}


class Writer(Protocol):
    """Consumes the rows of an image, (n, width, channels) uint8 or uint16, from top to bottom."""

    def write(self, rows: NDArray[Any]) -> None:
        """Append rows."""

    def close(self) -> None:
        """Finish the image; the file stays open."""


def format_of(name: str | Path) -> str:
    """Pillow's name of the format for a file's suffix.

    Raises:
        ValueError: The format cannot be written.
    """
    suffix = Path(name).suffix.lower().removeprefix(".")
    if suffix not in FORMATS:
        raise ValueError(f"{name}: suffix must be one of {', '.join(f'.{key}' for key in FORMATS)}, was {suffix!r}")
    return FORMATS[suffix]


def check_writable(format_: str, width: int, height: int, channels: int) -> None:
    """Check that a format can hold an image, before the image is restored.

    Raises:
        ValueError: The image is too large, or has an alpha channel that the format does not support.
    """
    limit = _MAX_SIDE[format_]
    if max(width, height) > limit:
        raise ValueError(
            f"{format_} must have at most {limit} pixels per side, the result has {width}x{height}: write a PNG"
        )
    if format_ in {"JPEG", "WEBP"} and width * height > _MAX_PIXELS_IN_MEMORY:
        raise ValueError(
            f"{format_} must have at most {_MAX_PIXELS_IN_MEMORY:,} pixels (it is encoded from memory), the result has "
            f"{width}x{height}: write a PNG or TIFF"
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
    metadata: Metadata = NO_METADATA,
) -> Writer:
    """Create the writer of an image.

    Args:
        file: Seekable binary file open for writing.
        format_: "PNG", "TIFF", "JPEG" or "WEBP".
        width: Width in pixels; see :func:`check_writable`.
        height: Height in pixels.
        channels: 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha).
        bits: 8 or 16; must be 8 for JPEG and WebP.
        quality: Quality of JPEG and WebP, 1 to 100; WebP with 100 is lossless.
        metadata: Metadata, as :meth:`Metadata.fit` returns it for the format.
    """
    if format_ == "PNG":
        return PngWriter(file, width, height, channels=channels, bits=bits, metadata=metadata)
    if format_ == "TIFF":
        return TiffWriter(file, width, height, channels=channels, bits=bits, metadata=metadata)
    return _PillowWriter(file, format_, (width, height), channels, quality, metadata)


class _PillowWriter:
    """Collect the rows in a Pillow image and encode it on close."""

    def __init__(
        self,
        file: BinaryIO,
        format_: str,
        size: tuple[int, int],
        channels: int,
        quality: int,
        metadata: Metadata,
    ) -> None:
        self._file, self._format = file, format_
        self._image = Image.new("RGBA" if channels == 2 else _MODES[channels], size)
        self._row = 0
        self._options: dict[str, Any] = {"quality": quality}
        if format_ == "JPEG":
            self._options["subsampling"] = 0  # 4:4:4
        else:
            self._options["lossless"] = quality == 100
        if metadata.profile:
            self._options["icc_profile"] = metadata.profile
        if metadata.exif:
            self._options["exif"] = metadata.exif
        if metadata.xmp:
            self._options |= {"extra": jpeg_segment(metadata.xmp)} if format_ == "JPEG" else {"xmp": metadata.xmp}
        if metadata.dpi is not None:
            self._options["dpi"] = metadata.dpi

    def write(self, rows: NDArray[Any]) -> None:
        if rows.shape[2] == 2:  # WebP has no grey with alpha
            rows = rows[..., [0, 0, 0, 1]]
        if rows.shape[2] == 1:
            rows = rows[..., 0]
        self._image.paste(Image.fromarray(np.ascontiguousarray(rows)), (0, self._row))
        self._row += len(rows)

    def close(self) -> None:
        self._image.save(self._file, self._format, **self._options)
