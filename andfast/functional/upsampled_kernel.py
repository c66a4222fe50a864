"""Nearest upsampling followed by a 3x3 convolution, as a transposed convolution of the small map.

Upsampled pixels are copies, so the taps that read copies of one pixel are one tap with the sum of their weights. The
four copies of a pixel of the small map reach the results in a 4 x 4 neighborhood, with one weight each::

    upsample x2, convolve with w, padding 1   =   transposed convolution with k, stride 2, padding 1
    rows of k:   w[2],  w[1] + w[2],  w[0] + w[1],  w[0]       likewise for columns

Every result gathers from 2 x 2 pixels of the small map: 4 products where the definition has 9. The frame of zeros is
one whole pixel of the small map, which is the transposed convolution's own padding. Without upsampling k is w, flipped.
"""

import torch.nn.functional as F
from torch import Tensor

from andfast.functional.layout import convolution_backward


def transposed_kernel(weight: Tensor, factor: int) -> Tensor:
    """Return k, (Cout, Cin, factor + 2, factor + 2), from weight (Cout, Cin, 3, 3)."""
    flipped = weight.flip(-2, -1)
    # Sums of 2 x 2 neighbors, in fp32 for half types.
    return flipped if factor == 1 else F.avg_pool2d(flipped, factor, stride=1, padding=1, divisor_override=1)


def weight_gradient(grad_kernel: Tensor, factor: int) -> Tensor:
    """Map a gradient to k to the gradient to weight: the transpose of :func:`transposed_kernel`."""
    if factor > 1:
        grad_kernel = F.avg_pool2d(grad_kernel, factor, stride=1, divisor_override=1)
    return grad_kernel.flip(-2, -1)


def gradients(
    grad: Tensor, x: Tensor, weight: Tensor, factor: int, needs_grad: list[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """PyTorch's gradients to x, weight and bias, given the gradient to the pre-activation; None if not needed."""
    if factor == 1:
        return convolution_backward(grad, x, weight, needs_grad)
    kernel = transposed_kernel(weight, factor).transpose(0, 1)  # (Cin, Cout, ...)
    grad_x, grad_kernel, grad_bias = convolution_backward(grad, x, kernel, needs_grad, stride=factor, transposed=True)
    grad_weight = None if grad_kernel is None else weight_gradient(grad_kernel.transpose(0, 1), factor)
    return grad_x, grad_weight, grad_bias
