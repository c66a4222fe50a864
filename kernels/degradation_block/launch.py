"""The degradation block's Triton implementation behind its registered ops: how it is called.

Triton is imported by the first call, so that andfast can be imported where there is none.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from andfast.functional.triton_support import tf32_allowed
from andfast.kernels.degradation_block import saved as saved_form


def saved_shape(x: Tensor, weight: Tensor, save: bool, save_z: bool) -> tuple[int]:
    """Shape of the byte buffer that :func:`forward` returns for the backward pass."""
    n, _, height, width = x.shape
    return (saved_form.saved_bytes(n * height * width, weight.shape[-4], x.element_size(), _form(save, save_z)),)


def _form(save: bool, save_z: bool) -> int:
    if not save:
        return saved_form.SAVE_NOTHING
    return saved_form.SAVE_Z if save_z else saved_form.SAVE_BITS


def forward(
    x: Tensor,
    weight: Tensor,
    slope: Tensor,
    noise: Tensor | None,
    padding: str,
    save: bool,
    save_z: bool,
    memory_format: torch.memory_format,
) -> tuple[Tensor, Tensor]:
    """The output and the byte buffer for the backward pass."""
    from andfast.kernels.degradation_block import forward as kernel  # noqa: PLC0415

    return kernel.forward(
        x,
        weight,
        slope,
        noise,
        replicate=padding == "replicate",
        save=_form(save, save_z),
        tf32=tf32_allowed(),
        memory_format=memory_format,
    )


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    slope: Tensor,
    saved: Tensor,
    noise_shape: Sequence[int],
    noise_dtype: torch.dtype,
    padding: str,
    wanted: Sequence[bool],
    memory_format: torch.memory_format,
    result: Tensor | None,
    noise: Tensor | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients to x, weight, noise, and to the slope as (N, Cout) in fp32; None for those not wanted.

    The slope's comes from z if it was saved, else from ``result`` and ``noise``.
    """
    want_x, want_weight, want_slope, want_noise = wanted
    grad_x = grad_weight = over_pixels = grad_noise = None
    one_map = want_noise and list(noise_shape) != list(grad.shape)
    replicate, tf32 = padding == "replicate", tf32_allowed()
    if want_x:
        from andfast.kernels.degradation_block.grad_input import grad_input  # noqa: PLC0415

        grad_x, grad_noise = grad_input(
            grad,
            x,
            weight,
            slope,
            saved,
            replicate=replicate,
            noise_map=noise_dtype if one_map else None,
            tf32=tf32,
            memory_format=memory_format,
        )
    if want_weight or want_slope:
        from andfast.kernels.degradation_block.grad_weight import grad_weight as launch  # noqa: PLC0415

        grad_weight, over_pixels = launch(
            grad,
            x,
            weight,
            slope,
            saved,
            replicate=replicate,
            want_weight=want_weight,
            want_slope=want_slope,
            tf32=tf32,
            result=result,
            noise=noise,
        )
    if want_noise and grad_noise is None:
        wide = grad.sum(1, keepdim=True, dtype=torch.float32) if one_map else grad
        grad_noise = wide.to(noise_dtype, copy=True)
    return grad_x, grad_weight, over_pixels, grad_noise
