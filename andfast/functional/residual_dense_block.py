"""The residual dense block of ESRGAN: five 3x3 convolutions, each of which reads everything before it.

With ``F`` channels of x, ``G`` of growth, zero padding of 1 and ``lrelu`` the leaky ReLU::

    1.  x1 = lrelu(conv1(x))
    2.  xk = lrelu(convk(cat(x, x1, ..., x(k-1))))      k = 2, 3, 4
    3.  x5 = conv5(cat(x, x1, x2, x3, x4))
    4.  out = x + scale * x5

(Wang et al., ESRGAN, 2018, figure 4; names as in BasicSR's ``ResidualDenseBlock``.) Nothing is concatenated: one buffer
of F + 4G channels holds x, x1, ..., x4, and convolution k reads its first F + (k-1)G channels. The backward pass
accumulates in a buffer of the same layout, from the last convolution to the first.

Saved for backward: the buffer if weights require gradients (in Triton and CUDA x and the growth as two tensors); with
frozen weights only the signs of x1 to x4.
"""

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from andfast import checks
from andfast.functional import compiled_ops, dense_blocks_cuda, dispatch
from andfast.functional import triton_support as _triton
from andfast.functional.layout import cast as _cast
from andfast.functional.layout import convolution_backward as _convolution_backward
from andfast.functional.layout import empty as _empty
from andfast.functional.layout import memory_format as _memory_format
from andfast.kernels.residual_dense_block.buffers import (
    ACTIVATIONS,
    CONVOLUTIONS,
    first_activation,
    gradient_to_x,
    saved_for_backward,
)

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

    Differentiable (once) in x, weights and biases; only the gradients that are needed are computed. Under autocast,
    inputs other than float64 are cast to the autocast dtype, which is the dtype of the result.

    Args:
        x: Features, (N, F, H, W), floating point; N may be 0. The result has its memory format.
        weights: Five kernels, shapes (G, F + k*G, 3, 3) for k = 0 to 3 and (F, F + 4*G, 3, 3) for the last.
        biases: Five vectors, shapes (G,) four times and (F,) for the last.
        slope: Negative slope of the leaky ReLU, at least 0.
        scale: Factor of the last convolution's output before x is added.
        impl: "auto" for the fastest implementation available on x's device, or one of
            :data:`andfast.functional.dispatch.IMPLEMENTATIONS`.

    Returns:
        Tensor of x's shape.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: An argument has the wrong shape, device or value; ``impl`` is unknown.
        RuntimeError: The requested implementation is not available here.
    """
    x, weights, biases, slope, scale = _checked(x, weights, biases, slope, scale)
    keep_features = torch.is_grad_enabled() and any(weight.requires_grad for weight in weights)
    no_cuda = dense_blocks_cuda.unsuited(x.shape[1], weights[0].shape[0])
    impl = dispatch.resolve(NAME, impl, x.device.type, x.dtype, no_cuda)
    return forward_op(x, weights, biases, slope, scale, keep_features, impl)[0]


def residual_dense_block_reference(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], *, slope: float = 0.2, scale: float = 0.2
) -> Tensor:
    """The definition, composed of PyTorch ops and differentiated by autograd; tests compare with it."""
    features = [x]
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        features.append(F.leaky_relu(F.conv2d(torch.cat(features, 1), weight, bias, padding=1), slope))
    return F.conv2d(torch.cat(features, 1), weights[-1], biases[-1], padding=1) * scale + x


# -------------------------------------------------------------------------------------------------- Arguments


def _checked(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], slope: float, scale: float
) -> tuple[Tensor, list[Tensor], list[Tensor], float, float]:
    """Validate all arguments and apply autocast."""
    checks.images("x", x)
    _five_tensors("weights", weights)
    _five_tensors("biases", biases)
    for name, number in (("slope", slope), ("scale", scale)):
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise TypeError(f"{name} must be a number, was {type(number).__name__}")
        if not -math.inf < number < math.inf:  # math.isfinite does not compile where numbers are dynamic
            raise ValueError(f"{name} must be finite, was {number}")
    if slope < 0:  # backward reads the pre-activation's sign off the activation
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
    for k, tensor in enumerate(value):
        checks.tensor(f"{name}[{k}]", tensor)
        checks.floating(f"{name}[{k}]", tensor)


# -------------------------------------------------------------------------------------------- Needed gradients


class _Needs(NamedTuple):
    """Which gradients are needed."""

    x: bool
    weights: Sequence[bool]
    biases: Sequence[bool]

    def below(self, k: int) -> bool:
        """Whether the gradient to the input of convolution k is needed."""
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
    """Return out, and the features or signs for backward, see :func:`forward_op`."""
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
    """Return the gradients to x, weights and biases; None for those not needed."""
    channels, growth = weights[-1].shape[0], weights[0].shape[0]
    # The accumulation leaves out the channels of x if their gradient is not needed.
    first = 0 if needs.x else channels
    grad_weights: list[Tensor | None] = [None] * CONVOLUTIONS
    grad_biases: list[Tensor | None] = [None] * CONVOLUTIONS
    total = grad  # after the first iteration: gradient to the features, from channel `first` on
    for k in reversed(range(CONVOLUTIONS)):
        end = channels + k * growth
        if k == CONVOLUTIONS - 1:
            grad_output = grad * scale
        else:
            grad_output = total[:, end - first : end - first + growth]
            grad_output = torch.where(_positive(saved, k, end, growth), grad_output, grad_output * slope)

        needs_input, grad_input = needs.below(k), None
        if needs.weights[k]:
            mask = [needs_input and first == 0, True, needs.biases[k]]
            grad_input, grad_weights[k], grad_biases[k] = _convolution_backward(
                grad_output, saved[:, :end], weights[k], mask
            )
        elif needs.biases[k]:
            grad_biases[k] = grad_output.sum((0, 2, 3))
        if not needs_input:
            break
        if end > first:
            if grad_input is None:
                # The gradient to the input, without needing the input itself.
                grad_input = F.conv_transpose2d(grad_output, weights[k][:, first:], padding=1)
            if k == CONVOLUTIONS - 1:
                total = grad_input
            else:
                total[:, : end - first] += grad_input
    if not needs.x:
        return None, grad_weights, grad_biases
    grad_x = torch.add(total[:, :channels], grad, out=_empty(saved, channels, grad.dtype))
    return grad_x, grad_weights, grad_biases


def _positive(saved: Tensor, k: int, start: int, growth: int) -> Tensor:
    """Where x(k+1), features ``start`` to ``start + growth``, is positive."""
    if saved.dtype == torch.uint8:
        return (saved & (1 << k)) != 0
    return saved[:, start : start + growth] > 0


# "auto" selects the first that is available. An H200 measured Triton against the reference; counts (docs/kernels) are
# for the compiled ops on both architectures, but on 9.0 they wait for a measurement.
dispatch.register(
    NAME,
    {"reference": dispatch.everywhere, "triton": _triton.why_not, "cuda": compiled_ops.why_not},
    dtypes={"triton": _triton.DTYPES, "cuda": compiled_ops.DTYPES},
    rankings={
        8: dispatch.Ranking(("cuda", "reference", "triton"), measured=False),
        9: dispatch.Ranking(("triton", "reference", "cuda"), measured=True),
    },
)


# ------------------------------------------------- Registration: one forward and one backward op


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
    """Return out and a tensor for backward, without validating arguments.

    With ``keep_features``, which gradients to weights need, the latter is the features (N, F + 4G, H, W), x first; else
    the signs, uint8 (N, G, H, W): bit k of channel g is set where channel g of x(k+1) is positive. For Triton see
    :func:`andfast.kernels.residual_dense_block.buffers.saved_for_backward`, for CUDA
    :func:`andfast.functional.dense_blocks_cuda.saved_for_backward`.
    """
    if impl == "cuda":
        return dense_blocks_cuda.forward(x, weights, biases, slope, scale, keep_features, _memory_format(x))
    if impl == "triton":
        from andfast.kernels.residual_dense_block import block  # noqa: PLC0415  (imports Triton)

        tf32 = _triton.tf32_allowed()
        return block.forward(x, weights, biases, slope, scale, keep_features, _memory_format(x), tf32=tf32)
    return _forward_reference(x, weights, biases, slope, scale, keep_features)


@forward_op.register_fake
def _(x: Tensor, weights: Sequence[Tensor], *others: Any) -> tuple[Tensor, Tensor]:
    _biases, _slope, _scale, keep_features, impl = others
    channels, growth = x.shape[1], weights[0].shape[0]
    if impl == "cuda":
        return _empty(x, channels), dense_blocks_cuda.saved_for_backward(x, growth, keep_features)
    if impl == "triton":
        return _empty(x, channels), saved_for_backward(x, growth, keep_features)
    saved = _empty(x, channels + 4 * growth) if keep_features else _empty(x, growth, torch.uint8)
    return _empty(x, channels), saved


@torch.library.custom_op("andfast::residual_dense_block_backward", mutates_args=())
def backward_op(
    grad: Tensor,
    saved: Tensor,
    weights: Sequence[Tensor],
    slope: float,
    scale: float,
    needs_x: bool,
    needs_weights: Sequence[bool],
    needs_biases: Sequence[bool],
    impl: str,
    x: Tensor | None = None,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return the gradients to x, weights and biases; empty tensors for those not needed.

    Triton and CUDA need ``x`` for gradients to weights; the reference has it in its features.
    """
    needs = _Needs(needs_x, needs_weights, needs_biases)
    if impl == "cuda":
        grad_x, grad_weights, grad_biases = dense_blocks_cuda.backward(grad, saved, x, weights, slope, scale, *needs)
    elif impl == "triton":
        from andfast.kernels.residual_dense_block import block  # noqa: PLC0415  (imports Triton)

        grad_x, grad_weights, grad_biases = block.backward(
            grad, saved, x, weights, slope, scale, *needs, tf32=_triton.tf32_allowed()
        )
    else:
        grad_x, grad_weights, grad_biases = _backward_reference(grad, saved, weights, slope, scale, needs)
    # An op must return tensors, with the strides that the fake below promises.
    return (
        grad.new_empty(0) if grad_x is None else grad_x,
        [grad.new_empty(0) if value is None else value.contiguous() for value in grad_weights],
        [grad.new_empty(0) if value is None else value for value in grad_biases],
    )


