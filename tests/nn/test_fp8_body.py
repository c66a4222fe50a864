"""Fp8Body in a network and in the ascent of a step."""

from typing import Any

import pytest
import torch
from small_steps import crops, identity, make
from torch import Tensor

from andfast.adversary.ball import Ball
from andfast.functional.residual_dense_block_fp8 import GRADIENT_SIZE
from andfast.nn import RRDBNet, fp8_body, frozen
from andfast.nn.fp8_body import Fp8Body


def network() -> RRDBNet:
    torch.manual_seed(5)
    generator = RRDBNet(features=8, blocks=2, growth=4, impl="reference")
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if "rdb" in name and name.endswith("weight"):
                parameter.mul_(8)  # at BasicSR's initialization the blocks contribute little
    return generator


def gradient(generator: RRDBNet, lr: Tensor, size: float = 1.0, **options: Any) -> tuple[Tensor, Tensor]:
    """SR, and the gradient of a loss with respect to LR."""
    leaf = lr.clone().requires_grad_()
    sr = generator(leaf, **options)
    return sr.detach(), torch.autograd.grad((sr.double().square().mean() * size).to(sr.dtype), leaf)[0]


def relative_error(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_approximates_the_network() -> None:
    """The error is a fraction of that of dropping the blocks."""
    generator, lr = network(), torch.rand(2, 3, 9, 7)
    with frozen(generator):
        sr, grad = gradient(generator, lr)
        fp8_sr, fp8_grad = gradient(generator, lr, body=Fp8Body(generator))
        identity_sr, identity_grad = gradient(generator, lr, body=lambda features: features)
    assert 0 < relative_error(fp8_sr, sr) < 0.1 * relative_error(identity_sr, sr)
    assert 0 < relative_error(fp8_grad, grad) < 0.2 * relative_error(identity_grad, grad)


@pytest.mark.parametrize("size", [1e-12, 1e12])
def test_gradient_scale_does_not_matter(size: float) -> None:
    """Up to rounding, at scales outside of e5m2's range."""
    generator, lr = network(), torch.rand(2, 3, 8, 8)
    with frozen(generator):
        body = Fp8Body(generator)
        _, grad = gradient(generator, lr, body=body)
        _, scaled = gradient(generator, lr, size, body=body)
    assert relative_error(scaled / size, grad) < 0.02  # not a power of two, so the rounding differs


def test_gradients_are_scaled_per_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """The maximum gradient at the blocks is between half of GRADIENT_SIZE and GRADIENT_SIZE, or zero."""
    seen: list[Tensor] = []

    def block(x: Tensor, *_args: Any, **_options: Any) -> Tensor:
        out = x.view_as(x)
        out.register_hook(seen.append)
        return out

    generator = network()
    with frozen(generator):
        body = Fp8Body(generator)
    monkeypatch.setattr(fp8_body, "residual_dense_block_fp8", block)
    features = torch.rand(3, 8, 4, 4, requires_grad=True)
    weight = torch.tensor([1e-9, 0.0, 3e7]).view(3, 1, 1, 1)
    (grad,) = torch.autograd.grad((body(features) * weight).sum(), features)
    torch.testing.assert_close(grad, weight.expand_as(grad) * 1.2**2)  # two identity blocks
    maxima = seen[0].abs().amax((1, 2, 3)) / 0.2  # of the last block
    assert maxima[1] == 0
    for maximum in (maxima[0], maxima[2]):
        assert GRADIENT_SIZE / 2 * 0.999 <= maximum <= GRADIENT_SIZE * 1.001


def test_rejects_weights_that_require_a_gradient() -> None:
    generator = network()
    with pytest.raises(ValueError, match=r"weights\[0\] must not require a gradient: fp8 is for frozen blocks"):
        Fp8Body(generator)


def inside(ball: Ball, theta: Any, start: Any) -> bool:
    for group in ("weights", "noises", "slopes"):
        pairs = zip(getattr(theta, group), getattr(start, group), strict=True)
        squares = sum((tensor - center).double().reshape(len(center), -1).square().sum(1) for tensor, center in pairs)
        radius = {"weights": ball.convolution, "noises": ball.noise, "slopes": ball.slope}[group]
        if not bool((squares.sqrt() <= radius * (1 + 1e-5)).all()):
            return False
    return True


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_ascent_of_a_step(autocast: torch.dtype | None) -> None:
    """Theta is in the ball, and for a small G the attack's strength is within 1% of that without fp8."""
    gains = {}
    for precision in ("same", "fp8"):
        settings, attack = {"precision": precision}, {"autocast": autocast}
        step = make(steps=5, generator=network(), settings=settings, attack=attack)
        hr = crops()
        start = identity(step, hr)
        _, ascent = step.attack.search(hr, start)
        assert inside(step.attack.settings.ball, ascent.theta, start)
        with torch.no_grad():
            clean, worst = (
                (step.generator(step.attack.degradation(hr, theta)) - hr).abs().mean((1, 2, 3))
                for theta in (start, ascent.theta)
            )
        gains[precision] = worst - clean
        assert all(p.requires_grad for p in step.generator.parameters())
    strength = gains["fp8"] / gains["same"]
    assert not torch.equal(gains["fp8"], gains["same"])
    assert strength.mean() > 0.99
    assert strength.min() > 0.98


def test_quantizes_weights_in_each_step() -> None:
    step = make(steps=2, settings={"precision": "fp8"})
    losses = []
    for _ in range(2):
        losses.append(step.gradients([crops()], 0)["loss_gain"])
        with torch.no_grad():
            for parameter in step.generator.parameters():
                parameter.mul_(1.5)
    assert losses[0] != losses[1]
