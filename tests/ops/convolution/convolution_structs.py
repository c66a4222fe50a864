"""csrc/convolution's structs for ctypes, and torch tensors as they point to them.

Field by field as in ``problem.h`` and ``weights.h``; ``test_structs_have_the_sizes_of_the_headers`` compares the sizes.
"""

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

DTYPES = {torch.bfloat16: 0, torch.float16: 1}
WEIGHT_TYPES = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}
ZEROS, REPLICATE = range(2)
NO_RESAMPLING, UPSAMPLE, UPSAMPLE_ADJOINT = range(3)
NO_ACTIVATION, LEAKY_RELU, GRADIENT_BY_VALUES, GRADIENT_BY_SIGNS = range(4)


class Channels(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("pixel_stride", ctypes.c_int32), ("count", ctypes.c_int32))


class Shape(ctypes.Structure):
    _fields_ = (
        ("dtype", ctypes.c_int32),
        ("source_channels", ctypes.c_int32 * 2),
        ("out_channels", ctypes.c_int32),
        ("resampling", ctypes.c_int32),
        ("per_image_weights", ctypes.c_bool),
    )


class Problem(ctypes.Structure):
    _fields_ = (
        ("dtype", ctypes.c_int32),
        ("images", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("resampling", ctypes.c_int32),
        ("padding", ctypes.c_int32),
        ("sources", Channels * 2),
        ("weights", ctypes.c_void_p),
        ("per_image_weights", ctypes.c_bool),
        ("bias", ctypes.c_void_p),
        ("out", Channels),
        ("activation", ctypes.c_int32),
        ("slope", ctypes.c_float),
        ("slopes", ctypes.c_void_p),
        ("slopes_image_stride", ctypes.c_int32),
        ("slopes_channel_stride", ctypes.c_int32),
        ("kept", Channels),
        ("kept_signs", ctypes.c_void_p),
        ("signs", ctypes.c_void_p),
        ("sign_bytes", ctypes.c_int32),
        ("scale", ctypes.c_float),
        ("residual", Channels),
        ("residual_scale", ctypes.c_float),
        ("outer", Channels),
        ("outer_scale", ctypes.c_float),
        ("noise", ctypes.c_void_p),
    )


class WeightPart(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("flip", ctypes.c_bool),
        ("channels", ctypes.c_int32),
        ("out_stride", ctypes.c_int32),
        ("in_stride", ctypes.c_int32),
        ("scale", ctypes.c_float),
        ("image_stride", ctypes.c_int64),
    )


class PackJob(ctypes.Structure):
    _fields_ = (
        ("shape", Shape),
        ("images", ctypes.c_int32),
        ("n_parts", ctypes.c_int32),
        ("parts", WeightPart * 5),
        ("packed", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("bias_type", ctypes.c_int32),
        ("packed_bias", ctypes.c_void_p),
    )


class Region(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("bytes", ctypes.c_int64), ("writes", ctypes.c_void_p))


class Setting(ctypes.Structure):
    """Of the emulator: which memory kernels may touch, how many CTAs there are, in which order warps run."""

    _fields_ = (
        ("regions", ctypes.POINTER(Region)),
        ("n_regions", ctypes.c_int32),
        ("multiprocessors", ctypes.c_int32),
        ("order", ctypes.c_int32),
        ("seed", ctypes.c_uint64),
    )


class DenseBlocks(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("dtype", "images", "height", "width")),
        *((name, ctypes.c_int32) for name in ("features", "growth", "blocks", "per_group")),
        *((name, ctypes.c_float) for name in ("slope", "scale", "outer_scale")),
    )


class ConvolutionParameters(ctypes.Structure):
    _fields_ = (("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("type", ctypes.c_int32))


class Kept(ctypes.Structure):
    _fields_ = (("signs", ctypes.c_void_p), ("growth", Channels))


class Trunk(ctypes.Structure):
    _fields_ = (("input", Channels), ("out", Channels), ("growth", Channels), ("scratch", Channels * 2))


class Slice(NamedTuple):
    """Channels [first, first + count) of a channels-last buffer (N, H, W, C)."""

    buffer: Tensor
    first: int
    count: int

    @property
    def values(self) -> Tensor:
        return self.buffer[..., self.first : self.first + self.count]

    def struct(self) -> Channels:
        at = self.buffer.data_ptr() + self.first * self.buffer.element_size()
        return Channels(at, self.buffer.shape[-1], self.count)


def weight_part(weight: Tensor, *, transposed: bool = False, scale: float = 1.0) -> WeightPart:
    """(Cout, Cin, 3, 3), or (N, Cout, Cin, 3, 3) per image, any strides but 3 and 1 of the taps."""
    outer, inner = weight.stride()[-4:-2]
    rows, columns = weight.shape[-4:-2]
    image = weight.stride(0) if weight.dim() == 5 else 0
    channels, out_stride, in_stride = (rows, inner, outer) if transposed else (columns, outer, inner)
    kind = WEIGHT_TYPES[weight.dtype]
    return WeightPart(weight.data_ptr(), kind, transposed, channels, out_stride, in_stride, scale, image)


def aligned(*shape: int, dtype: torch.dtype, offset: int = 0) -> Tensor:
    """An uninitialised tensor ``offset`` elements beyond a 128-byte boundary."""
    count = 1
    for size in shape:
        count *= size
    size = torch.empty((), dtype=dtype).element_size()
    memory = torch.empty(count + 128 // size + offset, dtype=dtype)
    start = (-memory.data_ptr() // size) % (128 // size) + offset
    return memory[start : start + count].view(shape)


def pointer(value: Tensor | None) -> int | None:
    return None if value is None else value.data_ptr()


def shape_of(dtype: torch.dtype, sources: Sequence[int], out: int, resampling: int, per_image: bool) -> Shape:
    two = (ctypes.c_int32 * 2)(*(*sources, 0)[:2])
    return Shape(DTYPES[dtype], two, out, resampling, per_image)
