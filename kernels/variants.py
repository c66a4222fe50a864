"""Kernel variants of all ops, for tests and for warming Triton's cache. Needs Triton, no GPU."""

from types import ModuleType
from typing import Final

from .ascent_step import variants as ascent_step
from .common.compilation import KernelVariant
from .degradation_block import variants as degradation_block
from .identity_gradients import variants as identity_gradients
from .mean_distance import variants as mean_distance
from .residual_dense_block import variants as residual_dense_block
from .upsampled_convolution import variants as upsampled_convolution

OPS: Final[dict[str, ModuleType]] = {
    "ascent_step": ascent_step,
    "degradation_block": degradation_block,
    "identity_gradients": identity_gradients,
    "mean_distance": mean_distance,
    "residual_dense_block": residual_dense_block,
    "upsampled_convolution": upsampled_convolution,
}


def all_variants(architecture: str) -> list[KernelVariant]:
    """The variants of every op for an architecture ("8.0" or "9.0")."""
    return [variant for module in OPS.values() for variant in module.variants(architecture)]
