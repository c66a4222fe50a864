"""PSNR on the Y channel."""

from torch import Tensor

from andfast.metrics.color import PEAK, YRange, luma_pair


def psnr_y(
    sr: Tensor, hr: Tensor, *, crop_border: int = 0, y_range: YRange = "studio", rounded: bool = False
) -> Tensor:
    """PSNR in dB of the Y channel of each image, 10 log10(255^2 / MSE); infinite for equal images.

    The peak is 255 for both ranges, as in the field; since studio-range Y spans 219 of the 255, its PSNR is
    20 log10(255 / 219) = 1.32 dB above the full-range one of the same images.

    Args:
        sr, hr: equal shapes, (N, 3, H, W) or (3, H, W), RGB, each uint8 or floating point in [0, 1]. Floats
            are taken as
            they are: clamp and quantise SR for the figure that a saved 8-bit picture would get.
        crop_border: pixels left out on every side.
        y_range: "studio" (16 to 235, the field's) or "full" (0 to 255).
        rounded: round Y to whole numbers first.

    Returns:
        (N,), float64, on the inputs' device; (1,) for a single image.

    Raises:
        TypeError, ValueError: no such pair of images.
    """
    a, b = luma_pair(sr, hr, crop_border=crop_border, y_range=y_range, rounded=rounded, smallest=1)
    mse = (a - b).square().mean(dim=(1, 2, 3))
    return 10 * (PEAK**2 / mse).log10()
