"""Anti-aliased average pooling: a low-pass filter and subsampling by an integer factor, in one pass.

With taps t of length T and p = (T - factor) / 2 samples of reflection padding on each side, along both axes::

    y[n, c, i, j] = sum over k, l of t[k] * t[l] * x[n, c, r(factor * i + k - p), r(factor * j + l - p)]

where r mirrors an index into the image without repeating the border. T and the factor are both even or both odd, so
the window is centred on the block of samples that an output pixel stands for: LR is not shifted against HR. The taps
sum to 1, so a constant image stays constant. The op is linear; its backward is the transposed map, an op of its own.

The paper (section 3.1) names average pooling in the middle of F; docs/method.md says why it is this one.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from andfast import checks
from andfast.functional import dispatch

OP = "blur_pool"
_SUM_TOLERANCE = 1e-5  # fp32 taps sum to 1 no better than this

try:
    from andfast import _C

    _cpp_error = None
except ImportError as error:  # kept: an explicit impl="cpp" tells it
    _cpp_error = f"no compiled extension: {error}"


def _why_no_cpp(device_type: str) -> str | None:
    if device_type != "cpu":
        return f"it runs on the CPU, the tensor is on {device_type!r}"
    return _cpp_error


@functools.cache
def _why_no_cuda_here() -> str | None:
    if _cpp_error is not None:
        return _cpp_error
    archs: str = getattr(_C, "CUDA_ARCHS", "")  # an extension that was built before there was a CUDA part has none
    if not archs:
        return "the extension was built without its CUDA part (setup.py says when it is, and what it needs)"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        if not _runs_on(archs, capability):
            have, built = ".".join(map(str, capability)), archs.replace(":", ", ")
            return f"device {index} has compute capability {have}, the extension was built for {built}"
    return None


def _runs_on(archs: str, capability: tuple[int, int]) -> bool:
    """Whether code for these capabilities runs on a device: of its own major version and no newer, or as PTX."""
    for arch in archs.split(":"):
        built = tuple(map(int, arch.removesuffix("+PTX").rstrip("abcdefghijklmnopqrstuvwxyz").split(".")))
        exact = arch.removesuffix("+PTX")[-1].isalpha()
        if exact and built != capability:
            continue
        if built <= capability and (built[0] == capability[0] or arch.endswith("+PTX")):
            return True
    return False


@torch.compiler.assume_constant_result  # torch.compile asks it once, and does not look into it
def _why_no_cuda(device_type: str) -> str | None:
    if device_type != "cuda":
        return f"it runs on CUDA devices, the tensor is on {device_type!r}"
    return _why_no_cuda_here()


dispatch.register(OP, {"cuda": _why_no_cuda, "cpp": _why_no_cpp, "reference": dispatch.everywhere})


def blur_pool(
    x: Tensor,
    factor: int,
    *,
    filter: str | Sequence[float] | Tensor = "binomial",
    impl: str = "auto",
) -> Tensor:
    """Filter ``x`` with a symmetric low-pass filter and keep every ``factor``-th sample, centred.

    Differentiable in x, any number of times. Sums are kept in fp32 for half types. Autocast does not change the dtype:
    the op reads and writes x's own (as F.avg_pool2d does), because it moves bytes, and a cast would move more.

    Args:
        x: images or features (N, C, H, W), floating point, H and W divisible by the factor and greater than the padding
            (taps - factor) / 2; any value range. N may be 0. Both memory formats.
        factor: the subsampling factor, a positive integer; 2, 3 and 4 with the binomial filter are the fast ones.
        filter: "binomial": the binomial coefficients of 2 * factor taps for an even factor, 2 * factor - 1 for an odd
            one (x4: 8 taps, x3: 5, x2: 4), or the taps themselves: 1-D, symmetric, sum 1, at least ``factor`` of them,
            even in number for an even factor and odd for an odd one. A tensor of taps is read to the host and gets no
            gradient; under torch.compile pass a sequence of floats.
        impl: "auto" or the name of an implementation, see :mod:`andfast.functional`.

    Returns:
        (N, C, H / factor, W / factor) of x's dtype, device and memory format.

    Raises:
        ValueError, TypeError: an argument's type, shape, dtype or value does not fit; the message names it.
        RuntimeError: ``impl`` asks for an implementation that is not available here.
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
    chosen = dispatch.resolve(OP, impl, x.device.type, x.dtype)
    out: Tensor = torch.ops.andfast.blur_pool(x, taps, factor, chosen)
    return out


def binomial_taps(factor: int) -> tuple[float, ...]:
    """The default filter: row 2 * factor - 1 (odd factor: 2 * factor - 2) of Pascal's triangle, normalised."""
    n = 2 * factor - 1 - factor % 2
    return tuple(math.comb(n, k) / 2**n for k in range(n + 1))


def _taps(given: object, factor: int) -> list[float]:
    """Check taps that a caller gave."""
    if isinstance(given, str):
        raise ValueError(f"filter must be 'binomial' or a sequence of taps, was {given!r}")
    if isinstance(given, Tensor):
        if given.dim() != 1:
            raise ValueError(f"filter must be one-dimensional, had shape {checks.shape(given)}")
        given = given.tolist()
    if not isinstance(given, Sequence) or not all(isinstance(one, (int, float)) for one in given):
        raise TypeError(f"filter must be 'binomial', a 1-D tensor or a sequence of floats, was {type(given).__name__}")
    taps = [float(one) for one in given]
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


