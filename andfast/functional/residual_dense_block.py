"""The residual dense block of ESRGAN: five 3x3 convolutions, each of which reads all that came before it.

With ``F`` channels of x, ``G`` of growth, zero padding of 1 and ``lrelu`` the leaky ReLU::

    1.  x1 = lrelu(conv1(x))
    2.  xk = lrelu(convk(cat(x, x1, ..., x(k-1))))      k = 2, 3, 4
    3.  x5 = conv5(cat(x, x1, x2, x3, x4))
    4.  out = x + scale * x5

(Wang et al., ESRGAN, 2018, figure 4; the names are those of BasicSR's ``ResidualDenseBlock``.) No
concatenation is ever made: one buffer of F + 4G channels holds x, x1, ..., x4 side by side and convolution k
reads its first F + (k-1)G channels. The backward pass accumulates in one buffer of the same layout, from the
last convolution to the first.

What is kept between the passes depends on who asks. To train the weights, the buffer itself (in Triton x and
the growth, side by side). With frozen weights, the signs of x1 to x4 alone.
"""

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from andfast import checks
from andfast.functional import dispatch
from andfast.functional import triton_support as _triton
from andfast.functional.layout import cast as _cast
from andfast.functional.layout import convolution_backward as _convolution_backward
from andfast.functional.layout import empty as _empty
from andfast.functional.layout import memory_format as _memory_format
from andfast.kernels.residual_dense_block import launch as _fused

CONVOLUTIONS: Final = 5
TAPS: Final = 9
NAME: Final = "residual_dense_block"


def residual_dense_block(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    slope: float = 0.2,
    scale: float = 0.2,
    impl: str = "auto",
) -> Tensor:
    """Apply the five-convolution residual dense block.

    Differentiable (once) in x, weights and biases; a gradient that nobody asks for is not computed. Under
    autocast, tensors other than float64 are cast to its dtype, in which the result is returned.

    Args:
        x: Features of images, (N, F, H, W), floating point; N may be 0. The result takes its memory format.
        weights: Five kernels, shapes (G, F + k*G, 3, 3) for k = 0 to 3 and (F, F + 4*G, 3, 3) for the last.
        biases: Five vectors, shapes (G,) four times and (F,) for the last.
        slope: Negative slope of the leaky ReLU, at least 0.
        scale: Factor of the last convolution's result before x is added.
        impl: "auto" for the fastest implementation available on x's device, or one of
            :data:`andfast.functional.dispatch.IMPLEMENTATIONS`.

    Returns:
        Tensor of x's shape.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: An argument has the wrong shape, device or value; ``impl`` is no implementation's name.
        RuntimeError: The implementation asked for is not available here.
    """
    x, weights, biases, slope, scale = _checked(x, weights, biases, slope, scale)
    keep_features = torch.is_grad_enabled() and any(weight.requires_grad for weight in weights)
    impl = dispatch.resolve(NAME, impl, x.device.type, x.dtype)
    return forward_op(x, weights, biases, slope, scale, keep_features, impl)[0]


def residual_dense_block_reference(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], *, slope: float = 0.2, scale: float = 0.2
) -> Tensor:
    """The same block as its definition reads, differentiated by autograd: the oracle of the tests."""
    features = [x]
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        features.append(F.leaky_relu(F.conv2d(torch.cat(features, 1), weight, bias, padding=1), slope))
    return F.conv2d(torch.cat(features, 1), weights[-1], biases[-1], padding=1) * scale + x


# -------------------------------------------------------------------------------------------------- Arguments


