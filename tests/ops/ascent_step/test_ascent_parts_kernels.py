"""The ascent step's Triton kernels for groups with parts against the definition in float64.

test_ascent_step_kernels.py runs this file in Triton's interpreter.
"""

import pytest
import torch
import triton_interpreter
from ascent_step_cases import assert_correct, exact, flat, random_parts
from triton_interpreter import INTERPRETED

from andfast.functional import ascent_step, dispatch
from andfast.functional.ascent_parts import KernelParts, ZeroMean

CASES = 28

pytestmark = triton_interpreter.quiet


if INTERPRETED:
    from andfast.kernels.ascent_step import batches, convolutions, kernels, maps

    triton_interpreter.repair()

    SMALL = (maps.MapConfig(64, 1, 4), maps.MapConfig(32, 3, 4), maps.MapConfig(256, 2, 4))

    @pytest.fixture(autouse=True)
    def _on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(dispatch._TABLE["ascent_step"], "triton", dispatch.everywhere)

    @pytest.mark.parametrize("seed", range(CASES))
    def test_parity(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(maps, "CONFIG", maps.CONFIG if seed % 8 == 0 else SMALL[seed % 3])
        monkeypatch.setattr(kernels, "CONFIG", kernels.Config(64, 1, 4))
        monkeypatch.setattr(convolutions, "KERNELS", 8 if seed % 2 else 128)
        monkeypatch.setattr(convolutions, "BLOCKS", 1 if seed % 3 else 4)
        monkeypatch.setattr(batches, "MAX_TENSORS", 2 if seed % 5 == 0 else 32)
        step = random_parts(seed)
        before = step.clone()
        result = ascent_step(*step[:3], **step.options, impl="triton")
        assert_correct(result, step, 1e-5)
        if seed % 4 == 0:
            options = step.options | {"radii": torch.tensor(step.options["radii"])}
            assert_correct(ascent_step(*step[:3], **options, impl="triton"), step, 1e-5)
        for old, new in zip(before[:3], step[:3], strict=True):  # arguments are not modified
            for a, b in zip(flat(old), flat(new), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=0)

    def test_cases_cover_all_options() -> None:
        steps = [random_parts(seed) for seed in range(CASES)]
        parts = [part for step in steps for part in step.options["parts"]]
        assert {KernelParts(True), KernelParts(False), ZeroMean(), None} == set(parts)
        assert {step.options["joint"] for step in steps} == {False, True}
        assert sum(step.options["factors"] is None for step in steps) > 5
        assert sum(0 in step.options["radii"] for step in steps) > 10

    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    def test_nearly_constant_maps_do_not_cancel(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
        """A gradient whose mean is 1000 times its deviation: sum(g^2) - n m^2 would have no digit left in float32."""
        step = random_parts(next(seed for seed in range(99) if random_parts(seed).options["parts"] == [ZeroMean()]))
        torch.manual_seed(0)
        gradient = (1.0 + 1e-3 * torch.randn(2, 5, 37, 41)).to(dtype).contiguous(memory_format=memory_format)
        zero = torch.zeros((), dtype=dtype).expand(gradient.shape)
        value = (0.3 + 0.01 * torch.randn(gradient.shape)).to(dtype).contiguous(memory_format=memory_format)
        for start in (zero, value):
            options = {"radii": [1.0], "step_size": 0.3, "joint": False, "parts": [ZeroMean()], "factors": None}
            step = step._replace(values=[[start]], gradients=[[gradient]], centers=[[zero]], options=options)
            result = ascent_step(*step[:3], **options, impl="triton")
            assert_correct(result, step, 1e-4)  # the mean's own rounding is 6e-5 of the deviation
            length = (result[0][0].double()).flatten(1).norm(dim=1)
            torch.testing.assert_close(length, exact(step)[0][0].flatten(1).norm(dim=1), rtol=2e-4, atol=0)
            mean = result[0][0].double().mean((2, 3)).abs().max()
            assert mean < 1e-6 if dtype == torch.float32 else mean < 1e-4

    def test_an_image_does_not_depend_on_the_others() -> None:
        step = next(step for step in map(random_parts, range(CASES)) if flat(step.values)[0].shape[0] == 3)
        result = ascent_step(*step[:3], **step.options, impl="triton")
        alone = ([[tensor[1:2] for tensor in group] for group in groups] for groups in step[:3])
        factors = step.options["factors"]
        options = step.options | {"factors": None if factors is None else factors[1:2]}
        single = ascent_step(*alone, **options, impl="triton")
        for a, b in zip(flat(result), flat(single), strict=True):
            assert torch.equal(a[1:2], b)

    def test_nan_stays_in_its_image_and_part() -> None:
        gradient = torch.randn(2, 4, 6, 6)
        gradient[0, 1, 2, 3] = float("nan")
        zero = torch.zeros(()).expand(2, 4, 6, 6)
        weights = torch.randn(2, 3, 4, 3, 3)
        for impl in ("triton", "reference"):
            noise, kernels_out = ascent_step(
                [[zero], [weights]],
                [[gradient], [torch.randn(2, 3, 4, 3, 3)]],
                [[zero], [weights]],
                radii=[1.0] * 4,
                step_size=0.3,
                parts=[ZeroMean(), KernelParts()],
                impl=impl,
            )
            assert noise[0][0].isnan().all()
            assert noise[0][1].isfinite().all()
            assert kernels_out[0].isfinite().all()
