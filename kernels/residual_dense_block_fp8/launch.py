"""The Triton implementation of the residual dense block with 8-bit operands: buffers and the order of the launches.

Triton is imported by the first call, so that andfast can be imported where there is none.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..common.layout import with_contiguous_channels

CONVOLUTIONS = 5
ACTIVATIONS = CONVOLUTIONS - 1


def forward(
    x: Tensor,
    kernels: Sequence[Tensor],
    factors: Sequence[Tensor],
    biases: Sequence[Tensor],
    slope: float,
    out: Tensor,
    bits: Tensor,
) -> None:
    """Write the result and the signs, of the forms that the op's registration says."""
    from andfast.kernels.residual_dense_block_fp8 import kernels as kernel  # noqa: PLC0415

    width = kernels[0].shape[1]
    kernels = [one.view(torch.float8_e4m3fn) for one in kernels]
    x = with_contiguous_channels(x)
    incoming = kernel.quantise(x, torch.float8_e4m3fn)
    growth = incoming.new_empty((*incoming.shape[:3], ACTIVATIONS * width))
    for k in range(ACTIVATIONS):
        kernel.convolve(
            incoming, growth, (0, k * width), kernels[k], factors[k], kernel.ACTIVATE,
            bias=biases[k], bits=bits, out_first=k * width, plane=k, slope=slope,
        )  # fmt: skip
    kernel.convolve(
        incoming, growth, (0, ACTIVATIONS * width), kernels[ACTIVATIONS], factors[ACTIVATIONS], kernel.RESIDUAL,
        bias=biases[ACTIVATIONS], residual=x, out=out,
    )  # fmt: skip


def backward(
    grad: Tensor, bits: Tensor, kernels: Sequence[Tensor], factors: Sequence[Tensor], slope: float, grad_x: Tensor
) -> None:
    """Write the gradient to x."""
    from andfast.kernels.residual_dense_block_fp8 import kernels as kernel  # noqa: PLC0415

    width = kernels[0].shape[1]
    kernels = [one.view(torch.float8_e4m3fn) for one in kernels]
    grad = with_contiguous_channels(grad)
    incoming = kernel.quantise(grad, torch.float8_e5m2)
    growth = incoming.new_empty((*incoming.shape[:3], ACTIVATIONS * width))
    for step, k in enumerate(reversed(range(ACTIVATIONS))):
        kernel.convolve(
            incoming, growth, ((k + 1) * width, ACTIVATIONS * width), kernels[CONVOLUTIONS + step],
            factors[CONVOLUTIONS + step], kernel.GRADIENT, bits=bits, out_first=k * width, plane=k, slope=slope,
        )  # fmt: skip
    kernel.convolve(
        incoming, growth, (0, ACTIVATIONS * width), kernels[-1], factors[-1], kernel.RESIDUAL, residual=grad, out=grad_x
    )  # fmt: skip