def _checked(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], slope: float, scale: float
) -> tuple[Tensor, list[Tensor], list[Tensor], float, float]:
    """Check every argument and cast what autocast wants cast."""
    checks.images("x", x)
    _five_tensors("weights", weights)
    _five_tensors("biases", biases)
    for name, number in (("slope", slope), ("scale", scale)):
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise TypeError(f"{name} must be a number, was {type(number).__name__}")
        if not -math.inf < number < math.inf:  # math.isfinite does not compile where numbers are dynamic
            raise ValueError(f"{name} must be finite, was {number}")
    if slope < 0:  # the backward pass tells the sign before the activation by the sign after it
        raise ValueError(f"slope must be at least 0, was {slope}")
    if min(x.shape[1:]) < 1:
        raise ValueError(f"x must have at least one channel, row and column, was {checks.shape(x)}")

    dtype = None if x.is_meta else checks.autocast_dtype(x.device.type)
    if dtype is not None:
        x = _cast(x, dtype)
        weights = [_cast(weight, dtype) for weight in weights]
        biases = [_cast(bias, dtype) for bias in biases]

    features = x.shape[1]
    growth = weights[0].shape[0] if weights[0].dim() > 0 else 0
    if growth < 1:
        raise ValueError(f"weights[0] must have shape (G, F, 3, 3) with G at least 1, was {checks.shape(weights[0])}")
    for k, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        last = k == CONVOLUTIONS - 1
        cin, cout = features + k * growth, features if last else growth
        meaning = f"({'F' if last else 'G'}, F + {k}*G, 3, 3)"
        checks.has_shape(f"weights[{k}]", weight, (cout, cin, 3, 3), meaning=meaning)
        checks.has_shape(f"biases[{k}]", bias, (cout,), meaning="(F,)" if last else "(G,)")
        checks.like(f"weights[{k}]", weight, "x", x)
        checks.like(f"biases[{k}]", bias, "x", x)
    return x, list(weights), list(biases), float(slope), float(scale)


def _five_tensors(name: str, value: Sequence[Tensor]) -> None:
    if isinstance(value, Tensor) or not isinstance(value, Sequence):
        raise TypeError(f"{name} must be a list or tuple of {CONVOLUTIONS} tensors, was {type(value).__name__}")
    if len(value) != CONVOLUTIONS:
        raise ValueError(f"{name} must hold {CONVOLUTIONS} tensors, held {len(value)}")
    for k, one in enumerate(value):
        checks.tensor(f"{name}[{k}]", one)
        checks.floating(f"{name}[{k}]", one)


# ----------------------------------------------------------------------------- What the implementations share


class _Needs(NamedTuple):
    """Which gradients are asked for."""

    x: bool
    weights: Sequence[bool]
    biases: Sequence[bool]

    def below(self, k: int) -> bool:
        """Whether the gradient has to go on through convolution k to what it read."""
        return self.x or any(self.weights[:k]) or any(self.biases[:k])


# ----------------------------------------------------------------------------------- Reference implementation


def _forward_reference(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    slope: float,
    scale: float,
    keep_features: bool,
) -> tuple[Tensor, Tensor]:
    """Return out and what the backward pass needs: the features or the signs, see :func:`forward_op`."""
    channels, growth = x.shape[1], weights[0].shape[0]
    features = _empty(x, channels + 4 * growth)
    features[:, :channels] = x
    for k in range(CONVOLUTIONS - 1):
        end = channels + k * growth
        convolved = F.conv2d(features[:, :end], weights[k], biases[k], padding=1)
        features[:, end : end + growth] = F.leaky_relu_(convolved, slope)
    out = _empty(x, channels)
    torch.add(x, F.conv2d(features, weights[-1], biases[-1], padding=1), alpha=scale, out=out)
    if keep_features:
        return out, features
    signs = _empty(x, growth, torch.uint8).zero_()
    for k in range(CONVOLUTIONS - 1):
        signs += (features[:, channels + k * growth : channels + (k + 1) * growth] > 0).to(torch.uint8) << k
    return out, signs


