"""The ascent step's Triton kernels against the definition in float64, in Triton's interpreter.

Tests under ``if INTERPRETED`` run in a subprocess, see triton_interpreter. The interpreter truncates to bf16;
test_ascent_step_gpu.py tests the rounding of hardware.
"""

import pytest
import torch
import triton_interpreter
from ascent_step_cases import Groups, assert_correct, flat, random_step
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from triton_interpreter import INTERPRETED

from andfast.functional import ascent_step, degradation_block, dispatch, selftest_cases
from andfast.functional.ascent_step import relative_norms
from andfast.functional.selftest import self_test

CASES = 46

pytestmark = triton_interpreter.quiet


if not INTERPRETED:

    @pytest.mark.slow
    def test_in_the_interpreter() -> None:
        triton_interpreter.run(__file__, "test_ascent_parts_kernels.py")

    def test_explicit_impl_reports_missing_device() -> None:
        x = [[torch.rand(2, 3)]]
        with pytest.raises(RuntimeError, match=r"impl='triton' of ascent_step .* CUDA devices.*'cpu'"):
            ascent_step(x, x, x, radii=[1.0], step_size=0.3, impl="triton")

    def test_float64_uses_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(dispatch._TABLE["ascent_step"], "triton", dispatch.everywhere)
        x, wide = [[torch.rand(2, 3)]], [[torch.rand(2, 3).double()]]
        with pytest.raises(TypeError, match=r"must be float32, .* with impl='triton', one was torch\.float64"):
            ascent_step(x, wide, x, radii=[1.0], step_size=0.3, impl="triton")
        ((result,),) = ascent_step(wide, x, wide, radii=[1.0], step_size=0.3)
        assert result.dtype == torch.float64


