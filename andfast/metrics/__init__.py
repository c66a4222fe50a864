"""Image quality: PSNR and SSIM on the Y channel, the protocol of the SR field."""

from andfast.metrics.color import YRange, luma, protocol
from andfast.metrics.psnr import psnr_y
from andfast.metrics.ssim import ssim_y

__all__ = ["YRange", "luma", "protocol", "psnr_y", "ssim_y"]
