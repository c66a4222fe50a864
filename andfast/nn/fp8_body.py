"""The dense blocks of a frozen RRDBNet with 8-bit operands: for passes that want gradients to the image alone.

67 of the 73 GMAC an image of a full RRDBNet are in its dense blocks; all around them stays as it is.
"""

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from andfast.functional.residual_dense_block_fp8 import (
    GRADIENT_SIZE,
    Fp8Weights,
    quantise_weights,
    residual_dense_block_fp8,
)
from andfast.nn.rrdbnet import NEGATIVE_SLOPE, RESIDUAL_SCALE, RRDBNet


class Fp8Body:
    """What ``RRDBNet.forward`` takes as its body: the same blocks, their weights quantised when this is made.

    Differentiable in the features. Where the gradient comes in it is brought to the size that e5m2 wants, an image at
    a time by a power of two, and back where it leaves: exactly, as all between is linear in it.

    Args:
        generator: frozen (see :func:`andfast.nn.frozen`), or under ``torch.no_grad``.
        impl: of :func:`andfast.functional.residual_dense_block_fp8.residual_dense_block_fp8`.

    Raises:
        ValueError: a weight requires a gradient.
    """

    def __init__(self, generator: RRDBNet, impl: str = "auto") -> None:
        blocks = [block for rrdb in generator.body for block in rrdb.children()]
        convolutions = list(zip(*(cast(Iterable[nn.Conv2d], block.children()) for block in blocks), strict=True))
        together = quantise_weights(  # of all blocks: some hundred launches, however many blocks there are
            [torch.stack([one.weight for one in same]) for same in convolutions],
            [torch.stack([cast(Tensor, one.bias) for one in same]) for same in convolutions],
            scale=RESIDUAL_SCALE,
        )
        self._weights: list[Fp8Weights] = [together.block(index) for index in range(len(blocks))]
        self._in_row = len(blocks) // len(generator.body)
        self._impl = impl

    def __call__(self, features: Tensor) -> Tensor:
        """Features (N, F, H, W) after all residual-in-residual blocks."""
        factor = features.new_ones((features.shape[0], 1, 1, 1), dtype=torch.float32)
        x: Tensor = _Restored.apply(features, factor)
        for first in range(0, len(self._weights), self._in_row):
            y = x
            for weights in self._weights[first : first + self._in_row]:
                y = residual_dense_block_fp8(y, weights, slope=NEGATIVE_SLOPE, impl=self._impl)
            x = torch.add(x, y, alpha=RESIDUAL_SCALE)
        out: Tensor = _Enlarged.apply(x, factor)
        return out


class _Enlarged(torch.autograd.Function):
    """x as it is; its gradient times a power of two an image, for the largest to be near GRADIENT_SIZE."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor) -> Tensor:
        ctx.factor = factor  # not saved: backward writes it
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        largest = torch.linalg.vector_norm(grad, torch.inf, (1, 2, 3), keepdim=True, dtype=torch.float32)
        exponent = torch.log2(GRADIENT_SIZE / largest).floor().clamp(-_MOST, _MOST)  # where it is 0: the most
        ctx.factor.copy_(torch.exp2(exponent))
        return (grad * ctx.factor).to(grad.dtype), None


class _Restored(torch.autograd.Function):
    """x as it is; its gradient over the factor that _Enlarged found."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return (grad / ctx.factor).to(grad.dtype), None


_MOST = 100  # of the exponent: powers of two that fp32 and their reverse both have
