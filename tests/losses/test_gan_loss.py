"""The GAN losses against their formulas."""

import pytest
import torch
import torch.nn.functional as F

from andfast.losses import GANLoss

SHAPES = [(4, 1), (2, 1, 5, 7)]


def logits(shape, seed, scale=3.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def bce(x, target):
    return F.binary_cross_entropy_with_logits(x, torch.full_like(x, target))


@pytest.mark.parametrize("shape", SHAPES)
def test_vanilla_matches_bce_with_non_saturating_generator(shape):
    loss, real, fake = GANLoss("vanilla"), logits(shape, 0), logits(shape, 1)
    torch.testing.assert_close(loss.discriminator(real, fake), bce(real, 1.0) + bce(fake, 0.0))
    torch.testing.assert_close(loss.generator(fake), bce(fake, 1.0))
    assert not loss.needs_real


@pytest.mark.parametrize("shape", SHAPES)
def test_relativistic_matches_esrgan(shape):
    loss, real, fake = GANLoss("relativistic"), logits(shape, 0), logits(shape, 1)
    discriminator = (bce(real - fake.mean(), 1.0) + bce(fake - real.mean(), 0.0)) / 2
    generator = (bce(real - fake.mean(), 0.0) + bce(fake - real.mean(), 1.0)) / 2
    torch.testing.assert_close(loss.discriminator(real, fake), discriminator)
    torch.testing.assert_close(loss.generator(fake, real), generator)
    assert loss.needs_real
    with pytest.raises(ValueError, match="real_logits must be a tensor for the relativistic"):
        loss.generator(fake)


@pytest.mark.parametrize("shape", SHAPES)
def test_least_squares_matches_lsgan(shape):
    loss, real, fake = GANLoss("least_squares"), logits(shape, 0), logits(shape, 1)
    ones = torch.ones(shape)
    torch.testing.assert_close(loss.discriminator(real, fake), F.mse_loss(real, ones) + F.mse_loss(fake, 0 * ones))
    torch.testing.assert_close(loss.generator(fake), F.mse_loss(fake, ones))
    assert not loss.needs_real


@pytest.mark.parametrize("kind", ["vanilla", "relativistic", "least_squares"])
def test_gan_gradients(kind):
    loss = GANLoss(kind)
    real = logits((3, 1), 0).double().requires_grad_()
    fake = logits((3, 1), 1).double().requires_grad_()
    assert torch.autograd.gradcheck(loss.discriminator, (real, fake))
    assert torch.autograd.gradcheck(lambda x: loss.generator(x, real), (fake,))
    # The generator loss is constant with respect to the real logits.
    assert torch.autograd.grad(loss.generator(fake, real), real, allow_unused=True) == (None,)
    # Descending on the generator loss raises the fake logits.
    assert (torch.autograd.grad(loss.generator(fake.clamp(max=0.5), real), fake)[0] <= 0).all()


@pytest.mark.parametrize("kind", ["vanilla", "relativistic", "least_squares"])
def test_gan_loss_is_fp32_and_finite_for_large_logits(kind):
    loss = GANLoss(kind)
    real, fake = logits((4, 1), 0, 500.0).bfloat16(), logits((4, 1), 1, 500.0).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        values = loss.discriminator(real, fake), loss.generator(fake, real)
    for value in values:
        assert value.dtype == torch.float32
        assert value.isfinite()
    torch.testing.assert_close(values[0], loss.discriminator(real.float(), fake.float()))


def test_rejects_invalid_kind_and_logits():
    with pytest.raises(ValueError, match="kind must be one of 'vanilla', 'relativistic', 'least_squares', was 'wgan'"):
        GANLoss("wgan")
    loss = GANLoss()
    with pytest.raises(ValueError, match=r"fake_logits must have shape \(N, 1\) or \(N, 1, H, W\), was \(4,\)"):
        loss.generator(torch.zeros(4))
    with pytest.raises(TypeError, match="real_logits must be a floating-point tensor"):
        loss.discriminator(torch.zeros(4, 1, dtype=torch.int64), torch.zeros(4, 1))
