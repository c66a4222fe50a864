"""Steps and runs whose radii follow a target LR PSNR (adversary.target_psnr)."""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rerun import Rerun
from safetensors.torch import load_file
from small_steps import SIZE, crops, gradients, make
from test_captured_step import CONFIG, assert_same, batches, state
from tiny_runs import VALIDATED, train_here
from torch import Tensor

from andfast.adversary import PRESETS, Ball
from andfast.adversary.calibration import scaled
from andfast.config.adversary import WITH_TARGET, AdversaryConfig
from andfast.nn import RRDBNet
from andfast.training import radius_controller, replay
from andfast.training import state as state_module
from andfast.training.build import build_attack, build_objective, build_strategy
from andfast.training.checkpoint import latest, load_checkpoint
from andfast.training.frozen_attack import read_attack_settings, target_note
from andfast.training.held_out import attack_crops
from andfast.training.metrics_log import read_metrics
from andfast.training.state import StageState
from andfast.training.step_runner import StepRunner

BALLS = {
    "calibrated": PRESETS["calibrated"].ball_for(SIZE, SIZE),
    "symmetric": PRESETS["symmetric"].ball_for(SIZE, SIZE),
    "joint": Ball(0.002, 0.2, 0.03, joint=True),
}
FOLLOWING = replace(CONFIG.adversary, target_psnr=30.0)


