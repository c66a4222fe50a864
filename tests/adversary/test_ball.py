"""Ball and project: how far theta may go, and the nearest point that it may be at."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from andfast.adversary import GROUPS, PRESETS, Ball, project, resized, sample_identity
from andfast.nn import Theta

RADII = st.floats(1e-4, 1e3)
SHAPES = st.fixed_dictionaries(
    {
        "n": st.integers(1, 4),
        "hr_size": st.sampled_from([4, (4, 8), 12]),
        "channels": st.sampled_from([3, 5]),
        "noise": st.sampled_from(["full", "single"]),
        "slope": st.sampled_from(["layer", "channel"]),
    }
)


def start(shape: dict[str, Any], seed: int = 0) -> Theta:
    """Identity networks in float64, so that the small radii are not below theta's own rounding."""
    options = dict(shape)
    generator = torch.Generator().manual_seed(seed)
    return sample_identity(options.pop("n"), generator=generator, dtype=torch.float64, **options)


def away(identity: Theta, ball: Ball, reach: float, seed: int = 1) -> Theta:
    """Every group `reach` times its radius away from the identity, times 0.5 to 1.5, in a random direction."""
    generator = torch.Generator().manual_seed(seed)
    groups = []
    for group, radius in zip(identity, ball.radii, strict=True):
        steps = [torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) for tensor in group]
        length = norm(steps)
        distance = reach * radius * (0.5 + torch.rand(length.shape, generator=generator, dtype=length.dtype))
        factor = distance / length
        groups.append(tuple(tensor + step * spread(factor, tensor) for tensor, step in zip(group, steps, strict=True)))
    return Theta(*groups)


def norm(group: Any) -> Tensor:
    """L2 norm of a group per image, written out."""
    return torch.cat([tensor.reshape(tensor.shape[0], -1) for tensor in group], 1).square().sum(1).sqrt()


def spread(factor: Tensor, like: Tensor) -> Tensor:
    return factor.view(-1, *[1] * (like.dim() - 1))


def differences(a: Theta, b: Theta) -> Theta:
    return a.rebuild(tensor - second for tensor, second in zip(a.tensors(), b.tensors(), strict=True))


def in_u(theta: Theta, identity: Theta, ball: Ball) -> Tensor:
    """All coordinates (theta - identity) / radius, (N, M)."""
    rows = [
        torch.cat([tensor.reshape(tensor.shape[0], -1) for tensor in group], 1) / radius
        for group, radius in zip(differences(theta, identity), ball.radii, strict=True)
    ]
    return torch.cat(rows, 1)


def equal(a: Theta, b: Theta) -> bool:
    return all(torch.equal(tensor, second) for tensor, second in zip(a.tensors(), b.tensors(), strict=True))


def close(a: Theta, b: Theta, rtol: float = 1e-9) -> None:
    for tensor, second in zip(a.tensors(), b.tensors(), strict=True):
        torch.testing.assert_close(tensor, second, rtol=rtol, atol=1e-9)


@given(SHAPES, RADII, RADII, RADII, st.booleans(), st.floats(0.01, 30.0))
def test_norms_match_definition(
    shape: dict[str, Any], convolution: float, noise: float, slope: float, joint: bool, reach: float
) -> None:
    ball, identity = Ball(convolution, noise, slope, joint), start(shape)
    theta = away(identity, ball, reach)
    expected = torch.stack(
        [norm(group) / radius for group, radius in zip(differences(theta, identity), ball.radii, strict=True)]
    )
    torch.testing.assert_close(ball.norms(theta, identity), expected)
    joined = expected.square().sum(0, keepdim=True).sqrt()
    torch.testing.assert_close(ball.overshoot(theta, identity), joined if joint else expected)


