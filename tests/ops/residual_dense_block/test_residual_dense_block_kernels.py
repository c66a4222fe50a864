"""The residual dense block's Triton kernels against its definition in float64, in Triton's interpreter.

This file reruns itself in the interpreter, see triton_interpreter; tests under ``if INTERPRETED`` run only there. The
interpreter computes bf16 incorrectly, so fp32 and fp16 are tested here, and bf16 in test_residual_dense_block_gpu.py.
"""

import itertools
import random
from collections.abc import Iterator
from typing import Any

import layouts
import pytest
import torch
import triton_interpreter
from comparison import assert_near
from dense_blocks import make_float32
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from triton_interpreter import INTERPRETED

from andfast.functional import dispatch, residual_dense_block, selftest_cases
from andfast.functional.residual_dense_block import backward_op, forward_op
from andfast.functional.residual_dense_block_reference import residual_dense_block_reference
from andfast.functional.selftest import self_test
from andfast.kernels.common.config import KernelConfig

CASES = 20
NAMES = ("out", "x", *(f"weight {k}" for k in range(5)), *(f"bias {k}" for k in range(5)))

pytestmark = triton_interpreter.quiet


def exact_results(arguments: list[Tensor], grad: Tensor, **options: float) -> list[Tensor]:
    """The definition in float64: the result, and the gradients to x, weights and biases."""
    leaves = [tensor.detach().double().requires_grad_() for tensor in arguments]
    out = residual_dense_block_reference(leaves[0], leaves[1:6], leaves[6:], **options)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.double())]


# ------------------------------------------------------------------------------------------- without the interpreter


if not INTERPRETED:

    @pytest.mark.slow
    def test_in_the_interpreter() -> None:
        triton_interpreter.run(__file__, "test_chain_kernels.py")


# ------------------------------------------------------------------------------------------------- in the interpreter


