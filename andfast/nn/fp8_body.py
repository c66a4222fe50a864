"""Dense blocks of a frozen RRDBNet with fp8 operands, for passes that only need the gradient to the image.

67 of the 73 GMAC per image of a full RRDBNet are in its dense blocks; the other layers are unchanged.
"""

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from andfast.functional.residual_dense_block_fp8 import (
    GRADIENT_SIZE,
    Fp8Weights,
    quantize_weights,
    residual_dense_block_fp8,
)
from andfast.nn.rrdbnet import NEGATIVE_SLOPE, RESIDUAL_SCALE, RRDBNet


class Fp8Body:
    """Replacement body for :meth:`RRDBNet.forward`: the same blocks with weights quantized at construction.

    Differentiable in the features. The incoming gradient is scaled into e5m2's range by a power of two per image, and
    scaled back on the way out; this is exact, as everything in between is linear in the gradient.

    Args:
        generator: frozen (see :func:`andfast.nn.frozen`), or under ``torch.no_grad``.
        impl: implementation of :func:`andfast.functional.residual_dense_block_fp8.residual_dense_block_fp8`.

    Raises:
        ValueError: a weight requires a gradient.
    """

    def __init__(self, generator: RRDBNet, impl: str = "auto") -> None:
        blocks = [block for rrdb in generator.body for block in rrdb.children()]
        convolutions = list(zip(*(cast(Iterable[nn.Conv2d], block.children()) for block in blocks), strict=True))
        stacked = quantize_weights(  # all blocks at once: about a hundred launches, whatever their number
            [torch.stack([layer.weight for layer in layers]) for layers in convolutions],
            [torch.stack([cast(Tensor, layer.bias) for layer in layers]) for layers in convolutions],
            scale=RESIDUAL_SCALE,
        )
        self._weights: list[Fp8Weights] = [stacked.block(index) for index in range(len(blocks))]
        self._blocks_per_rrdb = len(blocks) // len(generator.body)
        self._impl = impl

    def __call__(self, features: Tensor) -> Tensor:
        """Features (N, F, H, W) after all residual-in-residual blocks."""
        factor = features.new_ones((features.shape[0], 1, 1, 1), dtype=torch.float32)
        x: Tensor = _UnscaleGradient.apply(features, factor)
        for first in range(0, len(self._weights), self._blocks_per_rrdb):
            y = x
            for weights in self._weights[first : first + self._blocks_per_rrdb]:
                y = residual_dense_block_fp8(y, weights, slope=NEGATIVE_SLOPE, impl=self._impl)
            x = torch.add(x, y, alpha=RESIDUAL_SCALE)
        out: Tensor = _ScaleGradient.apply(x, factor)
        return out


class _ScaleGradient(torch.autograd.Function):
    """Identity; scales the gradient by a power of two per image so that its maximum is near GRADIENT_SIZE."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor) -> Tensor:
        ctx.factor = factor  # not saved for backward, which writes it
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        maximum = torch.linalg.vector_norm(grad, torch.inf, (1, 2, 3), keepdim=True, dtype=torch.float32)
        exponent = torch.log2(GRADIENT_SIZE / maximum).floor().clamp(-_MAX_EXPONENT, _MAX_EXPONENT)
        ctx.factor.copy_(torch.exp2(exponent))
        return (grad * ctx.factor).to(grad.dtype), None


class _UnscaleGradient(torch.autograd.Function):
    """Identity; divides the gradient by the factor that _ScaleGradient chose."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return (grad / ctx.factor).to(grad.dtype), None


_MAX_EXPONENT = 100  # 2**e and 2**-e are both normal fp32 numbers
