"""The mean distance of two tensors, in float32 whatever they are stored in: what the pixel and perceptual losses are.

Over all n values, with d = x - target, taken in float32 (float64 for float64)::

    l1: sum |d| / n        its gradient to x: sign(d) g / n
    l2: sum d^2 / n                           2 d g / n

Composed of PyTorch's ops this writes both tensors in float32, their difference, its absolute value, and as much again
backward. As one op it reads both once, keeps nothing but the two themselves, and its backward pass reads them again and
writes the gradient, in x's dtype. docs/kernels.md counts.
"""

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from andfast import checks
from andfast.functional import dispatch
from andfast.kernels.mean_distance import launch as _mean_distance_triton

OP = "mean_distance"

Kind = Literal["l1", "l2"]

dispatch.register(
    OP,
    {"triton": _mean_distance_triton.why_not, "reference": dispatch.everywhere},
    {"triton": _mean_distance_triton.DTYPES},
)


def mean_distance(x: Tensor, target: Tensor, *, kind: Kind = "l1", impl: str = "auto") -> Tensor:
    """Mean over all values of |x - target| ("l1") or of (x - target)^2 ("l2"); a scalar.

    Differentiable in x, any number of times; at x = target the gradient of "l1" is 0, and as with torch.sign so it is
    where the difference is NaN. The target is data: one that requires a gradient is refused. Two runs on a device give
    the same bits. Autocast does not change it.

    Args:
        x: floating point, any shape, any order in memory; its gradient has the same.
        target: of x's shape, on its device; its dtype may differ. It is copied where it lies in another order than x.
        kind: "l1" or "l2".
        impl: "auto", "reference" or "triton"; "triton" takes float32, bfloat16 and float16.

    Returns:
        () in float32, or float64 if one of the two is. NaN where there are no values, as from torch.mean.

    Raises:
        ValueError, TypeError: an argument does not fit; the message names it.
        RuntimeError: ``impl`` asks for an implementation that is not available here.
    """
    checks.tensor("x", x)
    checks.tensor("target", target)
    checks.floating("x", x)
    checks.floating("target", target)
    checks.has_shape("target", target, x.shape, meaning="that of x")
    checks.like("target", target, "x", x, dtype=False)
    checks.no_gradient("target", target)
    checks.one_of("kind", kind, get_args(Kind))
    wide = _wide_dtype(x, target)
    if impl == "triton" and wide == torch.float64 != x.dtype:
        raise TypeError(f"target must be float32, bfloat16 or float16 with impl='triton', was {target.dtype}")
    chosen = dispatch.resolve(OP, impl, x.device.type, wide)
    out: Tensor = torch.ops.andfast.mean_distance(x, target, kind, chosen)
    return out


def mean_distance_reference(x: Tensor, target: Tensor, kind: Kind = "l1") -> Tensor:
    """The definition, composed of differentiable PyTorch ops."""
    wide = _wide_dtype(x, target)
    difference = x.to(wide) - target.to(wide)
    return difference.abs().mean() if kind == "l1" else difference.square().mean()


def _wide_dtype(x: Tensor, target: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(x.dtype, target.dtype), torch.float32)


# ----------------------------------------------------------------------------------------------- the registered ops


@torch.library.custom_op("andfast::mean_distance", mutates_args=())
def _forward(x: Tensor, target: Tensor, kind: str, impl: str) -> Tensor:
    if x.numel() == 0:
        return torch.full((), float("nan"), dtype=_wide_dtype(x, target), device=x.device)
    if impl == "triton":
        return _mean_distance_triton.forward(x, target, kind == "l2")
    difference = _difference(x, target)
    return (difference.abs_() if kind == "l1" else difference.mul_(difference)).mean()


@_forward.register_fake
def _(x: Tensor, target: Tensor, kind: str, impl: str) -> Tensor:
    return torch.empty((), dtype=_wide_dtype(x, target), device=x.device)


@torch.library.custom_op("andfast::mean_distance_backward", mutates_args=())
def _backward(grad: Tensor, x: Tensor, target: Tensor, kind: str, impl: str) -> Tensor:
    """The gradient to x, in x's dtype and order in memory, from that to the mean, which stays on the device."""
    if x.numel() == 0:
        return torch.empty_like(x)
    if impl == "triton":
        return _mean_distance_triton.backward(grad, x, target, kind == "l2")
    difference = _difference(x, target)
    scale = grad / x.numel()
    scaled = difference.sign_().mul_(scale) if kind == "l1" else difference.mul_(2 * scale)
    return scaled.to(x.dtype)


@_backward.register_fake
def _(grad: Tensor, x: Tensor, target: Tensor, kind: str, impl: str) -> Tensor:
    return torch.empty_like(x)


def _difference(x: Tensor, target: Tensor) -> Tensor:
    """x - target in float32 at least: one new tensor in x's order, and no other."""
    return torch.empty_like(x, dtype=_wide_dtype(x, target)).copy_(x).sub_(target)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, target, ctx.kind, ctx.impl = inputs
    ctx.save_for_backward(x, target)


def _forward_autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, target = ctx.saved_tensors
    return torch.ops.andfast.mean_distance_backward(grad, x, target, ctx.kind, ctx.impl), None, None, None


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, x, target, ctx.kind, _ = inputs
    ctx.save_for_backward(grad, x, target)


def _backward_autograd(ctx: Any, seed: Tensor) -> tuple[Tensor | None, ...]:
    """Of the gradient: rare, and so composed of differentiable ops."""
    grad, x, target = ctx.saved_tensors
    wide = _wide_dtype(x, target)
    difference, seed = x.to(wide) - target.to(wide), seed.to(wide)
    slope = difference.sign() if ctx.kind == "l1" else 2 * difference
    to_x = torch.zeros_like(x) if ctx.kind == "l1" else (seed * (2 * grad / x.numel())).to(x.dtype)
    return (seed * slope).sum() / max(x.numel(), 1), to_x, None, None, None


_forward.register_autograd(_forward_autograd, setup_context=_keep)
_backward.register_autograd(_backward_autograd, setup_context=_keep_for_backward)
