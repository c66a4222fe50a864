"""Chains of frozen residual dense blocks as one op, in CUDA or Triton: the trunk of a frozen RRDBNet.

The host makes one call per direction instead of one per block, and weights are packed once for any number of passes.
Every ``blocks_per_group`` blocks form an RRDB (Wang et al., ESRGAN, 2018, figure 4)::

    x  ->  x + outer_scale * (block(...block(x)))

Differentiable only in x. Saved for backward: the signs of all activations.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from andfast import checks
from andfast.functional import compiled_ops, dense_blocks_cuda, dispatch, triton_support
from andfast.functional.layout import cast, memory_format
from andfast.functional.residual_dense_block import NAME as DENSE_BLOCK
from andfast.functional.residual_dense_block_reference import residual_dense_block_reference
from andfast.kernels.common.layout import empty_channels_last
from andfast.kernels.residual_dense_block.buffers import ACTIVATIONS, CONVOLUTIONS, chain_signs_shape

_OPS: Any = torch.ops.andfast
DTYPES: Final = {"cuda": compiled_ops.DTYPES, "triton": triton_support.DTYPES}
"""Dtypes of x, by implementation of the op."""


class PackedBlocks(NamedTuple):
    """Frozen dense blocks packed for the kernels, for one dtype of x, on one device.

    Attributes:
        forward, backward: packed weights and biases, of a layout that depends on ``impl``.
        features, growth: channels of x and of each growth.
        blocks, blocks_per_group: number of blocks, and of blocks per outer residual; 0 for none.
        slope, scale, outer_scale: of the leaky ReLUs, each block's residual, and each group's residual.
        dtype: of x.
        impl: implementation that the weights are packed for, "cuda" or "triton".
    """

    forward: list[Tensor]
    backward: list[Tensor]
    features: int
    growth: int
    blocks: int
    blocks_per_group: int
    slope: float
    scale: float
    outer_scale: float
    dtype: torch.dtype
    impl: str


@torch.no_grad()
def pack_dense_blocks(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    dtype: torch.dtype,
    *,
    blocks_per_group: int = 3,
    slope: float = 0.2,
    scale: float = 0.2,
    outer_scale: float = 0.2,
    impl: str,
) -> PackedBlocks:
    """Pack the weights of frozen blocks, once for any number of passes.

    Args:
        weights: five kernels per block, of the shapes of :func:`andfast.functional.residual_dense_block`, on one CUDA
            device, in bf16, fp16 or fp32.
        biases: five vectors per block.
        dtype: of x and of the packed weights, bf16 or fp16; with "triton" also fp32.
        blocks_per_group: blocks per outer residual, at least 2, or 0 for none.
        slope, scale, outer_scale: see :class:`PackedBlocks`.
        impl: "cuda" or "triton".

    Raises:
        ValueError: the number of weights or biases, their channels, dtype or ``impl`` is not supported.
        RuntimeError: the implementation is not available, or rejects a tensor.
    """
    if not weights or len(weights) % CONVOLUTIONS:
        raise ValueError(f"weights must hold {CONVOLUTIONS} tensors for each block, held {len(weights)}")
    if len(biases) != len(weights):
        raise ValueError(f"biases must hold as many tensors as weights, {len(weights)}, held {len(biases)}")
    if impl not in DTYPES:
        raise ValueError(f"impl must be {' or '.join(map(repr, DTYPES))}, was {impl!r}")
    if dtype not in DTYPES[impl]:
        raise ValueError(f"dtype must be {' or '.join(map(str, DTYPES[impl]))}, was {dtype}")
    growth, features = weights[0].shape[:2]
    no_cuda = dense_blocks_cuda.unsuited(features, growth)
    dispatch.resolve(DENSE_BLOCK, impl, weights[0].device.type, dtype, no_cuda)  # raises if it cannot run
    if impl == "triton":
        from andfast.kernels.residual_dense_block import chain  # noqa: PLC0415  (imports Triton)

        forward = chain.pack_forward(weights, biases, dtype)
        backward = chain.pack_backward(weights, dtype)
    else:
        weights = dense_blocks_cuda.contiguous(weights)
        forward, backward = (
            [dense_blocks_cuda.pack(weights, biases, dtype, blocks_per_group, scale, outer_scale, backward=backward)]
            for backward in (False, True)
        )
    return PackedBlocks(
        forward, backward, features, growth, len(weights) // CONVOLUTIONS,
        blocks_per_group, slope, scale, outer_scale, dtype, impl,
    )  # fmt: skip


def frozen_dense_blocks(x: Tensor, packed: PackedBlocks) -> Tensor:
    """Apply a chain of frozen dense blocks.

    Under autocast x is cast to the autocast dtype.

    Args:
        x: (N, F, H, W), of the dtype and on the device of ``packed``. The result has its memory format.
        packed: from :func:`pack_dense_blocks`.

    Returns:
        Tensor of x's shape.

    Raises:
        TypeError: x has another dtype than ``packed``.
        ValueError: x has another number of channels than ``packed``.
    """
    checks.images("x", x)
    dtype = checks.autocast_dtype(x.device.type)
    x = x if dtype is None else cast(x, dtype)
    if x.dtype != packed.dtype:
        raise TypeError(f"x must be {packed.dtype}, the dtype of the packed weights, was {x.dtype}")
    if x.shape[1] != packed.features:
        raise ValueError(f"x must have {packed.features} channels, those of the packed weights, was {tuple(x.shape)}")
    keep_signs = torch.is_grad_enabled() and x.requires_grad
    return forward_op(x, *packed[:2], *packed[3:9], packed.impl, keep_signs)[0]


def frozen_dense_blocks_reference(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    blocks_per_group: int = 3,
    slope: float = 0.2,
    scale: float = 0.2,
    outer_scale: float = 0.2,
) -> Tensor:
    """The definition, composed of PyTorch ops; tests compare with it."""
    group = x
    for block in range(len(weights) // CONVOLUTIONS):
        if blocks_per_group and block % blocks_per_group == 0:
            group = x
        of = slice(CONVOLUTIONS * block, CONVOLUTIONS * (block + 1))
        x = residual_dense_block_reference(x, weights[of], biases[of], slope=slope, scale=scale)
        if blocks_per_group and (block + 1) % blocks_per_group == 0:
            x = group + outer_scale * x
    return x


# ------------------------------------------------- Registration: one forward and one backward op


@torch.library.custom_op("andfast::frozen_dense_blocks", mutates_args=())
def forward_op(
    x: Tensor,
    packed: Sequence[Tensor],
    packed_backward: Sequence[Tensor],
    growth: int,
    blocks: int,
    blocks_per_group: int,
    slope: float,
    scale: float,
    outer_scale: float,
    impl: str,
    keep_signs: bool,
) -> tuple[Tensor, Tensor]:
    """Return out and the signs of all activations, see :func:`_signs_shape`, or an empty tensor."""
    if impl == "triton":
        from andfast.kernels.residual_dense_block import chain  # noqa: PLC0415  (imports Triton)

        tf32 = triton_support.tf32_allowed()
        out, signs = chain.forward(x, packed, blocks_per_group, slope, scale, outer_scale, keep_signs, tf32=tf32)
    else:
        keep = compiled_ops.KEEP_SIGNS if keep_signs else compiled_ops.KEEP_NOTHING
        out, signs = _OPS.dense_blocks_forward(
            x, packed[0], growth, blocks, blocks_per_group, slope, scale, outer_scale, keep
        )
    return compiled_ops.in_format(out, memory_format(x)), signs


def _signs_shape(x: Tensor, growth: int, blocks: int, impl: str) -> tuple[int, ...]:
    """(blocks, 4, N, H, W, bytes): ceil(G / 8) bytes for Triton, 4 * ceil(G / 32) for CUDA."""
    return (chain_signs_shape if impl == "triton" else compiled_ops.block_signs_shape)(x, growth, blocks)


@forward_op.register_fake
def _(x: Tensor, _packed: Any, _packed_backward: Any, growth: int, blocks: int, *args: Any) -> Any:
    impl, keep_signs = args[-2:]
    shape = _signs_shape(x, growth, blocks, impl) if keep_signs else (0,)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))
    return out, x.new_empty(shape, dtype=torch.uint8)


@torch.library.custom_op("andfast::frozen_dense_blocks_backward", mutates_args=())
def backward_op(
    grad: Tensor,
    signs: Tensor,
    packed_backward: Sequence[Tensor],
    growth: int,
    blocks: int,
    blocks_per_group: int,
    slope: float,
    scale: float,
    outer_scale: float,
    impl: str,
) -> Tensor:
    """Return the gradient to x, channels_last."""
    if impl == "triton":
        from andfast.kernels.residual_dense_block import chain  # noqa: PLC0415  (imports Triton)

        tf32 = triton_support.tf32_allowed()
        return chain.backward(grad, signs, packed_backward, blocks_per_group, slope, scale, outer_scale, tf32=tf32)
    grad_x: Tensor = _OPS.dense_blocks_backward(
        grad, signs, packed_backward[0], growth, blocks, blocks_per_group, slope, scale, outer_scale
    )[0]
    return grad_x


@backward_op.register_fake
def _(grad: Tensor, *_: Any) -> Tensor:
    return empty_channels_last(grad, grad.shape[1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, packed, packed_backward, *ctx.constants, ctx.keep_signs = inputs
    ctx.no_gradients = [None] * len(packed), [None] * len(packed_backward), *(None,) * (len(ctx.constants) + 1)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], *packed_backward)


def _backward(ctx: Any, grad: Tensor, _grad_signs: Tensor | None) -> tuple[Any, ...]:
    if not ctx.keep_signs:
        raise RuntimeError("the gradient to x of frozen_dense_blocks needs keep_signs=True in the forward op")
    signs, *packed_backward = ctx.saved_tensors
    return backward_op(grad, signs, packed_backward, *ctx.constants), *ctx.no_gradients


forward_op.register_autograd(_backward, setup_context=_setup_context)


# -------------------------- Operation counts for torch.utils.flop_counter: two per multiply-accumulate


def _operations(shape: Sequence[int], growth: int, blocks: int) -> int:
    """Operations of the blocks on images of this (N, C, H, W), in either direction."""
    n, features, height, width = shape
    channels = sum((features + k * growth) * growth for k in range(ACTIVATIONS))
    channels += (features + ACTIVATIONS * growth) * features
    return 2 * 9 * channels * blocks * n * height * width


@register_flop_formula(torch.ops.andfast.frozen_dense_blocks)
def _forward_operations(
    x_shape: Any, _packed: Any, _packed_backward: Any, growth: int, blocks: int, *_: Any, **_kwargs: Any
) -> int:
    return _operations(x_shape, growth, blocks)


@register_flop_formula(torch.ops.andfast.frozen_dense_blocks_backward)
def _backward_operations(
    grad_shape: Any, _signs: Any, _packed: Any, growth: int, blocks: int, *_: Any, **_kwargs: Any
) -> int:
    return _operations(grad_shape, growth, blocks)
