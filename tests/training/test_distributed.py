"""Two processes (gloo, CPU) against one: the same crops, the same identity networks, the same gradients."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from forked_ranks import Ranks
from rerun import Rerun
from small_steps import crops, make
from test_captured_step import CONFIG, batches, everything, state, take
from tiny_runs import environment, write_config
from torch.nn.parallel import DistributedDataParallel

from andfast import train
from andfast.adversary import PRESETS, Attack, AttackSettings, Objective, ReuseOptions
from andfast.nn import DegradationNetwork, RRDBNet
from andfast.training import radius_controller
from andfast.training.distributed import ProcessGroup, process_group
from andfast.training.metrics_log import read_metrics
from andfast.training.signals import GracefulStop
from andfast.training.state import StageState
from andfast.training.step import RankInfo, TrainingStep
from andfast.training.step_runner import StepRunner

pytestmark = pytest.mark.slow


def gradients(group: ProcessGroup, batch: int) -> dict[str, torch.Tensor]:
    """G's gradients, and the losses, of one step on this process's part of four fixed images.

    In float64: in float32, rounding depends on the batch size, and a single unit of G that crosses its kink because of
    it changes gradients by 1e-3 (in one step of eight, with and without the closed-form first step).
    """
    torch.manual_seed(0)
    generator = RRDBNet(4, features=8, blocks=1, growth=4).double()
    hr = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)).double()
    settings = AttackSettings(PRESETS["calibrated"].ball_for(32, 32), steps=3, patch_size=32, channels=8)
    attack = Attack(DegradationNetwork(4), generator, Objective(l1=1.0), settings)
    rank_info = RankInfo(seed=5, stage=0, rank=group.rank, world_size=group.world_size)
    step = TrainingStep(attack, rank_info, group.parallel(generator))
    values = step.gradients([hr[group.rank * batch :][:batch]], step=7)
    means = group.all_reduce_mean(torch.stack([value.double() for value in values.values()]))
    losses = dict(zip(values, means, strict=True))
    return {**{name: p.grad for name, p in generator.named_parameters() if p.grad is not None}, **losses}


def shared_pass_error(group: ProcessGroup) -> torch.Tensor:
    """Relative error of float64 gradients with D's pass reused; two micro batches in each process."""
    gradients_of_both = []
    for shared in (False, True):
        rank_info = RankInfo(1, 0, group.rank, group.world_size, 2)
        attack = {"reuse": ReuseOptions(discriminator_pass=shared)}
        step = make("vgg", size=128, steps=1, rank_info=rank_info, attack=attack)
        assert step.discriminator is not None
        assert step.objective.vgg is not None
        for module in (step.generator, step.discriminator, step.objective.vgg):
            module.double()
        parallel = [group.parallel(network) for network in (step.generator, step.discriminator)]
        step = replace(step, generator_parallel=parallel[0], discriminator_parallel=parallel[1])
        hr = crops(4, 128).double()[group.rank * 2 :][:2]
        step.gradients([hr, hr.flip(0)], 0)
        weights = [*step.generator.parameters(), *step.discriminator.parameters()]
        gradients_of_both.append([weight.grad for weight in weights if weight.grad is not None])
        assert len(gradients_of_both[-1]) == len(weights)
    return torch.stack([(a - b).norm() / a.norm() for a, b in zip(*gradients_of_both, strict=True)]).max()


def flat(stage_state: StageState) -> torch.Tensor:
    """All of :func:`everything` as one vector."""
    return torch.cat([tensor.double().flatten() for tensor in everything(stage_state)])


def captured_differences(group: ProcessGroup) -> dict[str, torch.Tensor]:
    """What must be 0: differences in three steps, of two micro batches each, in any of the processes.

    Captured steps against eager ones under DistributedDataParallel, weights and values of one rank against those of
    the other, and whether a NaN in the images of rank 1 changes weights or is not step 4 on a rank.
    """
    differences = {}
    for stage in ("net", "gan"):
        eager, captured = (state(stage, backend, group, accumulate=2) for backend in (None, Rerun()))
        assert isinstance(eager.step.generator_parallel, DistributedDataParallel)
        assert captured.step.generator_parallel is None
        error = torch.zeros((), dtype=torch.float64)
        for number in range(3):
            hr = batches(2 * (2 * number + group.rank), 2)
            expected, values = take(eager, hr), take(captured, hr)
            means = group.all_reduce_mean(torch.tensor(list(expected.values())))
            actual = torch.tensor([values[name] for name in expected])
            torch.testing.assert_close(actual, means, rtol=1e-5, atol=1e-6)
            error = error.maximum((flat(captured) - flat(eager)).abs().max())
        differences[f"captured against eager, {stage}"] = error
        before = flat(captured)
        differences[f"rank against rank, {stage}"] = (group.all_reduce_mean(before.clone()) - before).abs().max()
        hr = batches(9, 2)
        if group.rank == 1:
            hr[1][0, 0, 0, 0] = torch.nan
        captured.advance(hr)
        captured.advance(batches(10, 2))
        assert captured.latch is not None
        failed = captured.latch.read().failed or 0
        differences[f"after a NaN, {stage}"] = (flat(captured) - before).abs().max() + abs(failed - 4)
    for difference in differences.values():
        dist.all_reduce(difference, dist.ReduceOp.MAX)
    return differences


