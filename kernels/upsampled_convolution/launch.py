"""Upsampled convolution's Triton implementation behind its registered ops: kernels packed, order of the launches.

Triton is imported by the first call, so that andfast can be imported where there is none.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from andfast.functional.triton_support import tf32_allowed
from andfast.functional.upsampled_kernel import gradients, transposed_kernel


def forward(x: Tensor, weight: Tensor, bias: Tensor, factor: int, slope: float, out: Tensor, signs: Tensor) -> None:
    """Write ``out``, and its signs if ``signs`` has elements."""
    from andfast.kernels.upsampled_convolution import kernels as kernel  # noqa: PLC0415

    packed = transposed_kernel(weight, factor).flatten(2).permute(2, 1, 0).contiguous()  # (taps, Cin, Cout)
    kernel.forward(x, packed, bias, slope, out, signs, factor=factor, tf32=tf32_allowed())


def backward(
    grad: Tensor,
    saved: Tensor,
    x: Tensor | None,
    weight: Tensor,
    factor: int,
    slope: float,
    needed: Sequence[bool],
    grad_x: Tensor | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients to x (``grad_x``, written), weight and bias, None where it is not needed.

    ``saved`` is the signs of the result, the result itself, or has no elements without an activation. With signs the
    gradient before the activation never exists: g and they meet as they are loaded. The gradient to weight, PyTorch's,
    reads it as a tensor, so that of a trained layer is made.
    """
    from andfast.kernels.upsampled_convolution import kernels as kernel  # noqa: PLC0415

    _, weight_needed, bias_needed = needed
    signs = saved if saved.dtype == torch.uint8 else saved.new_empty(0, dtype=torch.uint8)
    if signs.numel() and (weight_needed or bias_needed):
        raise ValueError("gradients to the weight and bias of upsampled_convolution need the result, not its signs")
    if saved.dtype != torch.uint8:
        grad = torch.ops.aten.leaky_relu_backward(grad, saved, slope, False)
    if grad_x is not None:
        packed = transposed_kernel(weight, factor).flatten(2).permute(2, 0, 1).contiguous()  # (taps, Cout, Cin)
        kernel.grad_input(grad, signs, packed, slope, grad_x, factor=factor, tf32=tf32_allowed())
    grad_weight = grad_bias = None
    if weight_needed:
        if x is None:
            raise ValueError("the gradient to the weight of upsampled_convolution needs x")
        _, grad_weight, _ = gradients(grad, x, weight, factor, [False, True, False])
    if bias_needed:
        grad_bias = grad.sum((0, 2, 3), dtype=torch.float32).to(grad.dtype)
    return grad_x, grad_weight, grad_bias
