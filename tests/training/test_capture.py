"""CUDAGraphCallable: static inputs, shapes and weights; on the CPU with a backend that reruns the function."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rerun import Rerun
from small_steps import assert_close, crops, gradients, make
from torch import Tensor
from torch.utils._pytree import tree_flatten

from andfast.adversary import sample_identity
from andfast.config.schema import TrainConfig
from andfast.training.build import records_ascent
from andfast.training.cuda_graph import Backend, CaptureError, CUDAGraphBackend, CUDAGraphCallable
from andfast.training.step import TrainingStep
from andfast.training.step_settings import RankInfo


def test_replays_read_new_arguments() -> None:
    backend = Rerun()
    double = CUDAGraphCallable(lambda x, others: {"sum": x + others[0], "none": None}, backend)
    first = double(torch.ones(3), [torch.tensor(1.0)])
    assert first["sum"].tolist() == [2, 2, 2]
    assert first["none"] is None
    assert backend.runs == 0
    second = double(torch.arange(3.0), [torch.tensor(2.0)])
    assert second["sum"].tolist() == [2, 3, 4]
    assert first["sum"] is second["sum"]  # overwritten, as said
    assert (double.recordings, backend.runs) == (1, 1)


def test_the_callers_tensors_are_not_the_buffers() -> None:
    double = CUDAGraphCallable(lambda x: x * 2, Rerun())
    x = torch.ones(2)
    double(x)
    x.fill_(7)
    assert double(torch.ones(2)).tolist() == [2, 2]
    assert x.tolist() == [7, 7]


@pytest.mark.parametrize(
    "other",
    [
        torch.zeros(2, 3),
        torch.zeros(3, 2, dtype=torch.float64),
        torch.zeros(2, 3).T,
        torch.zeros(1, 1).expand(3, 2),
    ],
    ids=["shape", "dtype", "strides", "expanded"],
)
def test_another_kind_of_tensor_is_another_recording(other: Tensor) -> None:
    double = CUDAGraphCallable(lambda x: x + 1, Rerun())
    for x in (torch.zeros(3, 2), other, torch.ones(3, 2), other + 1 if other.stride() == (2, 1) else other):
        found = double(x)
        assert torch.equal(found, x + 1)
        assert found.stride() == (x + 1).stride()
    assert double.recordings == 2


def test_constants_and_structure_are_part_of_the_kind() -> None:
    double = CUDAGraphCallable(lambda x, by: x * (by if isinstance(by, int) else by[0]), Rerun())
    assert [double(torch.ones(()), by).item() for by in (2, 3, 2, (2,))] == [2, 3, 2, 2]
    assert double.recordings == 3


def test_expanded_arguments_take_no_memory() -> None:
    """A fresh identity's noise maps, 4 GB at the paper's size, are one number each."""
    theta = sample_identity(2, hr_size=16, channels=8)
    seen = []
    identity = CUDAGraphCallable(lambda theta: seen.append(theta) or theta.noises[0].sum(), Rerun())
    identity(theta)
    identity(theta)
    for given, buffer in zip(theta.noises, seen[-1].noises, strict=True):
        assert buffer.shape == given.shape
        assert buffer.untyped_storage().size() == 4
        assert buffer.data_ptr() != given.data_ptr()


def test_weights_in_place_and_elsewhere() -> None:
    """Weights that change in place are seen; weights at another address make a new recording."""
    layer = torch.nn.Linear(2, 2)
    run = CUDAGraphCallable(layer, Rerun(), watch=layer.parameters)
    x = torch.rand(1, 2)
    with torch.no_grad():
        for change in (lambda: None, lambda: layer.weight.add_(1), lambda: layer.weight.mul_(2)):
            change()
            assert torch.equal(run(x), layer(x))
        assert run.recordings == 1
        layer.weight.data = layer.weight.data.clone() + 1
        assert torch.equal(run(x), layer(x))
        assert torch.equal(run(x), layer(x))
        assert run.recordings == 2


def captured(step: TrainingStep, backend: Backend) -> TrainingStep:
    step.capture = CUDAGraphCallable(
        step.find, backend, watch=step.frozen_tensors, check=isinstance(backend, CUDAGraphBackend)
    )
    return step


@pytest.mark.parametrize("gan", [None, "vanilla", "relativistic"])
def test_steps_are_those_without_capture(gan: str | None) -> None:
    """Three steps with an optimizer, two micro batches each, then another size: bit for bit, buffers included."""
    place = RankInfo(seed=1, stage=0, accumulate=2)
    kind = None if gan is None else "unet"
    plain, replayed = (make(kind, gan or "vanilla", steps=2, place=place) for _ in range(2))
    captured(replayed, Rerun())
    optimizers = [torch.optim.SGD(step.generator.parameters(), 0.01) for step in (plain, replayed)]
    for number, size in enumerate((32, 32, 32, 40)):
        batches = [crops(2, size), crops(2, size).flip(0)]
        values = []
        for step, optimizer in zip((plain, replayed), optimizers, strict=True):
            step.generator.zero_grad()
            if step.discriminator is not None:
                step.discriminator.zero_grad()
            values.append(step.gradients(batches, number))
            optimizer.step()
        assert values[0] == values[1]
        assert_close(gradients(replayed.generator), gradients(plain.generator), 0)
        if step.discriminator is not None:
            assert_close(gradients(replayed.discriminator), gradients(plain.discriminator), 0)
    assert replayed.capture is not None
    assert isinstance(replayed.capture, CUDAGraphCallable)
    assert replayed.capture.recordings == 2


def test_bf16_casts_are_made_at_every_replay() -> None:
    plain, replayed = (make(steps=2, autocast=torch.bfloat16) for _ in range(2))
    captured(replayed, Rerun())
    for number in range(3):
        found = [step.gradients([crops(2)], number) for step in (plain, replayed)]
        assert found[0] == found[1]
        for step in (plain, replayed):
            with torch.no_grad():
                for one in step.generator.parameters():
                    one.mul_(1.1)


# ------------------------------------------------------------------------------------------- recordings that are wrong


class Broken:
    """A backend that records what it should not, or cannot record."""

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def record(self, function: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
        if self.fault == "refuses":
            raise RuntimeError("operation not permitted when stream is capturing\nSearch for it in the manual")
        replay, results = Rerun().record(function)
        if self.fault == "does nothing":
            return (lambda: None), results

        def wrong() -> None:
            replay()
            for one in tree_flatten(results)[0]:
                if isinstance(one, Tensor) and one.is_floating_point():
                    one.mul_(1.5 if self.fault == "is off" else float("nan"))

        return wrong, results


REASONS = {
    "refuses": "operation not permitted when stream is capturing",
    "does nothing": "a replay is 1 times as far",
    "is off": "a replay is 0.5 times as far",
    "is not a number": "a replay is nan times as far",
}


@pytest.mark.parametrize("fault", REASONS)
def test_a_recording_that_fails_is_said_and_done_without(fault: str) -> None:
    told: list[str] = []
    plain, replayed = (make(steps=2) for _ in range(2))
    replayed.capture = CUDAGraphCallable(replayed.find, Broken(fault), check=True, required=False, tell=told.append)
    for number in range(2):
        values = [step.gradients([crops(2)], number) for step in (plain, replayed)]
        assert values[0] == values[1]
    assert replayed.capture.given_up
    assert replayed.capture.recordings == 0
    assert len(told) == 1
    assert told[0].startswith(f"not recorded, runs without: {REASONS[fault]}")


@pytest.mark.parametrize("fault", REASONS)
def test_a_recording_that_was_asked_for_must_not_fail(fault: str) -> None:
    step = make(steps=2)
    step.capture = CUDAGraphCallable(step.find, Broken(fault), check=True)
    with pytest.raises(CaptureError, match=REASONS[fault]):
        step.gradients([crops(2)], 0)


@pytest.mark.parametrize("kind", [None, "unet"])
def test_a_recording_that_is_right_is_said(kind: str | None) -> None:
    """With D and its buffers too: HR, which comes back among the targets, is an argument and stays as it is."""
    told: list[str] = []
    plain, replayed = (make(kind, steps=2) for _ in range(2))
    replayed.capture = CUDAGraphCallable(replayed.find, Rerun(), check=True, tell=told.append)
    for number in range(2):
        steps = (plain, replayed)
        values = [{k: v.item() for k, v in step.gradients([crops(2)], number).items()} for step in steps]
        # The runs before a replay move the power iterations of the U-Net, whose buffers are put back after the ascent.
        assert values[1] == (values[0] if kind is None else pytest.approx(values[0], rel=1e-4))
    assert replayed.capture.recordings == 1
    assert len(told) == 1
    assert re.fullmatch(r"recorded in \d+\.\d s, replays agree: (0|\de-0\d)", told[0])


def test_when_an_ascent_is_recorded() -> None:
    settings = TrainConfig(output=Path("x"))
    assert records_ascent(settings, "net", "cuda")
    assert not records_ascent(settings, "net", "cpu")
    assert not records_ascent(settings, "gan", "cuda")
    for stage in ("net", "gan"):
        for wanted in (False, True):
            assert records_ascent(replace(settings, cuda_graph=wanted), stage, "cuda") is wanted


# ------------------------------------------------------------------------------------------------------- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("kind", [None, "vgg", "unet"])
def test_cuda_graphs(kind: str | None, autocast: torch.dtype | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replayed ascents are eager ones: two shapes, weights that change between replays, buffers where they were."""
    # The ascent against the VGG-style D amplifies rounding: on the CPU two eager fp32 runs that differ in the order of
    # the convolutions' sums alone (oneDNN or not) end with losses 0.6% apart, without D and with the U-Net 7e-5.
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    steps = []
    for backend in (None, CUDAGraphBackend()):
        step = make(kind, "relativistic", size=128, steps=3, autocast=autocast)
        for module in (step.generator, step.discriminator, step.objective.vgg):
            if module is not None:
                module.cuda()
        steps.append(step if backend is None else captured(step, backend))
    optimizers = [torch.optim.Adam(step.generator.parameters(), 1e-3) for step in steps]
    tolerance = 1e-4 if autocast is None else 2e-2
    for number, n in enumerate((2, 2, 3, 2)):
        found = []
        for step, optimizer in zip(steps, optimizers, strict=True):
            hr = crops(n, 128).cuda()
            step.generator.zero_grad()
            found.append({name: one.item() for name, one in step.gradients([hr], number).items()})
            optimizer.step()
        assert found[1] == pytest.approx(found[0], rel=tolerance, abs=1e-3)
    capture = steps[1].capture
    assert isinstance(capture, CUDAGraphCallable)
    assert capture.recordings == 2


@pytest.mark.gpu
def test_two_graphs_share_a_pool() -> None:
    backend = CUDAGraphBackend()
    run = CUDAGraphCallable(lambda x: (x @ x).relu().sum(1), backend)
    big, small = torch.rand(512, 512, device="cuda"), torch.rand(64, 64, device="cuda")
    for x in (big, small, big * 2, small * 2):
        torch.testing.assert_close(run(x), (x @ x).relu().sum(1))
    assert run.recordings == 2