def _backward_reference(
    grad: Tensor, saved: Tensor, weights: Sequence[Tensor], slope: float, scale: float, needs: _Needs
) -> tuple[Tensor | None, list[Tensor | None], list[Tensor | None]]:
    """Return the gradients to x, weights and biases, None where it is not needed."""
    channels, growth = weights[-1].shape[0], weights[0].shape[0]
    # The channels of x are left out of the accumulation if nobody wants them.
    first = 0 if needs.x else channels
    grad_weights: list[Tensor | None] = [None] * CONVOLUTIONS
    grad_biases: list[Tensor | None] = [None] * CONVOLUTIONS
    total = grad  # from the last convolution on: the gradient to the features from channel `first` up
    for k in reversed(range(CONVOLUTIONS)):
        end = channels + k * growth
        if k == CONVOLUTIONS - 1:
            after = grad * scale
        else:
            after = total[:, end - first : end - first + growth]
            after = torch.where(_positive(saved, k, end, growth), after, after * slope)

        go_on, before = needs.below(k), None
        if needs.weights[k]:
            together = [go_on and first == 0, True, needs.biases[k]]
            before, grad_weights[k], grad_biases[k] = _convolution_backward(after, saved[:, :end], weights[k], together)
        elif needs.biases[k]:
            grad_biases[k] = after.sum((0, 2, 3))
        if not go_on:
            break
        if end > first:
            if before is None:
                # a transposed convolution is the gradient to the input, and needs no stand-in for the input
                before = F.conv_transpose2d(after, weights[k][:, first:], padding=1)
            if k == CONVOLUTIONS - 1:
                total = before
            else:
                total[:, : end - first] += before
    if not needs.x:
        return None, grad_weights, grad_biases
    grad_x = torch.add(total[:, :channels], grad, out=_empty(saved, channels, grad.dtype))
    return grad_x, grad_weights, grad_biases


def _positive(saved: Tensor, k: int, start: int, growth: int) -> Tensor:
    """Where x(k+1), whose channels start at ``start`` of the features, is positive."""
    if saved.dtype == torch.uint8:
        return (saved & (1 << k)) != 0
    return saved[:, start : start + growth] > 0


# Triton comes second until a GPU has verified and timed it: "auto" takes the first that can run.
dispatch.register(
    NAME,
    {"reference": dispatch.everywhere, "triton": _triton.why_not},
    dtypes={"triton": _triton.DTYPES},
)


# --------------------------------------- Registration: one op forward, one backward, for every implementation


@torch.library.custom_op("andfast::residual_dense_block", mutates_args=())
def forward_op(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    slope: float,
    scale: float,
    keep_features: bool,
    impl: str,
) -> tuple[Tensor, Tensor]:
    """Return out and what is saved for backward; arguments are not checked.

    Saved are the features (N, F + 4G, H, W), x first, if ``keep_features`` (gradients to weights need them),
    else the signs, uint8 (N, G, H, W): bit k of channel g is set where channel g of x(k+1) is positive. Triton's
    forms are those of :func:`andfast.kernels.residual_dense_block.launch.saved_for_backward`.
    """
    if impl == "triton":
        return _fused.forward(x, weights, biases, slope, scale, keep_features, _memory_format(x))
    return _forward_reference(x, weights, biases, slope, scale, keep_features)


@forward_op.register_fake
def _(x: Tensor, weights: Sequence[Tensor], *others: Any) -> tuple[Tensor, Tensor]:
    _biases, _slope, _scale, keep_features, impl = others
    channels, growth = x.shape[1], weights[0].shape[0]
    if impl == "triton":
        return _empty(x, channels), _fused.saved_for_backward(x, growth, keep_features)
    saved = _empty(x, channels + 4 * growth) if keep_features else _empty(x, growth, torch.uint8)
    return _empty(x, channels), saved


