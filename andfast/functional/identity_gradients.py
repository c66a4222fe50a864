"""The gradients of degradation networks at the identity, from which the first ascent pass is made.

At the identity a network acts on each pixel alone (:mod:`andfast.nn.closed_form` derives it). The pre-activation of
layer k is B_k^T x, and the gradient that arrives at its output A_k^T g, with matrices B_k and A_k, (3, C), of each
image's own. So for image n, channel c and pixel p, with colours i and j, and d one of nine taps::

    noise[k][n, c, p]       = sum over j of A_k[n, j, c] g[n, j, p]                            (one map: summed over c)
    slope[k][n, c]          = sum over p of min(sum over i of B_k[n, i, c] x[n, i, p], 0) * (A_k^T g)[n, c, p]
    correlation[n, d, j, i] = sum over p of g[n, j, p] * pad(x)[n, i, p + d]

The gradient to kernel k at tap d is A_k^T R_d B_(k-1), R_d being the correlation: products of small matrices, which are
the caller's. Composed of PyTorch's products, every layer's pre-activation is written and read; the Triton kernels read
x and g and write the noises' gradients, and nothing else.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from andfast import checks
from andfast.functional import dispatch
from andfast.functional import triton_support as _triton
from andfast.kernels.identity_gradients import launch as _identity_gradients_triton

OP = "identity_gradients"
PADDINGS = ("replicate", "zeros")
COLOURS = 3
CHUNK = 1 << 20
"""Pre-activations that the reference has in memory at a time, if an image has no more."""

dispatch.register(
    OP,
    {"triton": _triton.why_not, "reference": dispatch.everywhere},
    dtypes={"triton": _triton.DTYPES},
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
    """What L consecutive layers of identity networks need of x and g: see above. Not differentiable.

    Sums are taken in float32 at least, also inside an autocast region.

    Args:
        x: the layers' image, HR or the pooled HR, (N, 3, H, W), floating point, H and W at least 1.
        grad: g, the gradient to the layers' output, of x's shape; floating point.
        before: B, (L, N, 3, C), floating point.
        after: A, of before's shape and dtype.
        noises: L numbers of channels: C for a map a channel, 1 for one map, 0 if the gradient is not wanted.
        slopes: of L layers, whether the slope's gradient is wanted.
        correlation: whether it is wanted.
        noise_dtype: of the noises' gradients, float32 or x's dtype if that is wider where None.
        padding: of x in the correlation by one pixel, "replicate" (default) or "zeros".
        impl: "auto" or the name of an implementation, see :mod:`andfast.functional`.

    Returns:
        The correlation (N, 9, 3, 3), taps row by row, or None; L gradients to noises, (N, C, H, W) or (N, 1, H, W) in
        x's memory format, or None; the gradients to the slopes that are wanted, (slopes, N, C). Correlation and slopes
        are float32, or float64 where x is.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or device does not fit; the message names it.
        RuntimeError: ``impl`` asks for an implementation that is not available here.
    """
    _check_arguments(x, grad, before, after, noises, slopes, padding)
    dtype = _wide(x) if noise_dtype is None else noise_dtype
    if not dtype.is_floating_point:
        raise TypeError(f"noise_dtype must be a floating-point dtype, was {dtype}")
    chosen = dispatch.resolve(OP, impl, x.device.type, x.dtype)
    made = torch.ops.andfast.identity_gradients(
        x, grad, before, after, list(noises), dtype, list(slopes), correlation, padding, chosen
    )
    maps = [one if channels else None for one, channels in zip(made[1], noises, strict=True)]
    return made[0] if correlation else None, maps, made[2]


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
    n, colours, height, width = x.shape
    if colours != COLOURS:
        raise ValueError(f"x must have {COLOURS} channels, had shape {checks.shape(x)}")
    if height < 1 or width < 1:
        raise ValueError(f"x must have H and W of at least 1, had shape {checks.shape(x)}")
    checks.images("grad", grad)
    checks.like("grad", grad, "x", x, dtype=False)
    checks.has_shape("grad", grad, x.shape, meaning="of x")
    checks.tensor("before", before)
    checks.floating("before", before)
    checks.like("before", before, "x", x, dtype=False)
    if before.dim() != 4 or before.shape[1:3] != (n, COLOURS):
        raise ValueError(f"before must have shape (L, N, 3, C), here (L, {n}, 3, C), was {checks.shape(before)}")
    layers, _, _, channels = before.shape
    checks.tensor("after", after)
    checks.like("after", after, "before", before)
    checks.has_shape("after", after, before.shape, meaning="of before")
    if len(noises) != layers or any(one not in (0, 1, channels) for one in noises):
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
    """Return correlation, noises' and slopes' gradients; what is not wanted is empty and costs nothing."""
    maps = _maps(x, noises, noise_dtype)
    wanted = [one if channels else None for one, channels in zip(maps, noises, strict=True)]
    run = _identity_gradients_triton.identity_gradients if impl == "triton" else _reference
    with torch.autocast(x.device.type, enabled=False):
        found, sums = run(x, grad, before, after, wanted, slopes, correlation, padding)
    return x.new_empty(0, dtype=_wide(x)) if found is None else found, maps, sums


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
    found = x.new_empty((n, 9, COLOURS, COLOURS) if correlation else 0, dtype=wide)
    sums = x.new_empty((sum(slopes), n, before.shape[3]), dtype=wide)
    return found, _maps(x, noises, noise_dtype), sums


def _maps(x: Tensor, noises: Sequence[int], dtype: torch.dtype) -> list[Tensor]:
    """Uninitialised gradients to the noises in x's memory format; empty ones for those not wanted."""
    n, _, height, width = x.shape
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    form = torch.channels_last if last else torch.contiguous_format
    shapes = [(n, one, height, width) if one else (0, 0, 0, 0) for one in noises]
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
    """The definition composed of PyTorch's products, a few images at a time, so that little memory is in use at once.

    A slope's sum over pixels is taken of the pre-activation times g, three columns, and A is applied to those.
    """
    wide = _wide(x)
    n, _, height, width = x.shape
    layers, _, _, channels = before.shape
    before, after = before.to(wide), after.to(wide)
    found = x.new_empty((n, 9, COLOURS, COLOURS), dtype=wide) if correlation else None
    sums = x.new_empty((sum(slopes), n, channels, COLOURS), dtype=wide)
    images = max(1, CHUNK // (max(channels, 9 * COLOURS) * height * width))
    for first in range(0, n, images):
        some = slice(first, first + images)
        part, up = x[some].to(wide), grad[some].to(wide)
        if found is not None:
            found[some] = _correlation(up, part, padding)
        for layer in range(layers):
            noise = noises[layer]
            if noise is not None:
                matrix = after[layer, some]
                _mix_into(noise[some], matrix if noise.shape[1] == channels else matrix.sum(2, keepdim=True), up)
            if slopes[layer]:
                negative = _mix(before[layer, some], part).clamp_max_(0)
                sums[sum(slopes[:layer]), some] = _pixels(negative) @ _pixels(up).mT
    chosen = [layer for layer in range(layers) if slopes[layer]]
    matrices = torch.stack([after[layer].mT for layer in chosen]) if chosen else sums
    return found, (sums * matrices).sum(3)


def _channels_last(x: Tensor) -> bool:
    return x.stride(1) == 1 and x.stride(3) != 1


def _pixels(x: Tensor) -> Tensor:
    """(N, C, H, W) as (N, C, H * W), without a copy in either memory format."""
    return x.permute(0, 2, 3, 1).flatten(1, 2).mT if _channels_last(x) else x.flatten(2)


def _mix(matrix: Tensor, x: Tensor) -> Tensor:
    """The images matrix^T x, from (N, 3, C) and (N, 3, H, W) to (N, C, H, W), in x's memory format."""
    if _channels_last(x):
        return (_pixels(x).mT @ matrix).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
    return (matrix.mT @ _pixels(x)).unflatten(2, x.shape[2:])


def _mix_into(out: Tensor, matrix: Tensor, x: Tensor) -> None:
    """The same written to a tensor of any dtype, contiguous or channels_last."""
    if out.dtype != x.dtype:
        out.copy_(_mix(matrix, x))
    elif out.is_contiguous():
        torch.bmm(matrix.mT, _pixels(x), out=out.flatten(2))
    else:
        torch.bmm(_pixels(x).mT, matrix, out=out.permute(0, 2, 3, 1).flatten(1, 2))


def _correlation(grad: Tensor, x: Tensor, padding: str) -> Tensor:
    """The sums over pixels of grad times x shifted by each of nine taps, (N, 9, 3, 3), x padded by a pixel."""
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate" if padding == "replicate" else "constant")
    n, colours, height, width = x.shape
    shifted = [padded[:, :, dy : dy + height, dx : dx + width] for dy in range(3) for dx in range(3)]
    return _pixels(grad)[:, None] @ torch.stack(shifted, 1).reshape(n, 9, colours, height * width).mT


# ------------------------------------------------------------------------------------------------- operation counts


@register_flop_formula(torch.ops.andfast.identity_gradients)
def _flops(x_shape, _grad, before_shape, _after, noises, _dtype, slopes, correlation, *_args, **_kwargs) -> int:  # type: ignore[no-untyped-def]
    """Of the products: A^T g once a layer, B^T x and its product with A^T g a slope, 81 of the correlation a pixel."""
    n, _, height, width = x_shape
    channels, macs = before_shape[3], 81 * bool(correlation)
    for noise, slope in zip(noises, slopes, strict=True):
        macs += COLOURS * (channels if slope else noise) + (COLOURS + 1) * channels * bool(slope)
    return 2 * n * height * width * macs
