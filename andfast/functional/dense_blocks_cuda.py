"""The residual dense block with compiled ops: ``impl="cuda"`` of residual_dense_block."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from andfast.functional import compiled_ops
from andfast.functional.layout import convolution_backward
from andfast.kernels.common.layout import empty_channels_last
from andfast.kernels.residual_dense_block.buffers import (
    ACTIVATIONS,
    CONVOLUTIONS,
    bias_gradients,
    input_of_weight_gradients,
)

_OPS: Any = torch.ops.andfast


def unsuited(features: int, growth: int) -> str | None:
    """Why the kernels do not support these channels, or None if they do."""
    multiple = compiled_ops.CHANNELS
    if features % multiple == 0 and growth % multiple == 0:
        return None
    return f"features and growth must be multiples of {multiple}, were {features} and {growth},"


def saved_for_backward(x: Tensor, growth: int, keep_features: bool) -> Tensor:
    """Allocate what forward saves: x1 to x4, (N, 4G, H, W) channels_last, or only their signs.

    Signs are (1, 4, N, H, W, 4 * ceil(G / 32)) bytes: bit c % 8 of byte c // 8 is set where channel c is positive.
    """
    if keep_features:
        return empty_channels_last(x, ACTIVATIONS * growth)
    return x.new_empty(compiled_ops.block_signs_shape(x, growth, 1), dtype=torch.uint8)


def pack(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    dtype: torch.dtype,
    per_group: int,
    scale: float,
    outer_scale: float,
    *,
    backward: bool,
) -> Tensor:
    """Pack the weights of blocks for one direction; ``biases`` are ignored for backward."""
    weights = contiguous(weights)
    biases = [] if backward else [bias.contiguous() for bias in biases]
    packed: Tensor = _OPS.dense_blocks_pack(weights, biases, dtype, per_group, scale, outer_scale, backward)
    return packed


def contiguous(weights: Sequence[Tensor]) -> list[Tensor]:
    """Return the weights of blocks as contiguous tensors, with one copy per convolution of a block, not per weight."""
    if all(weight.is_contiguous() for weight in weights):
        return list(weights)
    stacked = [torch.stack(list(weights[k::CONVOLUTIONS])).contiguous() for k in range(CONVOLUTIONS)]
    return [stacked[n % CONVOLUTIONS][n // CONVOLUTIONS] for n in range(len(weights))]


def forward(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    slope: float,
    scale: float,
    keep_features: bool,
    memory_format: torch.memory_format,
) -> tuple[Tensor, Tensor]:
    """Return the result in ``memory_format``, and the tensor described at :func:`saved_for_backward`."""
    packed = pack(weights, biases, x.dtype, 0, scale, 1.0, backward=False)
    keep = compiled_ops.KEEP_GROWTH if keep_features else compiled_ops.KEEP_SIGNS
    growth = weights[0].shape[0]
    out, saved = _OPS.dense_blocks_forward(x, packed, growth, 1, 0, slope, scale, 1.0, keep)
    return compiled_ops.in_format(out, memory_format), saved


def backward(
    grad: Tensor,
    saved: Tensor,
    x: Tensor | None,
    weights: Sequence[Tensor],
    slope: float,
    scale: float,
    needs_x: bool,
    needs_weights: Sequence[bool],
    needs_biases: Sequence[bool],
) -> tuple[Tensor | None, list[Tensor | None], list[Tensor | None]]:
    """Return the gradients to x (channels_last), weights and biases; None for those not needed.

    Only gradients to weights need ``x``, and the growth in ``saved``.
    """
    growth = weights[0].shape[0]
    grad_x = grad_growth = None
    if needs_x or any(needs_weights[:-1]) or any(needs_biases[:-1]):
        packed = pack(weights, (), grad.dtype, 0, scale, 1.0, backward=True)
        grad_x, grad_growth = _OPS.dense_blocks_backward(grad, saved, packed, growth, 1, 0, slope, scale, 1.0)
    grad_weights: list[Tensor | None] = [None] * CONVOLUTIONS
    if any(needs_weights):
        x = input_of_weight_gradients(x, saved)
        grad_weights = _weight_gradients(grad_growth, grad, x, saved, scale, needs_weights)
    grad_biases = bias_gradients(grad, grad_growth, growth, scale, needs_biases)
    return grad_x if needs_x else None, grad_weights, grad_biases


def _weight_gradients(
    grad_growth: Tensor | None,
    grad: Tensor,
    x: Tensor,
    growth: Tensor,
    scale: float,
    needs_weights: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients to the five weights by PyTorch's convolution, whose operands are whole tensors.

    A slice of channels would be copied before every convolution, and 32 outputs fill half of cuDNN's tiles of 64. So
    four convolutions multiply whole gradients with x and with the whole growth; of the product of growth with growth
    only the blocks below the diagonal are used, and 36,864 products per pixel and tap (F = 64, G = 32) are still fewer
    than the 45,056 of five convolutions with filled tiles.
    """
    width = growth.shape[1] // ACTIVATIONS
    grad_weights: list[Tensor | None] = [None] * CONVOLUTIONS
    if grad_growth is not None and any(needs_weights[:-1]):
        by_x, by_growth = _weight_gradient(grad_growth, x), _weight_gradient(grad_growth, growth)
        for k in range(ACTIVATIONS):
            if needs_weights[k]:
                rows = slice(k * width, (k + 1) * width)
                grad_weights[k] = torch.cat([by_x[rows], by_growth[rows, : k * width]], 1)
    if needs_weights[-1]:
        grad_weights[-1] = torch.cat([_weight_gradient(grad, x), _weight_gradient(grad, growth)], 1).mul_(scale)
    return grad_weights


def _weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient to the weight of a 3x3 convolution of x, whose result has the gradient ``grad``."""
    weight = x.new_empty((grad.shape[1], x.shape[1], 3, 3))  # only its shape is read
    _, grad_weight, _ = convolution_backward(grad, x, weight, [False, True, False])
    assert grad_weight is not None
    return grad_weight
