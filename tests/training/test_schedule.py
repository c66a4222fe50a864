"""Learning rates: their values by step, in the optimizers, in captured steps, and after a resume."""

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from rerun import Rerun
from test_captured_step import CONFIG, CPU, assert_same, batches, state, take

from andfast.config.schema import GanConfig, NetConfig
from andfast.training.build import build_generator
from andfast.training.checkpoint import Checkpoint
from andfast.training.schedule import is_constant, learning_rate
from andfast.training.state import StageState

SCHEDULES: dict[str, dict[str, Any]] = {
    "warmup": {"lr_warmup": 3},
    "milestones": {"lr_schedule": "milestones", "lr_milestones": [1, 3], "lr_gamma": 0.1},
    "cosine": {"lr_schedule": "cosine", "lr_warmup": 1, "steps": 4},
}


def test_constant_rate() -> None:
    settings = NetConfig(lr=3e-4)
    assert is_constant(settings)
    assert {learning_rate("net", settings, done) for done in (0, 1, 10**7)} == {3e-4}


def test_milestones_of_esrgan() -> None:
    """The paper of ESRGAN: every 200k steps for the PSNR-oriented G, 50k, 100k, 200k and 300k for the GAN."""
    net, gan = NetConfig(lr=2e-4, lr_schedule="milestones"), GanConfig(lr=1e-4, lr_schedule="milestones")
    assert not is_constant(net)
    rates = [learning_rate("net", net, done) for done in (199_999, 200_000, 400_000, 999_999)]
    assert rates == pytest.approx([2e-4, 1e-4, 5e-5, 1.25e-5])
    rates = [learning_rate("gan", gan, done) for done in (49_999, 50_000, 250_000, 400_000)]
    assert rates == pytest.approx([1e-4, 5e-5, 1.25e-5, 6.25e-6])


def test_warmup_and_cosine() -> None:
    settings = NetConfig(lr=1.0, lr_schedule="cosine", lr_warmup=4, steps=12)
    rates = [learning_rate("net", settings, done) for done in range(13)]
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[8] == pytest.approx(0.5)
    assert rates[10] == pytest.approx((1 + math.cos(0.75 * math.pi)) / 2)
    assert rates[11] > rates[12] == 0
    assert learning_rate("net", settings, 20) == 0  # the run was resumed with fewer steps than are done


def rates_of(stage_state: StageState) -> list[float]:
    return [float(group["lr"]) for optimizer in stage_state.optimizers.values() for group in optimizer.param_groups]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("stage", ["net", "gan"])
def test_captured_steps_follow_the_schedule(stage: str, name: str) -> None:
    """The rate is a tensor that replays read; it rounds to float32, which eager steps' rates do not."""
    settings = replace(CONFIG.stage(stage), lr=2.0**-10, **SCHEDULES[name])  # type: ignore[arg-type]
    eager, captured = state(stage, **{stage: settings}), state(stage, Rerun(), **{stage: settings})
    for number in range(4):
        take(eager, batches(number))
        take(captured, batches(number))
        expected = learning_rate(eager.name, settings, number)
        assert rates_of(eager) == [expected] * len(eager.optimizers)
        assert rates_of(captured) == pytest.approx(rates_of(eager), rel=1e-6)
        assert eager.last_learning_rate == captured.last_learning_rate == expected
        for ours, theirs in zip(
            captured.weights()["generator"].values(), eager.weights()["generator"].values(), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("name", SCHEDULES)
def test_resumed_steps_have_the_bits_of_uninterrupted_ones(name: str, captured: bool) -> None:
    config = replace(CONFIG, net=replace(CONFIG.net, **SCHEDULES[name]))
    states = []
    for _ in range(3):
        torch.manual_seed(0)
        states.append(StageState(config, "net", build_generator(config), CPU, backend=Rerun() if captured else None))
    whole, first, second = states
    for number in range(4):
        take(whole, batches(number))
    for number in range(2):
        take(first, batches(number))
    saved = copy.deepcopy(first.state())
    assert all(isinstance(group["lr"], float) for group in saved["optimizers"]["generator"]["param_groups"])
    second.load(Checkpoint(first.name, first.done, saved, copy.deepcopy(dict(first.weights()))))  # type: ignore[arg-type]
    for number in range(2, 4):
        take(second, batches(number))
    assert_same(whole, second)