@torch.library.custom_op("andfast::blur_pool", mutates_args=())
def _forward(x: Tensor, taps: Sequence[float], factor: int, impl: str) -> Tensor:
    channels_last = _is_channels_last(x)
    x = x.detach().contiguous(memory_format=_format(channels_last))
    if impl == "cpp":
        return _C.blur_pool_forward_cpu(x, taps, factor, channels_last)
    if impl == "cuda":
        return _C.blur_pool_forward_cuda(x, taps, factor, channels_last)
    return _reference_forward(x, taps, factor).contiguous(memory_format=_format(channels_last))


@_forward.register_fake
def _(x: Tensor, taps: Sequence[float], factor: int, impl: str) -> Tensor:
    n, c, height, width = x.shape
    shape = (n, c, height // factor, width // factor)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_format(_is_channels_last(x)))


@torch.library.custom_op("andfast::blur_pool_backward", mutates_args=())
def _backward(grad: Tensor, taps: Sequence[float], factor: int, impl: str) -> Tensor:
    """The transposed map: (N, C, H, W) -> (N, C, H * factor, W * factor)."""
    channels_last = _is_channels_last(grad)
    grad = grad.detach().contiguous(memory_format=_format(channels_last))
    if impl == "cpp":
        return _C.blur_pool_backward_cpu(grad, taps, factor, channels_last)
    if impl == "cuda":
        return _C.blur_pool_backward_cuda(grad, taps, factor, channels_last)
    return _reference_backward(grad, taps, factor).contiguous(memory_format=_format(channels_last))


@_backward.register_fake
def _(grad: Tensor, taps: Sequence[float], factor: int, impl: str) -> Tensor:
    n, c, height, width = grad.shape
    shape = (n, c, height * factor, width * factor)
    return torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=_format(_is_channels_last(grad)))


def _keep_settings(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.taps, ctx.factor, ctx.impl = inputs


def _forward_autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return torch.ops.andfast.blur_pool_backward(grad, ctx.taps, ctx.factor, ctx.impl), None, None, None


def _backward_autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # The transpose of the transpose.
    return torch.ops.andfast.blur_pool(grad, ctx.taps, ctx.factor, ctx.impl), None, None, None


_forward.register_autograd(_forward_autograd, setup_context=_keep_settings)
_backward.register_autograd(_backward_autograd, setup_context=_keep_settings)


def _is_channels_last(x: Tensor) -> bool:
    """Whether a pixel's channels lie side by side, by strides alone: crops and empty batches have a format too."""
    return x.shape[1] != 1 and x.stride(1) == 1 and x.stride(3) != 1


def _format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


# -------------------------------------------------------------------------------------------------- the reference


def blur_pool_reference(x: Tensor, taps: Sequence[float], factor: int) -> Tensor:
    """The definition, composed of differentiable PyTorch ops: the same function as the reference implementation's."""
    return _reference_forward(x, taps, factor)


def _depthwise(taps: Sequence[float], channels: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of the vertical and of the horizontal depthwise convolution."""
    weight = torch.tensor(taps, dtype=like.dtype, device=like.device)
    return weight.view(1, 1, -1, 1).expand(channels, 1, -1, 1), weight.view(1, 1, 1, -1).expand(channels, 1, 1, -1)


def _reference_forward(x: Tensor, taps: Sequence[float], factor: int) -> Tensor:
    n, channels, height, width = x.shape
    if x.numel() == 0:
        return x.new_empty((n, channels, height // factor, width // factor))
    pad = (len(taps) - factor) // 2
    with torch.autocast(x.device.type, enabled=False):  # else the convolutions would follow it
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
    """The transpose of reflection padding along ``dim``: the margins are added onto the pixels they mirror."""
    if pad == 0:
        return g
    size = g.shape[dim] - 2 * pad
    middle = g.narrow(dim, pad, size).clone()
    middle.narrow(dim, 1, pad).add_(g.narrow(dim, 0, pad).flip(dim))
    middle.narrow(dim, size - 1 - pad, pad).add_(g.narrow(dim, size + pad, pad).flip(dim))
    return middle


# ------------------------------------------------------------------------------------------------- operation counts


def _flops(n: int, channels: int, height: int, width: int, taps: int, factor: int) -> int:
    """Operations of the separable filter, rows first, on images (height, width); the transpose has as many.

    For F's three channels that is 1/20,000 of F's convolutions: a training step's count does not show it.
    """
    macs = (height // factor) * width * taps + (height // factor) * (width // factor) * taps
    return 2 * n * channels * macs


@register_flop_formula(torch.ops.andfast.blur_pool)
def _flops_forward(x_shape: Any, taps: Any, factor: int, *_args: Any, **_kwargs: Any) -> int:
    n, channels, height, width = x_shape
    return _flops(n, channels, height, width, len(taps), factor)


@register_flop_formula(torch.ops.andfast.blur_pool_backward)
def _flops_backward(grad_shape: Any, taps: Any, factor: int, *_args: Any, **_kwargs: Any) -> int:
    n, channels, height, width = grad_shape
    return _flops(n, channels, height * factor, width * factor, len(taps), factor)