if INTERPRETED:
    from andfast.kernels.ascent_step import batches, kernels

    triton_interpreter.repair()

    SMALL = (kernels.Config(64, 1, 4), kernels.Config(32, 3, 4), kernels.Config(256, 2, 4))

    @pytest.fixture(autouse=True)
    def _on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(dispatch._TABLE["ascent_step"], "triton", dispatch.everywhere)

    @pytest.mark.parametrize("seed", range(CASES))
    def test_parity(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(kernels, "CONFIG", kernels.CONFIG if seed % 8 == 0 else SMALL[seed % 3])
        monkeypatch.setattr(batches, "MAX_TENSORS", 2 if seed % 5 == 0 else 32)
        step = random_step(seed)
        before = step.clone()
        result = ascent_step(*step[:3], **step.options, impl="triton")
        assert_correct(result, step)
        if seed % 6 == 1:
            again = ascent_step(*step[:3], **step.options, impl="triton")
            for a, b in zip(flat(result), flat(again), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
        for old, new in zip(before[:3], step[:3], strict=True):  # arguments are not modified
            for a, b in zip(flat(old), flat(new), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)

    def test_cases_cover_all_options() -> None:
        steps = [random_step(seed) for seed in range(CASES)]
        assert {step.options["joint"] for step in steps} == {False, True}
        assert {step.poison for step in steps} == {"", "gradient NaN", "gradient infinite", "value NaN"}
        assert sum(0 in step.options["radii"] for step in steps) > 10
        assert sum(flat(step.values)[0].shape[0] == 0 for step in steps) > 2
        assert sum(len(flat(step.values)) for step in steps) > 300

    def at_center(n: int, shapes: list[tuple[int, ...]]) -> Groups:
        return [[torch.randn(n, *shape) for shape in shapes], [torch.zeros(()).expand(n, 4, 8, 8)]]

    def test_images_are_independent() -> None:
        step = next(step for step in map(random_step, range(CASES)) if flat(step.values)[0].shape[0] == 3)
        batch = ascent_step(*step[:3], **step.options, impl="triton")
        image = ([[tensor[1:2] for tensor in group] for group in groups] for groups in step[:3])
        single = ascent_step(*image, **step.options, impl="triton")
        for a, b in zip(flat(batch), flat(single), strict=True):
            assert torch.equal(a[1:2], b)

    @pytest.mark.parametrize("impl", ["triton", "reference"])
    def test_infinite_value_gives_nan(impl: str) -> None:
        values = at_center(1, [(5,), (3, 3)])
        centers = [[torch.zeros_like(value) for value in group] for group in values]
        gradients = [[torch.randn(value.shape) for value in group] for group in values]
        values[0][0][0, 1] = float("inf")
        result = ascent_step(values, gradients, centers, radii=[1.0, 1.0], step_size=0.3, impl=impl)
        assert result[0][0][0, 1].isnan()
        assert result[1][0].isfinite().all()

    @settings(max_examples=6)
    @given(
        st.integers(1, 3),
        st.sampled_from([(1e-3, 0.5), (0.65, 0.03), (0.0, 2.0)]),
        st.booleans(),
        st.floats(0, 3),
        st.integers(0, 99),
    )
    def test_result_stays_inside_the_ball(
        n: int, radii: tuple[float, float], joint: bool, step_size: float, seed: int
    ) -> None:
        generator = torch.Generator().manual_seed(seed)

        def random_like(groups: Groups) -> Groups:
            return [[torch.randn(tensor.shape, generator=generator) for tensor in group] for group in groups]

        centers = [[torch.zeros(()).expand(n, 7, 5), torch.zeros(()).expand(n, 16)], [torch.ones(n)]]
        theta = centers
        for _ in range(2):
            theta = ascent_step(
                theta, random_like(theta), centers, radii=radii, step_size=step_size, joint=joint, impl="triton"
            )
            used = relative_norms(theta, centers, radii)
            used = used.square().sum(0).sqrt() if joint else used
            assert used.max() <= 1 + 1e-5
        zeros = [[torch.zeros_like(tensor) for tensor in group] for group in theta]
        unmoved = ascent_step(theta, zeros, centers, radii=radii, step_size=step_size, joint=joint, impl="triton")
        for a, b in zip(flat(unmoved), flat(theta), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)

    def test_layout_follows_values_or_gradients_of_the_first_step() -> None:
        zero = torch.zeros(()).expand(2, 4, 8, 8)
        gradient = torch.randn(2, 4, 8, 8).contiguous(memory_format=torch.channels_last)

        def step(value: Tensor, gradient: Tensor) -> Tensor:
            return ascent_step([[value]], [[gradient]], [[zero]], radii=[1.0], step_size=0.3, impl="triton")[0][0]

        first = step(zero, gradient)
        assert first.is_contiguous(memory_format=torch.channels_last)
        assert step(first, gradient.contiguous()).is_contiguous(memory_format=torch.channels_last)

    @pytest.mark.parametrize("channels", [1, 5])
    def test_degradation_block_takes_half_noise(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its gradient has its dtype, rounded once."""
        monkeypatch.setitem(dispatch._TABLE["degradation_block"], "triton", dispatch.everywhere)
        x, weight, slope = torch.randn(2, 3, 4, 6), torch.randn(2, 5, 3, 3, 3), torch.rand(2)
        noise = torch.randn(2, channels, 4, 6).half().requires_grad_()
        grad = torch.randn(2, 5, 4, 6)
        for impl in ("triton", "reference"):
            out = degradation_block(x, weight, slope, noise, impl=impl)
            exact = degradation_block(x.double(), weight.double(), slope.double(), noise.double(), impl="reference")
            torch.testing.assert_close(out.double(), exact, rtol=1e-4, atol=1e-4)
            (noise_grad,) = torch.autograd.grad(out, noise, grad)
            assert noise_grad.dtype == torch.float16
            torch.testing.assert_close(noise_grad, grad.sum_to_size(noise.shape).half(), rtol=1e-3, atol=1e-6)

    def test_self_test_passes(monkeypatch: pytest.MonkeyPatch) -> None:
        """With two of its cases, one of them with parts."""
        cases = selftest_cases.CASES["ascent_step"]
        monkeypatch.setitem(selftest_cases.CASES, "ascent_step", lambda draw: list(cases(draw))[1:4:2])
        results = self_test("cpu", [torch.float32], ["ascent_step"])
        assert {result.impl for result in results} == {"triton", "reference"}
        assert all(result.passed for result in results), results
