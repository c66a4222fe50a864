"""fp16 training with a gradient scaler in both stages: close to fp32, and skipped updates on overflow."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_steps import crops
from torch import Tensor

from andfast.config.schema import (
    DegradationConfig,
    DiscriminatorConfig,
    GeneratorConfig,
    LossConfig,
    ReuseConfig,
    TrainConfig,
)
from andfast.training.build import build_generator
from andfast.training.distributed import ProcessGroup
from andfast.training.state import StageState

CPU = ProcessGroup(0, 1, torch.device("cpu"))
CONFIG = TrainConfig(
    output=Path("x"),
    device="cpu",
    batch_size=2,
    precision="fp16",  # rejected on a CPU by the command line because it is slow; the arithmetic is the same
    generator=GeneratorConfig(features=8, blocks=1, growth=4),
    degradation=DegradationConfig(channels=16),
    loss=LossConfig(vgg_weights="random", perceptual_layers={"conv1_2": 0.1}),
)


def state(stage: Any, kind: Any = "unet", **changes: Any) -> StageState:
    torch.manual_seed(0)
    config = replace(CONFIG, discriminator=DiscriminatorConfig(kind=kind, features=4), **changes)
    config = replace(config, data=replace(config.data, patch_size=128 if kind == "vgg" else 32))
    return StageState(config, stage, build_generator(config), CPU)


def weights(stage_state: StageState) -> list[Tensor]:
    return [w.detach().clone() for network in stage_state.trained().values() for w in network.parameters()]


def step(stage_state: StageState) -> dict[str, Tensor]:
    values = stage_state.gradients([crops(2, stage_state.step.attack.settings.patch_size)])
    stage_state.update()
    return values


@pytest.mark.parametrize(("kind", "shared", "steps"), [("vgg", True, 1), ("unet", False, 2)])
def test_stage_gan_trains_as_in_fp32(kind: str, shared: bool, steps: int) -> None:
    """Losses within fp16's precision and aligned gradients, with D's pass reused and without."""
    reuse = ReuseConfig(discriminator_pass=shared)
    half, single = state("gan", kind, reuse=reuse), state("gan", kind, reuse=reuse, precision="fp32")
    assert half.scaler.is_enabled()
    half.scaler.scale(torch.ones(1))  # creates the scale
    half.scaler.update(2.0**8)  # at the default of 2**16 the second step overflows here
    assert not single.scaler.is_enabled()
    before = weights(half)
    for number in range(steps):
        values, expected = step(half), step(single)
        for name in ("loss", "l1", "perceptual", "gan", "discriminator"):
            assert values[name].item() == pytest.approx(expected[name].item(), rel=3e-2), (number, name)
        if number:
            continue  # from other weights
        for ours, theirs in zip(half.trained().values(), single.trained().values(), strict=True):
            actual, reference = (torch.cat([w.grad.flatten() for w in m.parameters()]) for m in (ours, theirs))
            assert actual.dtype == torch.float32
            # Flipped kinks turn gradients slightly; an omitted scale or loss would change them far more.
            assert torch.cosine_similarity(actual, reference, dim=0) > 0.9
            assert actual.norm().item() == pytest.approx(reference.norm().item(), rel=0.1)
    assert all(not torch.equal(a, b) for a, b in zip(before, weights(half), strict=True))


@pytest.mark.parametrize("stage", ["net", "gan"])
def test_overflow_skips_the_update_and_halves_the_scale(stage: str) -> None:
    half = state(stage)
    step(half)  # a scaler creates its scale at the first loss
    half.scaler.update(2.0**40)
    before = weights(half)
    step(half)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(half), strict=True))
    assert half.scaler.get_scale() == 2.0**39
    half.scaler.update(2.0**10)
    step(half)
    assert not any(torch.equal(a, b) for a, b in zip(before, weights(half), strict=True))


def test_attack_does_not_use_the_loss_scale() -> None:
    """Its gradients are normalized, so it neither reads nor changes the scale of the training pass."""
    first, second = state("net"), state("net")
    step(first)
    step(second)
    second.scaler.update(2.0**4)
    batch = first.step.adversarial_batch(crops(2, 32), 1)
    assert (batch.lr - batch.clean).abs().max() > 0
    second.step.generator.load_state_dict(first.step.generator.state_dict())
    assert torch.equal(batch.lr, second.step.adversarial_batch(crops(2, 32), 1).lr)
