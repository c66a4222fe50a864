"""Captured training steps: bit-identical to eager steps, and without effect from the first non-finite step on."""

import copy
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rerun import Rerun
from small_steps import crops
from test_capture import REASONS, Broken
from torch import Tensor

from andfast.config.schema import (
    DegradationConfig,
    DiscriminatorConfig,
    GeneratorConfig,
    LossConfig,
    TrainConfig,
)
from andfast.training.build import build_generator
from andfast.training.checkpoint import Checkpoint
from andfast.training.cuda_graph import Backend, CaptureError
from andfast.training.distributed import ProcessGroup
from andfast.training.state import StageState

CPU = ProcessGroup(0, 1, torch.device("cpu"))
CONFIG = TrainConfig(
    output=Path("x"),
    device="cpu",
    batch_size=2,
    precision="fp32",
    ema_decay=0.5,
    generator=GeneratorConfig(features=8, blocks=1, growth=4),
    degradation=DegradationConfig(channels=8),
    discriminator=DiscriminatorConfig(kind="unet", features=4),
    loss=LossConfig(vgg_weights="random", perceptual_layers={"conv1_2": 0.1}),
)
CONFIG = replace(CONFIG, adversary=replace(CONFIG.adversary, steps=2), data=replace(CONFIG.data, patch_size=32))


def state(stage: Any, backend: Backend | None = None, group: ProcessGroup = CPU, **changes: Any) -> StageState:
    """A stage whose steps are captured with a backend, and eager without one; fused Adam in both."""
    torch.manual_seed(0)
    config = replace(CONFIG, **changes)
    stage_state = StageState(config, stage, build_generator(config), group, backend=backend)
    if backend is None:
        for name, optimizer in stage_state.optimizers.items():
            group_options = optimizer.param_groups[0]
            stage_state.optimizers[name] = torch.optim.Adam(
                group_options["params"], lr=group_options["lr"], betas=group_options["betas"], fused=True
            )
    return stage_state


def batches(number: int, accumulate: int = 1) -> list[Tensor]:
    return [crops(2).roll(number + micro, 3) for micro in range(accumulate)]


def take(stage_state: StageState, hr: list[Tensor]) -> dict[str, float]:
    if stage_state.captures:
        stage_state.advance(hr)
        return stage_state.latch.read().values
    values = stage_state.gradients(hr)
    stage_state.update()
    return {name: value.item() for name, value in values.items()}


def everything(stage_state: StageState) -> list[Tensor]:
    """Weights and buffers of all networks, optimizer states and the scaler's."""
    saved = [copy.deepcopy(list(weights.values())) for weights in stage_state.weights().values()]
    states = [
        [tensor.clone() for state in optimizer.state.values() for tensor in state.values()]
        for optimizer in stage_state.optimizers.values()
    ]
    scale = [torch.tensor([float(value) for value in stage_state.scaler.state_dict().values()])]
    return [tensor for tensors in (*saved, *states, scale) for tensor in tensors]


def assert_same(a: StageState, b: StageState) -> None:
    for ours, theirs in zip(everything(a), everything(b), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("net", {}),
        ("gan", {}),
        ("net", {"precision": "bf16"}),
        ("gan", {"precision": "bf16"}),
        ("gan", {"accumulate": 2}),
        ("net", {"precision": "fp16"}),
    ],
    ids=["net", "gan", "net-bf16", "gan-bf16", "gan-accumulate", "net-fp16"],
)
def test_captured_steps_equal_eager_steps(stage: str, changes: dict[str, Any]) -> None:
    backend = Rerun()
    eager, captured = state(stage, **changes), state(stage, backend, **changes)
    for number in range(3):
        hr = batches(number, CONFIG.accumulate if "accumulate" not in changes else 2)
        expected, values = take(eager, hr), take(captured, hr)
        assert {name: values[name] for name in expected} == pytest.approx(expected, rel=1e-6)
        assert_same(eager, captured)
    assert backend.runs > 0
    assert captured.done == 3


