"""The ops of andfast._ops in plain PyTorch on the CPU, so that what calls them can be tested without a GPU.

Schemas are the library's own, loaded or read from csrc/convolution/ops.cpp. "Packed" weights are the bytes of the
weights and biases in float64. Any dtype is taken, so gradcheck runs in float64.
"""

import functools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from andfast.functional import compiled_ops, dispatch, frozen_dense_blocks

SOURCE = Path(__file__).parents[2] / "csrc" / "convolution" / "ops.cpp"
LAST = 4
ANY_DTYPE = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let impl="cuda" of G's ops run on the CPU, in any dtype, for a test."""
    install()
    for op in ("residual_dense_block", "upsampled_convolution"):
        monkeypatch.setitem(dispatch._TABLE[op], "cuda", dispatch.everywhere)
        monkeypatch.setitem(dispatch._DTYPES, (op, "cuda"), ANY_DTYPE)
    monkeypatch.setitem(frozen_dense_blocks.DTYPES, "cuda", ANY_DTYPE)


@functools.cache
def install() -> torch.library.Library:
    """Register the CPU implementations, and the ops themselves where the library was not built."""
    library = torch.library.Library("andfast", "FRAGMENT")
    if not hasattr(torch.ops.andfast, "dense_blocks_forward"):
        for definition in re.findall(r"m\.def\(([^;]*)\);", SOURCE.read_text()):
            library.define("".join(re.findall(r'"([^"]*)"', definition)))
        compiled_ops.register_fakes()
    for function in (
        convolution_pack,
        convolution_forward,
        convolution_backward,
        convolution_activation_backward,
        dense_blocks_pack,
        dense_blocks_forward,
        dense_blocks_backward,
    ):
        library.impl(function.__name__, function, "CPU")
    return library


def channels_last(value: Tensor, dtype: torch.dtype) -> Tensor:
    empty = torch.empty(value.shape, dtype=dtype, memory_format=torch.channels_last)
    return empty.copy_(value)


def signs_of(positive: Tensor) -> Tensor:
    """(N, C, H, W) booleans as (N, H, W, 4 * ceil(C / 32)) bytes."""
    channels = positive.shape[1]
    bits = F.pad(positive.permute(0, 2, 3, 1).to(torch.uint8), (0, 8 * compiled_ops.sign_bytes(channels) - channels))
    return (bits.unflatten(-1, (-1, 8)) << torch.arange(8, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)


def positive_from(signs: Tensor, channels: int) -> Tensor:
    bits = (signs.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8)) & 1
    return bits.flatten(-2)[..., :channels].permute(0, 3, 1, 2).bool()


# ------------------------------------------------------------------------------------------- One convolution


def convolution_pack(weight: Tensor, bias: Tensor | None, dtype: torch.dtype, factor: int, backward: bool) -> Tensor:
    assert weight.is_contiguous()
    assert bias is None or bias.is_contiguous()
    assert bias is None or not backward
    parts = [weight.double().flatten(), *([] if bias is None else [bias.double()])]
    return torch.cat(parts).view(torch.uint8)


def enlarged(x: Tensor, factor: int) -> Tensor:
    return F.interpolate(x, scale_factor=factor, mode="nearest") if factor > 1 else x


def convolution_forward(x: Tensor, packed: Tensor, out_channels: int, factor: int, slope: float, *options: Any) -> Any:
    slopes, scale, residual, noise, replicate, per_image, keep_signs = options
    assert slopes is residual is noise is None
    assert scale == 1
    assert not replicate
    assert not per_image
    assert out_channels % 8 == 0 or (out_channels < 8 and factor == 1 and not keep_signs)
    values = packed.view(torch.float64)
    shape = (out_channels, x.shape[1], 3, 3)
    bias = values[-out_channels:]
    out = F.conv2d(enlarged(x.double(), factor), values[:-out_channels].view(shape), bias, padding=1)
    out = channels_last(F.leaky_relu(out, slope), x.dtype)
    return out, signs_of(out > 0) if keep_signs else x.new_empty(0, dtype=torch.uint8)


def convolution_backward(
    grad: Tensor, packed: Tensor, in_channels: int, factor: int, input_signs: Any, _slope: float, per_image: bool
) -> Tensor:
    assert input_signs is None
    assert not per_image
    assert in_channels % 8 == 0 or (in_channels < 8 and factor == 1)
    weight = packed.view(torch.float64).view(grad.shape[1], in_channels, 3, 3)
    large = F.conv_transpose2d(grad.double(), weight, padding=1)
    small = F.avg_pool2d(large, factor, divisor_override=1) if factor > 1 else large
    return channels_last(small, grad.dtype)


