"""Op implementations of a run, and the self-test before a run on a GPU."""

import dataclasses
from pathlib import Path

import pytest
import torch

from andfast.config.schema import TrainConfig
from andfast.functional.selftest import SelfTestResult
from andfast.training import ops
from andfast.training.build import build_generator, build_step
from andfast.training.distributed import ProcessGroup

CUDA = torch.device("cuda")


def config(**settings: object) -> TrainConfig:
    return dataclasses.replace(TrainConfig(output=Path("run")), **settings)  # type: ignore[arg-type]


@pytest.fixture
def self_test_calls(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Make the self-test fail for one op; return the arguments of its calls."""
    calls: list[object] = []

    def self_test(device: torch.device, dtypes: list[torch.dtype], *, every: bool) -> list[SelfTestResult]:
        calls.append((device, dtypes, every))
        good = SelfTestResult("blur_pool", "cuda", torch.float32, True, 1e-7, 0.25, "")
        return [good, SelfTestResult("degradation_block", "triton", torch.bfloat16, False, 0.3, 1.0, "off by 0.3")]

    monkeypatch.setattr(ops, "self_test", self_test)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "a GPU")
    return calls


def test_failed_self_test_raises(self_test_calls: list[object]) -> None:
    message = r"on a GPU: degradation_block \(triton, torch.bfloat16\): off by 0.3. --ops=reference trains with plain"
    with pytest.raises(ops.UntrustedOpError, match=message):
        ops.check_ops(config(precision="bf16"), CUDA)
    assert self_test_calls == [(CUDA, [torch.bfloat16, torch.float32], False)]


def test_fp32_runs_test_fp32_only(self_test_calls: list[object]) -> None:
    with pytest.raises(ops.UntrustedOpError):
        ops.check_ops(config(precision="fp32"), CUDA)
    assert self_test_calls == [(CUDA, [torch.float32], False)]


def test_reference_and_cpu_are_not_tested(self_test_calls: list[object]) -> None:
    assert ops.check_ops(config(ops="reference"), CUDA) == ops.check_ops(config(), torch.device("cpu")) == 0
    assert self_test_calls == []


@pytest.mark.parametrize(
    ("preset", "radius", "smallest"), [("calibrated", None, 0.968), ("paper", None, 0.6), ("calibrated", 1.5, 0)]
)
def test_degradation_has_smallest_slope_of_ball(preset: str, radius: float | None, smallest: float) -> None:
    settings = config(ops="reference")
    settings.generator.blocks, settings.generator.features, settings.generator.growth = 1, 8, 4
    settings.adversary.preset, settings.adversary.radius_slope = preset, radius  # type: ignore[assignment]
    step = build_step(settings, "net", build_generator(settings), ProcessGroup(0, 1, torch.device("cpu")))
    assert step.attack.degradation.smallest_slope == step.attack.settings.ball.smallest_slope
    assert step.attack.degradation.smallest_slope == pytest.approx(smallest)


def test_ops_setting_reaches_all_networks() -> None:
    settings = config(ops="reference")
    settings.generator.blocks, settings.generator.features, settings.generator.growth = 1, 8, 4
    generator = build_generator(settings)
    assert {module.impl for module in generator.modules() if hasattr(module, "impl")} == {"reference"}
    settings.loss.vgg_weights, settings.loss.gan = "random", 0
    step = build_step(settings, "gan", generator, ProcessGroup(0, 1, torch.device("cpu")))
    assert step.objective.vgg is not None
    assert {step.attack.degradation.impl, step.objective.impl, step.objective.vgg.impl} == {"reference"}
    assert set(ops.ops_used(settings, torch.device("cpu")).values()) == {"reference"}
    assert ops.ops_used(config(), torch.device("cpu"))["blur_pool"] != "reference"
