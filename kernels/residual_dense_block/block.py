"""The residual dense block in Triton: buffers, packed weights and the order of the launches."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..common.layout import empty_channels_last, with_contiguous_channels
from .buffers import (
    ACTIVATIONS,
    CONVOLUTIONS,
    bias_gradients,
    first_activation,
    gathered_weights,
    gradient_to_x,
    input_of_weight_gradients,
    saved_for_backward,
)
from .convolution import ACTIVATE, ACTIVATE_AND_SAVE, GRADIENT_BY_BITS, GRADIENT_BY_FEATURES, RESIDUAL, convolve
from .grad_weight import grad_weight


def forward(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    slope: float,
    scale: float,
    keep_features: bool,
    memory_format: torch.memory_format,
    *,
    tf32: bool,
) -> tuple[Tensor, Tensor]:
    """Return the result in ``memory_format``, and the tensor described at :func:`.buffers.saved_for_backward`."""
    features, width = x.shape[1], weights[0].shape[0]
    options: dict[str, Any] = {"tf32": tf32, "slope": slope}
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory_format)
    saved = saved_for_backward(x, width, keep_features)
    growth, bits = (saved, None) if keep_features else (empty_channels_last(x, ACTIVATIONS * width), saved)
    x = with_contiguous_channels(x)  # x is read 45 times, which pays for one copy
    # Taps first, then input channels: (9, sum of Cin, G) and (9, Cin, F), two launches in total.
    narrow = torch.cat([weight.flatten(2).permute(2, 1, 0) for weight in weights[:-1]], 1)
    last = weights[-1].flatten(2).permute(2, 1, 0).contiguous()
    kind = ACTIVATE if bits is None else ACTIVATE_AND_SAVE
    row = 0
    for k in range(ACTIVATIONS):
        end = k * width
        convolve(x, growth, (0, end), narrow, row, growth, end, kind, bias=biases[k], bits=bits, plane=k, **options)
        row += features + end
    whole = (0, ACTIVATIONS * width)
    convolve(x, growth, whole, last, 0, out, 0, RESIDUAL, bias=biases[-1], out_scale=scale, **options)
    return out, saved


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
    *,
    tf32: bool,
) -> tuple[Tensor | None, list[Tensor | None], list[Tensor | None]]:
    """Return the gradients to x (channels_last), weights and biases; None for those not needed.

    ``x`` is needed for gradients to weights only, which also need the growth in ``saved``.
    """
    features, width = weights[-1].shape[0], weights[0].shape[0]
    grad = with_contiguous_channels(grad)
    grad_growth = empty_channels_last(grad, ACTIVATIONS * width)
    by_bits = saved.dtype == torch.uint8
    kind = GRADIENT_BY_BITS if by_bits else GRADIENT_BY_FEATURES
    options: dict[str, Any] = {"tf32": tf32, "slope": slope, "a_scale": scale, "flip": True}
    # From the last activation down to the first whose gradient is needed. Each gathers from all convolutions that read
    # it: the last one, through which `grad` arrived, and those in between, whose gradients are in the buffer.
    activations = range(ACTIVATIONS - 1, first_activation(needs_x, needs_weights, needs_biases) - 1, -1)
    if activations:
        blocks = [weight for k in activations for weight in gathered_weights(weights, k)]
        packed = torch.cat([block.flatten(2).permute(2, 0, 1) for block in blocks], 1)  # (9, sum of Cout, G)
        row = 0
        for k in activations:
            between = ((k + 1) * width, ACTIVATIONS * width)
            convolve(
                grad, grad_growth, between, packed, row, grad_growth, k * width, kind,
                bits=saved if by_bits else None, features=None if by_bits else saved, plane=k, **options,
            )  # fmt: skip
            row += features + between[1] - between[0]
    grad_x = None
    if needs_x:
        grad_x = gradient_to_x(grad)
        blocks = gathered_weights(weights, -1)
        packed = torch.cat([block.flatten(2).permute(2, 0, 1) for block in blocks], 1)  # (9, F + 4G, F)
        convolve(grad, grad_growth, (0, ACTIVATIONS * width), packed, 0, grad_x, 0, RESIDUAL, **options)

    grad_weights: list[Tensor | None] = [None] * CONVOLUTIONS
    if any(needs_weights):
        x = input_of_weight_gradients(x, saved)
        in_fp32 = grad_weight(with_contiguous_channels(x), saved, grad_growth, grad, needs_weights, tf32=tf32)
        if in_fp32[-1] is not None:
            in_fp32[-1] *= scale
        grad_weights = [None if value is None else value.to(grad.dtype) for value in in_fp32]

    return grad_x, grad_weights, bias_gradients(grad, grad_growth, width, scale, needs_biases)
