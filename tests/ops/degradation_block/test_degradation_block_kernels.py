"""The degradation block's Triton kernels against the reference in float64, in Triton's interpreter.

Tests under ``if INTERPRETED`` run in a subprocess, see triton_interpreter. The interpreter computes bf16 incorrectly:
the same code is tested in fp32 and fp16 here, and in bf16 on a GPU by test_degradation_block_gpu.py.
"""

import importlib.util
import itertools
import random
from typing import Any

import layouts
import pytest
import torch
import triton_interpreter
from comparison import assert_near
from degradation_block_exact import BACKWARD, FORWARD, exact_results
from torch import Tensor
from triton_interpreter import INTERPRETED

from andfast.functional import degradation_block, dispatch, selftest_cases
from andfast.functional.degradation_block_reference import reduce_slope
from andfast.functional.layout import memory_format as memory_format_of
from andfast.functional.selftest import self_test
from andfast.kernels.common.config import PRECISIONS, KernelConfig, channel_block, newest_architecture
from andfast.kernels.degradation_block import saved as saved_form
from andfast.kernels.degradation_block.configs import TABLE

CASES = 42
GROUP = 14

pytestmark = triton_interpreter.quiet


# ------------------------------------------------------------------------------------------- without the interpreter


if not INTERPRETED:

    @pytest.mark.slow
    def test_in_the_interpreter() -> None:
        triton_interpreter.run(__file__, "test_row_kernels.py")

    def test_explicit_impl_reports_missing_device() -> None:
        with pytest.raises(RuntimeError, match=r"impl='triton' of degradation_block .* CUDA devices.*'cpu'"):
            degradation_block(torch.rand(1, 3, 4, 4), torch.rand(5, 3, 3, 3), 0.5, impl="triton")

    def test_auto_resolves_by_device_and_dtype(
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setitem(dispatch._TABLE["degradation_block"], "triton", dispatch.everywhere)
        assert dispatch.resolve("degradation_block", "auto", "cuda", torch.bfloat16) == "triton"
        assert dispatch.resolve("degradation_block", "auto", "cuda", torch.float64) == "reference"
        with pytest.raises(TypeError, match=r"x must be float32, bfloat16 or float16 with impl='triton', was torch"):
            dispatch.resolve("degradation_block", "triton", "cuda", torch.float64)

    def test_impl_is_resolved_outside_of_compiled_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
        def look_for_a_package(_device_type: str) -> str | None:
            return None if importlib.util.find_spec("no_such_package") else "a package is not installed"

        monkeypatch.setitem(dispatch._TABLE["degradation_block"], "triton", look_for_a_package)
        x, weight = torch.rand(1, 3, 4, 4), torch.rand(5, 3, 3, 3)
        compiled = torch.compile(degradation_block, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x, weight, 0.5), degradation_block(x, weight, 0.5))

    @pytest.mark.parametrize(
        ("capability", "expected"), [((8, 0), "8.0"), ((8, 9), "8.0"), ((9, 0), "9.0"), ((12, 0), "9.0")]
    )
    def test_newest_architecture(capability: tuple[int, int], expected: str) -> None:
        assert newest_architecture(capability, TABLE) == expected

    def test_rejects_older_devices() -> None:
        with pytest.raises(ValueError, match=r"compute capability must be at least 8\.0, was 7\.5"):
            newest_architecture((7, 5), TABLE)

    def test_table_is_complete() -> None:
        kernels = ("forward", "grad_input", "grad_weight")
        for entries in TABLE.values():
            assert set(entries) == set(itertools.product(kernels, PRECISIONS))
            for (kernel, _), config in entries.items():
                assert config.block_h * config.block_w >= 16
                assert (config.programs > 0) == (kernel == "grad_weight")

    def test_channel_blocks() -> None:
        blocks = [channel_block(channels) for channels in (0, 1, 16, 17, 32, 33, 64, 65, 1000)]
        assert blocks == [16, 16, 16, 64, 64, 64, 64, 64, 64]
        assert channel_block(64, limit=16) == 16

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    @pytest.mark.parametrize(("pixels", "channels"), [(0, 3), (7, 3), (6, 16), (5, 17)])
    def test_saved_buffer_layout(pixels: int, channels: int, dtype: torch.dtype) -> None:
        itemsize = torch.empty(0, dtype=dtype).element_size()
        bits = pixels * -(-channels // 8)
        assert saved_form.saved_bytes(pixels, channels, itemsize, saved_form.SAVE_NOTHING) == 0
        assert saved_form.saved_bytes(pixels, channels, itemsize, saved_form.SAVE_BITS) == bits
        size = saved_form.saved_bytes(pixels, channels, itemsize, saved_form.SAVE_Z)
        buffer = torch.empty(size, dtype=torch.uint8)
        signs, z = saved_form.split_saved(buffer, pixels, channels, dtype)
        assert signs.numel() == bits
        assert (0 if z is None else z.numel()) == pixels * channels
        if pixels:
            assert z is not None
            assert (z.data_ptr() - buffer.data_ptr()) % 16 == 0


# ----------------------------------------------------------------------------------------------- in the interpreter


if INTERPRETED:
    from andfast.kernels.common.layout import check_int32_extent
    from andfast.kernels.degradation_block import forward as forward_kernel
    from andfast.kernels.degradation_block import grad_input as grad_input_kernel
    from andfast.kernels.degradation_block import grad_weight as grad_weight_kernel

    triton_interpreter.repair()

    CONFIGS = (
        KernelConfig(8, 8, 16, 4, 1, 3),
        KernelConfig(8, 8, 64, 4, 1, 1),
        KernelConfig(16, 16, 16, 4, 1, 1),
        KernelConfig(4, 8, 32, 4, 1, 7),
        KernelConfig(4, 4, 16, 4, 1, 40),
    )

    def _grid_values(generator: random.Random, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Multiples of 1/8 up to 1: sums of products are exact in fp32, so the sign of z is exact."""
        values = torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(generator.getrandbits(31)))
        return (values / 8).to(dtype)

    def _case(seed: int) -> tuple[list[Any], str, Tensor, KernelConfig, str]:
        """Arguments, padding, incoming gradient, configuration, and the argument with a non-finite value, if any."""
        g = random.Random(seed)
        dtype = torch.float16 if seed % 5 == 4 else torch.float32
        n = g.choice([1, 1, 1, 2])
        c_in, c_out = (g.choice([1, 2, 3, 3, 5, 7, 8, 13, 16, 17]) for _ in range(2))
        if seed % 20 == 7:
            c_in, c_out = g.choice([(64, 3), (3, 64), (33, 65)])
        height, width = (g.choice([1, 1, 2, 3, 4, 5, 7, 8, 11, 13, 16]) for _ in range(2))
        config = g.choice(CONFIGS)
        if height * width > 64 and (config.block_h == 4 or g.random() < 0.5):
            config = CONFIGS[2]  # fewer programs
        weight_shape = (c_out, c_in, 3, 3) if g.random() < 0.3 else (n, c_out, c_in, 3, 3)
        slope_shape = g.choice([(), (n,), (n, c_out)])
        slopes = torch.tensor([g.choice([-1.5, -0.25, 0.0, 0.2, 1.0, 1.0, 1.75]) for _ in range(n * c_out)])
        slope = slopes[: 1 if slope_shape == () else len(slopes) if len(slope_shape) == 2 else n].reshape(slope_shape)
        noise_channels = g.choice([0, 1, c_out])
        noise = None
        if noise_channels:
            noise = layouts.laid_out(
                g, _grid_values(g, (n, noise_channels, height, width), g.choice([dtype, torch.float32]))
            )
        x = layouts.laid_out(g, _grid_values(g, (n, c_in, height, width), dtype))
        weight = _grid_values(g, weight_shape, dtype)
        grad = layouts.laid_out(g, _grid_values(g, (n, c_out, height, width), dtype))
        if g.random() < 0.1:
            grad = torch.tensor(0.5, dtype=dtype).expand(n, c_out, height, width)
        arguments = {"x": x, "weight": weight, "slope": slope, "noise": noise, "grad": grad.clone()}
        poisoned = ""
        if seed % 3 == 2:
            poisoned = g.choice([name for name, tensor in arguments.items() if tensor is not None])
            victim = arguments[poisoned]
            victim[tuple(g.randrange(size) for size in victim.shape)] = g.choice(
                [float("nan"), float("inf"), -float("inf")]
            )
        if poisoned == "grad":
            grad = arguments["grad"]
        return [x, weight, slope, noise], g.choice(["replicate", "zeros"]), grad, config, poisoned

    def _check_parity(seed: int) -> None:
        arguments, padding, grad, config, poisoned = _case(seed)
        x, weight, slope, noise = arguments
        exact = exact_results(arguments, padding, grad)
        what = f"seed {seed}, {tuple(x.shape)}, {tuple(weight.shape)}, {padding}, {config}, poisoned {poisoned!r}"
        tolerance = 1e-5 if x.dtype == torch.float32 else 2e-3
        same: dict[str, Any] = {"replicate": padding == "replicate", "tf32": False, "config": config}
        memory_format = memory_format_of(x)
        out, saved = forward_kernel.forward(*arguments, save=saved_form.SAVE_Z, memory_format=memory_format, **same)
        one_map = noise is not None and noise.shape[1] != out.shape[1]
        grad_x, grad_noise = grad_input_kernel.grad_input(
            grad, x, weight, slope, saved, noise_map=noise.dtype if one_map else None,
            memory_format=memory_format, **same,
        )  # fmt: skip
        grad_weight, over_pixels = grad_weight_kernel.grad_weight(
            grad, x, weight, slope, saved, want_weight=True, want_slope=True, **same
        )
        assert grad_weight is not None
        assert over_pixels is not None
        assert out.is_contiguous(memory_format=memory_format)
        assert grad_x.is_contiguous(memory_format=memory_format)
        assert_near(out, exact[0], tolerance, f"out, {what}")
        if poisoned == "weight":
            # At the border, taps outside of the image multiply zeros: NaN there, where the reference skips them.
            grad_x = torch.where(grad_x.isnan(), exact[1].to(grad_x.dtype), grad_x)
        assert_near(grad_x, exact[1], tolerance, f"gradient to x, {what}")
        assert_near(grad_weight, exact[2], tolerance, f"gradient to weight, {what}")
        assert_near(reduce_slope(over_pixels, slope), exact[3], tolerance, f"gradient to slope, {what}")
        if one_map:
            assert grad_noise is not None
            assert_near(grad_noise, exact[4], tolerance, f"gradient to noise, {what}")

    @pytest.mark.parametrize("first", range(0, CASES, GROUP))
    def test_parity(first: int) -> None:
        for seed in range(first, first + GROUP):
            _check_parity(seed)

    @pytest.mark.parametrize("first", range(0, CASES, GROUP))
    def test_recovered_slope(first: int) -> None:
        """The slope's gradient from the result: only signs are saved, and no slope is near 0."""
        for seed in range(first, first + GROUP, 3):
            arguments, padding, grad, config, poisoned = _case(seed)
            x, weight, slope, noise = arguments
            if poisoned in ("slope", "noise"):
                continue
            slope = torch.where(slope.abs() < 0.5, 0.75 - slope, slope)
            exact = exact_results([x, weight, slope, noise], padding, grad)
            same: dict[str, Any] = {"replicate": padding == "replicate", "tf32": False, "config": config}
            out, signs = forward_kernel.forward(
                x, weight, slope, noise, save=saved_form.SAVE_BITS, memory_format=memory_format_of(x), **same
            )
            want_weight = seed % 2 == 0
            grad_weight, over_pixels = grad_weight_kernel.grad_weight(
                grad, x, weight, slope, signs, want_weight=want_weight, want_slope=True,
                result=out, noise=noise, **same,
            )  # fmt: skip
            assert over_pixels is not None
            what = f"seed {seed}, {tuple(x.shape)}, {tuple(weight.shape)}, {padding}, {config}, poisoned {poisoned!r}"
            tolerance = 1e-5 if x.dtype == torch.float32 else 5e-3
            assert_near(reduce_slope(over_pixels, slope), exact[3], tolerance, f"gradient to slope, {what}")
            if want_weight:
                assert grad_weight is not None
                assert_near(grad_weight, exact[2], tolerance, f"gradient to weight, {what}")

    @pytest.fixture
    def _on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
        """Make impl="triton" available on the CPU, where the interpreter runs."""
        monkeypatch.setitem(dispatch._TABLE["degradation_block"], "triton", dispatch.everywhere)

    def _arguments(noise_channels: int = 0, n: int = 2) -> list[Any]:
        x = torch.randn(n, 3, 4, 5)
        noise = torch.randn(n, noise_channels, 4, 5) if noise_channels else None
        return [x, torch.randn(n, 6, 3, 3, 3), torch.randn(n), noise]

    @pytest.mark.usefixtures("_on_cpu")
    @pytest.mark.parametrize(("noise_channels", "per_channel"), [(0, False), (1, True), (6, False)])
    def test_recovered_slope_through_the_op(noise_channels: int, per_channel: bool) -> None:
        x, weight, _, noise = _arguments(noise_channels)
        arguments = [x, weight, 0.5 + torch.rand((2, 6) if per_channel else (2,)), noise]
        grad = torch.randn(2, 6, 4, 5)
        exact = exact_results(arguments, "replicate", grad)[1:]
        leaves = [tensor.requires_grad_() for tensor in arguments if tensor is not None]
        out = degradation_block(*arguments, smallest_slope=0.5, impl="triton")
        assert out.grad_fn is not None
        assert out.grad_fn.saved_tensors[3].numel() == 2 * 4 * 5  # one bit per channel
        for got, expected in zip(torch.autograd.grad(out, leaves, grad), exact, strict=False):
            assert_near(got, expected, 1e-5, f"noise of {noise_channels} channels")
        (alone,) = torch.autograd.grad(
            degradation_block(*arguments, smallest_slope=0.5, impl="triton"), arguments[2], grad
        )
        assert_near(alone, exact[2], 1e-5, "slope alone")

    @pytest.mark.usefixtures("_on_cpu")
    @pytest.mark.parametrize("noise_channels", [1, 6])
    def test_every_subset_of_gradients(noise_channels: int) -> None:
        arguments = _arguments(noise_channels)
        grad = torch.randn(2, 6, 4, 5)
        exact = exact_results(arguments, "replicate", grad)[1:]
        sizes = (1, 2, 4) if noise_channels == 1 else (1,)
        for subset in (subset for size in sizes for subset in itertools.combinations(range(4), size)):
            leaves = [tensor.requires_grad_(index in subset) for index, tensor in enumerate(arguments)]
            out = degradation_block(*leaves, impl="triton")
            for index, actual in zip(subset, torch.autograd.grad(out, [leaves[i] for i in subset], grad), strict=True):
                assert_near(actual, exact[index], 1e-5, f"argument {index} of {subset}")

    @pytest.mark.usefixtures("_on_cpu")
    def test_gradient_has_the_dtype_of_noise() -> None:
        arguments = _arguments(6)
        noise = arguments[3].double().requires_grad_()
        out = degradation_block(*arguments[:3], noise, impl="triton")
        grad = torch.randn_like(out)
        (got,) = torch.autograd.grad(out, noise, grad)
        assert got.dtype == torch.float64
        torch.testing.assert_close(got, grad.double())

    @pytest.mark.usefixtures("_on_cpu")
    def test_z_is_saved_for_the_gradient_of_the_slope_only() -> None:
        x, weight, slope, _ = _arguments()
        pixels = bits = 2 * 4 * 5
        _, with_z = FORWARD(x, weight, slope, None, "zeros", True, "triton", True)
        _, signs = FORWARD(x, weight, slope, None, "zeros", True, "triton", False)
        _, nothing = FORWARD(x, weight, slope, None, "zeros", False, "triton", True)
        assert (with_z.numel(), signs.numel(), nothing.numel()) == (48 + pixels * 6 * 4, bits, 0)
        z = FORWARD(x, weight, slope, None, "zeros", True, "reference")[1]
        unpacked = (signs.reshape(2, 4, 5, 1) >> torch.arange(6)) & 1
        assert torch.equal(unpacked.bool(), (z > 0).permute(0, 2, 3, 1))

    @pytest.mark.usefixtures("_on_cpu")
    def test_rejects_slope_gradient_from_signs() -> None:
        x, weight, slope, _ = _arguments()
        out, signs = FORWARD(x, weight, slope, None, "zeros", True, "triton", False)
        with pytest.raises(ValueError, match="needs z or the result, and only sign bits were saved"):
            BACKWARD(
                out, x, weight, slope, signs, [0], torch.float32, "zeros", [False, False, True, False], "triton"
            )  # fmt: skip

    @pytest.mark.usefixtures("_on_cpu")
    def test_opcheck() -> None:
        arguments = _arguments(1)
        arguments[0] = arguments[0].contiguous(memory_format=torch.channels_last)
        leaves = [tensor.requires_grad_() for tensor in arguments]
        schema = triton_interpreter.SCHEMA_AND_FAKE
        torch.library.opcheck(FORWARD.default, (*leaves, "replicate", True, "triton"), test_utils=schema)
        torch.library.opcheck(FORWARD.default, (*leaves, "replicate", True, "triton", False), test_utils=schema)
        frozen = [tensor.detach() for tensor in leaves]
        torch.library.opcheck(FORWARD.default, (*frozen, "zeros", False, "triton", False), test_utils=schema)

    @pytest.mark.usefixtures("_on_cpu")
    def test_compiles_as_one_graph() -> None:
        arguments = _arguments(6)
        leaves = [tensor.requires_grad_() for tensor in arguments]

        def loss(*inputs: Any) -> Tensor:
            return degradation_block(*inputs, impl="triton").square().sum()

        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        eager = torch.autograd.grad(loss(*leaves), leaves)
        for got, expected in zip(torch.autograd.grad(compiled(*leaves), leaves), eager, strict=True):
            torch.testing.assert_close(got, expected)

    @pytest.mark.usefixtures("_on_cpu")
    @pytest.mark.parametrize(("n", "c_in", "c_out"), [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
    def test_empty(n: int, c_in: int, c_out: int) -> None:
        x = torch.randn(n, c_in, 4, 4, requires_grad=True)
        weight = torch.randn(n, c_out, c_in, 3, 3, requires_grad=True)
        slope = torch.randn(n, requires_grad=True)
        noise = torch.randn(n, 1, 4, 4, requires_grad=True)
        leaves = [x, weight, slope, noise]
        out = degradation_block(*leaves, impl="triton")
        expected = degradation_block(*leaves, impl="reference")
        torch.testing.assert_close(out, expected)
        grads = (torch.autograd.grad(result.sum(), leaves) for result in (out, expected))
        for got, right in zip(*grads, strict=True):
            torch.testing.assert_close(got, right)

    @pytest.mark.usefixtures("_on_cpu")
    def test_rejects_float64() -> None:
        with pytest.raises(TypeError, match=r"x must be float32, .* with impl='triton', was torch\.float64"):
            degradation_block(torch.rand(1, 3, 4, 4).double(), torch.rand(5, 3, 3, 3).double(), 0.5, impl="triton")

    @pytest.mark.usefixtures("_on_cpu")
    def test_self_test_passes(monkeypatch: pytest.MonkeyPatch) -> None:
        """With the first of its cases: those of 64 channels on both sides take the interpreter 20 s."""
        cases = selftest_cases.CASES["degradation_block"]
        monkeypatch.setitem(selftest_cases.CASES, "degradation_block", lambda draw: list(cases(draw))[:1])
        results = self_test("cpu", [torch.float32], ["degradation_block"])
        assert {result.impl for result in results} == {"triton", "reference"}
        assert all(result.passed for result in results), results

    def test_rejects_images_beyond_int32_offsets() -> None:
        image = torch.empty((9, 2, 2**15, 2**15), device="meta")
        check_int32_extent("x", image.shape, image.stride())
        image = torch.empty((1, 3, 2**15, 2**15), device="meta")
        with pytest.raises(ValueError, match=r"an image of x must span fewer than 2\*\*31 values, spanned 3221225472"):
            check_int32_extent("x", image.shape, image.stride())
