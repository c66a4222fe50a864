"""Color shift: the mean offset of each RGB channel."""

from torch import Tensor

from andfast.metrics.color import image_pair, levels

MAX_COLOR_SHIFT = 2.0
"""Levels of 255 above which evaluation and validation warn about a color shift."""


def color_shift(sr: Tensor, hr: Tensor, *, crop_border: int = 0) -> Tensor:
    """Mean of SR - HR per channel, in levels of 255, per image.

    It reveals tints, which PSNR-Y and SSIM hardly notice. Zero-mean errors such as noise and blur do not contribute.

    Args:
        sr, hr: equal shapes, (N, 3, H, W) or (3, H, W), RGB, each uint8 or floating point in [0, 1].
        crop_border: pixels excluded on each side.

    Returns:
        (N, 3), float64, on the inputs' device: the offsets of R, G and B; (1, 3) for a single image.

    Raises:
        TypeError, ValueError: invalid images, mismatched shapes or devices.
    """
    a, b = (levels(image) for image in image_pair(sr, hr, crop_border=crop_border, min_size=1))
    return (a - b).mean(dim=(2, 3))
