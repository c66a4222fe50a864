"""Image quality metrics: PSNR and SSIM on Y (the SR protocol), PSNR and color shift in RGB, LPIPS and NIQE."""

from andfast.metrics.color import YRange, luma, protocol
from andfast.metrics.color_shift import MAX_COLOR_SHIFT, color_shift
from andfast.metrics.lpips import LPIPS
from andfast.metrics.niqe import NIQE, UndefinedNIQEError, fit_niqe
from andfast.metrics.niqe_parameters import NIQEParameters, read_niqe_parameters, write_niqe_parameters
from andfast.metrics.psnr import psnr_rgb, psnr_y
from andfast.metrics.ssim import ssim_y

__all__ = [
    "LPIPS",
    "MAX_COLOR_SHIFT",
    "NIQE",
    "NIQEParameters",
    "UndefinedNIQEError",
    "YRange",
    "color_shift",
    "fit_niqe",
    "luma",
    "protocol",
    "psnr_rgb",
    "psnr_y",
    "read_niqe_parameters",
    "ssim_y",
    "write_niqe_parameters",
]