@torch.library.custom_op("andfast::residual_dense_block_backward", mutates_args=())
def backward_op(
    grad: Tensor,
    saved: Tensor,
    weights: Sequence[Tensor],
    slope: float,
    scale: float,
    x_needed: bool,
    weights_needed: Sequence[bool],
    biases_needed: Sequence[bool],
    impl: str,
    x: Tensor | None = None,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return the gradients to x, weights and biases; those not needed as tensors without elements.

    ``x`` is wanted by Triton for gradients to weights; the reference has it in its features.
    """
    needs = _Needs(x_needed, weights_needed, biases_needed)
    if impl == "triton":
        grad_x, grad_weights, grad_biases = _fused.backward(grad, saved, x, weights, slope, scale, *needs)
    else:
        grad_x, grad_weights, grad_biases = _backward_reference(grad, saved, weights, slope, scale, needs)
    # An op returns tensors, not None, and always of the same strides, which the fake below can foretell.
    return (
        grad.new_empty(0) if grad_x is None else grad_x,
        [grad.new_empty(0) if one is None else one.contiguous() for one in grad_weights],
        [grad.new_empty(0) if one is None else one for one in grad_biases],
    )


@backward_op.register_fake
def _(
    grad: Tensor, saved: Tensor, weights: Sequence[Tensor], *others: Any
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    _slope, _scale, x_needed, weights_needed, biases_needed, impl, *_ = others
    if x_needed:
        grad_x = _fused.gradient_to_x(grad) if impl == "triton" else _empty(saved, weights[-1].shape[0], grad.dtype)
    return (
        grad_x if x_needed else grad.new_empty(0),
        [w.new_empty(w.shape if need else (0,)) for w, need in zip(weights, weights_needed, strict=True)],
        [w.new_empty(w.shape[0] if need else 0) for w, need in zip(weights, biases_needed, strict=True)],
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weights, _, ctx.slope, ctx.scale, ctx.features_kept, ctx.impl = inputs
    ctx.mark_non_differentiable(output[1])
    x_kept = x if ctx.features_kept and ctx.impl == "triton" else None
    ctx.save_for_backward(output[1], x_kept, *weights)


def _backward(ctx: Any, grad: Tensor, _grad_saved: Tensor | None) -> tuple[Any, ...]:
    saved, x, *weights = ctx.saved_tensors
    x_needed, weights_needed, biases_needed = ctx.needs_input_grad[:3]
    if any(weights_needed) and not ctx.features_kept:
        raise RuntimeError("gradients to the weights of residual_dense_block need keep_features=True in the forward op")
    grad_x, grad_weights, grad_biases = backward_op(
        grad,
        saved,
        weights,
        ctx.slope,
        ctx.scale,
        x_needed,
        list(weights_needed),
        list(biases_needed),
        ctx.impl,
        x,
    )
    return (
        grad_x if x_needed else None,
        [one if need else None for one, need in zip(grad_weights, weights_needed, strict=True)],
        [one if need else None for one, need in zip(grad_biases, biases_needed, strict=True)],
        *(None,) * 4,
    )


forward_op.register_autograd(_backward, setup_context=_setup_context)


# ---------------------------------- Operation counts, for torch.utils.flop_counter: two a multiply-accumulate


def _operations(shape: Sequence[int], cin: int, cout: int) -> int:
    """Operations of one 3x3 convolution, or of one of its gradients, on images of this (N, C, H, W)."""
    return 2 * TAPS * cin * cout * shape[0] * shape[2] * shape[3]


@register_flop_formula(torch.ops.andfast.residual_dense_block)
def _forward_operations(x_shape: Any, weight_shapes: Any, *_args: Any, **_kwargs: Any) -> int:
    return sum(_operations(x_shape, shape[1], shape[0]) for shape in weight_shapes)


@register_flop_formula(torch.ops.andfast.residual_dense_block_backward)
def _backward_operations(grad_shape: Any, _saved_shape: Any, weight_shapes: Any, *others: Any, **_kwargs: Any) -> int:
    _slope, _scale, x_needed, weights_needed, biases_needed, impl, *_ = others
    needs = _Needs(x_needed, weights_needed, biases_needed)
    first = 0 if x_needed else weight_shapes[-1][0]
    if impl == "triton":  # gathers, for x and for every activation whose gradient is needed, from what reads it
        features, growth = weight_shapes[-1][0], weight_shapes[0][0]
        lowest = _fused.lowest_needed(x_needed, weights_needed, biases_needed)
        read = [features + (CONVOLUTIONS - 2 - k) * growth for k in range(lowest, CONVOLUTIONS - 1)]
        to_input = sum(_operations(grad_shape, cout, growth) for cout in read)
        to_input += _operations(grad_shape, features + 4 * growth, features) if x_needed else 0
    else:
        to_input = sum(
            _operations(grad_shape, shape[1] - first, shape[0])
            for k, shape in enumerate(weight_shapes)
            if needs.below(k)
        )
    to_weights = sum(
        _operations(grad_shape, shape[1], shape[0])
        for shape, need in zip(weight_shapes, weights_needed, strict=True)
        if need
    )
    return to_input + to_weights