def convolution_activation_backward(grad: Tensor, signs: Tensor, slope: float) -> Tensor:
    assert grad.is_contiguous(memory_format=torch.channels_last)
    return channels_last(torch.where(positive_from(signs, grad.shape[1]), grad, slope * grad), grad.dtype)


# ----------------------------------------------------------------------------------------------- Dense blocks


def dense_blocks_pack(
    weights: list[Tensor],
    biases: list[Tensor],
    dtype: torch.dtype,
    per_group: int,
    scale: float,
    outer_scale: float,
    backward: bool,
) -> Tensor:
    assert all(tensor.is_contiguous() for tensor in (*weights, *biases))
    assert len(weights) % 5 == 0
    assert len(biases) == (0 if backward else len(weights))
    assert per_group != 1
    assert per_group == 0 or len(weights) // 5 % per_group == 0
    factors = torch.tensor([scale, outer_scale], dtype=torch.float64)
    return torch.cat([factors, *(tensor.double().flatten() for tensor in (*weights, *biases))]).view(torch.uint8)


def unpacked(packed: Tensor, features: int, growth: int, blocks: int) -> list[Tensor]:
    """The weights, then the biases if there are any."""
    values, at, result = packed.view(torch.float64), 2, []
    for bias in (False, True):
        for n in range(5 * blocks):
            inputs, outputs = features + n % 5 * growth, features if n % 5 == LAST else growth
            shape = (outputs,) if bias else (outputs, inputs, 3, 3)
            size = outputs * (1 if bias else 9 * inputs)
            result.append(values[at : at + size].view(shape) if at < values.numel() else torch.empty(0))
            at += size
    return result


def dense_blocks_forward(
    x: Tensor,
    packed: Tensor,
    growth: int,
    blocks: int,
    per_group: int,
    slope: float,
    scale: float,
    outer_scale: float,
    keep: int,
) -> tuple[Tensor, Tensor]:
    assert keep != compiled_ops.KEEP_GROWTH or blocks == 1
    parameters = unpacked(packed, x.shape[1], growth, blocks)
    out, signs, group = x.double(), [], x.double()
    for block in range(blocks):
        if per_group and block % per_group == 0:
            group = out
        features = [out]
        for k in range(5):
            n = 5 * block + k
            result = F.conv2d(torch.cat(features, 1), parameters[n], parameters[5 * blocks + n], padding=1)
            if k < LAST:
                features.append(F.leaky_relu(result, slope).to(x.dtype).double())
        signs.append(torch.stack([signs_of(feature > 0) for feature in features[1:]]))
        out = (out + scale * result).to(x.dtype).double()
        if per_group and (block + 1) % per_group == 0:
            out = group + outer_scale * out
    saved = {
        compiled_ops.KEEP_NOTHING: x.new_empty(0, dtype=torch.uint8),
        compiled_ops.KEEP_SIGNS: torch.stack(signs),
        compiled_ops.KEEP_GROWTH: channels_last(torch.cat(features[1:], 1), x.dtype),
    }[keep]
    return channels_last(out, x.dtype), saved


def dense_blocks_backward(
    grad: Tensor,
    saved: Tensor,
    packed: Tensor,
    growth: int,
    blocks: int,
    per_group: int,
    slope: float,
    scale: float,
    outer_scale: float,
) -> tuple[Tensor, Tensor]:
    features = grad.shape[1]
    weights = unpacked(packed, features, growth, blocks)
    packed_scales = packed.view(torch.float64)[:2].tolist()
    assert packed_scales == [scale, outer_scale]  # the kernels find them in the weights
    total = grad.double()
    group = total
    for block in reversed(range(blocks)):
        if per_group and (block + 1) % per_group == 0:
            group, total = total, outer_scale * total
        buffer = torch.zeros(grad.shape[0], features + 4 * growth, *grad.shape[2:], dtype=torch.float64)
        buffer[:, :features] = total
        for k in reversed(range(5)):
            weight, end = weights[5 * block + k], features + k * growth
            if k == LAST:
                incoming = scale * total
            else:
                if saved.dtype == torch.uint8:
                    positive = positive_from(saved[block, k], growth)
                else:
                    positive = saved[:, k * growth : (k + 1) * growth] > 0
                incoming = buffer[:, end : end + growth]
                incoming.copy_(torch.where(positive, incoming, slope * incoming))
            buffer[:, :end] += F.conv_transpose2d(incoming, weight, padding=1)
        total = buffer[:, :features]
        if per_group and block % per_group == 0:
            total = total + group
        total = total.to(grad.dtype).double()
    return channels_last(total, grad.dtype), channels_last(buffer[:, features:], grad.dtype)
