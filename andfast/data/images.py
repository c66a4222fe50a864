"""Decode one picture file to (H, W, 3) uint8 sRGB-coded values, or say in one line why not.

Also the program that ``pack`` runs in its worker processes (see ``decoding.py``): it imports nothing of this
package, so that a worker starts in a fraction of a second.

What a file becomes
- Formats: PNG, JPEG, WebP, TIFF, BMP; of several frames or pages, the first.
- 8 bit: as stored. 16 bit: rounded to the nearest of 256 levels, v / 257 (Pillow alone would cut off the low
  byte). Only 16-bit CMYK and 16-bit premultiplied alpha keep their high byte. Signed, 32-bit and
  floating-point samples have no agreed range and are refused, as are 16-bit TIFFs that store one plane a
  colour, which Pillow reads wrongly.
- Grey becomes three equal channels; palettes, CMYK and YCbCr are converted by Pillow's formulas; embedded
  colour profiles are ignored.
- Transparency (an alpha channel, a transparent palette entry or key colour) is composited over white, as
  viewers show
  it: the colours stored under transparent pixels are arbitrary.
- The EXIF orientation is applied.
- More pixels than Pillow's decompression-bomb limit (``PIL.Image.MAX_IMAGE_PIXELS``, 89 million) are refused.
"""

import json
import os
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

# Raise it whenever the same file would decode to other pixels: packs made by another version are then made
# anew.
DECODER_VERSION = 1

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".tif", ".tiff", ".bmp"})

HEADER = struct.Struct("<cII")  # a reply of the worker: kind, then height and width, or the length of a reason and 0
READY, PIXELS, REASON = b"r", b"p", b"e"

_PHOTOMETRIC, _PLANAR, ORIENTATION, _BITS = 262, 284, 274, 258  # TIFF and EXIF tags
_OTHER_BYTE = {"16B": "16L", "16L": "16B", "16N": "16B" if sys.byteorder == "little" else "16L"}
_DEEP_RAW_MODES = ("RGB;16", "RGBA;16", "RGBX;16")


class UnusableImageError(Exception):
    """A file that does not decode to a usable picture; the message is the reason, in one line."""


def decode(path: str | Path, *, min_size: int = 1) -> NDArray[np.uint8]:
    """Decode a picture file.

    Args:
        path: the file.
        min_size: the least height and width, in pixels.

    Returns:
        A contiguous (H, W, 3) uint8 array.

    Raises:
        UnusableImageError: the file is missing, unreadable, damaged, truncated, of another kind or too small.
    """
    with reasons(path):
        return _decode(path, min_size)


@contextmanager
def reasons(path: str | Path, *, max_pixels: int | None = None) -> Iterator[None]:
    """Turn whatever goes wrong with a file inside the block into an UnusableImageError that says why in one line.

    Args:
        path: the file.
        max_pixels: more than these are refused; None for Pillow's decompression-bomb limit.
    """
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        # What Pillow only warns of is either fatal here (a bomb, a truncated file) or harmless (damaged
        # metadata).
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.filterwarnings("error", message="(?i).*truncated")
        try:
            if max_pixels is not None:
                Image.MAX_IMAGE_PIXELS = max_pixels
            if ImageFile.LOAD_TRUNCATED_IMAGES:
                raise UnusableImageError(
                    "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set, which would let truncated files pass"
                )
            yield
        except UnusableImageError:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise UnusableImageError(f"too many pixels: {_line(error)}") from error
        except UnidentifiedImageError as error:
            raise UnusableImageError(_unidentified(path)) from error
        except OSError as error:
            raise UnusableImageError(error.strerror or f"truncated or damaged: {_line(error)}") from error
        except MemoryError as error:
            raise UnusableImageError("not enough memory for its pixels") from error
        except Exception as error:  # Pillow's plugins meet damaged files with all kinds of errors
            raise UnusableImageError(f"damaged: {type(error).__name__}: {_line(error)}") from error
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _decode(path: str | Path, min_size: int) -> NDArray[np.uint8]:
    with open_picture(path) as image:
        width, height = image.size
        if min(width, height) < min_size:
            raise UnusableImageError(f"{width}x{height} pixels, smaller than the minimum of {min_size}")
        samples = load_samples(path, image)
        orientation = image.getexif().get(ORIENTATION, 1)  # after load, by which TIFFs are already turned
    return np.ascontiguousarray(oriented(_over_white(samples), orientation))


def open_picture(path: str | Path) -> ImageFile.ImageFile:
    """Open a file of one of FORMATS, without decoding its pixels."""
    image = Image.open(path, formats=FORMATS)
    assert isinstance(image, ImageFile.ImageFile)  # what Image.open returns for every file format
    return image


def load_samples(path: str | Path, image: ImageFile.ImageFile, *, grey: bool = False) -> NDArray[Any]:
    """Decode the pixels of an open picture: (H, W, 1..4), uint8 or uint16, as stored.

    Two and four channels end in alpha. Grey of 8 bits becomes one channel if ``grey`` is set, else three.
    """
    samples: NDArray[Any] | None = _deep_samples(path, image)
    if samples is None:
        image.load()
        samples = _plain_samples(image, grey and image.mode in {"1", "L", "LA", "La"})
    return samples


