"""The kernel of the transposed convolution that nearest upsampling followed by a 3x3 convolution is.

An upsampled pixel is a copy, so taps that meet copies of the same pixel are one tap whose weight is their sum. Seen
from a pixel of the small map, its four copies reach the results in a 4 x 4 neighbourhood, with one weight each::

    upsample x2, convolve with w, padding 1   =   transposed convolution with k, stride 2, padding 1
    a row of k:   w[2],  w[1] + w[2],  w[0] + w[1],  w[0]       columns alike

and every result gathers from 2 x 2 pixels of the small map: 4 products where the definition has 9. The frame of zeros
is a whole pixel wide on the small map, too, so it is the transposed convolution's own padding. Without upsampling k is
w, turned.
"""

import torch.nn.functional as F
from torch import Tensor

from andfast.functional.layout import convolution_backward


def transposed_kernel(weight: Tensor, factor: int) -> Tensor:
    """k, (Cout, Cin, factor + 2, factor + 2), for weight (Cout, Cin, 3, 3): sums of w, turned, over 2 x 2 taps."""
    turned = weight.flip(-2, -1)
    # Sums of 2 x 2 neighbours, in fp32 for half types.
    return turned if factor == 1 else F.avg_pool2d(turned, factor, stride=1, padding=1, divisor_override=1)


def weight_gradient(grad_kernel: Tensor, factor: int) -> Tensor:
    """The gradient to weight for one to k: the transpose of :func:`transposed_kernel`."""
    if factor > 1:
        grad_kernel = F.avg_pool2d(grad_kernel, factor, stride=1, divisor_override=1)
    return grad_kernel.flip(-2, -1)


def gradients(
    grad: Tensor, x: Tensor, weight: Tensor, factor: int, wanted: list[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """PyTorch's gradients to x, weight and bias for one to the result before its activation; None if not wanted."""
    if factor == 1:
        return convolution_backward(grad, x, weight, wanted)
    kernel = transposed_kernel(weight, factor).transpose(0, 1)  # (Cin, Cout, ...)
    grad_x, made, grad_bias = convolution_backward(grad, x, kernel, wanted, stride=factor, transposed=True)
    return grad_x, None if made is None else weight_gradient(made.transpose(0, 1), factor), grad_bias
