"""The degradation block's backward pass: which of its kernels run."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .grad_input import grad_input
from .grad_weight import grad_weight


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    slope: Tensor,
    saved: Tensor,
    *,
    noise_shape: Sequence[int],
    noise_dtype: torch.dtype,
    needs_input_grad: Sequence[bool],
    replicate: bool,
    tf32: bool,
    memory_format: torch.memory_format,
    result: Tensor | None,
    noise: Tensor | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients to x, weight, slope, as (N, Cout) in fp32, and noise; None where not needed.

    If z was not saved, the slope's gradient is computed from ``result`` and ``noise``.
    """
    need_x, need_weight, need_slope, need_noise = needs_input_grad
    dx = dweight = dslope = dnoise = None
    single_map = need_noise and list(noise_shape) != list(grad.shape)
    if need_x:
        dx, dnoise = grad_input(
            grad,
            x,
            weight,
            slope,
            saved,
            replicate=replicate,
            noise_map=noise_dtype if single_map else None,
            tf32=tf32,
            memory_format=memory_format,
        )
    if need_weight or need_slope:
        dweight, dslope = grad_weight(
            grad,
            x,
            weight,
            slope,
            saved,
            replicate=replicate,
            want_weight=need_weight,
            want_slope=need_slope,
            tf32=tf32,
            result=result,
            noise=noise,
        )
    if need_noise and dnoise is None:
        summed = grad.sum(1, keepdim=True, dtype=torch.float32) if single_map else grad
        dnoise = summed.to(noise_dtype, copy=True)
    return dx, dweight, dslope, dnoise
