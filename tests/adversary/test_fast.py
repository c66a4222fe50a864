"""Strategy fast: dual averaging over quarters, from sharpened kernels."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from small_steps import crops, make
from strategy_cases import SEED, lr_of, step_of, tree_leaves
from torch import Tensor

from andfast.adversary import PRESETS, Attack, Ball, ReuseOptions, sample_identity
from andfast.adversary.ball import ConvolutionRadii
from andfast.adversary.strategies import FastPGD
from andfast.adversary.strategies.fast import SMALLEST_WINDOW, quarters, sharpened
from andfast.nn import DegradationNetwork, RRDBNet, Theta
from andfast.nn.interpolation_start import start_as_interpolation


@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 23), (24, 15), (9, 40), (1, 1), (64, 64)])
def test_quarters_cover_the_picture_once(height: int, width: int) -> None:
    """Or as often as a side that is not divided has them repeat; first halves are even."""
    windows, count = quarters(height, width), torch.zeros(height, width)
    for window in windows:
        window.of(count).add_(1)
        assert window.area == window.of(count).numel() > 0
        assert window.top % 2 == window.left % 2 == 0
    divided = [side >= 2 * SMALLEST_WINDOW for side in (height, width)]
    assert len(windows) == 4
    assert (count == 4 / 2 ** sum(divided)).all()
    assert all(window.bottom - window.top >= SMALLEST_WINDOW for window in windows) or not divided[0]


@pytest.mark.parametrize("kernel", [0.8, 0.0])
@pytest.mark.parametrize("reused", [True, False])
def test_fast_is_dual_averaging_over_quarters(reused: bool, kernel: float) -> None:
    """In float64, written out: each pass is a step from the identity along the sum of the gradients before it."""
    attack, hr = fast_attack(reused), crops(2, 64).double()
    ball = attack.settings.ball.with_radii({"kernel": kernel})
    attack = replace(attack, settings=replace(attack.settings, ball=ball))
    draw = FastPGD().draw(attack, hr, SEED)
    _, ascent = FastPGD().search(attack, hr, draw)
    identity, factors = draw.identity, draw.factors
    start = sharpened(identity, ball, factors)
    total = [torch.zeros_like(t) for t in identity.tensors()]
    weights, slopes, losses = start.weights, start.slopes, []
    for top, left in ((0, 0), (1, 1), (0, 1), (1, 0)):
        half = (slice(None), slice(None), slice(32 * top, 32 * top + 32), slice(32 * left, 32 * left + 32))
        theta = identity._replace(weights=weights, slopes=slopes)  # noise is zero in each pass
        theta = theta.rebuild(t.clone().requires_grad_() for t in theta.tensors())
        part = Theta(theta.weights, quarter_of(theta.noises, top, left), theta.slopes)
        loss = (attack.generator(attack.degradation(hr[half], part)) - hr[half]).abs().mean()
        total = [t + g for t, g in zip(total, torch.autograd.grad(loss, tuple(theta.tensors())), strict=True)]
        moved = ball.step(identity, identity.rebuild(iter(total)), identity, 1.0, factors=factors, impl="reference")
        weights, slopes = moved.weights, moved.slopes
        losses.append(loss.detach())
    for ours, theirs in zip(moved.tensors(), ascent.theta.tensors(), strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(ascent.losses, torch.stack(losses).mean()[None])
    used = ball.overshoot(ascent.theta, identity, factors)[1 if kernel else 2 :]  # color has a radius of 0
    assert used.max() <= 1 + 1e-6


def quarter_of(noises: tuple[Tensor, ...], top: int, left: int) -> tuple[Tensor, ...]:
    """That of noise maps for HR of 64x64."""
    sides = [32 if k < 5 else 8 for k in range(len(noises))]
    return tuple(
        noise[..., side * top : side * top + side, side * left : side * left + side]
        for noise, side in zip(noises, sides, strict=True)
    )


@pytest.mark.parametrize("factors", [None, torch.tensor([0.0, 0.3, 0.9])])
@pytest.mark.parametrize("radius", [0.0, 0.4, 0.8, 3.0])
def test_fast_starts_at_sharpening_kernels(radius: float, factors: Tensor | None) -> None:
    """In the kernel part alone, at the square of its radius or, above 1, at the radius."""
    ball = Ball(ConvolutionRadii(color=1.0, kernel=radius, rest=1.0), noise=1.0, slope=1.0)
    identity = sample_identity(3, hr_size=8, scale=2, channels=8, dtype=torch.float64, generator=torch.Generator())
    theta = sharpened(identity, ball, factors)
    color, kernel, rest, noise, slope = ball.with_radii({"kernel": 1.0}).norms(theta, identity)
    own = radius * (torch.ones(3) if factors is None else factors)
    torch.testing.assert_close(kernel, torch.minimum(own, own.square()).double(), rtol=1e-6, atol=1e-12)
    assert all(norms.max() < 1e-12 for norms in (color, rest, noise, slope))
    x = torch.rand(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    lr = [DegradationNetwork(2)(x, networks) for networks in (identity, theta)]
    variance = [y.var((1, 2, 3)) for y in lr]
    assert ((variance[1] > variance[0]) == (own > 0)).all()


def test_fast_starts_at_the_identity_without_a_kernel_part() -> None:
    identity = sample_identity(1, hr_size=8, channels=8)
    assert sharpened(identity, Ball(1.0, 1.0, 1.0)) is identity


def fast_attack(reused: bool = True, **settings: Any) -> Attack:
    """On a G that depends on LR, in float64, with radii per image."""
    torch.manual_seed(0)
    generator = RRDBNet(features=6, blocks=1, growth=3)
    start_as_interpolation(generator)
    ball = PRESETS["symmetric"].ball_for(64, 64, 8)
    return make(
        generator=generator.double(),
        settings={"ball": ball, "image_radius": "uniform", "patch_size": 64} | settings,
        attack={"reuse": ReuseOptions(closed_form_first_step=reused)},
    ).attack


def test_fast_raises_the_loss_and_stays_in_a_joint_ball() -> None:
    hr = crops(3, 64).double()
    attack = fast_attack(ball=Ball(0.02, 0.3, 0.02, joint=True), image_radius="fixed")
    draw = FastPGD().draw(attack, hr, SEED)
    theta = FastPGD().search(attack, hr, draw)[1].theta
    assert attack.settings.ball.overshoot(theta, draw.identity).max() <= 1 + 1e-6
    with torch.no_grad():
        before, after = (
            (attack.generator(attack.degradation(hr, networks)) - hr).abs().mean((1, 2, 3))
            for networks in (draw.identity, theta)
        )
    assert (after > before).all()


def test_fast_passes_see_a_quarter_of_the_picture() -> None:
    """So that all of them cost as much of G as one pass, and the discriminator sees none of them."""
    step = step_of("fast", discriminator="unet", size=64)
    attack, hr, shapes = step.attack, crops(2, 64), []
    assert step.discriminator is not None
    attack.generator.register_forward_hook(lambda _, args, __: shapes.append(tuple(args[0].shape)))
    step.discriminator.register_forward_hook(lambda *_: pytest.fail("the discriminator was called"))
    lr_of(FastPGD(), attack, hr)
    assert shapes == [(2, 3, 8, 8)] * 4


def test_fast_is_equal_in_both_memory_formats() -> None:
    attack, hr = fast_attack(), crops(2, 64).double()
    draw = FastPGD().draw(attack, hr, SEED)
    forms = torch.contiguous_format, torch.channels_last
    contiguous, last = (FastPGD().search(attack, hr.contiguous(memory_format=form), draw)[1] for form in forms)
    for ours, theirs in zip(tree_leaves(last), tree_leaves(contiguous), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("per_network", [2, 0])
def test_fast_with_shared_networks_and_odd_sides(per_network: int) -> None:
    attack = make(settings={"images_per_network": per_network}).attack
    lr, clean = lr_of(FastPGD(), attack, crops(2, 84)[..., :76])
    assert lr.shape == clean.shape == (2, 3, 21, 19)
    assert lr.isfinite().all()
    assert not torch.equal(lr, clean)
