"""Decode an image file to (H, W, 3) uint8 sRGB-coded values, or report in one line why it is unusable.

This file is also the program that ``decoding.py`` runs in worker processes: it imports nothing from this package, so
that a worker starts in a fraction of a second.

Conversions
- Formats: PNG, JPEG, WebP, TIFF, BMP; the first frame or page only.
- 8 bits: as stored. 16 bits: rounded to the nearest 8-bit level, v / 257 (Pillow alone truncates to the high byte).
  16-bit CMYK and 16-bit premultiplied alpha keep the high byte. Signed, 32-bit and floating-point samples have no
  agreed range and raise, as do 16-bit TIFFs with separate planes, which Pillow decodes wrongly.
- Grey becomes three equal channels; palettes, CMYK and YCbCr are converted by Pillow; ICC profiles are ignored.
- Transparency (alpha channel, transparent palette entry or key color) is composited over white, as viewers do: colors
  stored under transparent pixels are arbitrary.
- The EXIF orientation is applied.
- Images above Pillow's decompression-bomb limit (``PIL.Image.MAX_IMAGE_PIXELS``, 89 million pixels) raise.
"""

import json
import os
import re
import struct
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

# Increment when a file would decode to different pixels: packs of other versions are rebuilt.
DECODER_VERSION = 1

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".tif", ".tiff", ".bmp"})

HEADER = struct.Struct("<cII")  # reply header: kind, then height and width, or the length of the reason and 0
READY, PIXELS, REASON = b"r", b"p", b"e"

_PHOTOMETRIC, _PLANAR, ORIENTATION, _BITS = 262, 284, 274, 258  # TIFF and EXIF tags
_OTHER_BYTE = {"16B": "16L", "16L": "16B", "16N": "16B" if sys.byteorder == "little" else "16L"}
_DEEP_RAW_MODES = ("RGB;16", "RGBA;16", "RGBX;16")


class UnusableImageError(Exception):
    """The file does not decode to a usable image; the message is the reason, in one line."""


class TooManyPixelsError(UnusableImageError):
    """The image has more pixels than the limit."""


def decode(path: str | Path, *, min_size: int = 1) -> NDArray[np.uint8]:
    """Decode an image file.

    Args:
        path: Image file.
        min_size: Minimum height and width in pixels.

    Returns:
        A contiguous (H, W, 3) uint8 array.

    Raises:
        UnusableImageError: The file is missing, unreadable, damaged, truncated, too small or not a supported format.
    """
    with image_errors(path):
        return _decode(path, min_size)


@contextmanager
def image_errors(path: str | Path, *, max_pixels: int | None = None) -> Iterator[None]:
    """Convert any error raised inside the block into an UnusableImageError with a one-line reason.

    Args:
        path: Image file that the block reads.
        max_pixels: Maximum number of pixels; None for Pillow's decompression-bomb limit.
    """
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        # Pillow's warnings are either fatal here (decompression bomb, truncated file) or harmless (damaged metadata).
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.filterwarnings("error", message="(?i).*truncated")
        try:
            if max_pixels is not None:
                Image.MAX_IMAGE_PIXELS = max_pixels
            if ImageFile.LOAD_TRUNCATED_IMAGES:
                raise UnusableImageError("PIL.ImageFile.LOAD_TRUNCATED_IMAGES must be False, was True")
            yield
        except UnusableImageError:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise TooManyPixelsError(_too_many_pixels(error, Image.MAX_IMAGE_PIXELS)) from error
        except UnidentifiedImageError as error:
            raise UnusableImageError(_unidentified(path)) from error
        except OSError as error:
            raise UnusableImageError(error.strerror or f"truncated or damaged: {_line(error)}") from error
        except MemoryError as error:
            raise UnusableImageError("not enough memory for its pixels") from error
        except Exception as error:  # Pillow's plugins raise arbitrary exceptions on damaged files
            raise UnusableImageError(f"damaged: {type(error).__name__}: {_line(error)}") from error
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _decode(path: str | Path, min_size: int) -> NDArray[np.uint8]:
    with open_image(path) as image:
        width, height = image.size
        if min(width, height) < min_size:
            raise UnusableImageError(f"{width}x{height} pixels, smaller than the minimum of {min_size}")
        samples = load_samples(path, image)
        orientation = image.getexif().get(ORIENTATION, 1)  # after load(), which already rotates TIFFs
    return np.ascontiguousarray(apply_orientation(_over_white(samples), orientation))


def open_image(path: str | Path) -> ImageFile.ImageFile:
    """Open a file in one of FORMATS without decoding its pixels."""
    image = Image.open(path, formats=FORMATS)
    assert isinstance(image, ImageFile.ImageFile)
    return image


def load_samples(path: str | Path, image: ImageFile.ImageFile, *, grey: bool = False) -> NDArray[Any]:
    """Decode the pixels of an open image: (H, W, C) with C in 1..4, uint8 or uint16, as stored.

    With 2 or 4 channels the last one is alpha. 8-bit grey gives one channel if ``grey`` is True, else three.
    """
    samples: NDArray[Any] | None = _deep_samples(path, image)
    if samples is None:
        image.load()
        samples = _plain_samples(image, grey and image.mode in {"1", "L", "LA", "La"})
    return samples


