"""Chains of dense blocks: csrc/convolution/dense_block.h plans the launches, the emulator runs them on the CPU."""

import ctypes
import shutil

import pytest
import torch
import torch.nn.functional as F
from convolution_emulator import COMPILER, Report, compiled
from convolution_structs import (
    DTYPES,
    WEIGHT_TYPES,
    Channels,
    ConvolutionParameters,
    DenseBlocks,
    Kept,
    Region,
    Setting,
    Slice,
    Trunk,
    aligned,
    pointer,
)

from andfast.functional.residual_dense_block_reference import residual_dense_block_reference

pytestmark = pytest.mark.skipif(shutil.which(COMPILER) is None, reason="needs a C++ compiler")
TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 3e-3}  # roundings, and slopes where they flip a sign
SCALE = 0.2


def parameters(blocks, features, growth, dtype, generator):
    weights, biases = [], []
    for n in range(5 * blocks):
        k = n % 5
        c_out, c_in = growth if k < 4 else features, features + k * growth
        weights.append((torch.randn(c_out, c_in, 3, 3, generator=generator) * (9 * c_in) ** -0.5).to(dtype))
        biases.append((torch.randn(c_out, generator=generator) / 4).to(dtype))
    return weights, biases


def reference(x, weights, biases, per_group):
    """(N, F, H, W) in float64."""
    out, group = x, x
    for n in range(len(weights) // 5):
        of = slice(5 * n, 5 * n + 5)
        if per_group and n % per_group == 0:
            group = out
        out = residual_dense_block_reference(
            out, [w.double() for w in weights[of]], [b.double() for b in biases[of]], slope=0.2, scale=SCALE
        )
        if per_group and (n + 1) % per_group == 0:
            out = group + SCALE * out
    return out


class Blocks:
    """Blocks with their packed weights and the tensors of their passes, all of which are NaN at first."""

    def __init__(self, dtype, images, height, width, features, growth, blocks, per_group, weight_dtype, seed, driver):
        generator = torch.Generator().manual_seed(seed)
        self.dtype, self.size, self.features, self.growth = dtype, (images, height, width), features, growth
        self.numbers = DenseBlocks(
            DTYPES[dtype], images, height, width, features, growth, blocks, per_group, 0.2, SCALE, SCALE
        )
        self.library = compiled(driver)
        self.weights, self.biases = parameters(blocks, features, growth, weight_dtype, generator)
        structs = [
            ConvolutionParameters(w.data_ptr(), b.data_ptr(), WEIGHT_TYPES[w.dtype])
            for w, b in zip(self.weights, self.biases, strict=True)
        ]
        self.packed = []
        for backward in (False, True):
            size = self.library.dense_blocks_packed_bytes(ctypes.byref(self.numbers), backward)
            packed = aligned(size, dtype=torch.uint8).fill_(255)
            self.library.pack_dense_blocks(
                ctypes.byref(self.numbers), (ConvolutionParameters * len(structs))(*structs),
                ctypes.c_void_p(packed.data_ptr()), backward,
            )  # fmt: skip
            self.packed.append(packed)

    def tensor(self, channels):
        return aligned(*self.size, channels, dtype=self.dtype).fill_(torch.nan)

    def run(self, x, kept, backward):
        """(N, H, W, F) to the same; ``kept`` is signs, growth or None."""
        values = kept is not None and kept.dtype != torch.uint8
        of_x = [self.tensor(self.features) for _ in range(3)]
        growth = self.tensor(4 * self.growth)
        keep = Channels(None, 0, 0) if not values else Slice(kept, 0, 4 * self.growth).struct()
        out, *scratch = (Slice(value, 0, self.features).struct() for value in of_x)
        trunk = Trunk(
            Slice(x, 0, self.features).struct(), out, Slice(growth, 0, 4 * self.growth).struct(),
            (Channels * 2)(*scratch),
        )  # fmt: skip
        written = [*of_x, growth] + ([] if kept is None or backward else [kept])
        read = [x, self.packed[backward]] + ([kept] if kept is not None and backward else [])
        counts = [torch.zeros(value.nbytes // 2, dtype=torch.uint8) for value in written]
        regions = [
            Region(value.data_ptr(), value.nbytes, count.data_ptr())
            for value, count in zip(written, counts, strict=True)
        ]
        regions += [Region(value.data_ptr(), value.nbytes, None) for value in read]
        setting = Setting((Region * len(regions))(*regions), len(regions), 2, 2, 1)
        error = self.library.run_dense_blocks(
            ctypes.byref(self.numbers), ctypes.byref(trunk),
            ctypes.byref(Kept(pointer(kept) if kept is not None and not values else None, keep)),
            ctypes.c_void_p(self.packed[backward].data_ptr()), backward, ctypes.byref(setting), ctypes.byref(Report()),
        )  # fmt: skip
        assert error is None, error
        return of_x[0]


def error(value, expected):
    return float((value.double() - expected).norm() / expected.norm())


BLOCKS = {
    "G's": (64, 32, 1, 0, "signs"),
    "G's, values kept": (64, 32, 1, 0, "values"),
    "small, values kept": (16, 8, 1, 0, "values"),
    "two": (40, 16, 2, 0, "signs"),
    "two RRDBs": (16, 8, 6, 3, "signs"),
}  # features, growth, blocks, blocks of a group


@pytest.mark.parametrize(
    ("name", "driver", "dtype"),
    [
        *((name, "run_mma.cpp", torch.bfloat16) for name in BLOCKS),
        *((name, "run_wgmma.cpp", torch.bfloat16) for name in BLOCKS if "G's" in name),
        ("two RRDBs", "run_mma.cpp", torch.float16),
        ("G's, values kept", "run_wgmma.cpp", torch.float16),
    ],
)
def test_matches_definition(name, driver, dtype):
    features, growth, blocks, per_group, keep = BLOCKS[name]
    blocks_ = Blocks(dtype, 2, 9, 18, features, growth, blocks, per_group, torch.float32, features, driver)
    generator = torch.Generator().manual_seed(1)
    x, grad = (blocks_.tensor(features).copy_(torch.randn(2, 9, 18, features, generator=generator)) for _ in range(2))
    if keep == "signs":
        kept = aligned(blocks, 4, 2, 9, 18, -(-growth // 32) * 4, dtype=torch.uint8)
    else:
        kept = blocks_.tensor(4 * growth)
    out = blocks_.run(x, kept, backward=False)
    exact_x = x.double().permute(0, 3, 1, 2).requires_grad_()
    expected = reference(exact_x, blocks_.weights, blocks_.biases, per_group)
    assert error(out.permute(0, 3, 1, 2), expected.detach()) < TOLERANCE[dtype]
    grad_x = blocks_.run(grad, kept, backward=True)
    expected.backward(grad.double().permute(0, 3, 1, 2))
    assert error(grad_x.permute(0, 3, 1, 2), exact_x.grad) < TOLERANCE[dtype]
    if keep == "values":
        weight, bias = blocks_.weights[0].double(), blocks_.biases[0].double()
        x1 = F.leaky_relu(F.conv2d(exact_x.detach(), weight, bias, padding=1), 0.2)
        assert error(kept[..., :growth].permute(0, 3, 1, 2), x1) < TOLERANCE[dtype]