@given(SHAPES, RADII, RADII, RADII, st.booleans(), st.floats(0.01, 1e4), st.integers(0, 9))
def test_projection_is_inside_and_idempotent(
    shape: dict[str, Any], convolution: float, noise: float, slope: float, joint: bool, reach: float, seed: int
) -> None:
    ball, identity = Ball(convolution, noise, slope, joint), start(shape, seed)
    theta = away(identity, ball, reach, seed)
    before = theta.rebuild(tensor.clone() for tensor in theta.tensors())
    inside = project(theta, identity, ball)
    assert equal(theta, before)  # the arguments are left alone
    assert ball.overshoot(inside, identity).max() <= 1 + 1e-5
    close(project(inside, identity, ball), inside)
    # What was outside comes to the border, not deeper, and in its direction.
    outside = ball.overshoot(theta, identity) > 1
    torch.testing.assert_close(ball.overshoot(inside, identity)[outside], torch.ones(int(outside.sum())).double())
    old, new = (in_u(tensor, identity, ball) for tensor in (theta, inside))
    if joint:
        assert torch.cosine_similarity(old, new).min() > 1 - 1e-9


@given(
    SHAPES, RADII, RADII, RADII, st.booleans(), st.floats(0.0, 0.38), st.sampled_from([torch.float32, torch.float64])
)
def test_projection_keeps_inside_points_bit_identical(
    shape: dict[str, Any], convolution: float, noise: float, slope: float, joint: bool, reach: float, dtype: torch.dtype
) -> None:
    ball, identity = Ball(convolution, noise, slope, joint), start(shape)
    theta = away(identity, ball, reach)
    theta, identity = (tensor.rebuild(t.to(dtype) for t in tensor.tensors()) for tensor in (theta, identity))
    if ball.overshoot(theta, identity).max() <= 1:  # rounding to float32 may leave a tiny ball
        assert equal(project(theta, identity, ball), theta)
    assert equal(project(identity, identity, ball), identity)


def test_projection_is_per_network() -> None:
    shape = {"n": 3, "hr_size": 4, "channels": 3, "noise": "full", "slope": "layer"}
    identity = start(shape)
    for joint in (False, True):
        ball = Ball(1.0, 2.0, 3.0, joint)
        near, far = away(identity, ball, 0.3), away(identity, ball, 30)
        mixed = near.rebuild(
            torch.stack([a[0], b[1], a[2]]) for a, b in zip(near.tensors(), far.tensors(), strict=True)
        )
        inside = project(mixed, identity, ball)
        for tensor, second in zip(inside.tensors(), mixed.tensors(), strict=True):
            assert torch.equal(tensor[0], second[0])
            assert torch.equal(tensor[2], second[2])
            assert not torch.equal(tensor[1], second[1])


@given(SHAPES, RADII, RADII, RADII, st.booleans(), st.floats(1.5, 20.0))
def test_projection_is_nearest_point(
    shape: dict[str, Any], convolution: float, noise: float, slope: float, joint: bool, reach: float
) -> None:
    """The variational inequality of a projection: (theta - p) . (q - p) <= 0 in u for every q of the ball."""
    ball, identity = Ball(convolution, noise, slope, joint), start(shape)
    theta = away(identity, ball, reach)
    nearest = in_u(project(theta, identity, ball), identity, ball)
    gap = in_u(theta, identity, ball) - nearest
    for seed in range(5):
        second = in_u(project(away(identity, ball, 3.0, seed + 50), identity, ball), identity, ball)
        product = (gap * (second - nearest)).sum(1)
        assert (product <= 1e-8 * gap.norm(dim=1)).all()


