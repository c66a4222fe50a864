"""The fp8 dense block's Triton kernels against the reference, in Triton's interpreter.

This file reruns itself in the interpreter, see triton_interpreter; tests under ``if INTERPRETED`` run only there. The
interpreter computes bf16 incorrectly, so x is fp32 or fp16 here; bf16 is tested on a GPU.
"""

import random
from typing import Any

import fp8_blocks
import layouts
import pytest
import torch
import triton_interpreter
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from triton_interpreter import INTERPRETED

from andfast.functional import dispatch
from andfast.functional.residual_dense_block_fp8 import NAME, forward_op, quantize_weights, residual_dense_block_fp8
from andfast.kernels.common.config import KernelConfig
from andfast.kernels.residual_dense_block_fp8.configs import OUTPUT_BLOCKS, REDUCTION_BLOCKS, TABLE

CASES = 16

pytestmark = triton_interpreter.quiet

if not INTERPRETED:

    @pytest.mark.slow
    @pytest.mark.parametrize("part", ["parity", "not parity"])
    def test_in_the_interpreter(part: str) -> None:
        triton_interpreter.run(__file__, part)

    def test_config_table_is_complete() -> None:
        for entries in TABLE.values():
            assert set(entries) == set(OUTPUT_BLOCKS)
            assert all(config.block_k in REDUCTION_BLOCKS for config in entries.values())

    def test_saved_tensors_of_fake_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
        """At training size: 16 bytes per pixel, and the weights."""
        monkeypatch.setitem(dispatch._TABLE[NAME], "triton", dispatch.everywhere)
        kept: list[Tensor] = []
        with FakeTensorMode(), torch.autograd.graph.saved_tensors_hooks(kept.append, lambda tensor: tensor):
            x, weights, biases = fp8_blocks.arguments(48, 64, 32, 64, 64)
            x = x.bfloat16().contiguous(memory_format=torch.channels_last).requires_grad_()
            quantized = quantize_weights(weights, biases)
            residual_dense_block_fp8(x, quantized, impl="triton")
        sizes = sorted(tensor.nbytes for tensor in kept)
        assert sizes[-1] == 16 * 48 * 64 * 64
        assert sum(sizes[:-1]) == sum(tensor.nbytes for tensor in (*quantized.kernels, *quantized.factors))


