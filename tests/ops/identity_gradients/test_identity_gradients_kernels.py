"""The identity gradients' Triton kernels against the formulas in float64, in Triton's interpreter.

Tests under ``if INTERPRETED`` run in a subprocess, see triton_interpreter. The interpreter truncates to bf16, which
test_identity_gradients_gpu.py tests.
"""

import pytest
import torch
import triton_interpreter
from identity_gradients_cases import Call, assert_correct, random_call
from triton_interpreter import INTERPRETED

from andfast.adversary import sample_identity
from andfast.functional import dispatch
from andfast.functional.identity_gradients import OP, identity_gradients
from andfast.functional.selftest import self_test
from andfast.nn import DegradationNetwork

CASES = 60

pytestmark = triton_interpreter.quiet


if not INTERPRETED:

    @pytest.mark.slow
    def test_in_the_interpreter() -> None:
        triton_interpreter.run(__file__, keyword="not nothing_required")

    def test_auto_resolves_by_device_and_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(dispatch._TABLE[OP], "triton", dispatch.everywhere)
        assert dispatch.resolve(OP, "auto", "cuda", torch.float32) == "triton"
        assert dispatch.resolve(OP, "auto", "cuda", torch.float64) == "reference"

    def test_explicit_impl_reports_missing_device() -> None:
        call = random_call(1)
        with pytest.raises(RuntimeError, match=r"impl='triton' of identity_gradients .* CUDA devices.*'cpu'"):
            identity_gradients(*call[:4], **call.options, impl="triton")


if INTERPRETED:
    from andfast.kernels.identity_gradients import kernels

    triton_interpreter.repair()

    CONFIGS = (kernels.Config(), kernels.Config(pixels=1, segments=1), kernels.Config(pixels=70, segments=3))

    @pytest.fixture(autouse=True)
    def _on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(dispatch._TABLE[OP], "triton", dispatch.everywhere)

    @pytest.mark.parametrize("first", range(0, CASES, 20))
    def test_parity(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
        for seed in range(first, first + 20):
            monkeypatch.setattr(kernels, "CONFIG", CONFIGS[seed % 3])
            call = random_call(seed, dtypes=(torch.float32, torch.float32, torch.float16))
            results = identity_gradients(*call[:4], **call.options, impl="triton")
            try:
                assert_correct(results, call)
            except AssertionError as error:
                raise AssertionError(f"seed {seed}: {tuple(call.x.shape)}, {call.options}, {call.poison!r}") from error
            if seed % 5 == 1 and not call.poison:
                again = identity_gradients(*call[:4], **call.options, impl="triton")
                assert torch.equal(results[2], again[2])
                assert results[0] is None or torch.equal(results[0], again[0])

    def test_cases_cover_all_options() -> None:
        calls = [random_call(seed) for seed in range(CASES)]
        assert {call.poison for call in calls} == {"", "x", "grad", "before", "after"}
        forms = {
            channels if channels < 2 else 2
            for call in calls
            for channels in call.options["noises"]
            if call.before.shape[3] > 1
        }
        assert forms == {0, 1, 2}
        kinds = [set(zip(call.options["noises"], call.options["slopes"], strict=True)) for call in calls]
        assert sum(len(kind) > 1 and any(slope for _, slope in kind) for kind in kinds) > 7  # several launches
        assert {call.before.shape[0] for call in calls} == {0, 1, 2, 3, 5}
        assert sum(call.x.shape[0] == 0 for call in calls) > 2
        assert sum(call.x.shape[2:] == (1, 1) for call in calls) > 0

    def test_images_are_independent() -> None:
        x, grad = torch.randn(3, 3, 5, 7), torch.randn(3, 3, 5, 7)
        before, after = torch.randn(2, 3, 3, 13), torch.randn(2, 3, 3, 13)
        options = {"noises": [13, 13], "slopes": [True, True], "correlation": True, "impl": "triton"}
        batch = identity_gradients(x, grad, before, after, **options)
        single = identity_gradients(x[1:2], grad[1:2], before[:, 1:2], after[:, 1:2], **options)
        assert torch.equal(batch[0][1:2], single[0])
        assert all(torch.equal(a[1:2], b) for a, b in zip(batch[1], single[1], strict=True))
        assert torch.equal(batch[2][:, 1:2], single[2])

    def test_rejects_images_beyond_int32_offsets() -> None:
        huge = torch.empty((1, 3, 2**15, 2**15), device="meta")
        matrices = torch.empty(1, 1, 3, 5, device="meta")
        with pytest.raises(ValueError, match=r"an image of x must span fewer than 2\*\*31 values, spanned 3221225472"):
            kernels.layers(huge, huge, matrices, matrices, [], True)
        with pytest.raises(ValueError, match="an image of x must span"):
            kernels.correlation(huge, huge, replicate=True)

    def test_opcheck() -> None:
        x, grad = (torch.randn(2, 3, 4, 6).contiguous(memory_format=torch.channels_last) for _ in range(2))
        before, after = torch.randn(2, 2, 3, 5), torch.randn(2, 2, 3, 5)
        arguments = (x, grad, before, after, [5, 1], torch.float32, [True, False], True, "zeros", "triton")
        torch.library.opcheck(
            torch.ops.andfast.identity_gradients.default, arguments, test_utils=triton_interpreter.SCHEMA_AND_FAKE
        )

    @pytest.mark.parametrize(("noise", "slope"), [("full", "layer"), ("single", "channel")])
    def test_closed_form_first_step_matches_reference(noise: str, slope: str) -> None:
        hr = torch.rand(2, 3, 16, 8).contiguous(memory_format=torch.channels_last)
        generator = torch.Generator().manual_seed(0)
        theta = sample_identity(2, hr_size=(16, 8), channels=16, noise=noise, slope=slope, generator=generator)
        grads = []
        for impl in ("auto", "reference"):  # auto resolves to triton for this op only
            leaves = theta.rebuild(tensor.detach().clone().requires_grad_() for tensor in theta.tensors())
            lr = DegradationNetwork(impl=impl).closed_form_first_step(hr, leaves)
            grads.append(torch.autograd.grad(lr.square().sum(), tuple(leaves.tensors())))
        for actual, expected in zip(*grads, strict=True):
            assert (actual - expected).norm() <= 1e-5 * expected.norm()

    def test_self_test_passes() -> None:
        results = self_test("cpu", [torch.float32], [OP])
        assert {result.impl for result in results} == {"triton", "reference"}
        assert all(result.passed for result in results), results


def test_nothing_required() -> None:
    call = Call(*random_call(0)[:4], {"noises": [], "slopes": [], "correlation": False})
    results = identity_gradients(call.x, call.grad, call.before[:0], call.after[:0], **call.options)
    assert results[0] is None
    assert results[1] == []
    assert results[2].shape[0] == 0
