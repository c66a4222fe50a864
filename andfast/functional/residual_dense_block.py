"""The residual dense block of ESRGAN: five 3x3 convolutions, each reading x and all previous outputs.

With ``F`` features (channels of x), growth ``G``, zero padding of 1 and ``lrelu`` the leaky ReLU::

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
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from andfast import checks
from andfast.functional import compiled_ops, dense_blocks_cuda, dispatch, layout, triton_support
from andfast.functional import residual_dense_block_reference as reference
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
        weights: five kernels, shapes (G, F + k*G, 3, 3) for k = 0 to 3 and (F, F + 4*G, 3, 3) for the last.
        biases: five vectors, shapes (G,) four times and (F,) for the last.
        slope: negative slope of the leaky ReLU, at least 0.
        scale: factor of the last convolution's output before x is added.
        impl: "auto" for the fastest implementation available on x's device, or one of
            :data:`andfast.functional.dispatch.IMPLEMENTATIONS`.

    Returns:
        Tensor of x's shape.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong shape, device or value; ``impl`` is unknown.
        RuntimeError: the requested implementation is not available here.
    """
    x, weights, biases, slope, scale = _checked(x, weights, biases, slope, scale)
    keep_features = torch.is_grad_enabled() and any(weight.requires_grad for weight in weights)
    no_cuda = dense_blocks_cuda.unsuited(x.shape[1], weights[0].shape[0])
    impl = dispatch.resolve(NAME, impl, x.device.type, x.dtype, no_cuda)
    return forward_op(x, weights, biases, slope, scale, keep_features, impl)[0]


# -------------------------------------------------------------------------------------------------- Arguments


def _checked(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], slope: float, scale: float
) -> tuple[Tensor, list[Tensor], list[Tensor], float, float]:
    """Validate all arguments and apply autocast."""
    checks.images("x", x)
    _check_five_tensors("weights", weights)
    _check_five_tensors("biases", biases)
    for name, number in (("slope", slope), ("scale", scale)):
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise TypeError(f"{name} must be a number, was {type(number).__name__}")
        if not -math.inf < number < math.inf:  # math.isfinite does not compile where numbers are dynamic
            raise ValueError(f"{name} must be finite, was {number}")
    if slope < 0:  # backward reads the pre-activation's sign off the activation
        raise ValueError(f"slope must be at least 0, was {slope}")
    if min(x.shape[1:]) < 1:
        raise ValueError(f"x must have at least one channel, row and column, was {checks.shape(x)}")

    dtype = checks.autocast_dtype(x.device.type)
    if dtype is not None:
        x = layout.cast(x, dtype)
        weights = [layout.cast(weight, dtype) for weight in weights]
        biases = [layout.cast(bias, dtype) for bias in biases]

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


def _check_five_tensors(name: str, value: Sequence[Tensor]) -> None:
    """Raise unless ``value`` is a sequence of five floating-point tensors."""
    if isinstance(value, Tensor) or not isinstance(value, Sequence):
        raise TypeError(f"{name} must be a list or tuple of {CONVOLUTIONS} tensors, was {type(value).__name__}")
    if len(value) != CONVOLUTIONS:
        raise ValueError(f"{name} must hold {CONVOLUTIONS} tensors, held {len(value)}")
    for k, tensor in enumerate(value):
        checks.tensor(f"{name}[{k}]", tensor)
        checks.floating(f"{name}[{k}]", tensor)


# "auto" selects the first that is available. An H200 measured Triton against the reference; counts (docs/kernels) are
# for the compiled ops on both architectures, but on 9.0 they wait for a measurement.
dispatch.register(
    NAME,
    {"reference": dispatch.everywhere, "triton": triton_support.why_not, "cuda": compiled_ops.why_not},
    dtypes={"triton": triton_support.DTYPES, "cuda": compiled_ops.DTYPES},
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
        return dense_blocks_cuda.forward(x, weights, biases, slope, scale, keep_features, layout.memory_format(x))
    if impl == "triton":
        from andfast.kernels.residual_dense_block import block  # noqa: PLC0415  (imports Triton)

        tf32 = triton_support.tf32_allowed()
        return block.forward(x, weights, biases, slope, scale, keep_features, layout.memory_format(x), tf32=tf32)
    return reference.forward(x, weights, biases, slope, scale, keep_features)


@forward_op.register_fake
def _(x: Tensor, weights: Sequence[Tensor], *args: Any) -> tuple[Tensor, Tensor]:
    _biases, _slope, _scale, keep_features, impl = args
    channels, growth = x.shape[1], weights[0].shape[0]
    if impl == "cuda":
        return layout.empty(x, channels), dense_blocks_cuda.saved_for_backward(x, growth, keep_features)
    if impl == "triton":
        return layout.empty(x, channels), saved_for_backward(x, growth, keep_features)
    saved = layout.empty(x, channels + 4 * growth) if keep_features else layout.empty(x, growth, torch.uint8)
    return layout.empty(x, channels), saved


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

    Triton and CUDA need ``x`` for gradients to weights; the reference reads it from the saved features.
    """
    needs = reference.Needs(needs_x, needs_weights, needs_biases)
    if impl == "cuda":
        grad_x, grad_weights, grad_biases = dense_blocks_cuda.backward(grad, saved, x, weights, slope, scale, *needs)
    elif impl == "triton":
        from andfast.kernels.residual_dense_block import block  # noqa: PLC0415  (imports Triton)

        grad_x, grad_weights, grad_biases = block.backward(
            grad, saved, x, weights, slope, scale, *needs, tf32=triton_support.tf32_allowed()
        )
    else:
        grad_x, grad_weights, grad_biases = reference.backward(grad, saved, weights, slope, scale, needs)
    # An op must return tensors, with the strides that the fake below promises.
    return (
        grad.new_empty(0) if grad_x is None else grad_x,
        [grad.new_empty(0) if value is None else value.contiguous() for value in grad_weights],
        [grad.new_empty(0) if value is None else value for value in grad_biases],
    )


@backward_op.register_fake
def _(grad: Tensor, saved: Tensor, weights: Sequence[Tensor], *args: Any) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    _slope, _scale, needs_x, needs_weights, needs_biases, impl, *_ = args
    if needs_x:
        grad_x = gradient_to_x(grad) if impl != "reference" else layout.empty(saved, weights[-1].shape[0], grad.dtype)
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
    """Operations of a 3x3 convolution, or of one of its gradients, on images of shape (N, C, H, W)."""
    return 2 * TAPS * cin * cout * shape[0] * shape[2] * shape[3]


@register_flop_formula(torch.ops.andfast.residual_dense_block)
def _forward_operations(x_shape: Any, weight_shapes: Any, *_args: Any, **_kwargs: Any) -> int:
    return sum(_operations(x_shape, shape[1], shape[0]) for shape in weight_shapes)


@register_flop_formula(torch.ops.andfast.residual_dense_block_backward)
def _backward_operations(grad_shape: Any, _saved_shape: Any, weight_shapes: Any, *args: Any, **_kwargs: Any) -> int:
    _slope, _scale, needs_x, needs_weights, needs_biases, impl, *_ = args
    needs = reference.Needs(needs_x, needs_weights, needs_biases)
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