def test_separate_and_joint_balls() -> None:
    identity = start({"n": 1, "hr_size": 4, "channels": 3})

    def at(*lengths: float) -> Theta:
        """Each group away by that length, in its first coordinate."""
        moved = []
        for group, length in zip(identity, lengths, strict=True):
            first = group[0].clone()
            first.view(-1)[0] += length
            moved.append((first, *group[1:]))
        return Theta(*moved)

    # In u, the point is (1.5, 4, 0.5).
    theta = at(3.0, 2.0, 5.0)
    close(project(theta, identity, Ball(2.0, 0.5, 10.0)), at(2.0, 0.5, 5.0))
    length = math.sqrt(1.5**2 + 4**2 + 0.5**2)
    close(project(theta, identity, Ball(2.0, 0.5, 10.0, joint=True)), at(3.0 / length, 2.0 / length, 5.0 / length))


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("fixed", range(3))
def test_radius_zero_keeps_a_group_at_its_identity(joint: bool, fixed: int) -> None:
    identity = start({"n": 2, "hr_size": 4, "channels": 3})
    radii = [0.5, 0.5, 0.5]
    theta = away(identity, Ball(*radii, joint), 0.3)
    radii[fixed] = 0.0
    ball = Ball(*radii, joint)
    inside = project(theta, identity, ball)
    for index in range(3):
        # The others do not pay for it.
        expected = identity[index] if index == fixed else theta[index]
        assert all(torch.equal(a, b) for a, b in zip(inside[index], expected, strict=True))
    assert ball.norms(theta, identity)[fixed].isinf().all()
    assert not ball.norms(inside, identity)[fixed].any()
    gradient = theta.rebuild(torch.ones_like(tensor) for tensor in theta.tensors())
    moved = ball.move(identity, gradient, 0.3)
    for index in range(3):
        stays = all(torch.equal(a, b) for a, b in zip(moved[index], identity[index], strict=True))
        assert stays == (index == fixed)


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("radius", [0.0, 2.0])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("group", range(3))
def test_projection_propagates_nan(joint: bool, radius: float, value: float, group: int) -> None:
    """A broken theta or gradient stays visible after the step and the projection, in its image only."""
    identity = start({"n": 2, "hr_size": 4, "channels": 3})
    ball = Ball(*[radius if index == group else 1.0 for index in range(3)], joint)
    broken = identity.rebuild(tensor.clone() for tensor in identity.tensors())
    broken[group][1][0].fill_(value)
    assert not ball.norms(broken, identity)[group, 0].isfinite()
    for theta in (project(broken, identity, ball), project(ball.move(identity, broken, 0.3), identity, ball)):
        assert any(tensor[0].isnan().any() for tensor in theta.tensors())
        assert all(tensor[1].isfinite().all() for tensor in theta.tensors())


