"""Read an image file for upscaling: samples of full bit depth, grey and alpha, and the metadata to keep."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFile

from andfast.data.images import apply_orientation, image_errors, load_samples, open_image
from andfast.inference.metadata import NO_METADATA, Metadata, read_metadata

MAX_PIXELS: Final = 178_956_970
"""Twice Pillow's warning limit: where Pillow itself raises DecompressionBombError."""


@dataclass
class DecodedImage:
    """A decoded image file.

    Attributes:
        samples: (H, W, C), uint8 or uint16, upright; C is 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha).
        format: Pillow's name of the file format: "PNG", "JPEG", "WEBP", "TIFF" or "BMP".
        metadata: Metadata of the file.
        notes: One line per property of the file that is not kept.
    """

    samples: NDArray[Any]
    format: str
    metadata: Metadata = NO_METADATA
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
        metadata, orientation, losses = read_metadata(path, image, samples.shape[2])
        pixels = np.ascontiguousarray(apply_orientation(samples, orientation))
        return DecodedImage(pixels, format_, metadata, notes + losses)


def _frame_count(image: ImageFile.ImageFile) -> int:
    """Number of frames or pages, as far as they can be counted."""
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # a damaged second page, which is not read
        return 1
