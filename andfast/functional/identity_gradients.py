"""Gradients of degradation networks at the identity, for the closed-form first step of the ascent.

At the identity a network is a pointwise linear map (:mod:`andfast.nn.closed_form` derives it). The pre-activation of
layer k is B_k^T x and the gradient to its output A_k^T g, with matrices B_k and A_k (3, C) per image. For image n,
channel c and pixel p, with colors i and j, and d one of nine taps::

    noise[k][n, c, p]       = sum over j of A_k[n, j, c] g[n, j, p]                            (one map: summed over c)
    slope[k][n, c]          = sum over p of min(sum over i of B_k[n, i, c] x[n, i, p], 0) * (A_k^T g)[n, c, p]
    correlation[n, d, j, i] = sum over p of g[n, j, p] * pad(x)[n, i, p + d]

The gradient to kernel k at tap d is A_k^T R_d B_(k-1), with R_d the correlation: products of small matrices, left to
the caller. The reference, composed of PyTorch ops, materializes the pre-activation of every layer; the Triton kernels
only read x and g and write the gradients to the noises.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from andfast import checks
from andfast.functional import dispatch, triton_support

OP = "identity_gradients"
PADDINGS = ("replicate", "zeros")
COLORS = 3
CHUNK = 1 << 20
"""Pre-activation values per chunk of images in the reference, which takes at least one image."""

dispatch.register(
    OP,
    {"triton": triton_support.why_not, "reference": dispatch.everywhere},
    dtypes={"triton": triton_support.DTYPES},
)


@torch.no_grad()
def identity_gradients(
    x: Tensor,
    grad: Tensor,
    before: Tensor,
    after: Tensor,
    *,
    noises: Sequence[int],
    slopes: Sequence[bool],
    correlation: bool,
    noise_dtype: torch.dtype | None = None,
    padding: str = "replicate",
    impl: str = "auto",
) -> tuple[Tensor | None, list[Tensor | None], Tensor]:
    """Gradients of L consecutive layers of identity networks, see the module's documentation. Not differentiable.

    Sums are taken in at least float32, also inside an autocast region.

    Args:
        x: the layers' image, HR or the pooled HR, (N, 3, H, W), floating point, H and W at least 1.
        grad: g, the gradient to the layers' output, of x's shape; floating point.
        before: B, (L, N, 3, C), floating point.
        after: A, of before's shape and dtype.
        noises: number of channels per layer: C for a map per channel, 1 for a single map, 0 for no gradient.
        slopes: per layer, whether to compute the gradient to the slope.
        correlation: whether to compute the correlation.
        noise_dtype: dtype of the gradients to the noises; None: the wider of float32 and x's dtype.
        padding: of x in the correlation by one pixel, "replicate" (default) or "zeros".
        impl: "auto" or the name of an implementation, see :mod:`andfast.functional`.

    Returns:
        The correlation (N, 9, 3, 3), taps row by row, or None; L gradients to noises, (N, C, H, W) or (N, 1, H, W) in
        x's memory format, or None; the requested gradients to slopes, (slopes, N, C). Correlation and slopes are
        float32, or float64 if x is.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or device does not fit; the message names it.
        RuntimeError: ``impl`` asks for an implementation that is not available here.
    """
    _check_arguments(x, grad, before, after, noises, slopes, padding)
    dtype = _wide(x) if noise_dtype is None else noise_dtype
    if not dtype.is_floating_point:
        raise TypeError(f"noise_dtype must be a floating-point dtype, was {dtype}")
    chosen = dispatch.resolve(OP, impl, x.device.type, x.dtype)
    correlations, maps, grad_slopes = torch.ops.andfast.identity_gradients(
        x, grad, before, after, list(noises), dtype, list(slopes), correlation, padding, chosen
    )
    grad_noises = [grad_noise if channels else None for grad_noise, channels in zip(maps, noises, strict=True)]
    return correlations if correlation else None, grad_noises, grad_slopes


def _check_arguments(
    x: Tensor,
    grad: Tensor,
    before: Tensor,
    after: Tensor,
    noises: Sequence[int],
    slopes: Sequence[bool],
    padding: str,
) -> None:
    checks.images("x", x)
    n, colors, height, width = x.shape
    if colors != COLORS:
        raise ValueError(f"x must have {COLORS} channels, had shape {checks.shape(x)}")
    if height < 1 or width < 1:
        raise ValueError(f"x must have H and W of at least 1, had shape {checks.shape(x)}")
    checks.images("grad", grad)
    checks.like("grad", grad, "x", x, dtype=False)
    checks.has_shape("grad", grad, x.shape, meaning="of x")
    checks.tensor("before", before)
    checks.floating("before", before)
    checks.like("before", before, "x", x, dtype=False)
    if before.dim() != 4 or before.shape[1:3] != (n, COLORS):
        raise ValueError(f"before must have shape (L, N, 3, C), here (L, {n}, 3, C), was {checks.shape(before)}")
    layers, _, _, channels = before.shape
    checks.tensor("after", after)
    checks.like("after", after, "before", before)
    checks.has_shape("after", after, before.shape, meaning="of before")
    if len(noises) != layers or any(count not in (0, 1, channels) for count in noises):
        raise ValueError(f"noises must be {layers} numbers, each 0, 1 or {channels}, was {list(noises)}")
    if len(slopes) != layers:
        raise ValueError(f"slopes must be {layers} values, was {list(slopes)}")
    checks.one_of("padding", padding, PADDINGS)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


# ------------------------------------------------------------------------------------------------ the registered op


@torch.library.custom_op("andfast::identity_gradients", mutates_args=())
def _op(
    x: Tensor,
    grad: Tensor,
    before: Tensor,
    after: Tensor,
    noises: Sequence[int],
    noise_dtype: torch.dtype,
    slopes: Sequence[bool],
    correlation: bool,
    padding: str,
    impl: str,
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Return the correlation and the gradients to noises and slopes; empty tensors where not requested."""
    maps = _maps(x, noises, noise_dtype)
    grad_noises = [grad_noise if channels else None for grad_noise, channels in zip(maps, noises, strict=True)]
    arguments = (x, grad, before, after, grad_noises, slopes, correlation, padding)
    with torch.autocast(x.device.type, enabled=False):
        if impl == "triton":
            from andfast.kernels.identity_gradients import kernels  # noqa: PLC0415  (imports Triton)

            sums, grad_slopes = kernels.identity_gradients(*arguments)
        else:
            sums, grad_slopes = _reference(*arguments)
    return x.new_empty(0, dtype=_wide(x)) if sums is None else sums, maps, grad_slopes


