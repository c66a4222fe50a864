"""The upsampled convolution's Triton kernels against its definition in float64, in Triton's interpreter.

This file runs itself again in the interpreter, see triton_interpreter; what is under ``if INTERPRETED`` runs there
only. Triton's interpreter gets bf16 wrong: here the same code is tested as fp32 and fp16; bf16 is tested on a GPU, in
test_kernels_upsampled_convolution_gpu.py.
"""

import itertools
import random
import sys
from typing import Any

import layouts
import pytest
import torch
import triton_interpreter
from comparison import assert_near
from torch import Tensor
from triton_interpreter import INTERPRETED

from andfast.functional import dispatch, upsampled_convolution
from andfast.functional.selftest import self_test
from andfast.functional.upsampled_convolution import backward_op, forward_op, upsampled_convolution_reference
from andfast.kernels.common.config import PRECISIONS, KernelConfig
from andfast.kernels.upsampled_convolution.configs import TABLE
from andfast.nn import RRDBNet
from andfast.nn.frozen import frozen as frozen_parameters

CASES = 64
NAMES = ("out", "x", "weight", "bias")

pytestmark = triton_interpreter.quiet


def make(n: int = 2, c_in: int = 4, c_out: int = 11, height: int = 5, width: int = 7) -> list[Tensor]:
    """Random x, weight and bias in float32."""
    x = torch.randn(n, c_in, height, width)
    return [x, torch.randn(c_out, c_in, 3, 3) / (3 * c_in**0.5), torch.randn(c_out) / 3]


def exact_results(arguments: list[Tensor], grad: Tensor, **options: Any) -> list[Tensor]:
    """The definition in float64: the result, and the gradients to x, weight and bias."""
    leaves = [one.detach().double().requires_grad_() for one in arguments]
    out = upsampled_convolution_reference(*leaves, **options)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.double())]


# ------------------------------------------------------------------------------------------- without the interpreter


