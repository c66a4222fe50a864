"""Whole training steps as CUDA graphs on a GPU: values and weights of eager steps, and their memory."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_captured_step import batches, everything, state, take

from andfast.training.cuda_graph import STATE_TOLERANCE, CUDAGraphBackend, change_error
from andfast.training.distributed import ProcessGroup
from andfast.training.state import StageState
from benchmarks.suites.step_variants import TINY, Step, Variant

pytestmark = pytest.mark.gpu

TOLERANCES = {"fp32": 1e-3, "bf16": 2e-2, "fp16": 2e-2}


@pytest.fixture(autouse=True)
def _deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise cuDNN may choose different algorithms, whose rounding the ascent amplifies."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)


def make(stage: str, precision: str, backend: CUDAGraphBackend | None, **changes: Any) -> StageState:
    group = ProcessGroup(0, 1, torch.device("cuda"))
    changes |= {"precision": precision, "cuda_graph": backend is not None}
    stage_state = state(stage, backend, group, **changes)
    stage_state.scaler._init_scale = 256.0  # the first steps must not overflow, as they would change nothing
    return stage_state


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("stage", ["net", "gan"])
def test_replays_equal_eager_steps(stage: str, precision: str) -> None:
    """A capture and two replays on new images; ``cuda_graph`` is true, so a failed capture raises."""
    eager, captured = make(stage, precision, None), make(stage, precision, CUDAGraphBackend())
    before = [tensor.cpu() for tensor in everything(eager)]
    weights = sum(len(values) for values in eager.weights().values())
    for number in range(3):
        hr = [images.cuda() for images in batches(number)]
        expected, values = take(eager, hr), take(captured, hr)
        assert {name: values[name] for name in expected} == pytest.approx(expected, rel=TOLERANCES[precision], abs=1e-3)
    ours, right = ([tensor.cpu() for tensor in everything(s)[:weights]] for s in (captured, eager))
    assert not all(torch.equal(old, new) for old, new in zip(before[:weights], right, strict=True))
    assert change_error(ours, right, before[:weights]) <= STATE_TOLERANCE
    assert captured._captured is not None
    assert captured._captured.captured
    assert captured._captured._whole.captures == 1


def test_accumulated_steps_equal_eager_steps() -> None:
    """One graph per micro batch, and another for the update."""
    eager, captured = (make("gan", "bf16", backend, accumulate=2) for backend in (None, CUDAGraphBackend()))
    for number in range(3):
        hr = [images.cuda() for images in batches(number, 2)]
        expected, values = take(eager, hr), take(captured, hr)
        assert {name: values[name] for name in expected} == pytest.approx(expected, rel=2e-2, abs=1e-3)


def test_nonfinite_step_latches() -> None:
    captured = make("gan", "bf16", CUDAGraphBackend())
    take(captured, [images.cuda() for images in batches(0)])
    before = [tensor.cpu() for tensor in everything(captured)]
    for number in (1, 2):
        hr = [images.cuda() for images in batches(number)]
        if number == 1:
            hr[0][0, 0, 0, 0] = torch.nan
        captured.advance(hr)
    assert captured.latch is not None
    assert captured.latch.read().failed == 2
    for old, now in zip(before, everything(captured), strict=True):
        assert torch.equal(old, now.cpu())


def test_replays_do_not_synchronize() -> None:
    """Outside of the wait for a step two before, which is an event's."""
    captured = make("gan", "bf16", CUDAGraphBackend())
    hr = [images.cuda() for images in batches(0)]
    for _ in range(2):
        captured.advance(hr)
    torch.cuda.set_sync_debug_mode("error")
    try:
        captured.advance(hr)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("stage", ["net", "gan"])
def test_memory_of_a_captured_step(stage: str) -> None:
    """Capture and replays of an AND step need at most 1.15 times the memory of eager steps.

    G is too small here to compare with the plain step alone; benchmarks/suites/test_step.py has the full size.
    """
    size = replace(TINY, batch=8, features=64, blocks=2, growth=32, channels=64)
    peaks = {}
    for kind, graph in (("plain", False), ("and", False), ("and", True)):
        step = Step(Variant("memory", 4, bf16=True, graph=graph), size, stage, "cuda")
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        for _ in range(3):
            step.whole(kind)
        torch.cuda.synchronize()
        peaks[kind, graph] = torch.cuda.max_memory_allocated()
        del step
    assert peaks["and", True] <= 1.15 * max(peaks["and", False], peaks["plain", False]), peaks