@_op.register_fake
def _(
    x: Tensor,
    grad: Tensor,
    before: Tensor,
    after: Tensor,
    noises: Sequence[int],
    noise_dtype: torch.dtype,
    slopes: Sequence[bool],
    correlation: bool,
    padding: str,
    impl: str,
) -> tuple[Tensor, list[Tensor], Tensor]:
    n, wide = x.shape[0], _wide(x)
    sums = x.new_empty((n, 9, COLORS, COLORS) if correlation else 0, dtype=wide)
    grad_slopes = x.new_empty((sum(slopes), n, before.shape[3]), dtype=wide)
    return sums, _maps(x, noises, noise_dtype), grad_slopes


def _maps(x: Tensor, noises: Sequence[int], dtype: torch.dtype) -> list[Tensor]:
    """Uninitialized gradients to the noises in x's memory format; empty where not requested."""
    n, _, height, width = x.shape
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    form = torch.channels_last if last else torch.contiguous_format
    shapes = [(n, count, height, width) if count else (0, 0, 0, 0) for count in noises]
    return [torch.empty(shape, memory_format=form, dtype=dtype, device=x.device) for shape in shapes]


# ---------------------------------------------------------------------------------------------------- the reference


def _reference(
    x: Tensor,
    grad: Tensor,
    before: Tensor,
    after: Tensor,
    noises: Sequence[Tensor | None],
    slopes: Sequence[bool],
    correlation: bool,
    padding: str,
) -> tuple[Tensor | None, Tensor]:
    """The definition composed of PyTorch ops, in chunks of images to bound peak memory.

    For a slope, the pre-activation times g is summed over pixels first (three columns), and A applied to the sums.
    """
    wide = _wide(x)
    n, _, height, width = x.shape
    layers, _, _, channels = before.shape
    before, after = before.to(wide), after.to(wide)
    correlations = x.new_empty((n, 9, COLORS, COLORS), dtype=wide) if correlation else None
    sums = x.new_empty((sum(slopes), n, channels, COLORS), dtype=wide)
    images = max(1, CHUNK // (max(channels, 9 * COLORS) * height * width))
    for first in range(0, n, images):
        chunk = slice(first, first + images)
        part, up = x[chunk].to(wide), grad[chunk].to(wide)
        if correlations is not None:
            correlations[chunk] = _correlation(up, part, padding)
        for layer in range(layers):
            noise = noises[layer]
            if noise is not None:
                matrix = after[layer, chunk]
                _mix_into(noise[chunk], matrix if noise.shape[1] == channels else matrix.sum(2, keepdim=True), up)
            if slopes[layer]:
                negative = _mix(before[layer, chunk], part).clamp_max_(0)
                sums[sum(slopes[:layer]), chunk] = _pixels(negative) @ _pixels(up).mT
    chosen = [layer for layer in range(layers) if slopes[layer]]
    matrices = torch.stack([after[layer].mT for layer in chosen]) if chosen else sums
    return correlations, (sums * matrices).sum(3)


def _channels_last(x: Tensor) -> bool:
    return x.stride(1) == 1 and x.stride(3) != 1


def _pixels(x: Tensor) -> Tensor:
    """View (N, C, H, W) as (N, C, H * W), in either memory format."""
    return x.permute(0, 2, 3, 1).flatten(1, 2).mT if _channels_last(x) else x.flatten(2)


def _mix(matrix: Tensor, x: Tensor) -> Tensor:
    """matrix^T x per pixel, from (N, 3, C) and (N, 3, H, W) to (N, C, H, W), in x's memory format."""
    if _channels_last(x):
        return (_pixels(x).mT @ matrix).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
    return (matrix.mT @ _pixels(x)).unflatten(2, x.shape[2:])


def _mix_into(out: Tensor, matrix: Tensor, x: Tensor) -> None:
    """:func:`_mix` into ``out``, of any dtype, contiguous or channels_last."""
    if out.dtype != x.dtype:
        out.copy_(_mix(matrix, x))
    elif out.is_contiguous():
        torch.bmm(matrix.mT, _pixels(x), out=out.flatten(2))
    else:
        torch.bmm(_pixels(x).mT, matrix, out=out.permute(0, 2, 3, 1).flatten(1, 2))


def _correlation(grad: Tensor, x: Tensor, padding: str) -> Tensor:
    """Sums over pixels of grad times padded x shifted by each of nine taps, (N, 9, 3, 3)."""
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate" if padding == "replicate" else "constant")
    n, colors, height, width = x.shape
    shifted = [padded[:, :, dy : dy + height, dx : dx + width] for dy in range(3) for dx in range(3)]
    return _pixels(grad)[:, None] @ torch.stack(shifted, 1).reshape(n, 9, colors, height * width).mT


# ------------------------------------------------------------------------------------------------- operation counts


@register_flop_formula(torch.ops.andfast.identity_gradients)
def _flops(x_shape, _grad, before_shape, _after, noises, _dtype, slopes, correlation, *_args, **_kwargs) -> int:  # type: ignore[no-untyped-def]
    """Per pixel: A^T g per layer, B^T x and its product with A^T g per slope, 81 MACs of the correlation."""
    n, _, height, width = x_shape
    channels, macs = before_shape[3], 81 * bool(correlation)
    for noise, slope in zip(noises, slopes, strict=True):
        macs += COLORS * (channels if slope else noise) + (COLORS + 1) * channels * bool(slope)
    return 2 * n * height * width * macs