def _deep_samples(path: str | Path, image: ImageFile.ImageFile) -> NDArray[np.uint16] | None:
    """(H, W, 1..4) uint16 samples of a 16-bit picture, or None where it has other samples."""
    if image.mode.startswith("I;16"):
        if _raw_mode(image) == "I;12":
            raise UnusableImageError("12-bit samples: save it as 8 or 16 bit")
        image.load()
        grey = np.array(image, np.uint16)
        tags = getattr(image, "tag_v2", {})
        if tags.get(_PHOTOMETRIC) == 0:  # "white is zero", which Pillow turns round for 8 bit only
            grey = 65535 - grey
        return _with_key(grey[..., None], image.info.get("transparency"))
    raw = _raw_mode(image)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        deep = max(image.tag_v2.get(_BITS, (1,))) > 8
        if deep and image.tag_v2.get(_PLANAR, 1) == 2:
            raise UnusableImageError("a TIFF of 16 bits in separate planes: save it with interleaved channels")
    if raw == "LA;16B":  # four bytes a pixel: read as four channels, they are high and low bytes, side by side
        pairs = _load_as(image, "RGBA").astype(np.uint16)
        return pairs[..., 0::2] * 256 + pairs[..., 1::2]
    if not raw.startswith(_DEEP_RAW_MODES):
        return None
    # Pillow's unpacker for 16 bits keeps the high byte; the one for the other byte order keeps the low one.
    samples = _load_as(image, raw).astype(np.uint16)
    samples <<= 8  # in place, as such pictures may be scans of half a gigabyte
    with open_picture(path) as again:
        samples += _load_as(again, raw[:-3] + _OTHER_BYTE[raw[-3:]])
    return _with_key(samples, image.info.get("transparency"))


def _raw_mode(image: ImageFile.ImageFile) -> str:
    args: Any = image.tile[0].args if image.tile else ""
    mode = args[0] if isinstance(args, tuple) and args else args
    return mode if isinstance(mode, str) else ""


def _load_as(image: ImageFile.ImageFile, raw_mode: str) -> NDArray[np.uint8]:
    """Decode the pixels with another of Pillow's unpackers; (H, W, C) uint8."""
    image.tile = [
        tile._replace(args=(raw_mode, *tile.args[1:]) if isinstance(tile.args, tuple) else raw_mode)
        for tile in image.tile
    ]
    image.load()
    return np.asarray(image)


def _with_key(samples: NDArray[np.uint16], key: Any) -> NDArray[np.uint16]:
    """Add an alpha channel that is 0 where the samples equal PNG's transparent colour."""
    if key is None:
        return samples
    alpha = np.where((samples == np.asarray(key, np.uint16)).all(-1, keepdims=True), 0, 65535)
    return np.concatenate([samples, alpha.astype(np.uint16)], axis=-1)


def _plain_samples(image: Image.Image, grey: bool) -> NDArray[np.uint8]:
    """(H, W, 3 or 4) uint8 samples of a picture of at most 8 bits; (H, W, 1 or 2) of a grey one that stays so."""
    if image.mode in {"I", "F"}:
        raise UnusableImageError(
            "signed, 32-bit or floating-point samples, whose range is unknown: save it as 8 or 16 bit"
        )
    mode = ("L" if grey else "RGB") + ("A" if image.has_transparency_data else "")
    samples = np.asarray(image if image.mode == mode else image.convert(mode))
    return samples if samples.ndim == 3 else samples[..., None]


def _over_white(samples: NDArray[Any]) -> NDArray[np.uint8]:
    """(H, W, 1..4) uint8 or uint16 samples to (H, W, 3) uint8: alpha composited over white, then rounded."""
    colour, alpha = (samples, None) if samples.shape[-1] % 2 else (samples[..., :-1], samples[..., -1:])
    top = np.iinfo(samples.dtype).max
    if alpha is not None:
        wide = np.uint16 if samples.dtype == np.uint8 else np.uint32  # top * top + top // 2 just fits
        cover = alpha.astype(wide)
        colour = ((colour * cover + top * (top - cover) + top // 2) // top).astype(samples.dtype)
    if colour.dtype == np.uint16:
        colour = ((colour.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.broadcast_to(colour, (*colour.shape[:2], 3))


def oriented(pixels: NDArray[Any], orientation: Any) -> NDArray[Any]:
    """Turn an (H, W, C) array upright; what is none of EXIF's eight orientations counts as upright."""
    turned = pixels.swapaxes(0, 1) if orientation in {5, 6, 7, 8} else pixels
    if orientation in {3, 4, 7, 8}:
        turned = turned[::-1]
    return turned[:, ::-1] if orientation in {2, 3, 6, 7} else turned


def _unidentified(path: str | Path) -> str:
    with open(path, "rb") as file:
        start = file.read(8)
    if not start:
        return "an empty file"
    return f"no PNG, JPEG, WebP, TIFF or BMP picture, or its header is damaged (it starts with {start!r})"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer requests, one JSON line [path, min_size] each, by pixels or a reason, to the end."""
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
    # The parent decides when to stop; what a C library prints must not get among the pixels.
    import signal  # noqa: PLC0415

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with os.fdopen(os.dup(1), "wb") as replies:
        os.dup2(2, 1)
        try:
            serve(sys.stdin.buffer, replies)
        except BrokenPipeError:  # the parent is gone
            os._exit(1)


if __name__ == "__main__":
    _main()
