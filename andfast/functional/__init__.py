"""The ops: one file each, with its contract, its reference implementation, its dispatch and its registration.

Every op takes ``impl``: "auto" (the fastest implementation that can run on the tensors' device) or one of
"reference", "triton", "cuda", "cpp"; an implementation that is not available raises with the reason.
"""

from andfast.functional.ascent_step import ascent_step
from andfast.functional.blur_pool import blur_pool
from andfast.functional.degradation_block import degradation_block
from andfast.functional.mean_distance import mean_distance
from andfast.functional.residual_dense_block import residual_dense_block
from andfast.functional.upsampled_convolution import upsampled_convolution

__all__ = [
    "ascent_step",
    "blur_pool",
    "degradation_block",
    "mean_distance",
    "residual_dense_block",
    "upsampled_convolution",
]
