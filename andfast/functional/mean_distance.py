"""Mean absolute or squared distance of two tensors, accumulated in float32: the pixel and perceptual losses.

Over all n values, with d = x - target in float32 (float64 if either tensor is)::

    l1: sum |d| / n        its gradient to x: sign(d) g / n
    l2: sum d^2 / n                           2 d g / n

Composed of PyTorch ops, this materializes both tensors in float32, their difference and its absolute value, and as much
again in backward. The fused op reads both tensors once, saves only its inputs, and backward reads them once more and
writes the gradient in x's dtype. See docs/kernels/mean_distance.md for byte counts.
"""

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from andfast import checks
from andfast.functional import dispatch, triton_support

OP = "mean_distance"

Kind = Literal["l1", "l2"]

dispatch.register(
    OP,
    {"triton": triton_support.why_not, "reference": dispatch.everywhere},
    {"triton": triton_support.DTYPES},
)


def mean_distance(x: Tensor, target: Tensor, *, kind: Kind = "l1", impl: str = "auto") -> Tensor:
    """Mean over all values of |x - target| ("l1") or of (x - target)^2 ("l2"), as a scalar.

    Differentiable in x, any number of times. The gradient of "l1" is 0 where x = target, and where the difference is
    NaN, as with torch.sign. The target must not require a gradient. Deterministic; unaffected by autocast.

    Args:
        x: floating point, any shape and strides; its gradient has the same memory order.
        target: x's shape and device, any floating-point dtype. Copied if its memory order differs from that of x.
        kind: "l1" or "l2".
        impl: "auto", "reference" or "triton"; "triton" takes float32, bfloat16 and float16.

    Returns:
        () in float32, or float64 if either input is. NaN for empty inputs, like torch.mean.

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
        from andfast.kernels.mean_distance import kernels  # noqa: PLC0415  (imports Triton)

        return kernels.forward(x, target, kind == "l2")
    difference = _difference(x, target)
    return (difference.abs_() if kind == "l1" else difference.mul_(difference)).mean()


@_forward.register_fake
def _(x: Tensor, target: Tensor, kind: str, impl: str) -> Tensor:
    return torch.empty((), dtype=_wide_dtype(x, target), device=x.device)


@torch.library.custom_op("andfast::mean_distance_backward", mutates_args=())
def _backward(grad: Tensor, x: Tensor, target: Tensor, kind: str, impl: str) -> Tensor:
    """Gradient to x in x's dtype and memory order; ``grad``, of the mean, is never read by the host."""
    if x.numel() == 0:
        return torch.empty_like(x)
    if impl == "triton":
        from andfast.kernels.mean_distance import kernels  # noqa: PLC0415  (imports Triton)

        return kernels.backward(grad, x, target, kind == "l2")
    difference = _difference(x, target)
    scale = grad / x.numel()
    scaled = difference.sign_().mul_(scale) if kind == "l1" else difference.mul_(2 * scale)
    return scaled.to(x.dtype)


@_backward.register_fake
def _(grad: Tensor, x: Tensor, target: Tensor, kind: str, impl: str) -> Tensor:
    return torch.empty_like(x)


def _difference(x: Tensor, target: Tensor) -> Tensor:
    """x - target in at least float32, as a single new tensor in x's memory order."""
    return torch.empty_like(x, dtype=_wide_dtype(x, target)).copy_(x).sub_(target)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, target, ctx.kind, ctx.impl = inputs
    ctx.save_for_backward(x, target)


def _forward_autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, target = ctx.saved_tensors
    return torch.ops.andfast.mean_distance_backward(grad, x, target, ctx.kind, ctx.impl), None, None, None


def _setup_backward_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, x, target, ctx.kind, _ = inputs
    ctx.save_for_backward(grad, x, target)


def _backward_autograd(ctx: Any, seed: Tensor) -> tuple[Tensor | None, ...]:
    """Double backward: rare, so composed of differentiable PyTorch ops."""
    grad, x, target = ctx.saved_tensors
    wide = _wide_dtype(x, target)
    difference, seed = x.to(wide) - target.to(wide), seed.to(wide)
    slope = difference.sign() if ctx.kind == "l1" else 2 * difference
    to_x = torch.zeros_like(x) if ctx.kind == "l1" else (seed * (2 * grad / x.numel())).to(x.dtype)
    return (seed * slope).sum() / max(x.numel(), 1), to_x, None, None, None


_forward.register_autograd(_forward_autograd, setup_context=_setup_context)
_backward.register_autograd(_backward_autograd, setup_context=_setup_backward_context)
