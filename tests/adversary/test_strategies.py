"""Strategies: what each makes of HR, and that all of them draw alike however a batch is split, captured or resumed."""

import copy
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from rerun import Rerun
from small_steps import crops, make
from strategy_cases import SEED, assert_equal, lr_of, step_of, strategy, tree_leaves
from torch import Tensor

from andfast.adversary import PRESETS, Ball, Objective
from andfast.adversary.strategies import (
    PGD,
    FastPGD,
    FastRandomStart,
    LRNoise,
    PGDRandomStart,
    RandomPoint,
    StepSeed,
    StyleShift,
)
from andfast.config.adversary import WITH_ASCENT, WITH_BALL
from andfast.config.adversary import Strategy as Name
from andfast.functional import blur_pool
from andfast.metrics.psnr import mean_psnr
from andfast.nn import Theta
from andfast.resize import bicubic_downscale
from andfast.training.cuda_graph import CUDAGraphCallable

NAMES = get_args(Name)
RANDOM = ("pgd", "fast", "random", "style", "pgd_random_start", "fast_random_start", "synthetic")
"""Strategies that draw."""


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("discriminator", [None, "unet"])
def test_step_trains_on_finite_lr(name: Name, discriminator: str | None) -> None:
    step = step_of(name, discriminator=discriminator)
    hr = crops(2)
    values = step.gradients([hr], 3)
    assert all(value.isfinite() for value in values.values()), values
    assert all(weight.grad is not None for weight in step.generator.parameters())
    start = "loss_clean" if name in ("pgd", "noise") else "loss_start"
    assert {"loss_clean", "loss_start", "loss_gain"} & set(values) == (
        {start, "loss_gain"} if name in WITH_ASCENT else set()
    )
    if name in ("pgd", "noise", "pgd_random_start"):  # a random G hardly depends on LR, but its loss rises
        assert values["loss_gain"] > 0
    batch = step.adversarial_batch(hr, 3)
    assert batch.lr.shape == batch.clean.shape == (2, 3, 8, 8)
    assert batch.lr.min() >= 0
    assert batch.lr.max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_classes_state_what_the_configuration_checks(name: Name) -> None:
    built = strategy(name)
    assert built.ascends == (name in WITH_ASCENT)
    assert built.uses_ball == (name in WITH_BALL)


@pytest.mark.parametrize("name", NAMES)
def test_draws_depend_on_the_step_alone(name: Name) -> None:
    """Equal for equal seeds, whatever was drawn before; other steps, stages and images draw differently."""
    built, attack, hr = strategy(name), make().attack, crops(1).repeat(2, 1, 1, 1)
    first = built.draw(attack, hr, SEED)
    torch.manual_seed(5)
    assert_equal(first, built.draw(attack, hr, SEED))
    for seed in (StepSeed((1, 0, 8)), StepSeed((1, 1, 7)), StepSeed((2, 0, 7))):
        assert torch.equal(*(lr_of(built, attack, hr, s)[0] for s in (SEED, seed))) != (name in RANDOM)
    lr = lr_of(built, attack, hr)[0]
    assert torch.allclose(lr[0], lr[1], atol=1e-7) != (name in RANDOM)


@pytest.mark.parametrize("name", NAMES)
def test_shards_and_chunks_draw_parts_of_the_batch(name: Name) -> None:
    settings = {"ball": PRESETS["symmetric"].ball_for(32, 32), "image_radius": "uniform"}
    built, attack, hr = strategy(name), make(settings=settings).attack, crops(4)
    whole = tree_leaves(built.draw(attack, hr, SEED))
    for parts in (
        [built.draw(attack, hr[:2], SEED, shard=(0, 2)), built.draw(attack, hr[2:], SEED, shard=(1, 2))],
        [built.draw(attack, hr, SEED, chunk=range(1)), built.draw(attack, hr, SEED, chunk=range(1, 4))],
    ):
        joined = [torch.cat(leaves) for leaves in zip(*map(tree_leaves, parts), strict=True)]
        for ours, theirs in zip(joined, whole, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["pgd", "random", "style", "pgd_random_start", "fast_random_start"])
def test_images_share_networks(name: Name) -> None:
    built, attack = strategy(name), make(settings={"images_per_network": 2}).attack
    draw = built.draw(attack, crops(4), SEED)
    assert draw.identity.weights[0].shape[0] == 2
    part = built.draw(attack, crops(4), SEED, chunk=range(2, 4))
    torch.testing.assert_close(part.identity.weights[3][0], draw.identity.weights[3][1])


