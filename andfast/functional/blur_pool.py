"""Anti-aliased average pooling: a low-pass filter and subsampling by an integer factor, in one pass.

With T taps t and reflection padding of p = (T - factor) / 2 samples on each side, along both axes::

    y[n, c, i, j] = sum over k, l of t[k] * t[l] * x[n, c, r(factor * i + k - p), r(factor * j + l - p)]

where r reflects an index into the image without repeating the border. T and the factor have the same parity, so the
window is centered on the block of samples that an output pixel represents: LR is not shifted against HR. The taps sum
to 1, so a constant image stays constant. The op is linear; its backward is the transposed map, a separate op.

The paper (section 3.1) uses average pooling in the middle of F; docs/method.md explains this choice.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from andfast import checks
from andfast.functional import dispatch, extension, layout

OP = "blur_pool"
_SUM_TOLERANCE = 1e-5  # for the sum of fp32 taps
_MAX_CUDA_TAPS = 256  # kMaxTaps of csrc/blur_pool/any_filter.h

dispatch.register(
    OP,
    {"cuda": extension.why_not_cuda, "cpp": extension.why_not_cpu, "reference": dispatch.everywhere},
    measured=(9,),
)


def blur_pool(
    x: Tensor,
    factor: int,
    *,
    filter: str | Sequence[float] | Tensor = "binomial",
    impl: str = "auto",
) -> Tensor:
    """Low-pass filter ``x`` and keep every ``factor``-th sample, centered.

    Differentiable in x, any number of times. Half types are summed in fp32. Autocast has no effect: the op is
    memory-bound, and a cast would move more bytes.

    Args:
        x: images or features (N, C, H, W), floating point; H and W divisible by the factor and greater than the padding
            (taps - factor) / 2. N may be 0. Both memory formats.
        factor: subsampling factor, a positive integer; 2, 3 and 4 with the binomial filter are fast.
        filter: "binomial": the binomial coefficients of 2 * factor taps for an even factor, 2 * factor - 1 for an odd
            one (x4: 8 taps, x3: 5, x2: 4); or the taps: 1-D, symmetric, with sum 1, at least ``factor`` of them, an
            even number for an even factor and an odd one for an odd factor; at most 256 with "cuda". A tensor is
            copied to the host and gets no gradient; under torch.compile pass a sequence of floats.
        impl: "auto" or the name of an implementation, see :mod:`andfast.functional`.

    Returns:
        (N, C, H / factor, W / factor) of x's dtype, device and memory format.

    Raises:
        ValueError, TypeError: an argument has the wrong type, shape, dtype or value.
        RuntimeError: the requested implementation is not available here.
    """
    checks.images("x", x)
    if not isinstance(factor, int) or isinstance(factor, bool):
        raise TypeError(f"factor must be an int, was {type(factor).__name__}")
    if factor < 1:
        raise ValueError(f"factor must be positive, was {factor}")
    taps = list(binomial_taps(factor)) if isinstance(filter, str) and filter == "binomial" else _taps(filter, factor)
    height, width = x.shape[2:]
    if height % factor or width % factor:
        raise ValueError(f"x must have H and W divisible by the factor, {factor}, had shape {checks.shape(x)}")
    pad = (len(taps) - factor) // 2
    if height <= pad or width <= pad:
        raise ValueError(
            f"x must have H and W greater than the padding of {len(taps)} taps, {pad}, had shape {checks.shape(x)}"
        )
    impl = dispatch.resolve(OP, impl, x.device.type, x.dtype)
    if impl == "cuda" and len(taps) > _MAX_CUDA_TAPS:
        raise ValueError(
            f"filter must have at most {_MAX_CUDA_TAPS} taps with impl='cuda', had {len(taps)}; "
            "impl='reference' takes any number"
        )
    op = torch.ops.andfast.blur_pool_reference if impl == "reference" else torch.ops.andfast.blur_pool
    out: Tensor = op(x, taps, factor)
    return out


def binomial_taps(factor: int) -> tuple[float, ...]:
    """The default filter: row 2 * factor - 1 (odd factor: 2 * factor - 2) of Pascal's triangle, normalized."""
    n = 2 * factor - 1 - factor % 2
    return tuple(math.comb(n, k) / 2**n for k in range(n + 1))


def _taps(filter_: object, factor: int) -> list[float]:
    """Validate user-defined taps."""
    if isinstance(filter_, str):
        raise ValueError(f"filter must be 'binomial' or a sequence of taps, was {filter_!r}")
    if isinstance(filter_, Tensor):
        if filter_.dim() != 1:
            raise ValueError(f"filter must be one-dimensional, had shape {checks.shape(filter_)}")
        filter_ = filter_.tolist()
    if not isinstance(filter_, Sequence) or not all(isinstance(tap, (int, float)) for tap in filter_):
        name = type(filter_).__name__
        raise TypeError(f"filter must be 'binomial', a 1-D tensor or a sequence of floats, was {name}")
    taps = [float(tap) for tap in filter_]
    if len(taps) < factor or (len(taps) - factor) % 2:
        parity = "odd" if factor % 2 else "even"
        raise ValueError(
            f"filter must have an {parity} number of taps, at least {factor}, for factor {factor}, had {len(taps)}"
        )
    if any(abs(a - b) > _SUM_TOLERANCE for a, b in zip(taps, reversed(taps), strict=True)):
        raise ValueError(f"filter must be symmetric, was {taps}")
    if not abs(sum(taps) - 1) <= _SUM_TOLERANCE:
        raise ValueError(f"filter must sum to 1, summed to {sum(taps):.7g}")
    return taps


# ----------------------------------------------------------------------------------------------- the registered ops