if not INTERPRETED:

    @pytest.mark.slow
    def test_in_the_interpreter() -> None:
        triton_interpreter.run(__file__, "test")

    def test_the_op_runs_without_triton() -> None:
        triton_interpreter.run_without_triton(
            "f.upsampled_convolution(torch.rand(1, 3, 4, 4), torch.rand(2, 3, 3, 3), torch.rand(2))\n"
            "import andfast.kernels.upsampled_convolution.configs"
        )

    def test_the_explicit_choice_says_why_it_cannot_be_had() -> None:
        with pytest.raises(RuntimeError, match=r"impl='triton' of upsampled_convolution .* CUDA devices.*'cpu'"):
            upsampled_convolution(*make(), impl="triton")

    def test_float64_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(dispatch._TABLE["upsampled_convolution"], "triton", dispatch.everywhere)
        with pytest.raises(TypeError, match=r"x must be float32, bfloat16 or float16 with impl='triton', was torch\.f"):
            upsampled_convolution(*(one.double() for one in make()), impl="triton")

    def test_the_table_is_complete() -> None:
        for entries in TABLE.values():
            assert set(entries) == set(itertools.product(("forward", "grad_input"), PRECISIONS))
            assert all(config.block_h * config.block_w >= 16 for config in entries.values())

    @pytest.mark.parametrize("impl", ["reference", "triton"])
    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
    def test_passes_of_g_keep_little(
        memory_format: torch.memory_format, impl: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of an RRDBNet at full size, in bytes, parameters apart, outside of the blocks.

        Frozen: the signs of the tail's three activations. Trained: what each convolution reads, the LR, the body's
        result and its sum with the first features, and one map at twice and two at four times the size.
        """
        for op in ("residual_dense_block", "upsampled_convolution"):
            monkeypatch.setitem(dispatch._TABLE[op], "triton", dispatch.everywhere)
        blocks, pixels = 23, 48 * 64 * 64
        with torch.device("meta"):
            network = RRDBNet(blocks=blocks, impl=impl).bfloat16().to(memory_format=memory_format)
            lr = torch.empty(48, 3, 64, 64, dtype=torch.bfloat16).to(memory_format=memory_format).requires_grad_()
        parameters = {one.untyped_storage()._cdata for one in network.parameters()}
        kept: dict[int, Tensor] = {}

        def keep(one: Tensor) -> Tensor:
            if one.untyped_storage()._cdata not in parameters and one.numel():
                kept[one.untyped_storage()._cdata] = one
            return one

        tail = [4 * 8 * pixels, 16 * 8 * pixels, 16 * 8 * pixels]
        in_blocks = [(16 if impl == "triton" else 32) * pixels] * 3 * blocks
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one):
            with frozen_parameters(network):
                network(lr)
            assert {one.dtype for one in kept.values()} == {torch.uint8}
            assert sorted(one.nbytes for one in kept.values()) == sorted(in_blocks + tail)
            kept.clear()
            network(lr)
        assert {one.dtype for one in kept.values()} == {torch.bfloat16}
        maps = sorted(one.nbytes // (2 * pixels) for one in kept.values())
        of_blocks = 3 * blocks * [128 if impl == "triton" else 192]
        read_by_blocks = 3 * blocks * [64] if impl == "triton" else []
        # conv_first reads the LR; the first block reads conv_first's result
        assert maps == sorted([3, *of_blocks, *read_by_blocks, 64, 64, 4 * 64, 16 * 64, 16 * 64])


# ------------------------------------------------------------------------------------------------- in the interpreter


if INTERPRETED:
    from andfast.kernels.upsampled_convolution import kernels

    triton_interpreter.repair()

    CONFIGS = (
        KernelConfig(8, 16, 64, 8, 1),
        KernelConfig(8, 8, 16, 4, 1),
        KernelConfig(2, 8, 64, 4, 1),
        KernelConfig(4, 4, 16, 4, 1),
    )

    def _case(seed: int) -> tuple[list[Tensor], Tensor, dict[str, Any], KernelConfig, bool, str]:
        """Arguments, incoming gradient, factor and slope, configuration, frozen, and which argument was poisoned.

        Two thirds are exact in fp32: x and bias in eighths, weights 1, 0 or -1, so that whether a result is positive
        is no matter of rounding, and often it is zero. In the others a summand of 2 or -2 decides each sign.
        """
        g = random.Random(seed)
        dtype = torch.float16 if seed % 6 == 5 else torch.float32
        exact = seed % 3 != 2
        n, height, width = g.choice([1, 1, 2]), g.randint(1, 9), g.randint(1, 9)
        c_in, c_out = g.choice([1, 2, 3, 5, 8, 16, 17]), g.choice([1, 3, 7, 8, 9, 16, 20])
        if seed % 15 == 4:
            c_in, c_out = g.choice([(64, 64), (65, 3), (3, 67), (64, 3), (80, 16)])
        draw = torch.Generator().manual_seed(seed)
        factor = g.choice([1, 2])
        if exact:
            x = torch.randint(-8, 9, (n, c_in, height, width), generator=draw) / 8
            weight = torch.randint(-1, 2, (c_out, c_in, 3, 3), generator=draw).float()
            bias = torch.randint(-8, 9, (c_out,), generator=draw) / 8
        else:
            x = torch.randn(n, c_in, height, width, generator=draw)
            x[:, 0] = 2 * torch.where(x[:, 0] > 0, 1.0, -1.0)
            weight = torch.randn(c_out, c_in, 3, 3, generator=draw) / (18 * c_in**0.5)
            weight[:, 0, 1, 1] = torch.where(weight[:, 0, 1, 1] > 0, 1.0, -1.0)
            bias = torch.randn(c_out, generator=draw) / 10
        grad = torch.randint(-8, 9, (n, c_out, factor * height, factor * width), generator=draw) / 8
        arguments, grad = [one.to(dtype) for one in (x, weight, bias)], grad.to(dtype)
        kinds = (*layouts.KINDS, "prefix")
        arguments[0], grad = layouts.laid_out(g, arguments[0], kinds), layouts.laid_out(g, grad, kinds)
        poisoned = ""
        if seed % 4 == 1:
            poisoned = g.choice(["x", "grad", "weight", "bias"])
            victim = grad if poisoned == "grad" else arguments[("x", "weight", "bias").index(poisoned)]
            # An infinite x may be NaN in one and infinite in the other, by the order of sums, whose signs differ.
            values = ["nan"] if poisoned == "x" else ["nan", "inf"]
            victim[tuple(g.randrange(size) for size in victim.shape)] = float(g.choice(values))
        slope = g.choice([0.0, 0.25, 1.0, 1.5])
        return arguments, grad, {"factor": factor, "slope": slope}, g.choice(CONFIGS), g.random() < 0.5, poisoned

    @pytest.mark.parametrize("seed", range(CASES))
    def test_parity(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        arguments, grad, options, config, frozen, poisoned = _case(seed)
        monkeypatch.setattr(kernels, "table_config", lambda *_: config)
        right = exact_results(arguments, grad, **options)
        leaves = [one.requires_grad_(index == 0 or not frozen) for index, one in enumerate(arguments)]
        out = upsampled_convolution(*leaves, **options, impl="triton")
        found = [out, *torch.autograd.grad(out, leaves[:1] if frozen else leaves, grad)]
        shape, half = tuple(arguments[0].shape), arguments[0].dtype == torch.float16
        what = f"seed {seed}, {shape}, {options}, {config}, frozen {frozen}, {poisoned!r}"
        for one, exact, name in zip(found, right, NAMES, strict=False):
            if poisoned in ("x", "grad") and name == "weight":  # PyTorch's, which treats borders in several ways
                finite = one.isfinite() & exact.isfinite()
                one, exact = (torch.where(finite, each, 0) for each in (one, exact))  # noqa: PLW2901
            elif poisoned == "grad":  # infinities may cancel in one and not in the other
                assert torch.equal(one.isfinite(), exact.isfinite()), what
                one, exact = (torch.where(each.isfinite(), each, 0) for each in (one, exact))  # noqa: PLW2901
            if poisoned == "weight":
                # At the border a tap meets no pixel: zero times a weight that is not finite, or nothing; either will
                # do, and what the gradients are where a sign is NaN's is not compared.
                if name != "out":
                    break
                one = torch.where(one.isnan(), exact.to(one.dtype), one)  # noqa: PLW2901
                exact = torch.where(exact.isnan(), one.double(), exact)  # noqa: PLW2901
            assert_near(one, exact, 4e-3 if half else 1e-5, f"{name}, {what}")

    @pytest.fixture(autouse=True)
    def _on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
        """Let impl="triton" have the CPU, where the interpreter is."""
        monkeypatch.setitem(dispatch._TABLE["upsampled_convolution"], "triton", dispatch.everywhere)

    @pytest.mark.parametrize("factor", [1, 2])
    def test_both_implementations_keep_the_same_signs(factor: int) -> None:
        x, weight, bias = make(2, 3, 19, 5, 3)
        bits = [forward_op(x, weight, bias, factor, 0.2, True, impl)[1] for impl in ("triton", "reference")]
        assert bits[0].shape == (2, factor * 5, factor * 3, 3)
        assert torch.equal(*bits)

    def test_a_value_that_rounds_to_zero_is_not_positive() -> None:
        x, weight = torch.full((1, 1, 1, 1), 2e-4).half(), torch.zeros(1, 1, 3, 3).half()
        weight[0, 0, 1, 1] = 1e-4
        for impl in ("triton", "reference"):
            out, bits = forward_op(x, weight, torch.zeros(1).half(), 1, 0.2, True, impl)
            assert not out.any()
            assert not bits.any()

    @pytest.mark.parametrize("needs", list(itertools.product((False, True), repeat=3))[1:])
    def test_every_subset_of_gradients(needs: tuple[bool, ...], monkeypatch: pytest.MonkeyPatch) -> None:
        """And with frozen weights no gradient to them is computed, nor one before the activation made."""
        arguments = make(2, 3, 9, 4, 5)
        grad = torch.randn(2, 9, 8, 10)
        right = exact_results(arguments, grad, factor=2)[1:]
        leaves = [one.requires_grad_(need) for one, need in zip(arguments, needs, strict=True)]
        if not any(needs[1:]):
            monkeypatch.setattr(sys.modules[upsampled_convolution.__module__], "gradients", None)
            monkeypatch.setattr(torch.ops.aten, "leaky_relu_backward", None)
        if not needs[0]:
            monkeypatch.setattr(kernels, "grad_input", None)
        out = upsampled_convolution(*leaves, impl="triton")
        found = torch.autograd.grad(out, [one for one in leaves if one.requires_grad], grad)
        expected = [one for one, need in zip(right, needs, strict=True) if need]
        for one, other in zip(found, expected, strict=True):
            assert_near(one, other, 1e-5, f"needs {needs}")

    def test_two_runs_give_the_same_bits() -> None:
        leaves = [one.requires_grad_() for one in make(1, 5, 8, 9, 5)]
        runs = [torch.autograd.grad(upsampled_convolution(*leaves, impl="triton").sum(), leaves) for _ in range(2)]
        for one, other in zip(*runs, strict=True):
            assert torch.equal(one, other)

    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
    @pytest.mark.parametrize("frozen", [False, True])
    def test_opcheck(frozen: bool, memory_format: torch.memory_format) -> None:
        x, *parameters = make(2, 4, 9, 3, 4)
        x = x.contiguous(memory_format=memory_format).requires_grad_()
        parameters = [one.requires_grad_(not frozen) for one in parameters]
        torch.library.opcheck(forward_op, (x, *parameters, 2, 0.2, frozen, "triton"))
        with torch.no_grad():
            out, signs = forward_op(x, *parameters, 2, 0.2, True, "triton")
            needed, last = [True, not frozen, not frozen], memory_format == torch.channels_last
            kept, saved = (None, signs) if frozen else (x.detach(), out)
            grad, weight = torch.randn_like(out), parameters[0].detach()
            torch.library.opcheck(backward_op, (grad, saved, kept, weight, 2, 0.2, needed, last, "triton"))

    @pytest.mark.parametrize("frozen", [False, True])
    def test_compiles_as_one_graph(frozen: bool) -> None:
        x, weight, bias = make(1, 4, 4, 3, 4)
        leaves = [x.requires_grad_(), *(() if frozen else (weight.requires_grad_(), bias.requires_grad_()))]

        def loss(x: Tensor) -> Tensor:
            inner = upsampled_convolution(x, weight, bias, impl="triton").sin()
            return upsampled_convolution(inner, weight, bias, factor=1, slope=1, impl="triton").square().sum()

        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        eager = torch.autograd.grad(loss(x), leaves)
        for got, expected in zip(torch.autograd.grad(compiled(x), leaves), eager, strict=True):
            torch.testing.assert_close(got, expected)

    @pytest.mark.parametrize("frozen", [False, True])
    def test_an_empty_batch(frozen: bool) -> None:
        x, weight, bias = make(0)
        leaves = [x.requires_grad_(), *(() if frozen else (weight.requires_grad_(), bias.requires_grad_()))]
        out = upsampled_convolution(x, weight, bias, impl="triton")
        assert out.shape == (0, 11, 10, 14)
        for one, leaf in zip(torch.autograd.grad(out.sum(), leaves), leaves, strict=True):
            assert torch.equal(one, torch.zeros_like(leaf))

    def test_signs_alone_refuse_the_gradients_of_weights() -> None:
        x, weight, bias = make()
        out, signs = forward_op(x, weight, bias, 2, 0.2, True, "triton")
        with pytest.raises(ValueError, match="need the result, not its signs"):
            backward_op(out, signs, x, weight, 2, 0.2, [True, True, True], False, "triton")

    def test_the_self_test_passes() -> None:
        results = self_test("cpu", [torch.float32], ["upsampled_convolution"])
        assert [one.impl for one in results] == ["reference", "triton"]
        assert all(one.passed for one in results), results