@backward_op.register_fake
def _(
    grad: Tensor, saved: Tensor, weights: Sequence[Tensor], *others: Any
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    _slope, _scale, needs_x, needs_weights, needs_biases, impl, *_ = others
    if needs_x:
        grad_x = gradient_to_x(grad) if impl != "reference" else _empty(saved, weights[-1].shape[0], grad.dtype)
    return (
        grad_x if needs_x else grad.new_empty(0),
        [w.new_empty(w.shape if needed else (0,)) for w, needed in zip(weights, needs_weights, strict=True)],
        [w.new_empty(w.shape[0] if needed else 0) for w, needed in zip(weights, needs_biases, strict=True)],
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weights, _, ctx.slope, ctx.scale, ctx.keep_features, ctx.impl = inputs
    ctx.mark_non_differentiable(output[1])
    saved_x = x if ctx.keep_features and ctx.impl != "reference" else None
    ctx.save_for_backward(output[1], saved_x, *weights)


def _backward(ctx: Any, grad: Tensor, _grad_saved: Tensor | None) -> tuple[Any, ...]:
    saved, x, *weights = ctx.saved_tensors
    needs_x, needs_weights, needs_biases = ctx.needs_input_grad[:3]
    if any(needs_weights) and not ctx.keep_features:
        raise RuntimeError("gradients to the weights of residual_dense_block need keep_features=True in the forward op")
    grad_x, grad_weights, grad_biases = backward_op(
        grad,
        saved,
        weights,
        ctx.slope,
        ctx.scale,
        needs_x,
        list(needs_weights),
        list(needs_biases),
        ctx.impl,
        x,
    )
    return (
        grad_x if needs_x else None,
        [value if needed else None for value, needed in zip(grad_weights, needs_weights, strict=True)],
        [value if needed else None for value, needed in zip(grad_biases, needs_biases, strict=True)],
        *(None,) * 4,
    )


forward_op.register_autograd(_backward, setup_context=_setup_context)


# -------------------------- Operation counts for torch.utils.flop_counter: two per multiply-accumulate


def _operations(shape: Sequence[int], cin: int, cout: int) -> int:
    """Operations of a 3x3 convolution, or of one of its gradients, on images of this (N, C, H, W)."""
    return 2 * TAPS * cin * cout * shape[0] * shape[2] * shape[3]


@register_flop_formula(torch.ops.andfast.residual_dense_block)
def _forward_operations(x_shape: Any, weight_shapes: Any, *_args: Any, **_kwargs: Any) -> int:
    return sum(_operations(x_shape, shape[1], shape[0]) for shape in weight_shapes)


@register_flop_formula(torch.ops.andfast.residual_dense_block_backward)
def _backward_operations(grad_shape: Any, _saved_shape: Any, weight_shapes: Any, *others: Any, **_kwargs: Any) -> int:
    _slope, _scale, needs_x, needs_weights, needs_biases, impl, *_ = others
    needs = _Needs(needs_x, needs_weights, needs_biases)
    first = 0 if needs_x else weight_shapes[-1][0]
    if impl != "reference":  # one gather per activation whose gradient is needed, and one for x
        features, growth = weight_shapes[-1][0], weight_shapes[0][0]
        lowest = first_activation(needs_x, needs_weights, needs_biases)
        if impl == "cuda" and lowest < ACTIVATIONS:  # always the whole block
            needs_x, lowest = True, 0
        channels = [features + (ACTIVATIONS - 1 - k) * growth for k in range(lowest, ACTIVATIONS)]
        to_input = sum(_operations(grad_shape, cin, growth) for cin in channels)
        to_input += _operations(grad_shape, features + 4 * growth, features) if needs_x else 0
    else:
        to_input = sum(
            _operations(grad_shape, shape[1] - first, shape[0])
            for k, shape in enumerate(weight_shapes)
            if needs.below(k)
        )
    to_weights = sum(
        _operations(grad_shape, shape[1], shape[0])
        for shape, needed in zip(weight_shapes, needs_weights, strict=True)
        if needed
    )
    return to_input + to_weights
