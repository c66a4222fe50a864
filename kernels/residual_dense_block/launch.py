"""The residual dense block's Triton implementation behind its registered ops: buffers, weights, order of the launches.

Triton is imported by the first call, so that andfast can be imported where there is none.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from andfast.functional.triton_support import tf32_allowed

from ..common.layout import with_contiguous_channels

CONVOLUTIONS = 5
_SIGNS_A_BYTE = 8


def saved_for_backward(x: Tensor, growth: int, keep_features: bool) -> Tensor:
    """An uninitialised tensor of what :func:`forward` keeps: x1 to x4, (N, 4G, H, W), or their signs.

    Signs are (4, N, H, W, ceil(G / 8)) bytes: bit c % 8 of byte c // 8 says that channel c is positive.
    """
    n, _, height, width = x.shape
    if keep_features:
        return _channels_last(x, 4 * growth)
    return x.new_empty((4, n, height, width, -(-growth // _SIGNS_A_BYTE)), dtype=torch.uint8)


def gradient_to_x(grad: Tensor) -> Tensor:
    """An uninitialised tensor of the shape, dtype and strides that the gradient to x has."""
    return _channels_last(grad, grad.shape[1])


def _channels_last(x: Tensor, channels: int) -> Tensor:
    """An uninitialised channels_last tensor like x, of that many channels."""
    n, _, height, width = x.shape
    return torch.empty((n, channels, height, width), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def forward(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    slope: float,
    scale: float,
    keep_features: bool,
    memory_format: torch.memory_format,
) -> tuple[Tensor, Tensor]:
    """The result in ``memory_format``, and what :func:`saved_for_backward` says."""
    from andfast.kernels.residual_dense_block import convolution as kernel  # noqa: PLC0415

    features, width = x.shape[1], weights[0].shape[0]
    same: dict[str, Any] = {"tf32": tf32_allowed(), "slope": slope}
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory_format)
    saved = saved_for_backward(x, width, keep_features)
    growth, bits = (saved, None) if keep_features else (_channels_last(x, 4 * width), saved)
    x = with_contiguous_channels(x)
    # Taps first, then input channels: (9, sum of Cin, G) and (9, Cin, F), two launches in all.
    narrow = torch.cat([weight.flatten(2).permute(2, 1, 0) for weight in weights[:-1]], 1)
    last = weights[-1].flatten(2).permute(2, 1, 0).contiguous()
    kind = kernel.ACTIVATE if bits is None else kernel.ACTIVATE_AND_SAVE
    row = 0
    for k in range(CONVOLUTIONS - 1):
        end = k * width
        kernel.convolve(
            x, growth, (0, end), narrow, row, growth, end, kind, bias=biases[k], bits=bits, plane=k, **same
        )  # fmt: skip
        row += features + end
    kernel.convolve(
        x, growth, (0, 4 * width), last, 0, out, 0, kernel.RESIDUAL, bias=biases[-1], out_scale=scale, **same
    )  # fmt: skip
    return out, saved


def backward(
    grad: Tensor,
    saved: Tensor,
    x: Tensor | None,
    weights: Sequence[Tensor],
    slope: float,
    scale: float,
    x_needed: bool,
    weights_needed: Sequence[bool],
    biases_needed: Sequence[bool],
) -> tuple[Tensor | None, list[Tensor | None], list[Tensor | None]]:
    """The gradients to x (channels_last), weights and biases, None where it is not needed.

    ``x`` is read for gradients to weights only, which also need the features in ``saved``.
    """
    from andfast.kernels.residual_dense_block import convolution as kernel  # noqa: PLC0415

    features, width = weights[-1].shape[0], weights[0].shape[0]
    grad = with_contiguous_channels(grad)
    grad_growth = _channels_last(grad, 4 * width)
    by_bits = saved.dtype == torch.uint8
    kind = kernel.GRADIENT_BY_BITS if by_bits else kernel.GRADIENT_BY_FEATURES
    same: dict[str, Any] = {"tf32": tf32_allowed(), "slope": slope, "a_scale": scale, "flip": True}
    # From the last activation down to the lowest whose gradient anyone needs. Each gathers from all convolutions
    # that read it: the last one, which `grad` came through, and those between, whose gradients are in the buffer.
    walk = range(CONVOLUTIONS - 2, lowest_needed(x_needed, weights_needed, biases_needed) - 1, -1)
    if walk:
        blocks = []
        for k in walk:
            read = slice(features + k * width, features + (k + 1) * width)
            blocks += [weight[:, read] for weight in (weights[-1], *weights[k + 1 : -1])]
        packed = torch.cat([block.flatten(2).permute(2, 0, 1) for block in blocks], 1)  # (9, sum of Cout, G)
        row = 0
        for k in walk:
            between = ((k + 1) * width, 4 * width)
            kernel.convolve(
                grad, grad_growth, between, packed, row, grad_growth, k * width, kind,
                bits=saved if by_bits else None, features=None if by_bits else saved, plane=k, **same,
            )  # fmt: skip
            row += features + between[1] - between[0]
    grad_x = None
    if x_needed:
        grad_x = gradient_to_x(grad)
        blocks = [weight[:, :features] for weight in (weights[-1], *weights[:-1])]
        packed = torch.cat([block.flatten(2).permute(2, 0, 1) for block in blocks], 1)  # (9, F + 4G, F)
        kernel.convolve(grad, grad_growth, (0, 4 * width), packed, 0, grad_x, 0, kernel.RESIDUAL, **same)

    grad_weights: list[Tensor | None] = [None] * CONVOLUTIONS
    if any(weights_needed):
        from andfast.kernels.residual_dense_block.grad_weight import grad_weight  # noqa: PLC0415

        if x is None or by_bits:
            raise ValueError("gradients to the weights of residual_dense_block need x and the features, not signs")
        made = grad_weight(with_contiguous_channels(x), saved, grad_growth, grad, weights_needed, tf32=tf32_allowed())
        if made[-1] is not None:
            made[-1] *= scale
        grad_weights = [None if one is None else one.to(grad.dtype) for one in made]

    grad_biases: list[Tensor | None] = [None] * CONVOLUTIONS
    for k, needed in enumerate(biases_needed):
        if needed:
            last = k == CONVOLUTIONS - 1
            after = grad if last else grad_growth[:, k * width : (k + 1) * width]
            total = after.sum((0, 2, 3), dtype=torch.float32)
            grad_biases[k] = (total * scale if last else total).to(grad.dtype)
    return grad_x, grad_weights, grad_biases


def lowest_needed(x_needed: bool, weights_needed: Sequence[bool], biases_needed: Sequence[bool]) -> int:
    """The first activation, of 0 to 3, whose gradient is needed; 4 if none is."""
    needed = [k for k in range(CONVOLUTIONS - 1) if weights_needed[k] or biases_needed[k]]
    return 0 if x_needed else min(needed, default=CONVOLUTIONS - 1)
