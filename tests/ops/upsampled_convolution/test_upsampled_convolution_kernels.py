"""The upsampled convolution's Triton kernels against its definition in float64, in Triton's interpreter.

This file reruns itself in the interpreter, see triton_interpreter; tests under ``if INTERPRETED`` run only there. The
interpreter computes bf16 incorrectly, so fp32 and fp16 are tested here, and bf16 in test_upsampled_convolution_gpu.py.
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

from andfast.functional import dispatch, selftest_cases, upsampled_convolution
from andfast.functional.selftest import self_test
from andfast.functional.upsampled_convolution import backward_op, forward_op
from andfast.functional.upsampled_convolution_reference import upsampled_convolution_reference
from andfast.kernels.common.config import PRECISIONS, KernelConfig
from andfast.kernels.upsampled_convolution.configs import TABLE
from andfast.nn import RRDBNet
from andfast.nn.frozen import frozen as frozen_parameters

CASES = 20
NAMES = ("out", "x", "weight", "bias")

pytestmark = triton_interpreter.quiet


def make(n: int = 2, c_in: int = 4, c_out: int = 11, height: int = 5, width: int = 7) -> list[Tensor]:
    """Random x, weight and bias in float32."""
    x = torch.randn(n, c_in, height, width)
    return [x, torch.randn(c_out, c_in, 3, 3) / (3 * c_in**0.5), torch.randn(c_out) / 3]


def exact_results(arguments: list[Tensor], grad: Tensor, **options: Any) -> list[Tensor]:
    """The definition in float64: the result, and the gradients to x, weight and bias."""
    leaves = [tensor.detach().double().requires_grad_() for tensor in arguments]
    out = upsampled_convolution_reference(*leaves, **options)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.double())]


# ------------------------------------------------------------------------------------------- without the interpreter


if not INTERPRETED:

    @pytest.mark.slow
    def test_in_the_interpreter() -> None:
        triton_interpreter.run(__file__)

    def test_triton_is_unavailable_on_cpu() -> None:
        with pytest.raises(RuntimeError, match=r"impl='triton' of upsampled_convolution .* CUDA devices.*'cpu'"):
            upsampled_convolution(*make(), impl="triton")

    def test_triton_rejects_float64(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(dispatch._TABLE["upsampled_convolution"], "triton", dispatch.everywhere)
        with pytest.raises(TypeError, match=r"x must be float32, bfloat16 or float16 with impl='triton', was torch\.f"):
            upsampled_convolution(*(tensor.double() for tensor in make()), impl="triton")

    def test_config_table_is_complete() -> None:
        for entries in TABLE.values():
            assert set(entries) == set(itertools.product(("forward", "grad_input"), PRECISIONS))
            assert all(config.block_h * config.block_w >= 16 for config in entries.values())

    @pytest.mark.parametrize("impl", ["reference", "triton"])
    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
    def test_memory_saved_by_generator(
        memory_format: torch.memory_format, impl: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Bytes saved by an RRDBNet at training size, without parameters, outside of the blocks.

        Frozen: the signs of the tail's three activations; in Triton also the trunk's packed weights. Trained: the
        inputs of the convolutions: LR, the body's result and its sum with the first features, one map at twice and two
        at four times the size.
        """
        for op in ("residual_dense_block", "upsampled_convolution"):
            monkeypatch.setitem(dispatch._TABLE[op], "triton", dispatch.everywhere)
        blocks, pixels = 23, 48 * 64 * 64
        with torch.device("meta"):
            network = RRDBNet(blocks=blocks, impl=impl).bfloat16().to(memory_format=memory_format)
            lr = torch.empty(48, 3, 64, 64, dtype=torch.bfloat16).to(memory_format=memory_format).requires_grad_()
        parameters = {tensor.untyped_storage()._cdata for tensor in network.parameters()}
        kept: dict[int, Tensor] = {}

        def keep(tensor: Tensor) -> Tensor:
            if tensor.untyped_storage()._cdata not in parameters and tensor.numel():
                kept[tensor.untyped_storage()._cdata] = tensor
            return tensor

        tail = [4 * 8 * pixels, 16 * 8 * pixels, 16 * 8 * pixels]
        in_blocks = [16 * pixels * 3 * blocks] if impl == "triton" else [32 * pixels] * 3 * blocks
        trunk_weights = sum(weight.nbytes for weight in network.body.parameters() if weight.dim() == 4)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            with frozen_parameters(network):
                network(lr)
            signs = [tensor.nbytes for tensor in kept.values() if tensor.dtype == torch.uint8]
            assert sorted(signs) == sorted(in_blocks + tail)
            packed = sum(tensor.nbytes for tensor in kept.values()) - sum(signs)
            assert packed == (trunk_weights if impl == "triton" else 0)
            kept.clear()
            network(lr)
        assert {tensor.dtype for tensor in kept.values()} == {torch.bfloat16}
        maps = sorted(tensor.nbytes // (2 * pixels) for tensor in kept.values())
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
        """Arguments, incoming gradient, factor and slope, configuration, frozen, and the poisoned argument.

        Two thirds are exact in fp32: x and bias in eighths, weights 1, 0 or -1, so that signs do not depend on
        rounding, and many results are zero. In the others a term of 2 or -2 decides each sign.
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
        arguments, grad = [tensor.to(dtype) for tensor in (x, weight, bias)], grad.to(dtype)
        kinds = (*layouts.KINDS, "prefix")
        arguments[0], grad = layouts.laid_out(g, arguments[0], kinds), layouts.laid_out(g, grad, kinds)
        poisoned = ""
        if seed % 4 == 1:
            poisoned = g.choice(["x", "grad", "weight", "bias"])
            victim = grad if poisoned == "grad" else arguments[("x", "weight", "bias").index(poisoned)]
            # With an infinite x, a sum may be NaN in one and infinite in the other, depending on its order.
            values = ["nan"] if poisoned == "x" else ["nan", "inf"]
            victim[tuple(g.randrange(size) for size in victim.shape)] = float(g.choice(values))
        slope = g.choice([0.0, 0.25, 1.0, 1.5])
        return arguments, grad, {"factor": factor, "slope": slope}, g.choice(CONFIGS), g.random() < 0.5, poisoned

    @pytest.mark.parametrize("seed", range(CASES))
    def test_parity(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        arguments, grad, options, config, frozen, poisoned = _case(seed)
        monkeypatch.setattr(kernels, "table_config", lambda *_: config)
        right = exact_results(arguments, grad, **options)
        leaves = [tensor.requires_grad_(index == 0 or not frozen) for index, tensor in enumerate(arguments)]
        out = upsampled_convolution(*leaves, **options, impl="triton")
        actual = [out, *torch.autograd.grad(out, leaves[:1] if frozen else leaves, grad)]
        shape, half = tuple(arguments[0].shape), arguments[0].dtype == torch.float16
        what = f"seed {seed}, {shape}, {options}, {config}, frozen {frozen}, {poisoned!r}"
        for tensor, exact, name in zip(actual, right, NAMES, strict=False):
            if poisoned in ("x", "grad") and name == "weight":  # PyTorch's, which handles borders differently
                finite = tensor.isfinite() & exact.isfinite()
                tensor, exact = (torch.where(finite, each, 0) for each in (tensor, exact))  # noqa: PLW2901
            elif poisoned == "grad":  # infinities may cancel in one and not in the other
                assert torch.equal(tensor.isfinite(), exact.isfinite()), what
                tensor, exact = (torch.where(each.isfinite(), each, 0) for each in (tensor, exact))  # noqa: PLW2901
            if poisoned == "weight":
                # Taps outside the image are multiplied with zero or skipped; either is accepted for a non-finite
                # weight, and gradients are not compared where a sign is that of a NaN.
                if name != "out":
                    break
                tensor = torch.where(tensor.isnan(), exact.to(tensor.dtype), tensor)  # noqa: PLW2901
                exact = torch.where(exact.isnan(), tensor.double(), exact)  # noqa: PLW2901
            assert_near(tensor, exact, 4e-3 if half else 1e-5, f"{name}, {what}")

    @pytest.fixture(autouse=True)
    def _on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
        """Enable impl="triton" on the CPU for the interpreter."""
        monkeypatch.setitem(dispatch._TABLE["upsampled_convolution"], "triton", dispatch.everywhere)

    @pytest.mark.parametrize("factor", [1, 2])
    def test_implementations_save_the_same_signs(factor: int) -> None:
        x, weight, bias = make(2, 3, 19, 5, 3)
        bits = [forward_op(x, weight, bias, factor, 0.2, True, impl)[1] for impl in ("triton", "reference")]
        assert bits[0].shape == (2, factor * 5, factor * 3, 3)
        assert torch.equal(*bits)

    def test_sign_is_that_of_the_rounded_value() -> None:
        x, weight = torch.full((1, 1, 1, 1), 2e-4).half(), torch.zeros(1, 1, 3, 3).half()
        weight[0, 0, 1, 1] = 1e-4
        for impl in ("triton", "reference"):
            out, bits = forward_op(x, weight, torch.zeros(1).half(), 1, 0.2, True, impl)
            assert not out.any()
            assert not bits.any()

    @pytest.mark.parametrize("needs", list(itertools.product((False, True), repeat=3))[1:])
    def test_subsets_of_gradients(needs: tuple[bool, ...], monkeypatch: pytest.MonkeyPatch) -> None:
        """With frozen weights neither their gradients nor the gradient to the pre-activation are computed."""
        arguments = make(2, 3, 9, 4, 5)
        grad = torch.randn(2, 9, 8, 10)
        right = exact_results(arguments, grad, factor=2)[1:]
        leaves = [tensor.requires_grad_(need) for tensor, need in zip(arguments, needs, strict=True)]
        if not any(needs[1:]):
            monkeypatch.setattr(sys.modules[upsampled_convolution.__module__], "gradients", None)
            monkeypatch.setattr(torch.ops.aten, "leaky_relu_backward", None)
        if not needs[0]:
            monkeypatch.setattr(kernels, "grad_input", None)
        out = upsampled_convolution(*leaves, impl="triton")
        actual = torch.autograd.grad(out, [tensor for tensor in leaves if tensor.requires_grad], grad)
        expected = [tensor for tensor, need in zip(right, needs, strict=True) if need]
        for tensor, exact in zip(actual, expected, strict=True):
            assert_near(tensor, exact, 1e-5, f"needs {needs}")

    def test_is_deterministic() -> None:
        leaves = [tensor.requires_grad_() for tensor in make(1, 5, 8, 9, 5)]
        runs = [torch.autograd.grad(upsampled_convolution(*leaves, impl="triton").sum(), leaves) for _ in range(2)]
        for first, second in zip(*runs, strict=True):
            assert torch.equal(first, second)

    @pytest.mark.parametrize(
        ("frozen", "memory_format"), [(False, torch.contiguous_format), (True, torch.channels_last)]
    )
    def test_opcheck(frozen: bool, memory_format: torch.memory_format) -> None:
        x, *parameters = make(2, 4, 9, 3, 4)
        x = x.contiguous(memory_format=memory_format).requires_grad_()
        parameters = [tensor.requires_grad_(not frozen) for tensor in parameters]
        utils = triton_interpreter.SCHEMA_AND_FAKE
        torch.library.opcheck(forward_op, (x, *parameters, 2, 0.2, frozen, "triton"), test_utils=utils)
        with torch.no_grad():
            out, signs = forward_op(x, *parameters, 2, 0.2, True, "triton")
            needed, last = [True, not frozen, not frozen], memory_format == torch.channels_last
            kept, saved = (None, signs) if frozen else (x.detach(), out)
            grad, weight = torch.randn_like(out), parameters[0].detach()
            arguments = (grad, saved, kept, weight, 2, 0.2, needed, last, "triton")
            torch.library.opcheck(backward_op, arguments, test_utils=utils)

    @pytest.mark.parametrize("frozen", [False, True])
    def test_compiles_to_one_graph(frozen: bool) -> None:
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
    def test_empty_batch(frozen: bool) -> None:
        x, weight, bias = make(0)
        leaves = [x.requires_grad_(), *(() if frozen else (weight.requires_grad_(), bias.requires_grad_()))]
        out = upsampled_convolution(x, weight, bias, impl="triton")
        assert out.shape == (0, 11, 10, 14)
        for tensor, leaf in zip(torch.autograd.grad(out.sum(), leaves), leaves, strict=True):
            assert torch.equal(tensor, torch.zeros_like(leaf))

    def test_weight_gradients_need_features() -> None:
        x, weight, bias = make()
        out, signs = forward_op(x, weight, bias, 2, 0.2, True, "triton")
        with pytest.raises(ValueError, match="need the result, not its signs"):
            backward_op(out, signs, x, weight, 2, 0.2, [True, True, True], False, "triton")

    def test_self_test_passes(monkeypatch: pytest.MonkeyPatch) -> None:
        """With the last of its cases: those of 64 channels on both sides take the interpreter long."""
        cases = selftest_cases.CASES["upsampled_convolution"]
        monkeypatch.setitem(selftest_cases.CASES, "upsampled_convolution", lambda draw: list(cases(draw))[-1:])
        results = self_test("cpu", [torch.float32], ["upsampled_convolution"])
        assert [result.impl for result in results] == ["reference", "triton"]
        assert all(result.passed for result in results), results
