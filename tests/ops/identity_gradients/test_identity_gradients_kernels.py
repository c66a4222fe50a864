"""The identity gradients' Triton kernels against the formulas in float64, in Triton's interpreter.

This file runs itself again in the interpreter, see triton_interpreter; what is under ``if INTERPRETED`` runs there
only. The interpreter truncates what it stores as bf16, which is tested on a GPU, in
test_kernels_identity_gradients_gpu.py.
"""

import pytest
import torch
import triton_interpreter
from identity_gradients_cases import Call, assert_right, random_call
from triton_interpreter import INTERPRETED

from andfast.adversary import sample_identity
from andfast.functional import dispatch
from andfast.functional.identity_gradients import OP, identity_gradients
from andfast.functional.selftest import self_test
from andfast.nn import DegradationNetwork

CASES = 120

pytestmark = triton_interpreter.quiet


if not INTERPRETED:

    @pytest.mark.slow
    def test_in_the_interpreter() -> None:
        triton_interpreter.run(__file__, "not nothing")

    def test_the_op_runs_without_triton() -> None:
        triton_interpreter.run_without_triton(
            "from andfast.adversary import sample_identity\n"
            "from andfast.nn import DegradationNetwork\n"
            "theta = sample_identity(1, hr_size=8, channels=8)\n"
            "theta.weights[0].requires_grad_()\n"
            "DegradationNetwork().closed_form_first_step(torch.rand(1, 3, 8, 8), theta).sum().backward()"
        )

    def test_auto_takes_the_kernels_where_they_run(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(dispatch._TABLE[OP], "triton", dispatch.everywhere)
        assert dispatch.resolve(OP, "auto", "cuda", torch.float32) == "triton"
        assert dispatch.resolve(OP, "auto", "cuda", torch.float64) == "reference"

    def test_the_explicit_choice_says_why_it_cannot_be_had() -> None:
        one = random_call(1)
        with pytest.raises(RuntimeError, match=r"impl='triton' of identity_gradients .* CUDA devices.*'cpu'"):
            identity_gradients(*one[:4], **one.options, impl="triton")


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
            one = random_call(seed, dtypes=(torch.float32, torch.float32, torch.float16))
            found = identity_gradients(*one[:4], **one.options, impl="triton")
            try:
                assert_right(found, one)
            except AssertionError as error:
                raise AssertionError(f"seed {seed}: {tuple(one.x.shape)}, {one.options}, {one.poison!r}") from error
            if seed % 5 == 1 and not one.poison:
                again = identity_gradients(*one[:4], **one.options, impl="triton")
                assert torch.equal(found[2], again[2])
                assert found[0] is None or torch.equal(found[0], again[0])

    def test_the_cases_cover_what_they_should() -> None:
        calls = [random_call(seed) for seed in range(CASES)]
        assert {one.poison for one in calls} == {"", "x", "grad", "before", "after"}
        forms = {
            channels if channels < 2 else 2
            for one in calls
            for channels in one.options["noises"]
            if one.before.shape[3] > 1
        }
        assert forms == {0, 1, 2}
        kinds = [set(zip(one.options["noises"], one.options["slopes"], strict=True)) for one in calls]
        assert sum(len(some) > 1 and any(slope for _, slope in some) for some in kinds) > 15  # several launches
        assert {one.before.shape[0] for one in calls} == {0, 1, 2, 3, 5}
        assert sum(one.x.shape[0] == 0 for one in calls) > 5
        assert sum(one.x.shape[2:] == (1, 1) for one in calls) > 0

    def test_an_image_does_not_depend_on_the_others() -> None:
        x, grad = torch.randn(3, 3, 5, 7), torch.randn(3, 3, 5, 7)
        before, after = torch.randn(2, 3, 3, 13), torch.randn(2, 3, 3, 13)
        options = {"noises": [13, 13], "slopes": [True, True], "correlation": True, "impl": "triton"}
        found = identity_gradients(x, grad, before, after, **options)
        alone = identity_gradients(x[1:2], grad[1:2], before[:, 1:2], after[:, 1:2], **options)
        assert torch.equal(found[0][1:2], alone[0])
        assert all(torch.equal(one[1:2], other) for one, other in zip(found[1], alone[1], strict=True))
        assert torch.equal(found[2][:, 1:2], alone[2])

    def test_an_image_beyond_32_bit_offsets_is_refused() -> None:
        huge = torch.empty((1, 3, 2**15, 2**15), device="meta")
        matrices = torch.empty(1, 1, 3, 5, device="meta")
        with pytest.raises(ValueError, match=r"an image of x must span fewer than 2\*\*31 values, spanned 3221225472"):
            kernels.layers(huge, huge, matrices, matrices, [], True)
        with pytest.raises(ValueError, match="an image of x must span"):
            kernels.correlation(huge, huge, replicate=True)

    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
    def test_opcheck(memory_format: torch.memory_format) -> None:
        x, grad = (torch.randn(2, 3, 4, 6).contiguous(memory_format=memory_format) for _ in range(2))
        before, after = torch.randn(2, 2, 3, 5), torch.randn(2, 2, 3, 5)
        arguments = (x, grad, before, after, [5, 1], torch.float32, [True, False], True, "zeros", "triton")
        torch.library.opcheck(torch.ops.andfast.identity_gradients.default, arguments)

    @pytest.mark.parametrize(("noise", "slope"), [("full", "layer"), ("single", "channel")])
    def test_a_pass_at_the_identity_is_that_of_the_reference(noise: str, slope: str) -> None:
        hr = torch.rand(2, 3, 16, 8).contiguous(memory_format=torch.channels_last)
        generator = torch.Generator().manual_seed(0)
        theta = sample_identity(2, hr_size=(16, 8), channels=16, noise=noise, slope=slope, generator=generator)
        grads = []
        for impl in ("auto", "reference"):  # auto: as the table says above, for this op alone
            leaves = theta.rebuild(one.detach().clone().requires_grad_() for one in theta.tensors())
            lr = DegradationNetwork(impl=impl).closed_form_first_step(hr, leaves)
            grads.append(torch.autograd.grad(lr.square().sum(), tuple(leaves.tensors())))
        for one, other in zip(*grads, strict=True):
            assert (one - other).norm() <= 1e-5 * other.norm()

    def test_the_self_test_passes() -> None:
        results = self_test("cpu", [torch.float32, torch.float16], [OP])
        assert {one.impl for one in results} == {"triton", "reference"}
        assert all(one.passed for one in results), results


def test_a_call_is_what_the_op_takes() -> None:
    """A case with nothing wanted is a call too."""
    one = Call(*random_call(0)[:4], {"noises": [], "slopes": [], "correlation": False})
    found = identity_gradients(one.x, one.grad, one.before[:0], one.after[:0], **one.options)
    assert found[0] is None
    assert found[1] == []
    assert found[2].shape[0] == 0