@given(SHAPES, RADII, RADII, RADII, st.booleans(), st.floats(0.01, 2.0), st.floats(1e-12, 1e12))
def test_move_has_step_size_length(
    shape: dict[str, Any], convolution: float, noise: float, slope: float, joint: bool, size: float, scale: float
) -> None:
    """`step_size` radii in u, of each group or of all together, whatever the gradient's length; and uphill."""
    ball = Ball(convolution, noise, slope, joint)
    identity = differences(start(shape), start(shape))  # zeros, which round no step
    generator = torch.Generator().manual_seed(2)
    gradient = identity.rebuild(
        scale * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) for tensor in identity.tensors()
    )
    moved = ball.move(identity, gradient, size)
    taken = ball.overshoot(moved, identity)
    torch.testing.assert_close(taken, torch.full_like(taken, size), rtol=1e-6, atol=0)
    # The direction of the gradient to u, which is the radius times the gradient to theta.
    for index, (step, up, radius) in enumerate(zip(differences(moved, identity), gradient, ball.radii, strict=True)):
        product = sum((a * b).reshape(len(a), -1).sum(1) for a, b in zip(step, up, strict=True))
        cosine = product / (norm(step) * norm(up))
        assert (cosine > 1 - 1e-6).all(), GROUPS[index]
        if joint:
            share = norm(up) * radius
            total = torch.stack([norm(g) * r for g, r in zip(gradient, ball.radii, strict=True)]).square().sum(0).sqrt()
            torch.testing.assert_close(norm(step) / radius, size * share / total, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", PRESETS)
def test_zero_gradient_moves_nothing(name: str, dtype: torch.dtype) -> None:
    """Also where a radius squared over the smallest number of the type is infinite, as with radius 20."""
    identity = sample_identity(2, hr_size=8, channels=3, dtype=dtype)
    nothing = identity.rebuild(torch.zeros_like(tensor) for tensor in identity.tensors())
    for ball in (PRESETS[name].ball, Ball(1e6, 1e6, 1e6)):
        assert equal(ball.move(identity, nothing, 0.3, identity=identity), identity)
    # One network without a gradient does not stop the others.
    half = identity.rebuild(
        torch.stack([torch.zeros_like(tensor[0]), torch.rand_like(tensor[1])]) for tensor in identity.tensors()
    )
    ball = PRESETS[name].ball
    moved = ball.move(identity, half, 0.3, identity=identity)
    for tensor, second in zip(moved.tensors(), identity.tensors(), strict=True):
        assert torch.equal(tensor[0], second[0])
        held = tensor.dim() == 1 and ball.slope == 0  # slopes
        assert torch.equal(tensor[1], second[1]) == held


def test_float32_at_training_radii() -> None:
    """theta's own rounding costs less than 1e-4 of the calibrated radii."""
    identity = sample_identity(2, hr_size=32, channels=16, generator=torch.Generator().manual_seed(0))
    ball = PRESETS["calibrated"].ball_for(32, 32)
    gradient = identity.rebuild(torch.randn(tensor.shape) for tensor in identity.tensors())
    theta = identity
    for _ in range(5):
        theta = project(ball.move(theta, gradient, 0.3), identity, ball)
        assert ball.overshoot(theta, identity).max() <= 1 + 1e-4
    assert ball.overshoot(theta, identity).min() >= 1 - 1e-4


def test_presets() -> None:
    assert set(PRESETS) == {"symmetric", "calibrated", "strong", "paper"}
    assert PRESETS["symmetric"].ball.names == ("color", "kernel", "rest", "noise", "slope")
    assert PRESETS["symmetric"].ball.radii[0] == 0
    assert {name for name, preset in PRESETS.items() if preset.image_radius == "uniform"} == {"symmetric"}
    paper = PRESETS["paper"]
    assert paper.ball == Ball(20.0, 2.0, 0.4, joint=True)
    assert paper.step_size == pytest.approx(6 / 20)
    for name, preset in PRESETS.items():
        assert preset.ball_for(256, 256) == preset.ball
        assert preset.ball.joint == (name == "paper")
        assert preset.step_size == pytest.approx(0.3)


def test_presets_scale_with_size() -> None:
    """Maps of a quarter of the pixels have half the norm at equal strength; kernels and slopes are no maps."""
    for name in ("symmetric", "calibrated", "strong"):
        ball = PRESETS[name].ball
        half = PRESETS[name].ball_for(128, 128)
        assert (half.convolution, half.slope) == (ball.convolution, ball.slope)
        assert half.noise == pytest.approx(ball.noise / 2)
        assert PRESETS[name].ball_for(64, 256).noise == pytest.approx(ball.noise / 2)
        assert PRESETS[name].ball_for(512, 512).noise == pytest.approx(2 * ball.noise)
    assert PRESETS["paper"].ball_for(128, 128) == PRESETS["paper"].ball
    ball, narrow = PRESETS["symmetric"].ball, PRESETS["symmetric"].ball_for(256, 256, channels=16)
    assert narrow.radii == pytest.approx([r * f for r, f in zip(ball.radii, (1, 1, 0.5, 0.5, 1), strict=True)])
    assert PRESETS["calibrated"].ball_for(256, 256, channels=16) == PRESETS["calibrated"].ball
    once = resized(Ball(1.0, 1.0, 1.0, joint=True), (10, 20), (20, 40))
    assert once == Ball(1.0, 2.0, 1.0, joint=True)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
@pytest.mark.parametrize("group", range(3))
def test_rejects_invalid_radii(value: float, group: int) -> None:
    radii = [1.0, 1.0, 1.0]
    radii[group] = value
    with pytest.raises(ValueError, match=rf"{GROUPS[group]} \(a radius\) must be finite and 0 or more, was {value}"):
        Ball(*radii)


@pytest.mark.parametrize("ball", [PRESETS["calibrated"].ball_for(4, 4), PRESETS["paper"].ball_for(4, 4)])
@given(seed=st.integers(0, 99), slope=st.sampled_from(["layer", "channel"]))
def test_smallest_slope_bounds_all_slopes(ball: Ball, seed: int, slope: str) -> None:
    """Also where all of the radius goes into a single slope of an image."""
    identity = start({"n": 2, "hr_size": 4, "channels": 3, "noise": "single", "slope": slope}, seed)
    theta = away(identity, ball, 3.0, seed)
    one_alone = Theta(identity.weights, identity.noises, (identity.slopes[0] - 5 * ball.slope, *identity.slopes[1:]))
    for far in (theta, one_alone):
        slopes = project(far, identity, ball).slopes
        assert min(tensor.min().item() for tensor in slopes) >= ball.smallest_slope - 1e-9
    assert Ball(1, 1, 1.5).smallest_slope == 0
