"""Read an image file with everything an upscaled image should keep: bit depth, grey, alpha, ICC profile, EXIF."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from andfast.data.images import ORIENTATION, apply_orientation, image_errors, load_samples, open_image

MAX_PIXELS: Final = 178_956_970
"""Twice Pillow's warning limit: where Pillow itself raises DecompressionBombError."""

_EXIF, _GPS = 34665, 34853
_TEXTS: Final = (270, 271, 272, 305, 306, 315, 33432)  # description, make, model, software, date, artist, copyright
_STALE: Final = frozenset({37500, 40965, 40962, 40963})  # MakerNote, Interoperability (offsets), old width and height
_MAX_EXIF: Final = 65533 - 6  # fits in a JPEG segment
_MAX_PROFILE: Final = 1 << 24


@dataclass
class DecodedImage:
    """A decoded image file.

    Attributes:
        samples: (H, W, C), uint8 or uint16, upright; C is 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha).
        format: Pillow's name of the file format: "PNG", "JPEG", "WEBP", "TIFF" or "BMP".
        profile: ICC profile that fits the channels, or None.
        exif: EXIF block as Pillow writes it, or None; without orientation, sizes, thumbnail and maker notes.
        notes: One line per property of the file that is not kept.
    """

    samples: NDArray[Any]
    format: str
    profile: bytes | None = None
    exif: bytes | None = None
    notes: list[str] = field(default_factory=list)


def read_image(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> DecodedImage:
    """Read an image file; see ``data/images.py`` for the conversions.

    Args:
        path: PNG, JPEG, WebP, TIFF or BMP; the first frame or page is read.
        max_pixels: Maximum number of pixels, checked before decoding.

    Raises:
        UnusableImageError: The file is missing, unreadable, damaged, truncated, too large or not a supported format;
            the message is one line without the file name.
    """
    with image_errors(path, max_pixels=max_pixels), open_image(path) as image:
        notes = []
        if (count := _frame_count(image)) > 1:
            notes.append(f"only the first of {count} frames or pages is read")
        format_ = image.format or ""
        samples = load_samples(path, image, grey=True)
        if image.mode == "CMYK":
            notes.append("CMYK is converted to RGB without its ICC profile")
        try:
            orientation, exif = image.getexif().get(ORIENTATION, 1), _kept_exif(image)
        except Exception:  # Pillow raises arbitrary exceptions on damaged EXIF; the pixels are intact
            orientation, exif = 1, None
            notes.append("its EXIF is damaged and not kept")
        if exif is not None and len(exif) > _MAX_EXIF:
            exif = None
            notes.append("its EXIF is too long and not kept")
        profile = image.info.get("icc_profile") or None
        if profile is not None and not _fits(profile, samples.shape[2]):
            profile = None
            notes.append("its ICC profile is damaged or does not fit the channels, and is not kept")
        pixels = np.ascontiguousarray(apply_orientation(samples, orientation))
        return DecodedImage(pixels, format_, profile, exif, notes)


def _frame_count(image: ImageFile.ImageFile) -> int:
    """Number of frames or pages, as far as they can be counted."""
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # a damaged second page, which is not read
        return 1


def _kept_exif(image: ImageFile.ImageFile) -> bytes | None:
    """The part of the EXIF block that is still true of an upscaled, upright image."""
    exif, kept = image.getexif(), Image.Exif()
    for tag in _TEXTS:
        if tag in exif:
            kept[tag] = exif[tag]
    for tag in (_EXIF, _GPS):
        directory = {key: value for key, value in exif.get_ifd(tag).items() if key not in _STALE}
        if directory:
            kept[tag] = directory
    return kept.tobytes() if len(kept) else None


def _fits(profile: object, channels: int) -> bool:
    """Whether ``profile`` is an ICC profile for grey (1 or 2 channels) or RGB."""
    if not isinstance(profile, bytes) or not 128 <= len(profile) <= _MAX_PROFILE:
        return False
    size, space, signature = int.from_bytes(profile[:4]), profile[16:20], profile[36:40]
    return size <= len(profile) and signature == b"acsp" and space == (b"GRAY" if channels < 3 else b"RGB ")
