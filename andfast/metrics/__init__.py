"""Image quality metrics: PSNR and SSIM on the Y channel (the SR protocol), LPIPS and NIQE."""

from andfast.metrics.color import YRange, luma, protocol
from andfast.metrics.lpips import LPIPS
from andfast.metrics.niqe import NIQE, UndefinedNIQEError, fit_niqe
from andfast.metrics.niqe_parameters import NIQEParameters, read_niqe_parameters, write_niqe_parameters
from andfast.metrics.psnr import psnr_y
from andfast.metrics.ssim import ssim_y

__all__ = [
    "LPIPS",
    "NIQE",
    "NIQEParameters",
    "UndefinedNIQEError",
    "YRange",
    "fit_niqe",
    "luma",
    "protocol",
    "psnr_y",
    "read_niqe_parameters",
    "ssim_y",
    "write_niqe_parameters",
]
