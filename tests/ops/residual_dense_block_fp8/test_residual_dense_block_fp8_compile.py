"""The fp8 dense block's kernels use Hopper's fp8 matrix products and saturating conversions."""

import re

import pytest

from andfast.kernels.common.compilation import compile_variant
from andfast.kernels.residual_dense_block_fp8.variants import Variant


@pytest.mark.parametrize(("kind", "operand"), [("activate", "e4m3"), ("gradient", "e5m2")])
def test_products_and_conversions_are_fp8_instructions(kind: str, operand: str) -> None:
    """Conversions saturate to the largest finite value rather than NaN or infinity."""
    ptx = compile_variant(Variant("9.0", kind, "bf16", 32, 64)).asm["ptx"]
    products = set(re.findall(r"wgmma\.mma_async\S*", ptx))
    assert products == {f"wgmma.mma_async.sync.aligned.m64n32k32.f32.{operand}.e4m3"}
    assert set(re.findall(r"cvt\.\S*e[45]m[23]x2\S*", ptx)) == {f"cvt.rn.satfinite.{operand}x2.f32"}