@pytest.mark.parametrize("name", NAMES)
def test_captured_search_equals_the_eager_one(name: Name) -> None:
    built, attack, hr = strategy(name), make().attack, crops(2)

    def search(hr: Tensor, draw: Any) -> Any:
        return built.search(attack, hr, draw)[1]

    captured = CUDAGraphCallable(search, Rerun(), static_tensors=attack.static_tensors)
    for number in range(3):
        draw = built.draw(attack, hr, StepSeed((1, 0, number)))
        expected = search(hr, copy.deepcopy(draw))
        assert_equal(captured(hr, draw), expected)
    assert captured.captures == 1


@pytest.mark.parametrize("name", NAMES)
def test_empty_batch(name: Name) -> None:
    lr, clean = lr_of(strategy(name), make().attack, crops(1)[:0])
    assert lr.shape == clean.shape == (0, 3, 8, 8)


def test_pgd_is_the_attack() -> None:
    attack, hr = make().attack, crops(2)
    draw = PGD().draw(attack, hr, SEED)
    assert_equal(draw, attack.sample(hr, SEED.generator(hr.device)))
    assert_equal(PGD().search(attack, hr, draw)[1], attack.search(hr, draw)[1])


def test_classical_lr() -> None:
    attack, hr = make().attack, crops(2)
    for name, expected in (("none", blur_pool(hr, 4)), ("bicubic", bicubic_downscale(hr, 4))):
        lr, clean = lr_of(strategy(name), attack, hr)
        assert torch.equal(lr, expected.clamp(0, 1))
        assert torch.equal(clean, blur_pool(hr, 4))
    rounded = lr_of(strategy("none"), replace(attack, round_lr=True), hr)[0] * 255
    torch.testing.assert_close(rounded, rounded.round(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("scale", "size"), [(2, (14, 22)), (4, (20, 28)), (3, (9, 33))])
def test_bicubic_downscale_equals_pillow(scale: int, size: tuple[int, int]) -> None:
    x = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(0))
    small = Image.fromarray(x[0, 0].numpy()).resize((size[1] // scale, size[0] // scale), Image.Resampling.BICUBIC)
    expected = torch.from_numpy(np.array(small))[None, None]
    torch.testing.assert_close(bicubic_downscale(x, scale), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_noise_stays_within_its_radius_and_raises_the_loss(norm: Any) -> None:
    attack, hr = make(steps=4).attack, crops(3)
    made_by = LRNoise(6.0, norm)
    ascent = made_by.search(attack, hr, ())[1]
    size = ascent.noise.square().mean((1, 2, 3)).sqrt() if norm == "l2" else ascent.noise.abs().amax((1, 2, 3))
    torch.testing.assert_close(size, torch.full((3,), 6 / 255), rtol=1e-5, atol=0)  # 4 steps of 0.3 reach the border
    assert (ascent.losses.diff() > 0).all()
    lr, clean = made_by.degrade(attack, hr, ascent)
    torch.testing.assert_close(lr, (clean + ascent.noise).clamp(0, 1))


def test_noise_step_is_the_nearest_point() -> None:
    """In float64: along the gradient by the fraction of the radius, then scaled onto the ball."""
    generator = torch.Generator().manual_seed(0)
    noise, gradient = torch.randn(2, 2, 3, 5, 7, generator=generator, dtype=torch.float64) * 1e-2
    noise[1] *= 1e-3
    gradient[0, 0, 0, 0] = 0
    for norm in ("l2", "linf"):
        made_by = LRNoise(2.0, norm)
        moved, radius, count = made_by.step(noise, gradient, 0.3), 2 / 255, 3 * 5 * 7
        for image in range(2):
            if norm == "linf":
                expected = (noise[image] + 0.3 * radius * gradient[image].sign()).clamp(-radius, radius)
            else:
                length = radius * count**0.5
                expected = noise[image] + 0.3 * length * gradient[image] / gradient[image].norm()
                expected = expected * min(1.0, length / expected.norm().item())
            torch.testing.assert_close(moved[image], expected, rtol=1e-12, atol=0)
    still = LRNoise(2.0).step(noise[1:], torch.zeros_like(gradient[1:]), 0.3)
    torch.testing.assert_close(still, noise[1:], rtol=1e-12, atol=0)


@pytest.mark.parametrize("ball", [PRESETS["calibrated"].ball, Ball(2e-3, 0.1, 0.02, joint=True)])
def test_random_point_lies_on_the_boundary(ball: Ball) -> None:
    attack, hr = make().attack, crops(2)
    attack = replace(attack, settings=replace(attack.settings, ball=ball))
    identity = attack.sample(hr, SEED.generator(hr.device))
    for scale in (1.0, 3.0):
        theta = RandomPoint(scale).draw(attack, hr, SEED).identity
        used = ball.overshoot(theta, identity)
        torch.testing.assert_close(used, torch.full_like(used, scale), rtol=1e-3, atol=0)


def test_random_point_does_less_damage_than_the_ascent() -> None:
    """Unless its radii are scaled: a row at equal LR PSNR exists."""
    attack, hr = make(steps=5).attack, crops(3)
    objective = Objective(l1=1.0)
    attack = replace(attack, objective=objective)
    psnr = {
        name: mean_psnr(*lr_of(built, attack, hr)).item()
        for name, built in {"pgd": PGD(), "random": RandomPoint(), "far": RandomPoint(100.0)}.items()
    }
    assert psnr["far"] < psnr["pgd"] < psnr["random"]


def test_random_start_ascends_around_the_random_point() -> None:
    attack, hr = make().attack, crops(2)
    made_by = PGDRandomStart(4.0)
    start = made_by.draw(attack, hr, SEED)
    assert_equal(start, RandomPoint(4.0).draw(attack, hr, SEED))
    _, ascent = made_by.search(attack, hr, start)
    assert (ascent.losses.diff() > 0).all()
    used = attack.settings.ball.norms(ascent.theta, start.identity)
    assert used.max() <= 1 + 1e-4
    assert used.max() > 0.5


def test_random_point_leaves_parts_without_a_factor() -> None:
    ball = PRESETS["symmetric"].ball_for(32, 32).with_radii({"color": 0.1, "slope": 0.1})
    attack, hr = make(settings={"ball": ball}).attack, crops(2)
    identity = attack.sample(hr, SEED.generator(hr.device))
    theta = RandomPoint({"noise": 10.0, "kernel": 0.5}).draw(attack, hr, SEED).identity
    for name, used in zip(ball.names, ball.norms(theta, identity), strict=True):
        expected = {"noise": 10.0, "kernel": 0.5}.get(name, 0.0)
        assert used.tolist() == pytest.approx([expected] * 2, rel=1e-3, abs=1e-3), name
    with pytest.raises(ValueError, match="radii must be among"):
        RandomPoint({"convolution": 1.0}).draw(attack, hr, SEED)


def test_fast_random_start_ascends_around_the_random_point() -> None:
    ball = PRESETS["symmetric"].ball_for(64, 64)
    attack, hr = make(settings={"ball": ball}).attack, crops(2, size=64)
    made_by = FastRandomStart({"noise": 3.0})
    start = made_by.draw(attack, hr, SEED)
    assert_equal(start, RandomPoint({"noise": 3.0}).draw(attack, hr, SEED))
    _, ascent = made_by.search(attack, hr, start)
    used = dict(zip(ball.names, ball.norms(ascent.theta, start.identity), strict=True))
    for name in ("kernel", "rest", "noise"):
        assert used[name].tolist() == pytest.approx([1, 1], abs=1e-3), name
    open_loop = replace(attack, reuse=replace(attack.reuse, closed_form_first_step=False))
    assert_equal(ascent, FastPGD().search(open_loop, hr, start)[1])  # the closed form is for identities alone


def test_style_shift_draws_xavier_kernels() -> None:
    """Of the variance 2 / (9 (Cin + Cout)); the pictures differ from the clean ones, as in the paper."""
    attack, hr = make(settings={"channels": 32}).attack, crops(4)
    theta: Theta = StyleShift().draw(attack, hr, SEED).identity
    for kernel in theta.weights:
        rows, columns = kernel.shape[1:3]
        assert kernel.std().item() == pytest.approx((2 / (9 * (rows + columns))) ** 0.5, rel=0.05)
    assert all((slope == 1).all() for slope in theta.slopes)
    assert not any(noise.any() for noise in theta.noises)
    assert mean_psnr(*lr_of(StyleShift(), attack, hr)).item() < 15


@pytest.mark.parametrize("build", [lambda: LRNoise(0.0), lambda: LRNoise(1.0, "l1"), lambda: RandomPoint(float("inf")),
    lambda: RandomPoint({"noise": 0.0}), lambda: RandomPoint({"noise": -1.0}),
])  # fmt: skip
def test_invalid_parameters_raise(build: Any) -> None:
    with pytest.raises(ValueError, match=r"must be .*, was"):
        build()
