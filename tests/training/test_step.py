"""TrainingStep: values and gradients of its sub-steps."""

from typing import Any

import pytest
import torch
from small_steps import SIZE, RecordedPhases, assert_close, crops, gradients, identity, make

from andfast.functional import blur_pool
from andfast.losses import GANLoss
from andfast.metrics.psnr import mean_psnr
from andfast.nn import frozen
from andfast.training.step import RankInfo, first_nonfinite

PHASES = ["identity", "ascent", "degradation", "generator"]


def test_net_stage_matches_manual_step() -> None:
    """Gradients equal those of L1 on G(clamp(F(theta, HR))) with theta of the attack."""
    step, hr = make(), crops()
    values = step.gradients([hr], 7)
    actual = gradients(step.generator)
    step.generator.zero_grad()

    start = identity(step, hr, 7)
    _, ascent = step.attack.search(hr, start)
    with torch.no_grad():
        lr = step.attack.degradation(hr, ascent.theta).clamp(0, 1)
        clean_loss = (step.generator(step.attack.degradation(hr, start)) - hr).abs().mean()
    loss = (step.generator(lr) - hr).abs().mean()
    loss.backward()
    assert_close(actual, gradients(step.generator), 1e-6)
    assert set(values) == {"loss", "l1", "loss_clean", "loss_gain", "lr_psnr"}
    assert values["loss"].item() == values["l1"].item() == pytest.approx(loss.item(), rel=1e-6)
    assert values["loss_clean"].item() == pytest.approx(clean_loss.item(), rel=1e-6)
    assert values["loss_gain"].item() == pytest.approx((loss - clean_loss).item(), abs=1e-6)
    assert values["loss_gain"] > 0
    expected = -10 * (lr - blur_pool(hr, 4)).square().mean((1, 2, 3)).log10().mean()
    assert values["lr_psnr"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert 10 < expected < 40
    assert all(value.dim() == 0 and not value.requires_grad for value in values.values())


@pytest.mark.parametrize("gan", ["vanilla", "relativistic", "least_squares"])
@pytest.mark.parametrize("kind", ["vgg", "unet"])
def test_gan_stage(kind: str, gan: str) -> None:
    """Each discriminator with each GAN loss: both networks get gradients, only in their own sub-step."""
    size = 128 if kind == "vgg" else SIZE
    seen: dict[str, Any] = {}

    def after(phase: str) -> None:
        if phase == "ascent":
            assert not gradients(step.generator)
            assert not gradients(step.discriminator)
            assert all(torch.equal(a, b) for a, b in zip(step.discriminator.buffers(), buffers, strict=True))
        if phase == "generator":
            assert not gradients(step.discriminator)
            assert all(torch.equal(a, b) for a, b in zip(step.discriminator.buffers(), buffers, strict=True))
            seen.update(gradients(step.generator))

    phases = RecordedPhases(after)
    step = make(kind, gan, size=size, steps=2, timer=phases)
    assert step.discriminator is not None
    buffers = [buffer.clone() for buffer in step.discriminator.buffers()]
    hr = crops(2, size)
    values = step.gradients([hr], 0)
    assert list(dict.fromkeys(phases.names)) == [*PHASES, "discriminator"]
    assert set(values) == {
        *("loss", "l1", "perceptual", "gan", "loss_clean", "loss_gain", "lr_psnr"),
        *("discriminator", "real_logit", "fake_logit"),
    }
    assert all(value.isfinite() for value in values.values())
    expected = values["l1"] + values["perceptual"] + 0.1 * values["gan"]
    assert values["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    names = [name for name, _ in step.generator.named_parameters()]
    assert list(seen) == names
    assert_close(gradients(step.generator), seen, 0)
    assert gradients(step.discriminator).keys() == dict(step.discriminator.named_parameters()).keys()
    # D's training pass updates its statistics, once for HR and once for SR.
    assert not all(torch.equal(a, b) for a, b in zip(step.discriminator.buffers(), buffers, strict=True))
    assert all(weight.requires_grad for weight in (*step.generator.parameters(), *step.discriminator.parameters()))


def test_discriminator_gradients_match_manual_step() -> None:
    step, hr = make("unet", "relativistic"), crops(2)
    manual = make("unet", "relativistic")
    step.gradients([hr], 0)
    assert manual.discriminator is not None
    _, ascent = manual.attack.search(hr, identity(manual, hr))
    with frozen(manual.discriminator), torch.no_grad():
        sr = manual.generator(manual.attack.degradation(hr, ascent.theta).clamp(0, 1))
    real, fake = manual.discriminator(hr), manual.discriminator(sr)
    GANLoss("relativistic").discriminator(real, fake).backward()
    assert_close(gradients(step.discriminator), gradients(manual.discriminator), 1e-6)


def test_degrade_clamps_and_rounds() -> None:
    step, hr = make(attack={"round_lr": True}), crops()
    theta = identity(step, hr)
    theta = theta._replace(noises=tuple(torch.randn(noise.shape) for noise in theta.noises))
    lr, clean = step.attack.degrade(hr, theta)
    assert lr.min() >= 0
    assert lr.max() <= 1
    torch.testing.assert_close(lr * 255, (lr * 255).round())
    torch.testing.assert_close(clean, blur_pool(hr, 4))
    unrounded, _ = make().attack.degrade(hr, theta)
    assert 0 < (unrounded - lr).abs().max() <= 0.5 / 255 + 1e-6


def test_mean_psnr() -> None:
    a, b = torch.zeros(2, 3, 4, 4), torch.tensor([0.1, 0.01]).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    assert mean_psnr(a, b).item() == pytest.approx(30)
    assert mean_psnr(a, a).item() == pytest.approx(200)


def test_first_nonfinite() -> None:
    assert first_nonfinite({"a": 1.0, "b": float("nan"), "c": float("inf")}) == "b"
    assert first_nonfinite({"a": 1.0}) is None


def test_zero_ascent_steps() -> None:
    values = make(steps=0).gradients([crops()], 0)
    assert set(values) == {"loss", "l1", "lr_psnr"}
    assert values["lr_psnr"] > 80  # identity networks give the clean LR


def test_loss_scaling_scales_gradients_only() -> None:
    step, scaled, hr = make("unet"), make("unet", scale_loss=lambda loss: loss * 1024), crops(2)
    values, scaled_values = step.gradients([hr], 0), scaled.gradients([hr], 0)
    assert {name: value.item() for name, value in values.items()} == {
        name: value.item() for name, value in scaled_values.items()
    }
    for a, b in ((step.generator, scaled.generator), (step.discriminator, scaled.discriminator)):
        assert_close({name: grad / 1024 for name, grad in gradients(b).items()}, gradients(a), 1e-6)


@pytest.mark.parametrize(("images_per_network", "networks"), [(1, 4), (2, 2), (4, 1), (0, 1)])
def test_images_share_networks(images_per_network: int, networks: int) -> None:
    settings = {"images_per_network": images_per_network}
    step, hr = make(settings=settings), crops()
    assert identity(step, hr).weights[0].shape[0] == networks
    values = step.gradients([hr], 0)
    assert values["loss_gain"] > 0
    ranks = [identity(make(settings=settings, rank_info=RankInfo(1, 0, rank, 2)), hr).weights[0] for rank in range(2)]
    assert not torch.equal(*ranks)


def test_rejects_batch_that_networks_cannot_share() -> None:
    step = make(settings={"images_per_network": 2})
    with pytest.raises(ValueError, match="theta must have as many networks as images, 5, or a divisor, had 2"):
        step.gradients([crops(5)], 0)
