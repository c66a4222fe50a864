"""The naive baseline (benchmarks/baselines/naive.py) computes the package's losses and gradients in fp32."""

from typing import Any

import pytest
import torch
from small_steps import assert_close, crops, gradients, identity
from torch import Tensor

from andfast.adversary import PRESETS, Attack, AttackSettings, Objective, ReuseOptions, sample_identity
from andfast.functional import blur_pool
from andfast.losses import GANLoss, PerceptualLoss
from andfast.nn import DegradationNetwork, RRDBNet, VGGDiscriminator
from andfast.training.step import RankInfo, TrainingStep
from benchmarks.baselines import naive

LAYERS = {"conv1_2": 0.1, "conv2_2": 0.5}
INDICES = {2: 0.1, 7: 0.5}
"""The same layers in torchvision's ``features``."""


def pair(
    stage: str, *, frozen: bool = False, steps: int = 3, dtype: torch.dtype = torch.float32
) -> tuple[TrainingStep, Any, Tensor]:
    """The package's step without reuse and the naive one, over equal weights."""
    torch.manual_seed(3)
    size = 128 if stage == "gan" else 32
    ball = PRESETS["calibrated"].ball_for(size, size)
    ours, theirs = RRDBNet(features=8, blocks=2, growth=4), naive.RRDBNet(8, 2, 4)
    theirs.load_state_dict(ours.state_dict())
    objective, d, theirs_d, theirs_vgg = Objective(1.0), None, None, None
    if stage == "gan":
        d, theirs_d = VGGDiscriminator(size, features=4), naive.Discriminator(size, 4)
        theirs_d.load_state_dict(d.state_dict())
        vgg, theirs_vgg = PerceptualLoss(LAYERS, weights="random"), naive.VGGFeatures(INDICES)
        for source, target in zip(vgg.vgg.parameters(), theirs_vgg.features.parameters(), strict=True):
            target.data.copy_(source.data)
        objective = Objective(1.0, 1.0, 0.1, vgg, d, GANLoss("vanilla"))
    settings = AttackSettings(ball, steps=steps, patch_size=size, channels=16)
    reuse = ReuseOptions(closed_form_first_step=False, hr_features=False, cast_weights=False)
    step = TrainingStep(Attack(DegradationNetwork(), ours, objective, settings, reuse), RankInfo(1, 0))
    baseline = naive.NaiveStep(theirs, theirs_d, theirs_vgg, radii=ball.radii, steps=steps, channels=16, frozen=frozen)
    networks = ours, d, objective.vgg, theirs, theirs_d, theirs_vgg
    for module in networks:
        if module is not None:
            module.to(dtype)
    return step, baseline, crops(2, size).to(dtype)


@pytest.mark.parametrize(
    ("stage", "dtype", "tolerance", "frozen"),
    [
        ("net", torch.float32, 1e-4, False),
        ("net", torch.float32, 1e-4, True),
        # In float32, kinks of VGG and batch statistics of two images amplify rounding.
        ("gan", torch.float64, 1e-6, False),
    ],
)
def test_and_step(stage: str, dtype: torch.dtype, tolerance: float, frozen: bool) -> None:
    step, baseline, hr = pair(stage, frozen=frozen, dtype=dtype)
    expected = step.gradients([hr], 0)
    theta = identity(step, hr)
    losses = baseline.and_step(hr, [[tensor.clone() for tensor in group] for group in theta])
    for name, value in losses.items():
        assert value.item() == pytest.approx(expected[name].item(), rel=tolerance), name
    assert_close(gradients(baseline.generator), gradients(step.generator), 50 * tolerance)
    if stage == "gan":
        assert_close(gradients(baseline.discriminator), gradients(step.discriminator), 50 * tolerance)
    assert all(tensor.requires_grad for tensor in baseline.generator.parameters())


@pytest.mark.parametrize("stage", ["net", "gan"])
def test_plain_step(stage: str) -> None:
    """ESRGAN's own step: both on the pooled HR, where no ascent amplifies rounding."""
    step, baseline, hr = pair(stage, frozen=False)
    losses = baseline.plain_step(hr)
    targets = step.objective.targets(hr)
    values = step.train(hr, blur_pool(hr, 4), targets)
    for name, value in losses.items():
        assert value.item() == pytest.approx(values[name].item(), rel=1e-5), name
    assert_close(gradients(baseline.generator), gradients(step.generator), 1e-4)
    if stage == "gan":
        assert_close(gradients(baseline.discriminator), gradients(step.discriminator), 1e-3)


def test_identity_networks() -> None:
    """Drawn as the package draws them: F is the pooling, and each tensor has the shape of the package's."""
    hr = crops(2, 32)
    theta = naive.identity(2, 32, 64)
    torch.testing.assert_close(naive.degrade(hr, *theta), blur_pool(hr, 4), rtol=0, atol=1e-5)
    ours = sample_identity(2, hr_size=32)
    for group, naive_group in zip(ours, theta, strict=True):
        assert [tensor.shape for tensor in group] == [tensor.shape for tensor in naive_group]
    centers = torch.cat([tensor[..., 1, 1].flatten() for tensor in theta[0][1:10]])
    assert centers.std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.02)


def test_only_the_naive_ascent_computes_weight_gradients() -> None:
    """The naive ascent computes G's weight gradients, a third of a pass."""
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415

    counts = []
    for frozen in (False, True):
        _, baseline, hr = pair("net", frozen=frozen)
        theta = naive.identity(2, 32, 16)
        with FlopCounterMode(display=False) as counter:
            baseline.and_step(hr, theta)
        counts.append(counter.get_total_flops())
    pixels, blocks, features, growth = 2 * 8 * 8, 2, 8, 4
    dense = sum((features + k * growth) * (features if k == 4 else growth) for k in range(5))
    # conv_first, the blocks and conv_body at LR's size, conv_up1 at 4, the others at 16 times as many pixels.
    macs = 9 * pixels * (3 * features + 3 * blocks * dense + (1 + 4 + 2 * 16) * features**2 + 16 * features * 3)
    assert counts[0] - counts[1] == 3 * 2 * macs  # three passes
