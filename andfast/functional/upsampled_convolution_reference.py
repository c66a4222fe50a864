"""The upsampled convolution in plain PyTorch: the definition, and the reference implementation of the op."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from andfast.functional import layout, sign_bits
from andfast.functional.upsampled_kernel import gradients, transposed_kernel


def upsampled_convolution_reference(
    x: Tensor, weight: Tensor, bias: Tensor, *, factor: int = 2, slope: float = 0.2
) -> Tensor:
    """The definition, upsampled map included, differentiated by autograd; tests compare with it."""
    if factor > 1:
        x = F.interpolate(x, scale_factor=factor, mode="nearest")
    convolved = F.conv2d(x, weight, bias, padding=1)
    return convolved if slope == 1 else F.leaky_relu(convolved, slope)


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, factor: int, slope: float, keep_signs: bool
) -> tuple[Tensor, Tensor]:
    """Return out and its signs; see ``forward_op`` of the op's module."""
    if factor == 1:
        convolved = F.conv2d(x, weight, bias, padding=1)
    else:
        kernel = transposed_kernel(weight, factor).transpose(0, 1)
        convolved = F.conv_transpose2d(x, kernel, bias, stride=factor, padding=1)
    if slope != 1:
        F.leaky_relu_(convolved, slope)
    out = _with_strides_of(convolved, layout.empty(x, weight.shape[0], factor=factor))
    return out, sign_bits.pack(out > 0) if keep_signs else x.new_empty(0, dtype=torch.uint8)


def backward(
    grad: Tensor,
    saved: Tensor,
    x: Tensor | None,
    weight: Tensor,
    factor: int,
    slope: float,
    needs_grad: Sequence[bool],
    channels_last: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients to x, weight and bias; None for those not needed."""
    needs_x, needs_weight, needs_bias = needs_grad
    grad_x = grad_weight = grad_bias = None
    if saved.numel():
        if saved.dtype == torch.uint8:
            saved = sign_bits.unpack(saved, grad.shape[1]).to(grad.dtype)
        grad = torch.ops.aten.leaky_relu_backward(grad, saved, slope, False)
    if needs_weight:
        if x is None:
            raise ValueError("the gradient to the weight of upsampled_convolution needs x")
        grad_x, grad_weight, grad_bias = gradients(grad, x, weight, factor, list(needs_grad))
    else:
        if needs_x:
            kernel = transposed_kernel(weight, factor).transpose(0, 1)  # (Cin, Cout, ...)
            grad_x = F.conv2d(grad, kernel, stride=factor, padding=1)
        if needs_bias:
            grad_bias = grad.sum((0, 2, 3))
    if grad_x is not None:
        grad_x = _with_strides_of(grad_x, empty_gradient_to_x(grad, weight, factor, channels_last))
    return grad_x, grad_weight, grad_bias


def _with_strides_of(value: Tensor, like: Tensor) -> Tensor:
    """``value`` with the strides of ``like``, which is overwritten if they differ."""
    return value if value.stride() == like.stride() else like.copy_(value)


def empty_gradient_to_x(grad: Tensor, weight: Tensor, factor: int, channels_last: bool) -> Tensor:
    """Allocate the gradient to x, with its shape, dtype and strides."""
    n, _, height, width = grad.shape
    shape = (n, weight.shape[1], height // factor, width // factor)
    form = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=form)