if INTERPRETED:
    from andfast.kernels.residual_dense_block_fp8 import kernels

    triton_interpreter.repair()

    @pytest.fixture(autouse=True)
    def _on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(dispatch._TABLE[NAME], "triton", dispatch.everywhere)

    def _results(x: Tensor, quantized: Any, grad: Tensor, slope: float, impl: str) -> list[Tensor]:
        leaf = x.detach().requires_grad_()
        out, bits = forward_op(leaf, *map(list, quantized), slope, impl)
        return [out.detach(), bits, *torch.autograd.grad(out, leaf, grad)]

    def _exact(draw: torch.Generator, n: int, features: int, growth: int, height: int, width: int) -> Any:
        """Weights of 448 / 128, half of that or 0, x and biases in eighths: every sum is exact in any order."""
        x = torch.randint(-8, 9, (n, features, height, width), generator=draw) / 8
        weights = []
        for k in range(5):
            shape = (growth if k < 4 else features, features + k * growth, 3, 3)
            chosen = torch.randint(-2, 3, shape, generator=draw) * (torch.rand(shape, generator=draw) < 0.2)
            chosen[:, 0, 0, 0] = 2  # the largest value, so that the factor is a power of two
            chosen[0] = 2 * chosen[0].sign()
            weights.append(chosen * 448 / 1024)
        return x, weights, [torch.randint(-8, 9, (tensor.shape[0],), generator=draw) / 8 for tensor in weights]

    @pytest.mark.parametrize("seed", range(CASES))
    def test_parity(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Forward, signs and backward; bitwise equal where sums are exact, else close."""
        g = random.Random(seed)
        draw = torch.Generator().manual_seed(seed)
        n, height, width = g.choice([1, 1, 2]), g.randint(1, 9), g.randint(1, 9)
        features, growth = g.choice([1, 2, 3, 5, 8, 16, 17]), g.choice([1, 2, 3, 5, 8, 9])
        if seed % 9 == 3:
            features, growth = g.choice([(64, 32), (32, 16), (65, 3), (3, 17)])
            height, width = g.choice([(3, 5), (2, 9)])
        x, weights, biases = _exact(draw, n, features, growth, height, width)
        exact = seed % 3 != 2
        if not exact:
            torch.manual_seed(seed)
            x, weights, biases = fp8_blocks.arguments(n, features, growth, height, width)
        grad = torch.randint(-40, 41, x.shape, generator=draw).float() / 2
        if seed % 6 == 5:
            x, grad = x.half(), grad.half()
        if seed % 4 == 1:
            victim = g.choice([x, grad])
            victim[tuple(g.randrange(size) for size in victim.shape)] = g.choice(
                [float("nan"), float("inf"), 1e4, -6e4]
            )
        kinds = (*layouts.KINDS, "prefix")
        x, grad = layouts.laid_out(g, x, kinds), layouts.laid_out(g, grad, kinds)
        config = g.choice([KernelConfig(1, 64, 32, 8, 1), KernelConfig(1, 32, 64, 4, 1), KernelConfig(1, 16, 32, 4, 1)])
        if n * -(-height * width // (config.block_w - 2)) > 3:
            config = KernelConfig(1, 128, 64, 8, 1)
        for entries in TABLE.values():
            for block in entries:
                monkeypatch.setitem(entries, block, config)
        quantized = quantize_weights(weights, biases)
        slope = g.choice([0.0, 0.25, 1.0])
        actual = _results(x, quantized, grad, slope, "triton")
        right = _results(x, quantized, grad, slope, "reference")
        what = f"seed {seed}, {tuple(x.shape)}, growth {growth}, slope {slope}, {config}"
        for tensor, expected, name in zip(actual, right, ("out", "bits", "gradient"), strict=True):
            assert tensor.dtype == expected.dtype, f"{name}, {what}"
            assert tensor.stride() == expected.stride(), f"{name}, {what}"
            if exact and name != "out":  # the scale of 0.2 is not exact
                torch.testing.assert_close(
                    tensor, expected, rtol=1e-5, atol=1e-5, equal_nan=True, msg=f"{name}, {what}"
                )
            elif name != "bits":
                torch.testing.assert_close(
                    tensor, expected, rtol=3e-3, atol=3e-3, equal_nan=True, msg=f"{name}, {what}"
                )

    def test_empty_batch() -> None:
        x, weights, biases = fp8_blocks.arguments(0, 4, 3, 5, 6)
        out, bits, grad = _results(x, quantize_weights(weights, biases), x, 0.2, "triton")
        assert out.shape == grad.shape == x.shape
        assert bits.shape == (4, 0, 5, 6, 1)

    def test_is_deterministic() -> None:
        x, weights, biases = fp8_blocks.arguments(1, 8, 8, 4, 5)
        quantized = quantize_weights(weights, biases)
        once, again = (_results(x, quantized, x, 0.2, "triton") for _ in range(2))
        assert all(map(torch.equal, once, again))

    @pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
    def test_quantize_matches_torch(dtype: torch.dtype) -> None:
        """All fp16 values; conversion saturates."""
        values = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.float16)
        x = values.reshape(1, 64, 32, 32).contiguous(memory_format=torch.channels_last)
        actual = kernels.quantize(x, dtype).permute(0, 3, 1, 2).float()
        largest = torch.finfo(dtype).max
        right = x.float().clamp(-largest, largest).to(dtype).float()
        torch.testing.assert_close(actual, right, rtol=0, atol=0, equal_nan=True)
