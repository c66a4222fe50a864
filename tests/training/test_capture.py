"""CUDAGraphCallable: static inputs, shapes and weights; on the CPU with a backend that reruns the function."""

import logging
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
from andfast.training.build import captures_step
from andfast.training.cuda_graph import CaptureError, CUDAGraphBackend, CUDAGraphCallable
from andfast.training.step import RankInfo, TrainingStep


def test_replays_read_new_arguments() -> None:
    backend = Rerun()
    double = CUDAGraphCallable(lambda x, terms: {"sum": x + terms[0], "none": None}, backend)
    first = double(torch.ones(3), [torch.tensor(1.0)])
    assert first["sum"].tolist() == [2, 2, 2]
    assert first["none"] is None
    assert backend.runs == 0
    second = double(torch.arange(3.0), [torch.tensor(2.0)])
    assert second["sum"].tolist() == [2, 3, 4]
    assert first["sum"] is second["sum"]  # overwritten
    assert (double.captures, backend.runs) == (1, 1)


def test_arguments_are_copied() -> None:
    double = CUDAGraphCallable(lambda x: x * 2, Rerun())
    x = torch.ones(2)
    double(x)
    x.fill_(7)
    assert double(torch.ones(2)).tolist() == [2, 2]
    assert x.tolist() == [7, 7]


@pytest.mark.parametrize(
    "second",
    [
        torch.zeros(2, 3),
        torch.zeros(3, 2, dtype=torch.float64),
        torch.zeros(2, 3).T,
        torch.zeros(1, 1).expand(3, 2),
    ],
    ids=["shape", "dtype", "strides", "expanded"],
)
def test_captures_per_input_signature(second: Tensor) -> None:
    double = CUDAGraphCallable(lambda x: x + 1, Rerun())
    for x in (torch.zeros(3, 2), second, torch.ones(3, 2), second + 1 if second.stride() == (2, 1) else second):
        result = double(x)
        assert torch.equal(result, x + 1)
        assert result.stride() == (x + 1).stride()
    assert double.captures == 2


def test_constants_and_structure_are_part_of_the_signature() -> None:
    double = CUDAGraphCallable(lambda x, by: x * (by if isinstance(by, int) else by[0]), Rerun())
    assert [double(torch.ones(()), by).item() for by in (2, 3, 2, (2,))] == [2, 3, 2, 2]
    assert double.captures == 3


def test_expanded_arguments_take_no_memory() -> None:
    """Noise maps of a new identity network, 4 GB at the paper's size, are a single element each."""
    theta = sample_identity(2, hr_size=16, channels=8)
    seen = []
    identity = CUDAGraphCallable(lambda theta: seen.append(theta) or theta.noises[0].sum(), Rerun())
    identity(theta)
    identity(theta)
    for noise, buffer in zip(theta.noises, seen[-1].noises, strict=True):
        assert buffer.shape == noise.shape
        assert buffer.untyped_storage().size() == 4
        assert buffer.data_ptr() != noise.data_ptr()


def test_weights_change_in_place_or_move() -> None:
    """A capture stays valid if weights change in place, but not if their address changes."""
    layer = torch.nn.Linear(2, 2)
    run = CUDAGraphCallable(layer, Rerun(), static_tensors=layer.parameters)
    x = torch.rand(1, 2)
    with torch.no_grad():
        for change in (lambda: None, lambda: layer.weight.add_(1), lambda: layer.weight.mul_(2)):
            change()
            assert torch.equal(run(x), layer(x))
        assert run.captures == 1
        layer.weight.data = layer.weight.data.clone() + 1
        assert torch.equal(run(x), layer(x))
        assert torch.equal(run(x), layer(x))
        assert run.captures == 2


def search(step: TrainingStep) -> CUDAGraphCallable:
    assert isinstance(step.search, CUDAGraphCallable)
    return step.search


@pytest.mark.parametrize("gan", [None, "vanilla", "relativistic"])
def test_captured_steps_equal_eager_steps(gan: str | None) -> None:
    """Three steps with an optimizer, two micro batches each, then another size: bit-identical."""
    rank_info = RankInfo(seed=1, stage=0, accumulate=2)
    kind = None if gan is None else "unet"
    plain, replayed = (
        make(kind, gan or "vanilla", steps=2, rank_info=rank_info, backend=backend) for backend in (None, Rerun())
    )
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
    assert search(replayed).captures == 2


def test_bf16_casts_are_replayed() -> None:
    attack = {"autocast": torch.bfloat16}
    plain, replayed = (make(steps=2, attack=attack, backend=backend) for backend in (None, Rerun()))
    for number in range(3):
        values = [step.gradients([crops(2)], number) for step in (plain, replayed)]
        assert values[0] == values[1]
        for step in (plain, replayed):
            with torch.no_grad():
                for parameter in step.generator.parameters():
                    parameter.mul_(1.1)