if INTERPRETED:
    from andfast.kernels.residual_dense_block import block, convolution
    from andfast.kernels.residual_dense_block import grad_weight as weights_kernel

    triton_interpreter.repair()

    CONFIGS = (
        KernelConfig(8, 16, 64, 8, 1, 1),
        KernelConfig(8, 8, 16, 4, 1, 40),
        KernelConfig(4, 8, 32, 4, 1, 25),
        KernelConfig(4, 4, 16, 4, 1, 1),
    )

    def _exact_in_fp32(draw: torch.Generator, shapes: list[tuple[int, ...]]) -> list[Tensor]:
        """x and biases in eighths, weights 1, -1 or mostly 0: sums are exact in fp32.

        Signs of activations do not depend on rounding, and many activations are exactly zero.
        """
        x = torch.randint(-8, 9, shapes[0], generator=draw) / 8
        weights = []
        for shape in shapes[1:6]:
            weight = torch.randint(-1, 2, shape, generator=draw).float()
            sparse = torch.rand(shape, generator=draw) < 6.0 / (9 * shape[1])
            weights.append(weight * sparse)
        return [x, *weights, *(torch.randint(-8, 9, shape, generator=draw) / 8 for shape in shapes[6:])]

    def _clear_of_zero(draw: torch.Generator, shapes: list[tuple[int, ...]]) -> list[Tensor]:
        """Normal numbers, with a term of 2 or -2 in every pre-activation that decides its sign."""
        x = torch.randn(shapes[0], generator=draw)
        x[:, 0] = 2 * torch.where(torch.randn(x[:, 0].shape, generator=draw) > 0, 1.0, -1.0)
        weights = []
        for shape in shapes[1:6]:
            weight = torch.randn(shape, generator=draw) / (18 * shape[1] ** 0.5)
            weight[:, 0, 1, 1] = torch.where(torch.randn(shape[0], generator=draw) > 0, 1.0, -1.0)
            weights.append(weight)
        return [x, *weights, *(torch.randn(shape, generator=draw) / 10 for shape in shapes[6:])]

    def _case(seed: int) -> tuple[list[Tensor], Tensor, dict[str, float], KernelConfig, bool, str]:
        """Arguments, incoming gradient, slope and scale, configuration, frozen, and the poisoned argument."""
        g = random.Random(seed)
        dtype = torch.float16 if seed % 6 == 5 else torch.float32
        exact = dtype == torch.float32 and seed % 3 != 2
        n, height, width = g.choice([1, 1, 2]), g.randint(1, 10), g.randint(1, 10)
        features, growth = g.choice([1, 2, 3, 5, 7, 8, 16, 17]), g.choice([1, 2, 3, 4, 5, 8, 9])
        if seed % 28 == 3:
            features, growth = g.choice([(64, 32), (32, 16), (16, 8), (65, 3), (3, 17)])
            height, width = g.choice([(3, 5), (2, 9)])
        channels = [features + k * growth for k in range(5)]
        couts = [growth] * 4 + [features]
        shapes: list[tuple[int, ...]] = [(n, features, height, width)]
        shapes += [(cout, cin, 3, 3) for cout, cin in zip(couts, channels, strict=True)]
        shapes += [(cout,) for cout in couts]
        draw = torch.Generator().manual_seed(seed)
        arguments = (_exact_in_fp32 if exact else _clear_of_zero)(draw, shapes)
        grad = torch.randint(-8, 9, shapes[0], generator=draw) / 8
        arguments, grad = [tensor.to(dtype) for tensor in arguments], grad.to(dtype)
        kinds = (*layouts.KINDS, "prefix")
        arguments[0], grad = layouts.laid_out(g, arguments[0], kinds), layouts.laid_out(g, grad, kinds)
        slope = g.choice([0.0, 0.25, 1.0]) if exact else g.choice([0.0, 0.2, 1.0])
        scale = g.choice([0.0, 0.2, 0.5, 1.0])
        poisoned = ""
        if seed % 4 == 1:
            poisoned = g.choice(["x", "grad", "weight", "bias"])
            index = {"x": 0, "weight": g.randint(1, 5), "bias": g.randint(6, 10)}
            victim = grad if poisoned == "grad" else arguments[index[poisoned]]
            victim[tuple(g.randrange(size) for size in victim.shape)] = g.choice(
                [float("nan"), float("inf"), -float("inf")]
            )
        max_programs = 6 if seed % 8 == 0 else 2  # each takes tens of milliseconds
        few = [
            config
            for config in CONFIGS
            if n * -(-height * width // (config.block_h * config.block_w - 2)) <= max_programs
        ]
        config, frozen = g.choice(few or CONFIGS[:1]), g.random() < 0.4
        return arguments, grad, {"slope": slope, "scale": scale}, config, frozen, poisoned

    @pytest.mark.parametrize("seed", range(CASES))
    def test_parity(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        arguments, grad, options, config, frozen, poisoned = _case(seed)
        _configure(monkeypatch, config)
        right = exact_results(arguments, grad, **options)
        leaves = [tensor.requires_grad_(index == 0 or not frozen) for index, tensor in enumerate(arguments)]
        out = residual_dense_block(leaves[0], leaves[1:6], leaves[6:], **options, impl="triton")
        actual = [out, *torch.autograd.grad(out, leaves[:1] if frozen else leaves, grad)]
        x, growth = arguments[0], arguments[1].shape[0]
        what = f"seed {seed}, {tuple(x.shape)}, growth {growth}, {options}, {config}, frozen {frozen}, {poisoned!r}"
        for tensor, exact, name in zip(actual, right, NAMES, strict=False):
            if poisoned == "weight":
                # Taps outside the image are multiplied with zero in rows and skipped in columns; either may differ
                # from the definition for a non-finite weight.
                tensor = torch.where(tensor.isnan(), exact.to(tensor.dtype), tensor)  # noqa: PLW2901
                exact = torch.where(exact.isnan(), tensor.double(), exact)  # noqa: PLW2901
            assert_near(tensor, exact, 1e-5 if x.dtype == torch.float32 else 4e-3, f"{name}, {what}")

    @pytest.fixture(autouse=True)
    def _on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Enable impl="triton" on the CPU for the interpreter, with few programs, as each takes milliseconds."""
        monkeypatch.setitem(dispatch._TABLE["residual_dense_block"], "triton", dispatch.everywhere)
        _configure(monkeypatch, CONFIGS[0])
        yield
        convolution._plan.cache_clear()

    def _configure(monkeypatch: pytest.MonkeyPatch, config: KernelConfig) -> None:
        convolution._plan.cache_clear()
        monkeypatch.setattr(convolution, "table_config", lambda *_: config)
        monkeypatch.setattr(weights_kernel, "table_config", lambda *_: config)

    def test_signs_are_one_bit_per_activation() -> None:
        x, weights, biases = make_float32(2, 4, 11, 3, 5)
        _, bits = forward_op(x, weights, biases, 0.2, 0.2, False, "triton")
        _, growth = forward_op(x, weights, biases, 0.2, 0.2, True, "triton")
        _, features = forward_op(x, weights, biases, 0.2, 0.2, True, "reference")
        torch.testing.assert_close(growth, features[:, 4:])
        assert bits.shape == (4, 2, 3, 5, 2)
        unpacked = ((bits.unsqueeze(-1) >> torch.arange(8)) & 1).flatten(-2)[..., :11]
        expected = (features[:, 4:] > 0).unflatten(1, (4, 11)).permute(1, 0, 3, 4, 2)
        assert torch.equal(unpacked.bool(), expected)

    # A subset of arguments: x, weights, biases.
    NEEDS = [
        *itertools.product((False, True), (range(0), range(5)), (range(0), range(5))),
        (False, [2], []),
        (False, [4], []),
        (True, [0, 3], [1]),
        (False, [], [3]),
        (False, [], [4]),
    ]

    @pytest.mark.parametrize("needs", NEEDS[1:])
    def test_subsets_of_gradients(needs: tuple[bool, Any, Any]) -> None:
        x, weights, biases = make_float32(2, 3, 2, 4, 5)
        grad = torch.randn(x.shape)
        right = exact_results([x, *weights, *biases], grad)[1:]
        leaves = [x, *weights, *biases]
        chosen = [needs[0], *(k in needs[1] for k in range(5)), *(k in needs[2] for k in range(5))]
        for tensor, want in zip(leaves, chosen, strict=True):
            tensor.requires_grad_(want)
        with FlopCounterMode(display=False) as counter:
            out = residual_dense_block(x, weights, biases, impl="triton")
        forward_operations = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            leaves_with_grad = [tensor for tensor in leaves if tensor.requires_grad]
            actual = torch.autograd.grad(out, leaves_with_grad, grad)
        expected = [tensor for tensor, want in zip(right, chosen, strict=True) if want]
        for tensor, exact in zip(actual, expected, strict=True):
            assert_near(tensor, exact, 1e-5, f"needs {needs}")
        if chosen[0]:
            weights_too = sum(2 * w.numel() * grad.numel() // 3 for w in weights if w.requires_grad)
            assert counter.get_total_flops() == forward_operations + weights_too

    def test_launches_only_needed_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
        """No weight gradient with frozen weights; the operation counts are those of the launches."""
        launches: list[int] = []
        convolve = block.convolve

        def watch(a: Tensor, b: Tensor, b_range: tuple[int, int], weight: Tensor, *args: Any, **options: Any) -> None:
            launches.append(2 * 9 * (a.shape[1] + b_range[1] - b_range[0]) * weight.shape[2] * a.shape[0] * 20)
            convolve(a, b, b_range, weight, *args, **options)

        monkeypatch.setattr(block, "convolve", watch)
        monkeypatch.setattr(block, "grad_weight", None)
        for needs, count in (((True, []), 5), ((False, [0]), 4), ((False, [3]), 1), ((False, [4]), 0)):
            x, weights, biases = make_float32(2, 3, 2, 4, 5)
            x.requires_grad_(needs[0])
            for k in needs[1]:
                biases[k].requires_grad_()
            out = residual_dense_block(x, weights, biases, impl="triton")
            assert len(launches) == 5
            launches.clear()
            with FlopCounterMode(display=False) as counter:
                out.sum().backward()
            assert len(launches) == count
            assert counter.get_total_flops() == sum(launches)
            launches.clear()

    def test_is_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
        _configure(monkeypatch, CONFIGS[1])
        x, weights, biases = make_float32(1, 5, 3, 9, 5)
        leaves = [tensor.requires_grad_() for tensor in (x, *weights, *biases)]
        runs = [
            torch.autograd.grad(residual_dense_block(x, weights, biases, impl="triton").sum(), leaves) for _ in range(2)
        ]
        for first, second in zip(*runs, strict=True):
            assert torch.equal(first, second)

    @pytest.mark.parametrize(
        ("frozen", "memory_format"),
        [(True, torch.channels_last), (False, torch.contiguous_format)],
    )
    def test_opcheck(frozen: bool, memory_format: torch.memory_format) -> None:
        x, weights, biases = make_float32(2, 4, 3, 3, 4)
        x = x.contiguous(memory_format=memory_format).requires_grad_()
        leaves = [tensor.requires_grad_(not frozen) for tensor in (*weights, *biases)]
        weights, biases = leaves[:5], leaves[5:]
        utils = triton_interpreter.SCHEMA_AND_FAKE
        torch.library.opcheck(forward_op, (x, weights, biases, 0.2, 0.2, not frozen, "triton"), test_utils=utils)
        with torch.no_grad():
            out, saved = forward_op(x, weights, biases, 0.2, 0.2, not frozen, "triton")
            needed = [not frozen] * 5
            frozen_weights = [tensor.detach() for tensor in weights]
            torch.library.opcheck(
                backward_op,
                (torch.randn_like(out), saved, frozen_weights, 0.2, 0.2, True, needed, needed, "triton", x.detach()),
                test_utils=utils,
            )

    @pytest.mark.parametrize("frozen", [False, True])
    def test_compiles_to_one_graph(frozen: bool) -> None:
        x, weights, biases = make_float32(1, 4, 3, 3, 4)
        leaves = [x.requires_grad_(), *(() if frozen else (tensor.requires_grad_() for tensor in (*weights, *biases)))]

        def loss(x: Tensor) -> Tensor:
            inner = residual_dense_block(x, weights, biases, impl="triton").sin()
            return residual_dense_block(inner, weights, biases, impl="triton").square().sum()

        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        eager = torch.autograd.grad(loss(x), leaves)
        for got, expected in zip(torch.autograd.grad(compiled(x), leaves), eager, strict=True):
            torch.testing.assert_close(got, expected)

    @pytest.mark.parametrize("frozen", [False, True])
    def test_empty_batch(frozen: bool) -> None:
        x, weights, biases = make_float32(0)
        leaves = [x.requires_grad_(), *(() if frozen else (tensor.requires_grad_() for tensor in (*weights, *biases)))]
        out = residual_dense_block(x, weights, biases, impl="triton")
        assert out.shape == x.shape
        for tensor, leaf in zip(torch.autograd.grad(out.sum(), leaves), leaves, strict=True):
            assert torch.equal(tensor, torch.zeros_like(leaf))

    def test_weight_gradients_need_features() -> None:
        x, weights, biases = make_float32()
        out, signs = forward_op(x, weights, biases, 0.2, 0.2, False, "triton")
        needed = [True] * 5
        with pytest.raises(ValueError, match="need x and the growth, not signs"):
            backward_op(out, signs, weights, 0.2, 0.2, True, needed, needed, "triton", x)

    def test_frozen_forward_frees_growth(monkeypatch: pytest.MonkeyPatch) -> None:
        import weakref  # noqa: PLC0415

        allocated = []
        allocate = block.empty_channels_last

        def watch(x: Tensor, channels: int) -> Tensor:
            allocated.append(weakref.ref(tensor := allocate(x, channels)))
            return tensor

        monkeypatch.setattr(block, "empty_channels_last", watch)
        x, weights, biases = make_float32()
        out = residual_dense_block(x.requires_grad_(), weights, biases, impl="triton")
        assert out.requires_grad
        assert [tensor() for tensor in allocated] == [None]

    def test_self_test_passes(monkeypatch: pytest.MonkeyPatch) -> None:
        """With the last of its cases: those of 64 channels on both sides take the interpreter long."""
        cases = selftest_cases.CASES["residual_dense_block"]
        monkeypatch.setitem(selftest_cases.CASES, "residual_dense_block", lambda draw: list(cases(draw))[-1:])
        results = self_test("cpu", [torch.float32], ["residual_dense_block"])
        assert [result.impl for result in results] == ["reference", "triton"]
        assert all(result.passed for result in results), results
