"""Read a picture with all that an upscaled one should keep: depth, grey, alpha, upright pixels, profile, EXIF."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from andfast.data.images import ORIENTATION, load_samples, open_picture, oriented, reasons

MAX_PIXELS: Final = 178_956_970
"""Twice Pillow's limit for a warning, which is where Pillow itself takes a picture for a decompression bomb."""

_EXIF, _GPS = 34665, 34853
_TEXTS: Final = (270, 271, 272, 305, 306, 315, 33432)  # description, make, model, software, date, artist, copyright
_STALE: Final = frozenset(
    {37500, 40965, 40962, 40963}
)  # MakerNote and Interoperability (offsets), old width and height
_LONGEST_EXIF: Final = 65533 - 6  # what fits in a JPEG
_LONGEST_PROFILE: Final = 1 << 24


@dataclass
class Picture:
    """A decoded picture.

    Attributes:
        samples: (H, W, C), uint8 or uint16, upright; C is 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha).
        format: Pillow's name of the file's format: "PNG", "JPEG", "WEBP", "TIFF" or "BMP".
        profile: its ICC profile, or None; one for these channels.
        exif: its EXIF block as Pillow writes it, or None; without orientation, sizes, thumbnail and maker's notes.
        notes: what of the file could not be kept, one line each.
    """

    samples: NDArray[Any]
    format: str
    profile: bytes | None = None
    exif: bytes | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def has_alpha(self) -> bool:
        """Whether the last channel is alpha."""
        return self.samples.shape[2] % 2 == 0


def read_picture(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read a picture file; see ``data/images.py`` for what its formats and samples become.

    Args:
        path: a PNG, JPEG, WebP, TIFF or BMP; of several frames or pages, the first is read.
        max_pixels: more than these are refused, before anything is decoded.

    Raises:
        UnusableImageError: the file is missing, unreadable, damaged, truncated, too large or of another kind; the text
            is one line without the file's name.
    """
    with reasons(path, max_pixels=max_pixels), open_picture(path) as image:
        notes = []
        if (count := _count(image)) > 1:
            notes.append(f"only the first of its {count} pictures is read")
        format_ = image.format or ""
        samples = load_samples(path, image, grey=True)
        if image.mode == "CMYK":
            notes.append("CMYK is converted to RGB without its profile")
        try:
            orientation, exif = image.getexif().get(ORIENTATION, 1), _kept_exif(image)
        except Exception:  # Pillow meets damaged EXIF with all kinds of errors; the pixels are sound
            orientation, exif = 1, None
            notes.append("its EXIF is damaged and not kept")
        if exif is not None and len(exif) > _LONGEST_EXIF:
            exif = None
            notes.append("its EXIF is too long and not kept")
        profile = image.info.get("icc_profile") or None
        if profile is not None and not _fits(profile, samples.shape[2]):
            profile = None
            notes.append("its colour profile is damaged, or not for these channels, and not kept")
        return Picture(np.ascontiguousarray(oriented(samples, orientation)), format_, profile, exif, notes)


def _count(image: ImageFile.ImageFile) -> int:
    """How many frames or pages a file has, as far as they can be counted."""
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # a damaged second page, which is not read anyway
        return 1


def _kept_exif(image: ImageFile.ImageFile) -> bytes | None:
    """The part of EXIF that is still true of an upscaled, upright picture."""
    found, kept = image.getexif(), Image.Exif()
    for tag in _TEXTS:
        if tag in found:
            kept[tag] = found[tag]
    for tag in (_EXIF, _GPS):
        inner = {key: value for key, value in found.get_ifd(tag).items() if key not in _STALE}
        if inner:
            kept[tag] = inner
    return kept.tobytes() if len(kept) else None


def _fits(profile: object, channels: int) -> bool:
    """Whether bytes are an ICC profile for grey or for RGB, as the channels ask."""
    if not isinstance(profile, bytes) or not 128 <= len(profile) <= _LONGEST_PROFILE:
        return False
    size, space, signature = int.from_bytes(profile[:4]), profile[16:20], profile[36:40]
    return size <= len(profile) and signature == b"acsp" and space == (b"GRAY" if channels < 3 else b"RGB ")
