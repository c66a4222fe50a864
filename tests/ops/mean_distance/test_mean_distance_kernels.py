"""The mean distance's Triton kernels in Triton's interpreter: the mean against float64, the gradient bit for bit.

Tests under ``if INTERPRETED`` run in a subprocess, see triton_interpreter. The interpreter truncates to bf16, which
test_mean_distance_gpu.py tests.
"""

from typing import Any

import pytest
import torch
import triton_interpreter
from mean_distance_cases import assert_correct, random_pair, run
from torch import Tensor
from triton_interpreter import INTERPRETED

from andfast.functional import dispatch, mean_distance
from andfast.functional.mean_distance import mean_distance_reference
from andfast.functional.selftest import self_test

CASES = 80
DTYPES = (torch.float32, torch.float16)

pytestmark = triton_interpreter.quiet


if not INTERPRETED:

    @pytest.mark.slow
    def test_in_the_interpreter() -> None:
        triton_interpreter.run(__file__)

    def test_float64_uses_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(dispatch._TABLE["mean_distance"], "triton", dispatch.everywhere)
        x, wide = torch.rand(2, 3), torch.rand(2, 3).double()
        for image, target, name in ((wide, x, "x"), (x, wide, "target"), (wide, wide, "x")):
            with pytest.raises(TypeError, match=rf"{name} must be float32, .* with impl='triton', was torch\.float64"):
                mean_distance(image, target, impl="triton")
            assert mean_distance(image, target).dtype == torch.float64


if INTERPRETED:
    from andfast.kernels.mean_distance import kernels

    triton_interpreter.repair()

    SMALL = (kernels.Config(64, 1, 4), kernels.Config(32, 3, 4), kernels.Config(256, 2, 4))

    @pytest.fixture(autouse=True)
    def _on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(dispatch._TABLE["mean_distance"], "triton", dispatch.everywhere)

    @pytest.mark.parametrize("seed", range(CASES))
    def test_parity(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(kernels, "CONFIG", kernels.CONFIG if seed % 8 == 0 else SMALL[seed % 3])
        monkeypatch.setattr(kernels, "PARTIALS_BLOCK", 8 if seed % 5 == 0 else kernels.PARTIALS_BLOCK)
        pair = random_pair(seed, DTYPES)
        before = pair.x.clone(), pair.target.clone()
        assert_correct(pair, "triton")
        for new, old in zip(pair, before, strict=False):  # arguments are not modified
            torch.testing.assert_close(new, old, rtol=0, atol=0, equal_nan=True)
        if seed % 6 == 1:
            for a, b in zip(run(pair, "triton"), run(pair, "triton"), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)

    def test_cases_cover_all_options() -> None:
        pairs = [random_pair(seed, DTYPES) for seed in range(CASES)]
        assert {(pair.kind, pair.x.dtype, pair.target.dtype) for pair in pairs} == {
            (kind, *two) for kind in ("l1", "l2") for two in [(a, b) for a in DTYPES for b in DTYPES]
        }
        assert len({pair.poison for pair in pairs}) == 6
        assert sum(pair.x.stride() == pair.target.stride() for pair in pairs) > 20
        assert sum(pair.x.stride() != pair.target.stride() for pair in pairs) > 15
        assert sum(pair.x.numel() > 64 for pair in pairs) > 30
        assert sum(bool((pair.x == pair.target).any()) for pair in pairs) > 30
        assert {pair.x.dim() for pair in pairs} == {0, 1, 2, 4}

    def test_tensors_with_equal_strides_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
        """Only a target in another order in memory is copied."""
        seen: list[tuple[int, int]] = []
        in_same_order = kernels._in_same_order

        def recorded(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
            x, target = in_same_order(x, target)
            seen.append((x.data_ptr(), target.data_ptr()))
            return x, target

        monkeypatch.setattr(kernels, "_in_same_order", recorded)
        x, target = torch.randn(2, 6, 4, 5), torch.randn(2, 6, 4, 5)
        for order in ((0, 1, 2, 3), (0, 3, 1, 2), (3, 2, 1, 0)):
            mean_distance(x.permute(order), target.permute(order), impl="triton")
            assert seen.pop() == (x.data_ptr(), target.data_ptr())
        last = target.contiguous(memory_format=torch.channels_last)
        assert torch.equal(mean_distance(x, last, impl="triton"), mean_distance(x, target, impl="triton"))
        assert seen[0][0] == x.data_ptr()
        assert seen[0][1] not in (last.data_ptr(), target.data_ptr())

    def test_opcheck() -> None:
        x, target = (
            torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
            torch.randn(2, 3, 4, 5).half(),
        )
        forward, backward = torch.ops.andfast.mean_distance, torch.ops.andfast.mean_distance_backward
        utils = triton_interpreter.SCHEMA_AND_FAKE
        torch.library.opcheck(forward, (x.clone().requires_grad_(), target, "l1", "triton"), test_utils=utils)
        torch.library.opcheck(backward, (torch.tensor(0.3), x, target, "l2", "triton"), test_utils=utils)

    @pytest.mark.parametrize("kind", ["l1", "l2"])
    def test_compiles_as_one_graph(kind: Any) -> None:
        def loss(x: Tensor, target: Tensor) -> Tensor:
            return mean_distance(2 * x, target, kind=kind, impl="triton")

        x, target = torch.randn(2, 3, 4, 5, requires_grad=True), torch.randn(2, 3, 4, 5)
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x, target), mean_distance_reference(2 * x, target, kind))
        assert torch.equal(*(torch.autograd.grad(call(x, target), x)[0] for call in (loss, compiled)))

    def test_self_test_passes() -> None:
        results = self_test("cpu", [torch.float32, torch.float16], ["mean_distance"])
        assert {result.impl for result in results} == {"triton", "reference"}
        assert all(result.passed for result in results), results
