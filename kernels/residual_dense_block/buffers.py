"""Buffers of the Triton implementation, shared by its launchers and the op's fake kernels. Needs no Triton."""

from collections.abc import Sequence

import torch
from torch import Tensor

CONVOLUTIONS = 5
ACTIVATIONS = CONVOLUTIONS - 1
SIGNS_PER_BYTE = 8


def saved_for_backward(x: Tensor, growth: int, keep_features: bool) -> Tensor:
    """Allocate what forward saves: x1 to x4, (N, 4G, H, W) channels_last, or only their signs.

    Signs are (4, N, H, W, ceil(G / 8)) bytes: bit c % 8 of byte c // 8 is set where channel c is positive.
    """
    n, _, height, width = x.shape
    if keep_features:
        return empty_channels_last(x, ACTIVATIONS * growth)
    return x.new_empty((ACTIVATIONS, n, height, width, -(-growth // SIGNS_PER_BYTE)), dtype=torch.uint8)


def gradient_to_x(grad: Tensor) -> Tensor:
    """Allocate the gradient to x: of grad's shape and dtype, channels_last."""
    return empty_channels_last(grad, grad.shape[1])


def empty_channels_last(x: Tensor, channels: int) -> Tensor:
    """Allocate a channels_last tensor with x's batch, size, dtype and device."""
    n, _, height, width = x.shape
    return torch.empty((n, channels, height, width), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def first_activation(needs_x: bool, needs_weights: Sequence[bool], needs_biases: Sequence[bool]) -> int:
    """Index of the first activation, 0 to 3, whose gradient is needed; 4 if none is."""
    needed = [k for k in range(ACTIVATIONS) if needs_weights[k] or needs_biases[k]]
    return 0 if needs_x else min(needed, default=ACTIVATIONS)