class Broken:
    """A backend that cannot capture, or whose replay is wrong."""

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def capture(self, function: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
        if self.fault == "raises":
            raise RuntimeError("operation not permitted when stream is capturing\nSearch for it in the manual")
        replay, results = Rerun().capture(function)
        if self.fault == "does nothing":
            return (lambda: None), results

        def wrong() -> None:
            replay()
            for leaf in tree_flatten(results)[0]:
                if isinstance(leaf, Tensor) and leaf.is_floating_point():
                    leaf.mul_(1.5 if self.fault == "is off" else float("nan"))

        return wrong, results


REASONS = {
    "raises": "operation not permitted when stream is capturing",
    "does nothing": "a replay must be within 0.25 of the eager function, was off by 1",
    "is off": "a replay must be within 0.25 of the eager function, was off by 0.5",
    "is not a number": "a replay must be within 0.25 of the eager function, was off by nan",
}


@pytest.mark.parametrize("fault", REASONS)
def test_failed_capture_falls_back_with_a_warning(fault: str, caplog: pytest.LogCaptureFixture) -> None:
    options = {"check": True, "required": False, "name": "ascent"}
    plain, replayed = (make(steps=2, backend=backend, capture=options) for backend in (None, Broken(fault)))
    for number in range(2):
        values = [step.gradients([crops(2)], number) for step in (plain, replayed)]
        assert values[0] == values[1]
    assert search(replayed).disabled
    assert search(replayed).captures == 0
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert caplog.messages[0].startswith(f"ascent: capture failed, running eagerly: {REASONS[fault]}")


@pytest.mark.parametrize("fault", REASONS)
def test_failed_capture_raises_where_required(fault: str) -> None:
    step = make(steps=2, backend=Broken(fault), capture={"check": True})
    with pytest.raises(CaptureError, match=REASONS[fault]):
        step.gradients([crops(2)], 0)


@pytest.mark.parametrize("kind", [None, "unet"])
def test_checked_capture_is_logged_and_exact(kind: str | None, caplog: pytest.LogCaptureFixture) -> None:
    """The check's runs leave D's buffers unchanged, and HR, an argument that is returned among the targets, as well."""
    caplog.set_level(logging.INFO, logger="andfast")
    plain, replayed = (
        make(kind, steps=2, backend=backend, capture={"check": True, "name": "ascent"}) for backend in (None, Rerun())
    )
    for number in range(2):
        steps = (plain, replayed)
        values = [{k: v.item() for k, v in step.gradients([crops(2)], number).items()} for step in steps]
        assert values[1] == values[0]
    assert search(replayed).captures == 1
    assert len(caplog.messages) == 1
    assert re.fullmatch(r"ascent: captured in \d+\.\d s, relative error of a replay 0", caplog.messages[0])


def test_captures_step_by_default_on_cuda() -> None:
    settings = TrainConfig(output=Path("x"))
    assert captures_step(settings, "cuda")
    assert not captures_step(settings, "cpu")
    for cuda_graph in (False, True):
        assert captures_step(replace(settings, cuda_graph=cuda_graph), "cuda") is cuda_graph


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("kind", "autocast"), [(None, None), ("vgg", None), ("vgg", torch.bfloat16), ("unet", torch.bfloat16)]
)
def test_cuda_graphs(kind: str | None, autocast: torch.dtype | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replayed ascents match eager ones for two shapes, with weights that change between replays."""
    # The ascent against the VGG-style D amplifies rounding: on the CPU, two eager fp32 runs whose convolutions sum in
    # different orders (oneDNN or not) end with losses 0.6% apart, without D or with the U-Net 7e-5.
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    steps = []
    for backend in (None, CUDAGraphBackend()):
        capture = {"check": True}
        attack = {"autocast": autocast}
        step = make(kind, "relativistic", size=128, steps=3, attack=attack, backend=backend, capture=capture)
        for module in (step.generator, step.discriminator, step.objective.vgg):
            if module is not None:
                module.cuda()
        steps.append(step)
    optimizers = [torch.optim.Adam(step.generator.parameters(), 1e-3) for step in steps]
    tolerance = 1e-4 if autocast is None else 2e-2
    for number, n in enumerate((2, 2, 3, 2)):
        values = []
        for step, optimizer in zip(steps, optimizers, strict=True):
            hr = crops(n, 128).cuda()
            step.generator.zero_grad()
            values.append({name: value.item() for name, value in step.gradients([hr], number).items()})
            optimizer.step()
        assert values[1] == pytest.approx(values[0], rel=tolerance, abs=1e-3)
    assert search(steps[1]).captures == 2


@pytest.mark.gpu
def test_two_graphs_share_a_pool() -> None:
    backend = CUDAGraphBackend()
    run = CUDAGraphCallable(lambda x: (x @ x).relu().sum(1), backend)
    big, small = torch.rand(512, 512, device="cuda"), torch.rand(64, 64, device="cuda")
    for x in (big, small, big * 2, small * 2):
        torch.testing.assert_close(run(x), (x @ x).relu().sum(1))
    assert run.captures == 2