def radius_states(group: ProcessGroup, batch: int) -> torch.Tensor:
    """Factors on the radii of five steps, eager and captured, and the controllers' states after them."""
    results = []
    for backend in (None, Rerun()):
        stage_state = state("net", backend, group, adversary=replace(CONFIG.adversary, target_psnr=30.0))
        assert stage_state.radii is not None
        steps = StepRunner(replace(CONFIG, log_every=1), stage_state, group, GracefulStop(), total=5)
        for number in range(5):
            values, _ = steps.take([crops(4).roll(number, 3)[group.rank * batch :][:batch]])
            results.append(values["radius_factor"])
        results += stage_state.radii.state().values()
    return torch.tensor(results, dtype=torch.float64)


def radius_states_of_ranks(group: ProcessGroup) -> torch.Tensor:
    """Those of each rank, which has two of the four images, as rows."""
    own = radius_states(group, batch=2)
    rows = [torch.empty_like(own) for _ in range(2)]
    dist.all_gather(rows, own)
    return torch.stack(rows)


def on_two_ranks(folder: Path, function: Callable[[ProcessGroup], Any]) -> Any:
    """Result of a function on rank 0 of two that are forked from this process."""

    def body() -> None:
        with process_group("cpu") as group:
            result = function(group)
            if group.is_main:
                torch.save(result, folder / "result.pt")

    ranks = Ranks(folder, body)
    assert ranks.wait(300)
    assert ranks.statuses() == [0, 0], ranks.text(0) + ranks.text(1)
    return torch.load(folder / "result.pt", weights_only=True)


def test_ddp_gradients_equal_one_process_with_twice_the_batch(tmp_path: Path) -> None:
    distributed = on_two_ranks(tmp_path, lambda group: gradients(group, batch=2))
    single = gradients(ProcessGroup(0, 1, torch.device("cpu")), batch=4)
    assert distributed.keys() == single.keys()
    for name, expected in single.items():
        error = (distributed[name] - expected).norm() / expected.norm()
        assert error < (1e-5 if name == "lr_psnr" else 1e-10), name  # decibels are taken in float32


def test_ddp_reuses_the_discriminator_pass(tmp_path: Path) -> None:
    assert on_two_ranks(tmp_path, shared_pass_error) < 1e-10


def test_captured_steps_of_two_ranks_equal_eager_ones(tmp_path: Path) -> None:
    """Gradients averaged between two captured parts, against DistributedDataParallel: the same bits."""
    differences = on_two_ranks(tmp_path, captured_differences)
    assert len(differences) == 6
    assert differences == dict.fromkeys(differences, 0)


def test_ranks_agree_on_the_radii(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, though their images differ; up to rounding as one process with all images."""
    monkeypatch.setattr(radius_controller, "PERIOD", 2)
    first, second = on_two_ranks(tmp_path, radius_states_of_ranks)
    assert torch.equal(first, second)
    eager, captured = first.chunk(2)
    torch.testing.assert_close(eager, captured, rtol=1e-4, atol=1e-4)
    assert eager[1] == 1 != eager[2]
    assert eager[2] != eager[4]
    single = radius_states(ProcessGroup(0, 1, torch.device("cpu")), batch=4)
    torch.testing.assert_close(first, single, rtol=1e-3, atol=1e-3)


def test_torchrun_equals_one_process_with_twice_the_batch(tmp_path: Path) -> None:
    arguments = [*write_config(tmp_path), "--stages=[net]", "--steps=2"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*torchrun, "-m", "andfast.train", *arguments, "--output", str(tmp_path / "two")],
        env=environment(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    alone = [*arguments, "--data.workers=0", "--validation.hr=[]", "--tensorboard=false"]
    for name, option in (("one", "--batch_size=4"), ("accumulated", "--accumulate=2")):
        assert train.main([*alone, option, "--output", str(tmp_path / name)]) == 0
    losses = {}
    for name in ("two", "one", "accumulated"):
        lines = [line for line in read_metrics(tmp_path / name / "metrics.jsonl") if "loss" in line]
        losses[name] = [line["loss"] for line in lines]
        assert len(lines) == 2  # only one process writes
        assert (tmp_path / name / "weights" / "andnet.safetensors").is_file()
    assert losses["two"] == pytest.approx(losses["one"], rel=1e-5)
    assert losses["accumulated"] == pytest.approx(losses["one"], rel=1e-5)
