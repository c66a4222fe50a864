"""ascend: the paper's adversary raises the loss, stays where it may be, and has the strength that its presets say."""

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import skimage.data
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from andfast.adversary import PRESETS, Ball, ConvolutionRadii, ascend, sample_identity
from andfast.functional import blur_pool
from andfast.nn import DegradationNetwork, RRDBNet, Theta, frozen

NETWORK = DegradationNetwork()


@functools.cache
def photographs() -> list[Any]:
    return [skimage.data.astronaut()[60:, 150:], skimage.data.coffee()[80:, 200:], skimage.data.chelsea()[20:, 100:]]


def photos(size: int) -> Tensor:
    """Crops of three photographs, (3, 3, size, size) in [0, 1]."""
    crops = [tensor[:size, :size] for tensor in photographs()]
    return torch.stack([torch.from_numpy(crop.copy()).permute(2, 0, 1).float() / 255 for crop in crops])


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors are faster so: several threads wait for each other longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def enlarge(lr: Tensor) -> Tensor:
    """A G without weights."""
    return F.interpolate(lr, scale_factor=4, mode="bicubic")


def l1(hr: Tensor, generator: Callable[[Tensor], Tensor] = enlarge) -> Callable[[Theta], Tensor]:
    def objective(theta: Theta) -> Tensor:
        return (generator(NETWORK(hr, theta)) - hr).abs().mean((1, 2, 3))

    return objective


def identity(n: int, size: int, channels: int = 16, seed: int = 0, **options: str) -> Theta:
    generator = torch.Generator().manual_seed(seed)
    return sample_identity(n, hr_size=size, channels=channels, generator=generator, **options)


def equal(a: Theta, b: Theta) -> bool:
    return all(torch.equal(tensor, second) for tensor, second in zip(a.tensors(), b.tensors(), strict=True))


def lr_psnr(hr: Tensor, theta: Theta) -> Tensor:
    """The PSNR of every degraded LR against the clean one, in dB."""
    with torch.no_grad():
        return -10 * (NETWORK(hr, theta) - blur_pool(hr, 4)).square().mean((1, 2, 3)).log10()


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """A small G that has learnt something about clean LR."""
    torch.manual_seed(1)
    generator = RRDBNet(features=8, blocks=1, growth=4)
    optimizer = torch.optim.Adam(generator.parameters(), 3e-3)
    hr = photos(64)
    lr = blur_pool(hr, 4)
    for _ in range(50):
        loss = (generator(lr) - hr).abs().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.12  # untrained: about 0.4
    return generator


@pytest.mark.parametrize("preset", ["calibrated", "strong"])
@pytest.mark.parametrize("joint", [False, True])
def test_each_step_raises_the_loss_on_average(preset: str, joint: bool, trained: nn.Module) -> None:
    """Over three photographs and three draws of networks, for a trained G and for one without weights."""
    radii = PRESETS[preset].ball_for(64, 64).radii
    ball = Ball(*radii, joint=joint)
    hr = photos(64).repeat(3, 1, 1, 1)
    for generator in (enlarge, trained):
        objective = l1(hr, generator)
        with frozen(trained):
            start = identity(9, 64)
            ascent = ascend(objective, start, ball=ball)
            with torch.no_grad():
                losses = [*ascent.losses.tolist(), objective(ascent.theta).mean().item()]
                clean = objective(start)
        assert len(losses) == 6
        assert losses[0] == pytest.approx(clean.mean().item(), rel=1e-5)
        rises = [after - before for before, after in itertools.pairwise(losses)]
        assert min(rises) > 0
        assert losses[-1] > 1.5 * losses[0]
        with torch.no_grad():
            assert (objective(ascent.theta) > clean).all()
        assert all(tensor.grad is None for tensor in trained.parameters())


@given(
    radii=st.tuples(*[st.sampled_from([0.0, 1e-3, 0.02, 0.5, 20.0])] * 3),
    joint=st.booleans(),
    step_size=st.sampled_from([0.1, 0.3, 1.0, 3.0]),
    shape=st.sampled_from([(1, 8), (2, 8), (3, 12)]),
    noise=st.sampled_from(["full", "single"]),
    slope=st.sampled_from(["layer", "channel"]),
)
def test_steps_stay_in_the_ball(
    radii: tuple[float, float, float],
    joint: bool,
    step_size: float,
    shape: tuple[int, int],
    noise: str,
    slope: str,
) -> None:
    n, size = shape
    ball, hr = Ball(*radii, joint=joint), photos(size)[:n].double()
    start = sample_identity(n, hr_size=size, channels=8, noise=noise, slope=slope, dtype=torch.float64)
    used: list[Tensor] = []

    def objective(theta: Theta) -> Tensor:
        used.append(ball.overshoot(theta.detach(), start).max())
        return (F.interpolate(NETWORK(hr, theta), scale_factor=4) - hr).abs().mean()

    ascent = ascend(objective, start, ball=ball, steps=4, step_size=step_size)
    used.append(ball.overshoot(ascent.theta, start).max())
    assert used[0] == 0
    assert max(used) <= 1 + 1e-5
    assert not joint or used[1] == pytest.approx(min(step_size, 1), rel=1e-5) or not any(radii)
    for group, before, radius in zip(ascent.theta, start, radii, strict=True):
        if radius == 0:
            assert all(torch.equal(a, b) for a, b in zip(group, before, strict=True))
    assert not any(tensor.requires_grad for tensor in ascent.theta.tensors())


