"""A chain of frozen residual dense blocks in Triton: weights packed once, buffers shared by all blocks."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..common.layout import empty_channels_last, with_contiguous_channels
from .buffers import ACTIVATIONS, CONVOLUTIONS, chain_signs_shape, gathered_weights
from .convolution import ACTIVATE, ACTIVATE_AND_SAVE, GRADIENT_BY_BITS, RESIDUAL, convolve


def pack_forward(weights: Sequence[Tensor], biases: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Pack five weights and biases per block for :func:`forward`, with a launch per kind, not per block.

    Returns:
        With B blocks: the first four weights, (B, 9, 4F + 6G, G), the last, (B, 9, F + 4G, F), and their biases,
        (B, 4, G) and (B, F). Taps come first, then input channels.
    """
    by_kind = [_stack(weights, k, dtype).flatten(3).permute(0, 3, 2, 1) for k in range(CONVOLUTIONS)]
    narrow_biases = torch.stack([_stack(biases, k, dtype) for k in range(ACTIVATIONS)], 1)
    return [_joined(by_kind[:-1]), by_kind[-1].contiguous(), narrow_biases, _stack(biases, ACTIVATIONS, dtype)]


def pack_backward(weights: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Pack five weights per block for :func:`backward`.

    Returns:
        With B blocks: those that gather the gradients to x4, x3, x2 and x1, (B, 9, 4F + 6G, G), and the gradient to x,
        (B, 9, F + 4G, F). Taps come first, then output channels.
    """
    by_kind = [_stack(weights, k, dtype) for k in range(CONVOLUTIONS)]
    by_activation = [
        [weight.flatten(3).permute(0, 3, 1, 2) for weight in gathered_weights(by_kind, k)]
        for k in range(ACTIVATIONS - 1, -2, -1)
    ]
    return [_joined([weight for parts in by_activation[:-1] for weight in parts]), _joined(by_activation[-1])]


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts), 2).contiguous()  # cat keeps the layout of permuted parts


def _stack(tensors: Sequence[Tensor], k: int, dtype: torch.dtype) -> Tensor:
    return torch.stack(list(tensors[k::CONVOLUTIONS])).to(dtype)


def forward(
    x: Tensor,
    packed: Sequence[Tensor],
    blocks_per_group: int,
    slope: float,
    scale: float,
    outer_scale: float,
    keep_signs: bool,
    *,
    tf32: bool,
) -> tuple[Tensor, Tensor]:
    """Return the result, channels_last, and the signs of all activations, or an empty tensor."""
    narrow, last, biases, last_bias = packed
    blocks, _, _, growth = narrow.shape
    features = x.shape[1]
    options: dict[str, Any] = {"tf32": tf32, "slope": slope}
    buffer = empty_channels_last(x, ACTIVATIONS * growth)
    signs = x.new_empty(chain_signs_shape(x, growth, blocks) if keep_signs else (0,), dtype=torch.uint8)
    kind = ACTIVATE_AND_SAVE if keep_signs else ACTIVATE
    x = group = with_contiguous_channels(x)
    for block in range(blocks):
        if blocks_per_group and block % blocks_per_group == 0:
            group = x
        weight, bias, bits = narrow[block], biases[block], signs[block] if keep_signs else None
        row = 0
        for k in range(ACTIVATIONS):
            end = k * growth
            convolve(x, buffer, (0, end), weight, row, buffer, end, kind, bias=bias[k], bits=bits, plane=k, **options)
            row += features + end
        out = empty_channels_last(x, features)
        whole = (0, ACTIVATIONS * growth)
        convolve(
            x, buffer, whole, last[block], 0, out, 0, RESIDUAL, bias=last_bias[block], out_scale=scale, **options
        )  # fmt: skip
        x = out
        if blocks_per_group and (block + 1) % blocks_per_group == 0:
            x = torch.add(group, x, alpha=outer_scale, out=x)
    return x, signs


def backward(
    grad: Tensor,
    signs: Tensor,
    packed: Sequence[Tensor],
    blocks_per_group: int,
    slope: float,
    scale: float,
    outer_scale: float,
    *,
    tf32: bool,
) -> Tensor:
    """Return the gradient to x, channels_last."""
    gather, to_x = packed
    blocks, _, _, growth = gather.shape
    features = grad.shape[1]
    options: dict[str, Any] = {"tf32": tf32, "slope": slope, "a_scale": scale, "flip": True}
    buffer = empty_channels_last(grad, ACTIVATIONS * growth)
    grad = group = with_contiguous_channels(grad)
    for block in reversed(range(blocks)):
        if blocks_per_group and (block + 1) % blocks_per_group == 0:
            group = grad
        weight, bits = gather[block], signs[block]
        row = 0
        # From the last activation to the first: each gathers from all convolutions that read it.
        for k in reversed(range(ACTIVATIONS)):
            between = ((k + 1) * growth, ACTIVATIONS * growth)
            convolve(
                grad, buffer, between, weight, row, buffer, k * growth, GRADIENT_BY_BITS, bits=bits, plane=k, **options
            )  # fmt: skip
            row += features + between[1] - between[0]
        out = empty_channels_last(grad, features)
        convolve(grad, buffer, (0, ACTIVATIONS * growth), to_x[block], 0, out, 0, RESIDUAL, **options)
        grad = out
        if blocks_per_group and block % blocks_per_group == 0:  # the chain is linear, so its factor can come last
            grad = torch.add(group, grad, alpha=outer_scale, out=grad)
    return grad
