"""Buffers and order of gathering of the residual dense block, shared by its implementations. Needs no Triton."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..common.layout import SIGNS_PER_BYTE, empty_channels_last

CONVOLUTIONS = 5
ACTIVATIONS = CONVOLUTIONS - 1


def saved_for_backward(x: Tensor, growth: int, keep_features: bool) -> Tensor:
    """Allocate what forward saves: x1 to x4, (N, 4G, H, W) channels_last, or only their signs.

    Signs are (4, N, H, W, ceil(G / 8)) bytes: bit c % 8 of byte c // 8 is set where channel c is positive.
    """
    n, _, height, width = x.shape
    if keep_features:
        return empty_channels_last(x, ACTIVATIONS * growth)
    return x.new_empty((ACTIVATIONS, n, height, width, -(-growth // SIGNS_PER_BYTE)), dtype=torch.uint8)


def chain_signs_shape(x: Tensor, growth: int, blocks: int) -> tuple[int, ...]:
    """Shape of the signs that a chain of blocks keeps: those of :func:`saved_for_backward` for each block."""
    n, _, height, width = x.shape
    return blocks, ACTIVATIONS, n, height, width, -(-growth // SIGNS_PER_BYTE)


def gradient_to_x(grad: Tensor) -> Tensor:
    """Allocate the gradient to x: of grad's shape and dtype, channels_last."""
    return empty_channels_last(grad, grad.shape[1])


def first_activation(needs_x: bool, needs_weights: Sequence[bool], needs_biases: Sequence[bool]) -> int:
    """Index of the first activation, 0 to 3, whose gradient is needed; 4 if none is."""
    needed = [k for k in range(ACTIVATIONS) if needs_weights[k] or needs_biases[k]]
    return 0 if needs_x else min(needed, default=ACTIVATIONS)


def gathered_weights(weights: Sequence[Tensor], k: int) -> list[Tensor]:
    """Weights that the gradient to activation k gathers through, to x for k = -1; ``weights`` (..., Cout, Cin, 3, 3).

    They belong to the convolutions that read the activation, restricted to its channels: the last one, then those
    between, in order.
    """
    features, growth = weights[-1].shape[-4], weights[0].shape[-4]
    channels = slice(0, features) if k < 0 else slice(features + k * growth, features + (k + 1) * growth)
    return [weight[..., channels, :, :] for weight in (weights[-1], *weights[k + 1 : -1])]


def input_of_weight_gradients(x: Tensor | None, saved: Tensor) -> Tensor:
    """Return x; raise ValueError unless forward saved what gradients to weights need."""
    if x is None or saved.dtype == torch.uint8:
        raise ValueError("gradients to the weights of residual_dense_block need x and the growth, not signs")
    return x


def bias_gradients(
    grad: Tensor, grad_growth: Tensor | None, growth: int, scale: float, needs_biases: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients to the five biases in two reductions, with fp32 sums; None for those not needed.

    Args:
        grad: (N, F, H, W), the gradient to the block's result.
        grad_growth: (N, 4G, H, W), those to the pre-activations; not read if only the last bias is needed.
        growth: G.
        scale: of the residual.
        needs_biases: which are needed.
    """
    result: list[Tensor | None] = [None] * CONVOLUTIONS
    if any(needs_biases[:-1]):
        assert grad_growth is not None
        sums = _sum_over_pixels(grad_growth).split(growth)
        for k, needed in enumerate(needs_biases[:-1]):
            if needed:
                result[k] = sums[k].to(grad.dtype, copy=True)  # an op's results may not share memory
    if needs_biases[-1]:
        result[-1] = (_sum_over_pixels(grad) * scale).to(grad.dtype)
    return result


def _sum_over_pixels(value: Tensor) -> Tensor:
    """Sum over images and pixels, in at least fp32."""
    return value.sum((0, 2, 3), dtype=torch.promote_types(value.dtype, torch.float32))