def _deep_samples(path: str | Path, image: ImageFile.ImageFile) -> NDArray[np.uint16] | None:
    """(H, W, C) uint16 samples of a 16-bit image, or None for other sample types."""
    if image.mode.startswith("I;16"):
        if _raw_mode(image) == "I;12":
            raise UnusableImageError("12-bit samples: save it as 8 or 16 bits")
        image.load()
        grey = np.array(image, np.uint16)
        tags = getattr(image, "tag_v2", {})
        if tags.get(_PHOTOMETRIC) == 0:  # WhiteIsZero, which Pillow inverts for 8 bits only
            grey = 65535 - grey
        return _with_key(grey[..., None], image.info.get("transparency"))
    raw = _raw_mode(image)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        deep = max(image.tag_v2.get(_BITS, (1,))) > 8
        if deep and image.tag_v2.get(_PLANAR, 1) == 2:
            raise UnusableImageError("a TIFF of 16 bits in separate planes: save it with interleaved channels")
    if raw == "LA;16B":  # 4 bytes per pixel: read as RGBA, the channels are high and low bytes in turn
        pairs = _load_as(image, "RGBA").astype(np.uint16)
        return pairs[..., 0::2] * 256 + pairs[..., 1::2]
    if not raw.startswith(_DEEP_RAW_MODES):
        return None
    # Pillow's 16-bit unpacker keeps the high byte; the one for the opposite byte order keeps the low byte.
    samples = _load_as(image, raw).astype(np.uint16)
    samples <<= 8  # in place: such scans may take half a gigabyte
    with open_image(path) as again:
        samples += _load_as(again, raw[:-3] + _OTHER_BYTE[raw[-3:]])
    return _with_key(samples, image.info.get("transparency"))


def _raw_mode(image: ImageFile.ImageFile) -> str:
    args: Any = image.tile[0].args if image.tile else ""
    mode = args[0] if isinstance(args, tuple) and args else args
    return mode if isinstance(mode, str) else ""


def _load_as(image: ImageFile.ImageFile, raw_mode: str) -> NDArray[np.uint8]:
    """Decode the pixels with the given Pillow unpacker; (H, W, C) uint8."""
    image.tile = [
        tile._replace(args=(raw_mode, *tile.args[1:]) if isinstance(tile.args, tuple) else raw_mode)
        for tile in image.tile
    ]
    image.load()
    return np.asarray(image)


def _with_key(samples: NDArray[np.uint16], key: Any) -> NDArray[np.uint16]:
    """Append an alpha channel that is 0 where the samples equal PNG's transparent color (tRNS)."""
    if key is None:
        return samples
    alpha = np.where((samples == np.asarray(key, np.uint16)).all(-1, keepdims=True), 0, 65535)
    return np.concatenate([samples, alpha.astype(np.uint16)], axis=-1)


def _plain_samples(image: Image.Image, grey: bool) -> NDArray[np.uint8]:
    """uint8 samples of an image of at most 8 bits: (H, W, 3 or 4), or (H, W, 1 or 2) if ``grey``."""
    if image.mode in {"I", "F"}:
        raise UnusableImageError(
            "signed, 32-bit or floating-point samples, whose range is unknown: save it as 8 or 16 bits"
        )
    mode = ("L" if grey else "RGB") + ("A" if image.has_transparency_data else "")
    samples = np.asarray(image if image.mode == mode else image.convert(mode))
    return samples if samples.ndim == 3 else samples[..., None]


def _over_white(samples: NDArray[Any]) -> NDArray[np.uint8]:
    """(H, W, C) uint8 or uint16 samples to (H, W, 3) uint8: composite alpha over white, then round."""
    color, alpha = (samples, None) if samples.shape[-1] % 2 else (samples[..., :-1], samples[..., -1:])
    top = np.iinfo(samples.dtype).max
    if alpha is not None:
        wide = np.uint16 if samples.dtype == np.uint8 else np.uint32  # holds top * top + top // 2
        cover = alpha.astype(wide)
        color = ((color * cover + top * (top - cover) + top // 2) // top).astype(samples.dtype)
    if color.dtype == np.uint16:
        color = ((color.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.broadcast_to(color, (*color.shape[:2], 3))


def apply_orientation(pixels: NDArray[Any], orientation: Any) -> NDArray[Any]:
    """Turn an (H, W, C) array upright; values other than EXIF's eight orientations mean upright."""
    turned = pixels.swapaxes(0, 1) if orientation in {5, 6, 7, 8} else pixels
    if orientation in {3, 4, 7, 8}:
        turned = turned[::-1]
    return turned[:, ::-1] if orientation in {2, 3, 6, 7} else turned


def _unidentified(path: str | Path) -> str:
    with open(path, "rb") as file:
        start = file.read(8)
    if not start:
        return "an empty file"
    return f"not a PNG, JPEG, WebP, TIFF or BMP image, or its header is damaged (it starts with {start!r})"


def _too_many_pixels(error: BaseException, limit: int | None) -> str:
    number = re.search(r"\((\d+) pixels\)", str(error))
    if number is None or limit is None:
        return f"too many pixels: {_line(error)}"
    return f"too many pixels: {int(number[1]):,}, the limit is {limit:,}"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Reply to each request, a JSON line [path, min_size], with pixels or a reason, until EOF."""
    replies.write(HEADER.pack(READY, 0, 0))
    replies.flush()
    for line in requests:
        path, min_size = json.loads(line)
        try:
            pixels = decode(path, min_size=min_size)
        except UnusableImageError as error:
            reason = str(error).encode("utf-8", "backslashreplace")
            replies.write(HEADER.pack(REASON, len(reason), 0) + reason)
        else:
            replies.write(HEADER.pack(PIXELS, *pixels.shape[:2]))
            replies.write(pixels.data)
        replies.flush()


def _main() -> None:
    # The parent decides when to stop. C libraries may print to stdout, which must not mix with the pixels.
    import signal  # noqa: PLC0415

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with os.fdopen(os.dup(1), "wb") as replies:
        os.dup2(2, 1)
        try:
            serve(sys.stdin.buffer, replies)
        except BrokenPipeError:  # the parent exited
            os._exit(1)


if __name__ == "__main__":
    _main()