def test_zero_gradient_moves_nothing() -> None:
    start = identity(2, 8, 8)
    for preset in PRESETS.values():
        ascent = ascend(lambda theta: sum(tensor.sum() for tensor in theta.tensors()) * 0, start, ball=preset.ball)
        assert equal(ascent.theta, start)


def test_one_step_matches_definition() -> None:
    hr, start, ball = photos(16)[:2], identity(2, 16), Ball(0.002, 0.5, 0.03)
    leaves = start.rebuild(tensor.clone().requires_grad_() for tensor in start.tensors())
    gradients = start.rebuild(iter(torch.autograd.grad(l1(hr)(leaves).sum(), tuple(leaves.tensors()))))
    ascent = ascend(l1(hr), start, ball=ball, steps=1, step_size=0.4)
    for group, before, gradient, radius in zip(ascent.theta, start, gradients, ball.radii, strict=True):
        lengths = torch.cat([tensor.reshape(2, -1) for tensor in gradient], 1).norm(dim=1)
        for tensor, zero, up in zip(group, before, gradient, strict=True):
            unit = up / lengths.view(-1, *[1] * (up.dim() - 1))
            torch.testing.assert_close(tensor, zero + 0.4 * radius * unit)


def test_images_are_independent() -> None:
    """An ascent of a batch is the ascents of its images, whether the objective is a mean or one loss an image."""
    hr, ball = photos(16), PRESETS["calibrated"].ball_for(16, 16)
    start = identity(3, 16)
    together = ascend(l1(hr), start, ball=ball, steps=3).theta
    mean = ascend(lambda theta: l1(hr)(theta).mean(), start, ball=ball, steps=3).theta
    for i in range(3):
        alone = start.rebuild(tensor[i : i + 1] for tensor in start.tensors())
        theta = ascend(l1(hr[i : i + 1]), alone, ball=ball, steps=3).theta
        for tensor, second, third in zip(theta.tensors(), together.tensors(), mean.tensors(), strict=True):
            torch.testing.assert_close(tensor, second[i : i + 1], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(tensor, third[i : i + 1], rtol=1e-4, atol=1e-5)


def test_shared_networks_use_gradients_of_all_their_images() -> None:
    hr, ball = photos(16).repeat(2, 1, 1, 1), PRESETS["calibrated"].ball_for(16, 16)
    for networks in (1, 2):
        start = identity(networks, 16)
        ascent = ascend(l1(hr), start, ball=ball)
        assert ascent.theta.weights[0].shape[0] == networks
        with torch.no_grad():
            assert l1(hr)(ascent.theta).mean() > l1(hr)(start).mean()


def test_loss_scale_does_not_change_the_result() -> None:
    hr, start, ball = photos(16), identity(3, 16), PRESETS["calibrated"].ball_for(16, 16)
    plain, scaled = (ascend(l1(hr), start, ball=ball, loss_scale=scale) for scale in (1.0, 2.0**16))
    torch.testing.assert_close(plain.losses, scaled.losses, rtol=1e-5, atol=0)
    for tensor, second in zip(plain.theta.tensors(), scaled.theta.tensors(), strict=True):
        torch.testing.assert_close(tensor, second, rtol=1e-4, atol=1e-5)


def test_zero_steps() -> None:
    start = identity(2, 8, 8)
    ascent = ascend(l1(photos(8)[:2]), start, ball=PRESETS["paper"].ball, steps=0)
    assert equal(ascent.theta, start)
    assert ascent.losses.shape == (0,)


def test_runs_under_no_grad() -> None:
    hr, start, ball = photos(8)[:2], identity(2, 8, 8), PRESETS["calibrated"].ball
    with torch.no_grad():
        inside = ascend(l1(hr), start, ball=ball)
    assert equal(inside.theta, ascend(l1(hr), start, ball=ball).theta)
    assert not inside.losses.requires_grad


def test_no_host_synchronization() -> None:
    """The meta device has no values: reading one, as .item() or a branch would, raises."""
    hr = torch.empty(2, 3, 16, 16, device="meta")
    start = sample_identity(2, hr_size=16, channels=8, device="meta")
    for preset in PRESETS.values():
        ascent = ascend(l1(hr), start, ball=preset.ball, steps=2)
        assert ascent.losses.shape == (2,)
        assert all(tensor.is_meta for tensor in ascent.theta.tensors())


def test_propagates_nan_of_the_objective() -> None:
    start = identity(2, 8, 8)
    bad = torch.tensor([1.0, math.nan])
    ascent = ascend(lambda theta: l1(photos(8)[:2])(theta) * bad, start, ball=PRESETS["calibrated"].ball, steps=1)
    assert ascent.losses.isnan().all()
    assert all(tensor[1].isnan().any() for tensor in ascent.theta.tensors())
    assert all(tensor[0].isfinite().all() for tensor in ascent.theta.tensors())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": -1}, "steps must be 0 or more, was -1"),
        ({"step_size": -0.1}, "step_size must be finite and 0 or more, was -0.1"),
        ({"step_size": math.nan}, "step_size must be finite and 0 or more, was nan"),
        ({"step_size": math.inf}, "step_size must be finite and 0 or more, was inf"),
    ],
)
def test_rejects_invalid_arguments(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ascend(l1(photos(8)[:2]), identity(2, 8, 8), ball=PRESETS["paper"].ball, **change)  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------------- the presets' strength


def test_literal_preset_destroys_the_image() -> None:
    """Section 4.3 read to the letter: LR below -200 dB of the clean one, all of the radius spent on convolutions.

    That is why `calibrated` is the default and not `paper`; see docs/method.md.
    """
    hr, preset = photos(64)[:2], PRESETS["paper"]
    start = identity(2, 64, channels=64)
    ascent = ascend(l1(hr), start, ball=preset.ball, steps=5, step_size=preset.step_size)
    assert all(tensor.isfinite().all() for tensor in ascent.theta.tensors())
    assert lr_psnr(hr, ascent.theta).max() < -200
    convolution, noise, slope = preset.ball.norms(ascent.theta, start)
    assert (convolution**2).min() > 0.98
    assert max(noise.max(), slope.max()) < 0.15
    assert ascent.losses[-1] > 1e6 * ascent.losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("group", [0, 1, 2], ids=["convolution", "noise", "slope"])
def test_calibrated_groups_alone_give_30_db(group: int) -> None:
    """With F of the paper's size; draws vary by 3 dB and more."""
    preset = PRESETS["calibrated"]
    radii = [0.0, 0.0, 0.0]
    radii[group] = preset.ball_for(128, 128).radii[group]
    hr = photos(128)[:1]
    start = identity(1, 128, channels=64, seed=1)
    ascent = ascend(l1(hr), start, ball=Ball(*radii), step_size=preset.step_size)
    assert lr_psnr(hr, ascent.theta).item() == pytest.approx(30, abs=4)


@pytest.mark.slow
def test_presets_scale_with_size() -> None:
    """At 64x64 the noise's radius is a quarter, and each group alone is about as strong as at 256x256."""
    hr, start = photos(64)[1:], identity(2, 64, channels=64)
    for group in range(3):
        quality = []
        for name in ("calibrated", "strong"):
            radii = [0.0, 0.0, 0.0]
            radii[group] = PRESETS[name].ball_for(64, 64).radii[group]
            quality.append(lr_psnr(hr, ascend(l1(hr), start, ball=Ball(*radii)).theta).mean().item())
        assert quality[0] == pytest.approx(30, abs=5)
        # 30 dB against 25
        assert quality[0] - quality[1] == pytest.approx(5, abs=2)


def test_parts_commute_with_the_closed_form_first_step() -> None:
    """The step within parts is the same from gradients in closed form as from those of the convolutions."""
    hr, start = photos(16)[:2].double(), identity(2, 16)
    start = start.rebuild(tensor.double() for tensor in start.tensors())
    ball = Ball(ConvolutionRadii(0.001, 0.3, 0.02), 0.05, 0.03, zero_mean_noise=True)
    network = DegradationNetwork()
    target = blur_pool(hr, 4) + 0.1 * torch.randn(2, 3, 4, 4, dtype=torch.float64)

    def objective(theta: Theta, degrade: Any = network) -> Tensor:
        return (degrade(hr, theta) - target).square().sum((1, 2, 3))

    closed_form = partial(objective, degrade=network.closed_form_first_step)
    factors = torch.tensor([0.4, 1.0])
    options = {"ball": ball, "steps": 3, "factors": factors}
    closed, plain = (ascend(objective, start, first=first, **options) for first in (closed_form, None))
    for ours, expected in zip(closed.theta.tensors(), plain.theta.tensors(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-8)
    assert closed.losses[-1] > closed.losses[0]
    assert ball.overshoot(closed.theta, start, factors).max() <= 1 + 1e-6