@pytest.fixture
def short_period(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(radius_controller, "PERIOD", 2)


def stage(backend: Rerun | None = None, name: str = "net", **changes: Any) -> StageState:
    return state(name, backend, adversary=FOLLOWING, **changes)


def take(stage_state: StageState, hr: list[Tensor]) -> dict[str, float]:
    if stage_state.captures:
        stage_state.advance(hr)
        assert stage_state.latch is not None
        return stage_state.latch.read().values
    values = {name: value.item() for name, value in stage_state.gradients(hr).items()}
    stage_state.update()
    assert stage_state.radii is not None
    stage_state.radii.update(values["lr_psnr"])
    return values


@pytest.mark.parametrize("strategy", WITH_TARGET)
@pytest.mark.parametrize(
    ("ball", "image_radius"), [("calibrated", "fixed"), ("symmetric", "uniform"), ("joint", "fixed")]
)
def test_factor_multiplies_all_radii(strategy: Any, ball: str, image_radius: str) -> None:
    """LR is that of a ball with these radii; steps scale with them."""
    hr, built = crops(2), build_strategy(AdversaryConfig(strategy=strategy))
    settings = {"channels": 16, "image_radius": image_radius}
    smaller = make(strategy=built, settings=settings | {"ball": scaled(BALLS[ball], 0.4)})
    factor = torch.tensor(0.4)
    step = make(strategy=built, settings=settings | {"ball": BALLS[ball]}, attack={"radius_factor": factor})
    ours, expected = step.adversarial_batch(hr, 3), smaller.adversarial_batch(hr, 3)
    torch.testing.assert_close(ours.lr, expected.lr, atol=2e-4, rtol=0)
    factor.fill_(1.0)  # in place
    assert (step.adversarial_batch(hr, 3).lr - expected.lr).abs().max() > 2e-3


def test_factor_of_1_changes_nothing() -> None:
    hr, plain = crops(2), make()
    step = make(attack={"radius_factor": torch.ones(())})
    values, expected = step.gradients([hr], 0), plain.gradients([hr], 0)
    assert values.pop("radius_factor").item() == 1
    for name, value in expected.items():
        torch.testing.assert_close(values[name], value, rtol=1e-5, atol=1e-6)
    for name, gradient in gradients(plain.generator).items():
        torch.testing.assert_close(gradients(step.generator)[name], gradient, rtol=1e-4, atol=1e-7)


def test_factor_is_shared_by_networks() -> None:
    """Of shards, chunks and images that share a network; it draws no random numbers."""
    hr, factor = crops(4), torch.tensor(0.5)
    for settings in ({}, {"chunk_size": 1}, {"images_per_network": 2}):
        step = make(settings=settings, attack={"radius_factor": factor})
        drawn = torch.cat([start.factors for start in step.draws(hr, 3)])
        assert torch.equal(drawn, torch.full_like(drawn, 0.5))
    uniform, both = (
        make(settings={"image_radius": "uniform"}, attack={"radius_factor": x}).draws(hr, 3) for x in (None, factor)
    )
    assert torch.equal(next(both).factors, next(uniform).factors * 0.5)


@pytest.mark.usefixtures("short_period")
@pytest.mark.parametrize(("name", "accumulate"), [("net", 1), ("gan", 2)])
def test_captured_steps_equal_eager_steps(name: str, accumulate: int) -> None:
    """Over two updates; a step that is captured once sees the factor change."""
    eager, captured = (stage(backend, name, accumulate=accumulate) for backend in (None, Rerun()))
    assert eager.radii is not None
    assert captured.radii is not None
    factors = []
    for number in range(5):
        hr = batches(number, accumulate)
        expected, values = take(eager, hr), take(captured, hr)
        assert {key: values[key] for key in expected} == pytest.approx(expected, rel=1e-6)
        assert_same(eager, captured)
        assert eager.radii.state() == captured.radii.state()
        factors.append(values["radius_factor"])
    assert factors[0] == factors[1] == 1 != factors[2] == factors[3] != factors[4]
    assert captured._captured is not None
    parts = (captured._captured._whole, captured._captured._micro, captured._captured._update)
    assert [part.captures for part in parts] == ([1, 0, 0] if accumulate == 1 else [0, 1, 1])
    assert captured._captured.captured


def test_replay_reads_the_factor() -> None:
    """Set from outside, with nothing else changed: LR gets better as radii get smaller."""
    captured = stage(Rerun())
    hr = batches(0)
    take(captured, hr)
    assert captured.radii is not None
    psnr = []
    for level in (0.0, -12.0, -24.0):
        captured.radii.load({"level": level, "sum": 0.0, "count": 0.0})
        captured.done = 1  # the same networks
        values = take(captured, hr)
        assert values["radius_factor"] == pytest.approx(10 ** (level / 20), rel=1e-5)
        psnr.append(values["lr_psnr"])
    assert psnr[1] - psnr[0] > 6
    assert psnr[2] - psnr[1] == pytest.approx(12, abs=2)


def test_failed_step_does_not_count() -> None:
    captured = stage(Rerun())
    take(captured, batches(0))
    assert captured.radii is not None
    before = captured.radii.state()
    bad = batches(1)
    bad[0][0] = torch.nan
    for hr in (bad, batches(2)):
        captured.advance(hr)
    assert captured.latch is not None
    assert captured.latch.read().failed == 2
    assert captured.radii.state() == before
    assert before["count"] == 1


def test_slopes_stay_above_their_bound() -> None:
    """The bound holds at the largest factor, and around a random point."""

    def bound(**settings: Any) -> float:
        config = replace(CONFIG, adversary=AdversaryConfig(preset="calibrated", **settings))
        objective = build_objective(config, "net", torch.device("cpu"))
        attack = build_attack(config, "net", RRDBNet(features=4, blocks=1, growth=4), objective)
        return attack.degradation.smallest_slope

    assert bound() == pytest.approx(1 - 0.032)
    assert bound(target_psnr=30.0) == pytest.approx(1 - 10 * 0.032)
    assert bound(strategy="pgd_random_start") == pytest.approx(1 - 2 * 0.032)
    assert bound(strategy="pgd_random_start", random_scale=4.0, target_psnr=30.0) == 0
    assert bound(strategy="fast_random_start", random_scale={"noise": 9.0}) == pytest.approx(1 - 0.032)
    assert bound(strategy="fast_random_start", random_scale={"slope": 2.0}) == pytest.approx(1 - 3 * 0.032)


def test_held_out_crops_are_attacked_at_the_runs_strength() -> None:
    hr, psnr = crops(2), []
    for factor in (None, torch.tensor(0.1)):
        step = make(attack={"radius_factor": factor}, settings={"channels": 16})
        lr, clean = attack_crops(step.attack, step.generator, hr, seed=1)
        psnr.append(-10 * (lr - clean).square().mean().log10().item())
    assert psnr[1] - psnr[0] == pytest.approx(20, abs=3)


def test_commands_that_show_the_attack_note_the_target() -> None:
    note = "radii are as configured: adversary.target_psnr 30 applies to training"
    for target, expected in (("null", []), ("30", [note])):
        assert target_note(read_attack_settings(None, [f"--adversary.target_psnr={target}"], 4)) == expected


def logged(folder: Path) -> list[dict[str, Any]]:
    """Lines of steps, without what depends on the clock."""
    lines = read_metrics(folder / "run" / "metrics.jsonl")
    return [{name: line[name] for name in line if name != "timing"} for line in lines if "loss" in line]


def test_run_reaches_the_target(tmp_path: Path) -> None:
    options = ("--net.steps=60", "--checkpoint_every=1000", "--batch_size=3", "--degradation.channels=8")
    assert train_here(tmp_path, *options, "--adversary.preset=calibrated", "--adversary.target_psnr=27") == 0
    lines = logged(tmp_path)
    psnr = [line["lr_psnr"] for line in lines]
    assert sum(psnr[:10]) / 10 < 24.5
    assert sum(psnr[-30:]) / 30 == pytest.approx(27, abs=1)
    factors = [line["radius_factor"] for line in lines]
    assert factors[:10] == [1.0] * 10
    assert 0.2 < factors[-1] < 0.9
    record = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert not any("target_psnr" in note for note in record["notes"])


@pytest.mark.usefixtures("short_period")
@pytest.mark.parametrize("captured", [False, True])
def test_resumed_run_is_bit_identical(captured: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after step 3: one update done, the next in preparation."""
    if captured:
        monkeypatch.setattr(state_module, "captures_step", lambda *_: True)
        monkeypatch.setattr(state_module, "CUDAGraphBackend", Rerun)
    options = ("--adversary.target_psnr=40", "--net.steps=5", "--checkpoint_every=3")
    assert train_here(tmp_path / "whole", *options) == 0
    assert train_here(tmp_path / "parts", *options, "--steps=3") == 0
    folder = latest(tmp_path / "parts" / "run")
    assert folder is not None
    radii = load_checkpoint(folder).state["radii"]
    assert radii["level"] != 0
    assert radii["count"] == 1
    assert train_here(tmp_path / "parts", *options, "--resume") == 0
    assert logged(tmp_path / "whole") == logged(tmp_path / "parts")
    assert len({line["radius_factor"] for line in logged(tmp_path / "whole")}) == 3
    weights = [load_file(tmp_path / x / "run" / "weights" / "andnet.safetensors") for x in ("whole", "parts")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.usefixtures("short_period")
def test_stage_gan_goes_on_with_the_factor(tmp_path: Path) -> None:
    """Also where it is resumed before its first checkpoint; what stage net measured last does not count."""
    options = (
        *("--stages=[net, gan]", "--net.steps=3", "--gan.steps=3", "--checkpoint_every=3"),
        *("--discriminator.kind=unet", "--discriminator.features=4", "--adversary.target_psnr=40"),
    )
    assert train_here(tmp_path / "whole", *options) == 0
    assert train_here(tmp_path / "parts", *options, "--gan.steps=1") == 0
    factors = [line["radius_factor"] for line in logged(tmp_path / "whole")]
    assert factors[1] == 1 != factors[2] == factors[3] == factors[4] != factors[5]
    for path in (tmp_path / "parts" / "run" / "checkpoints").glob("gan-*"):
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    assert train_here(tmp_path / "parts", *options, "--resume") == 0
    assert [line["radius_factor"] for line in logged(tmp_path / "parts")] == factors


@pytest.mark.usefixtures("short_period")
def test_failed_step_is_reproduced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dump has the factor of the failed step."""
    values: dict[str, float] = {}
    gradients_of = StageState.gradients

    def fail(stage_state: StageState, hr: Sequence[Tensor]) -> dict[str, Tensor]:
        result = gradients_of(stage_state, hr)
        if stage_state.done == 3:
            values.update({name: float(value) for name, value in result.items()})
            return {**result, "l1": result["l1"] * torch.nan}
        return result

    with monkeypatch.context() as patch:
        patch.setattr(StageState, "gradients", fail)
        assert train_here(tmp_path, "--adversary.target_psnr=40", "--net.steps=4") == 3
    (path,) = (tmp_path / "run" / "failures").glob("*.pt")
    again = replay.replay(path, "cpu")
    assert again["radius_factor"] == values["radius_factor"] != 1
    assert again["lr_psnr"] == pytest.approx(values["lr_psnr"], rel=1e-6)


def test_target_out_of_reach_warns_once(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    monkeypatch.setattr(radius_controller, "PERIOD", 1)
    radii = [f"--adversary.radius_{name}=1e-6" for name in ("kernel", "rest", "noise")]
    assert train_here(tmp_path, "--adversary.target_psnr=12", "--net.steps=6", *radii) == 0
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert [message for message in warnings if "out of reach" in message] == [
        "adversary.target_psnr 12 is out of reach: the factor on the radii is at its largest, 10; set larger radii "
        "(adversary.preset, adversary.radius_*)"
    ]
    assert warnings[-1] in json.loads((tmp_path / "run" / "summary.json").read_text())["notes"]


def test_logging_and_validation_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The controller does not depend on when the host reads values."""
    monkeypatch.setattr(radius_controller, "PERIOD", 2)
    monkeypatch.setattr(state_module, "captures_step", lambda *_: True)
    monkeypatch.setattr(state_module, "CUDAGraphBackend", Rerun)
    common = ("--adversary.target_psnr=40", "--net.steps=4")
    assert train_here(tmp_path / "often", *common) == 0
    assert train_here(tmp_path / "seldom", *common, "--log_every=4", *VALIDATED, "--validation.every=3") == 0
    often, seldom = (logged(tmp_path / name)[-1] for name in ("often", "seldom"))
    assert often["radius_factor"] == seldom["radius_factor"] != 1
    assert often["loss"] == seldom["loss"]


def test_eager_steps_wait_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The controller gets the number that the host has read anyway."""
    stage_state = stage()
    seen: list[Any] = []
    assert stage_state.radii is not None
    monkeypatch.setattr(stage_state.radii, "update", lambda value, **_: seen.append(value))
    runner = StepRunner(CONFIG, stage_state, stage_state._group, type("NoStop", (), {"requested": False})(), total=1)
    values, _ = runner.take(batches(0))
    assert seen == [values["lr_psnr"]]
    assert isinstance(seen[0], float)
