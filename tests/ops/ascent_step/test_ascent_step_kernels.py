"""The ascent step's Triton kernels against the definition in float64, in Triton's interpreter.

This file runs itself again in the interpreter, see triton_interpreter; what is under ``if INTERPRETED`` runs there
only. The interpreter truncates what it stores as bf16; the rounding of hardware is tested on a GPU, in
test_kernels_ascent_step_gpu.py.
"""

import pytest
import torch
import triton_interpreter
from ascent_step_cases import Groups, assert_right, flat, random_step
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from triton_interpreter import INTERPRETED

from andfast.functional import ascent_step, degradation_block, dispatch
from andfast.functional.ascent_step import relative_norms
from andfast.functional.selftest import self_test

CASES = 120

pytestmark = triton_interpreter.quiet


if not INTERPRETED:

    @pytest.mark.slow
    def test_in_the_interpreter() -> None:
        triton_interpreter.run(__file__, "not nothing")

    def test_the_op_runs_without_triton() -> None:
        triton_interpreter.run_without_triton(
            "x = [[torch.rand(2, 3)]]\nf.ascent_step(x, x, x, radii=[1.0], step_size=0.3)"
        )

    def test_the_explicit_choice_says_why_it_cannot_be_had() -> None:
        x = [[torch.rand(2, 3)]]
        with pytest.raises(RuntimeError, match=r"impl='triton' of ascent_step .* CUDA devices.*'cpu'"):
            ascent_step(x, x, x, radii=[1.0], step_size=0.3, impl="triton")

    def test_float64_is_refused_by_name_and_goes_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(dispatch._TABLE["ascent_step"], "triton", dispatch.everywhere)
        x, wide = [[torch.rand(2, 3)]], [[torch.rand(2, 3).double()]]
        with pytest.raises(TypeError, match=r"must be float32, .* with impl='triton', one was torch\.float64"):
            ascent_step(x, wide, x, radii=[1.0], step_size=0.3, impl="triton")
        ((found,),) = ascent_step(wide, x, wide, radii=[1.0], step_size=0.3)
        assert found.dtype == torch.float64


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
        found = ascent_step(*step[:3], **step.options, impl="triton")
        assert_right(found, step)
        if seed % 6 == 1:
            again = ascent_step(*step[:3], **step.options, impl="triton")
            for one, other in zip(flat(found), flat(again), strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
        for old, now in zip(before[:3], step[:3], strict=True):  # the arguments are left alone
            for one, other in zip(flat(old), flat(now), strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)

    def test_the_cases_cover_what_they_should() -> None:
        steps = [random_step(seed) for seed in range(CASES)]
        assert {step.options["joint"] for step in steps} == {False, True}
        assert {step.poison for step in steps} == {"", "gradient NaN", "gradient infinite", "value NaN"}
        assert sum(0 in step.options["radii"] for step in steps) > 20
        assert sum(flat(step.values)[0].shape[0] == 0 for step in steps) > 5
        assert sum(len(flat(step.values)) for step in steps) > 800

    def at_center(n: int, shapes: list[tuple[int, ...]]) -> Groups:
        return [[torch.randn(n, *shape) for shape in shapes], [torch.zeros(()).expand(n, 4, 8, 8)]]

    def test_an_image_does_not_depend_on_the_others() -> None:
        step = next(one for one in map(random_step, range(CASES)) if flat(one.values)[0].shape[0] == 3)
        found = ascent_step(*step[:3], **step.options, impl="triton")
        alone = ([[one[1:2] for one in group] for group in some] for some in step[:3])
        single = ascent_step(*alone, **step.options, impl="triton")
        for one, other in zip(flat(found), flat(single), strict=True):
            assert torch.equal(one[1:2], other)

    @pytest.mark.parametrize("impl", ["triton", "reference"])
    def test_an_infinite_value_is_not_hidden(impl: str) -> None:
        values = at_center(1, [(5,), (3, 3)])
        centers = [[torch.zeros_like(one) for one in group] for group in values]
        gradients = [[torch.randn(one.shape) for one in group] for group in values]
        values[0][0][0, 1] = float("inf")
        found = ascent_step(values, gradients, centers, radii=[1.0, 1.0], step_size=0.3, impl=impl)
        assert found[0][0][0, 1].isnan()
        assert found[1][0].isfinite().all()

    @settings(max_examples=8)
    @given(
        st.integers(1, 3),
        st.sampled_from([(1e-3, 0.5), (0.65, 0.03), (0.0, 2.0)]),
        st.booleans(),
        st.floats(0, 3),
        st.integers(0, 99),
    )
    def test_the_result_is_inside_and_stays(
        n: int, radii: tuple[float, float], joint: bool, step_size: float, seed: int
    ) -> None:
        generator = torch.Generator().manual_seed(seed)

        def like(some: Groups) -> Groups:
            return [[torch.randn(one.shape, generator=generator) for one in group] for group in some]

        centers = [[torch.zeros(()).expand(n, 7, 5), torch.zeros(()).expand(n, 16)], [torch.ones(n)]]
        theta = centers
        for _ in range(3):
            theta = ascent_step(
                theta, like(theta), centers, radii=radii, step_size=step_size, joint=joint, impl="triton"
            )
            used = relative_norms(theta, centers, radii)
            used = used.square().sum(0).sqrt() if joint else used
            assert used.max() <= 1 + 1e-5
        nothing = [[torch.zeros_like(one) for one in group] for group in theta]
        still = ascent_step(theta, nothing, centers, radii=radii, step_size=step_size, joint=joint, impl="triton")
        for one, other in zip(flat(still), flat(theta), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)

    def test_the_layout_is_the_values_or_at_first_the_gradients() -> None:
        zero = torch.zeros(()).expand(2, 4, 8, 8)
        gradient = torch.randn(2, 4, 8, 8).contiguous(memory_format=torch.channels_last)

        def step(value: Tensor, gradient: Tensor) -> Tensor:
            return ascent_step([[value]], [[gradient]], [[zero]], radii=[1.0], step_size=0.3, impl="triton")[0][0]

        first = step(zero, gradient)
        assert first.is_contiguous(memory_format=torch.channels_last)
        assert step(first, gradient.contiguous()).is_contiguous(memory_format=torch.channels_last)

    @pytest.mark.parametrize("channels", [1, 5])
    def test_a_half_noise_goes_through_the_degradation_block(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its gradient comes in its own dtype, rounded once from the incoming one."""
        monkeypatch.setitem(dispatch._TABLE["degradation_block"], "triton", dispatch.everywhere)
        x, weight, slope = torch.randn(2, 3, 4, 6), torch.randn(2, 5, 3, 3, 3), torch.rand(2)
        noise = torch.randn(2, channels, 4, 6).half().requires_grad_()
        grad = torch.randn(2, 5, 4, 6)
        for impl in ("triton", "reference"):
            out = degradation_block(x, weight, slope, noise, impl=impl)
            exact = degradation_block(x.double(), weight.double(), slope.double(), noise.double(), impl="reference")
            torch.testing.assert_close(out.double(), exact, rtol=1e-4, atol=1e-4)
            (found,) = torch.autograd.grad(out, noise, grad)
            assert found.dtype == torch.float16
            torch.testing.assert_close(found, grad.sum_to_size(noise.shape).half(), rtol=1e-3, atol=1e-6)

    def test_the_self_test_passes() -> None:
        results = self_test("cpu", [torch.float32, torch.float16], ["ascent_step"])
        assert {one.impl for one in results} == {"triton", "reference"}
        assert all(one.passed for one in results), results