# csrc/blur_pool defines andfast::blur_pool and blur_pool_backward (Tensor, float[] taps, int factor) for the CPU
# and CUDA; these two are the reference, with the same signature.


@torch.library.custom_op("andfast::blur_pool_reference", mutates_args=())
def _forward(x: Tensor, taps: Sequence[float], factor: int) -> Tensor:
    return _reference_forward(x.detach(), taps, factor).contiguous(memory_format=layout.memory_format(x))


@torch.library.custom_op("andfast::blur_pool_reference_backward", mutates_args=())
def _backward(grad: Tensor, taps: Sequence[float], factor: int) -> Tensor:
    """The transposed map: (N, C, H, W) -> (N, C, H * factor, W * factor)."""
    return _reference_backward(grad.detach(), taps, factor).contiguous(memory_format=layout.memory_format(grad))


def _fake_forward(x: Tensor, taps: Sequence[float], factor: int) -> Tensor:
    n, c, height, width = x.shape
    shape = (n, c, height // factor, width // factor)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout.memory_format(x))


def _fake_backward(grad: Tensor, taps: Sequence[float], factor: int) -> Tensor:
    n, c, height, width = grad.shape
    shape = (n, c, height * factor, width * factor)
    return torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=layout.memory_format(grad))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.taps, ctx.factor = inputs


def _register(forward: str, backward: str) -> None:
    """Register shapes, gradients and operation counts of a pair of ops, each of which is the other's transpose."""
    ops = torch.ops.andfast

    def forward_autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return getattr(ops, backward)(grad, ctx.taps, ctx.factor), None, None

    def backward_autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return getattr(ops, forward)(grad, ctx.taps, ctx.factor), None, None

    torch.library.register_fake(f"andfast::{forward}", _fake_forward)
    torch.library.register_fake(f"andfast::{backward}", _fake_backward)
    torch.library.register_autograd(f"andfast::{forward}", forward_autograd, setup_context=_setup_context)
    torch.library.register_autograd(f"andfast::{backward}", backward_autograd, setup_context=_setup_context)
    register_flop_formula(getattr(ops, forward))(_flops_forward)
    register_flop_formula(getattr(ops, backward))(_flops_backward)


# -------------------------------------------------------------------------------------------------- the reference


def blur_pool_reference(x: Tensor, taps: Sequence[float], factor: int) -> Tensor:
    """The definition, composed of differentiable PyTorch ops; the reference implementation computes the same."""
    return _reference_forward(x, taps, factor)


def _depthwise(taps: Sequence[float], channels: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of the vertical and the horizontal depthwise convolution."""
    weight = torch.tensor(taps, dtype=like.dtype, device=like.device)
    return weight.view(1, 1, -1, 1).expand(channels, 1, -1, 1), weight.view(1, 1, 1, -1).expand(channels, 1, 1, -1)


def _reference_forward(x: Tensor, taps: Sequence[float], factor: int) -> Tensor:
    n, channels, height, width = x.shape
    if x.numel() == 0:
        return x.new_empty((n, channels, height // factor, width // factor))
    pad = (len(taps) - factor) // 2
    with torch.autocast(x.device.type, enabled=False):  # else the convolutions would run in its dtype
        y = F.pad(x.to(torch.promote_types(x.dtype, torch.float32)), (pad, pad, pad, pad), mode="reflect")
        vertical, horizontal = _depthwise(taps, channels, y)
        y = F.conv2d(y, vertical, stride=(factor, 1), groups=channels)
        y = F.conv2d(y, horizontal, stride=(1, factor), groups=channels)
    return y.to(x.dtype)


def _reference_backward(grad: Tensor, taps: Sequence[float], factor: int) -> Tensor:
    n, channels, height, width = grad.shape
    if grad.numel() == 0:
        return grad.new_empty((n, channels, height * factor, width * factor))
    pad = (len(taps) - factor) // 2
    with torch.autocast(grad.device.type, enabled=False):
        g = grad.to(torch.promote_types(grad.dtype, torch.float32))
        vertical, horizontal = _depthwise(taps, channels, g)
        g = F.conv_transpose2d(g, horizontal, stride=(1, factor), groups=channels)
        g = F.conv_transpose2d(g, vertical, stride=(factor, 1), groups=channels)
    return _fold(_fold(g, 2, pad), 3, pad).to(grad.dtype)


def _fold(g: Tensor, dim: int, pad: int) -> Tensor:
    """The transpose of reflection padding along ``dim``: add the margins to the pixels that they mirror."""
    if pad == 0:
        return g
    size = g.shape[dim] - 2 * pad
    middle = g.narrow(dim, pad, size).clone()
    middle.narrow(dim, 1, pad).add_(g.narrow(dim, 0, pad).flip(dim))
    middle.narrow(dim, size - 1 - pad, pad).add_(g.narrow(dim, size + pad, pad).flip(dim))
    return middle


# ------------------------------------------------------------------------------------------------- operation counts


def _flops(n: int, channels: int, height: int, width: int, taps: int, factor: int) -> int:
    """Operations of the separable filter, rows first, on images (height, width); the same for the transpose."""
    macs = (height // factor) * width * taps + (height // factor) * (width // factor) * taps
    return 2 * n * channels * macs


def _flops_forward(x_shape: Any, taps: Any, factor: int, *_args: Any, **_kwargs: Any) -> int:
    n, channels, height, width = x_shape
    return _flops(n, channels, height, width, len(taps), factor)


def _flops_backward(grad_shape: Any, taps: Any, factor: int, *_args: Any, **_kwargs: Any) -> int:
    n, channels, height, width = grad_shape
    return _flops(n, channels, height * factor, width * factor, len(taps), factor)


_register("blur_pool_reference", "blur_pool_reference_backward")
if extension.why_missing() is None:
    _register("blur_pool", "blur_pool_backward")