@pytest.mark.parametrize("stage", ["net", "gan"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_first_nonfinite_step_latches(stage: str, accumulate: int) -> None:
    """The latch keeps its number, values and batch; it and finite steps after it change nothing."""
    captured = state(stage, Rerun(), accumulate=accumulate)
    take(captured, batches(0, accumulate))
    before = everything(captured)
    bad = batches(1, accumulate)
    bad[-1][0, 0, 0, 0] = torch.nan
    for hr in (bad, batches(2, accumulate), batches(3, accumulate)):
        captured.advance(hr)
    failed, values = captured.latch.read()
    assert failed == 2
    assert math.isnan(values["loss"])
    for kept, hr in zip(captured.latch.hr, bad, strict=True):
        assert torch.equal(kept, hr) or torch.equal(kept.nan_to_num(7), hr.nan_to_num(7))
    for old, now in zip(before, everything(captured), strict=True):
        assert torch.equal(old, now)


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_nonfinite_gradient_latches(network: str) -> None:
    captured = state("gan", Rerun())
    take(captured, batches(0))
    before = everything(captured)
    weight = next(captured.trained()[network].parameters())
    hook = weight.register_hook(lambda gradient: gradient * torch.inf)
    captured.advance(batches(1))
    hook.remove()
    captured.advance(batches(2))
    failed, values = captured.latch.read()
    assert failed == 2
    assert [name for name, value in values.items() if math.isnan(value)] == [f"{network}_gradient"]
    for old, now in zip(before, everything(captured), strict=True):
        assert torch.equal(old, now)


def test_fp16_overflow_is_left_to_the_scaler() -> None:
    captured = state("net", Rerun(), precision="fp16")
    take(captured, batches(0))
    captured.scaler.update(2.0**40)
    before = everything(captured)[:-1]
    take(captured, batches(1))
    assert captured.latch.read().failed is None
    assert captured.scaler.get_scale() == 2.0**39
    weights = len(list(captured.step.generator.parameters()))
    for old, now in zip(before[:weights], everything(captured)[:weights], strict=True):
        assert torch.equal(old, now)
    captured.scaler.update(2.0**10)
    take(captured, batches(2))
    assert not torch.equal(before[0], everything(captured)[0])
    hr = batches(3)
    hr[0][0] = torch.nan  # a non-finite loss fails in fp16 as well, and leaves the scale unchanged
    captured.advance(hr)
    assert captured.latch.read().failed == 4
    assert captured.scaler.get_scale() == 2.0**10


@pytest.mark.parametrize("stage", ["net", "gan"])
def test_resumed_steps_equal_uninterrupted_ones(stage: str) -> None:
    whole, first, second = (state(stage, Rerun()) for _ in range(3))
    for number in range(4):
        take(whole, batches(number))
    for number in range(2):
        take(first, batches(number))
    checkpoint = Checkpoint(
        **{
            "stage": first.name,
            "step": first.done,
            "weights": copy.deepcopy(first.weights()),
            "state": copy.deepcopy(first.state()),
        }
    )
    second.load(checkpoint)
    for number in range(2, 4):
        take(second, batches(number))
    assert_same(whole, second)


@pytest.mark.parametrize("fault", ["raises", "does nothing", "is off"])
def test_failed_capture_falls_back_with_a_warning(fault: str, caplog: pytest.LogCaptureFixture) -> None:
    eager, captured = state("net"), state("net", BrokenState(fault))
    for number in range(2):
        take(eager, batches(number))
        take(captured, batches(number))
        assert_same(eager, captured)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "stage net: CUDA graph of the step: capture failed, running eagerly" in record.message


def test_failed_capture_raises_where_required() -> None:
    captured = state("net", Broken("raises"), cuda_graph=True)
    with pytest.raises(CaptureError, match=REASONS["raises"]):
        captured.advance(batches(0))


class BrokenState(Rerun):
    """A backend that cannot capture, or whose replay changes state wrongly."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault

    def capture(self, function: Any) -> Any:
        if self.fault == "raises":
            raise RuntimeError(REASONS["raises"])
        replay, results = super().capture(function)
        if self.fault == "does nothing":
            return (lambda: None), results

        def twice() -> None:
            replay()
            replay()

        return twice, results


def test_nonfinite_first_step_is_not_a_failed_capture(caplog: pytest.LogCaptureFixture) -> None:
    captured = state("net", Rerun())
    hr = batches(0)
    hr[0][0] = torch.nan
    captured.advance(hr)
    assert captured.latch.read().failed == 1
    assert not caplog.records


def test_weight_without_gradient_raises() -> None:
    captured = state("net", Rerun())
    captured.step.generator.register_parameter("unused", torch.nn.Parameter(torch.zeros(1)))
    captured.optimizers["generator"].add_param_group({"params": [captured.step.generator.unused]})
    captured.ema.module.register_parameter("unused", torch.nn.Parameter(torch.zeros(1)))
    with pytest.raises(RuntimeError, match="1 parameters of the generator received no gradient, unused first"):
        captured.advance(batches(0))
