"""The self-test passes for correct ops and detects incorrect ones."""

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from andfast.functional import dispatch, selftest
from andfast.functional import residual_dense_block as _public
from andfast.functional.selftest import SelfTestResult, self_test
from andfast.functional.selftest_cases import CASES, Case, Draw

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def test_all_registered_ops_have_cases() -> None:
    assert set(CASES) == set(dispatch._TABLE)


def test_all_implementations_pass_on_cpu() -> None:
    results = self_test("cpu", DTYPES)
    expected = {(op, impl, dtype) for op in CASES for dtype in DTYPES for impl in dispatch.available(op, "cpu", dtype)}
    assert {(result.op, result.impl, result.dtype) for result in results} == expected
    assert len(results) == len(expected)
    for result in results:
        assert result.passed, result
        assert result.error <= selftest.TOLERANCES[result.dtype], result
        assert result.error > 0, result  # the definition is another computation
        assert result.seconds > 0


@pytest.mark.gpu
def test_all_implementations_pass_on_gpu() -> None:
    results = self_test("cuda", DTYPES[1:])
    assert {result.op for result in results} == set(CASES)
    for result in results:
        assert result.passed, result


def test_every_false_tests_auto_only() -> None:
    results = self_test("cpu", [torch.float32], every=False)
    assert {result.op: result.impl for result in results} == dispatch.chosen("cpu")


def test_keeps_global_random_state() -> None:
    before = torch.get_rng_state()
    self_test("cpu", [torch.float32])
    assert torch.equal(before, torch.get_rng_state())


def test_ignores_surrounding_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        results = self_test("cpu", [torch.float32], ["residual_dense_block"])
    assert all(result.passed for result in results), results


@pytest.mark.parametrize("op", CASES)
def test_cases_have_odd_shapes_and_both_formats(op: str) -> None:
    cases = list(CASES[op](Draw(0)))
    assert {case.memory_format for case in cases} == {torch.channels_last, torch.contiguous_format}
    assert any(side % 2 for case in cases for side in case.inputs["x"].shape[2:])
    assert len({case.name for case in cases}) == len(cases)


def test_degradation_block_cases() -> None:
    shapes = [tuple(case.inputs["weight"].shape) for case in CASES["degradation_block"](Draw(0))]
    assert shapes == [(64, 3, 3, 3), (2, 64, 64, 3, 3), (2, 3, 64, 3, 3), (2, 64, 64, 3, 3)]


def test_preactivations_are_clear_of_zero() -> None:
    """The gradient jumps at zero, so a correct result could fail."""
    for case in CASES["degradation_block"](Draw(selftest._SEED)):
        bare = {name: tensor for name, tensor in case.inputs.items() if name != "noise"}
        z = case.definition({**bare, "slope": torch.tensor(1.0).double()})
        assert z.abs().min() > 0.5
        assert 0.2 < (z > 0).double().mean() < 0.8
    for case in CASES["residual_dense_block"](Draw(selftest._SEED)):
        features = [case.inputs["x"]]
        for k in range(4):
            weight, bias = case.inputs[f"weight{k}"], case.inputs[f"bias{k}"]
            z = torch.nn.functional.conv2d(torch.cat(features, 1), weight, bias, padding=1)
            assert z.abs().min() > 0.5
            features.append(torch.nn.functional.leaky_relu(z, 0.2))
    for case in CASES["upsampled_convolution"](Draw(selftest._SEED)):
        assert case.definition(case.inputs).abs().min() > 0.1  # after the slope


# ------------------------------------------------------------------------------------------------ incorrect ops


def broken(monkeypatch: pytest.MonkeyPatch, run: object) -> SelfTestResult:
    """Self-test result with the dense block computed by ``run``."""

    def cases(draw: Draw) -> list[Case]:
        return [case._replace(run=run) for case in CASES_BEFORE(draw)]

    monkeypatch.setitem(CASES, "residual_dense_block", cases)
    (result,) = self_test("cpu", [torch.float32], ["residual_dense_block"], every=False)
    return result


CASES_BEFORE = CASES["residual_dense_block"]


def dense(t: Mapping[str, Tensor]) -> Tensor:
    return _public(t["x"], [t[f"weight{k}"] for k in range(5)], [t[f"bias{k}"] for k in range(5)])


def test_correct_op_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert broken(monkeypatch, lambda t, impl: dense(t)).passed


def test_detects_scaled_result(monkeypatch: pytest.MonkeyPatch) -> None:
    result = broken(monkeypatch, lambda t, impl: dense(t) * (1 + 1e-4))
    assert not result.passed
    assert result.error == pytest.approx(1e-4, rel=0.1)
    assert "the result is off by 0.0001, at most 1e-05 is allowed (trained, 64 features" in result.message


def test_detects_one_wrong_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(t: Mapping[str, Tensor], impl: str) -> Tensor:
        out = dense(t)
        wrong = torch.zeros_like(out)
        wrong[0, 1, 0, 0] = 0.1
        return out + wrong

    result = broken(monkeypatch, run)
    assert not result.passed
    assert result.message.startswith("the result is off by")


def test_detects_wrong_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(t: Mapping[str, Tensor], impl: str) -> Tensor:
        return dense({**t, "weight2": t["weight2"] + 0.001 * (t["weight2"] - t["weight2"].detach())})

    result = broken(monkeypatch, run)
    assert not result.passed
    assert result.message.startswith("the gradient to weight2 is off by 0.001")


def test_detects_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    result = broken(monkeypatch, lambda t, impl: dense(t) * math.nan)
    assert not result.passed
    assert math.isnan(result.error)


def test_detects_wrong_memory_format(monkeypatch: pytest.MonkeyPatch) -> None:
    result = broken(monkeypatch, lambda t, impl: dense(t).contiguous())
    assert not result.passed
    assert "the result is not channels_last as x is" in result.message


def test_detects_wrong_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    result = broken(monkeypatch, lambda t, impl: dense(t).double())
    assert not result.passed
    assert "the result is torch.float64" in result.message


def test_reports_exceptions(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(t: Mapping[str, Tensor], impl: str) -> Tensor:
        raise RuntimeError("no kernel image\nis available")

    result = broken(monkeypatch, run)
    assert not result.passed
    assert math.isnan(result.error)
    assert result.message.startswith("RuntimeError: no kernel image is available (trained")


def test_rejects_invalid_arguments() -> None:
    with pytest.raises(ValueError, match=r"ops must be among degradation_block, .*, was 'convolution'"):
        self_test("cpu", ops=["convolution"])
    with pytest.raises(ValueError, match=r"dtypes must be among .*, was torch\.int32"):
        self_test("cpu", [torch.int32])
