"""The mean distance's Triton implementation: where it can run, and what is laid out how before its kernels start.

Triton is imported by the first call, so that andfast can be imported where there is none.
"""

import torch
from torch import Tensor

from andfast.functional.triton_support import DTYPES, why_not

from ..common.layout import in_order

__all__ = ["DTYPES", "backward", "forward", "why_not"]


def forward(x: Tensor, target: Tensor, square: bool) -> Tensor:
    """The mean in float32, (); arguments as checked by the op, of one value at least."""
    from andfast.kernels.mean_distance import kernels  # noqa: PLC0415

    x, target = _laid_out(x, target)
    mean = torch.empty((), dtype=torch.float32, device=x.device)
    kernels.mean(x, target, mean, square)
    return mean


def backward(grad: Tensor, x: Tensor, target: Tensor, square: bool) -> Tensor:
    """The gradient to x, from that to the mean."""
    from andfast.kernels.mean_distance import kernels  # noqa: PLC0415

    x, target = _laid_out(x, target)
    grad_x = torch.empty_like(x)
    kernels.gradient(grad, x, target, grad_x, square)
    return grad_x


def _laid_out(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both with their values in one order and without gaps: x as it is if it fills its memory, in any order."""
    like = torch.empty_like(x, device="meta")
    return in_order(x.detach(), like), in_order(target, like)
