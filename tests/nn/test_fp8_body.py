"""The dense blocks of G with 8-bit operands, in a network and in the ascent of a step."""

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
    made = RRDBNet(features=8, blocks=2, growth=4, impl="reference")
    with torch.no_grad():
        for name, one in made.named_parameters():
            if "rdb" in name and name.endswith("weight"):
                one.mul_(8)  # at BasicSR's initialisation the blocks hardly matter
    return made


def gradient(generator: RRDBNet, lr: Tensor, size: float = 1.0, **options: Any) -> tuple[Tensor, Tensor]:
    """SR, and the gradient of a loss to LR."""
    leaf = lr.clone().requires_grad_()
    sr = generator(leaf, **options)
    return sr.detach(), torch.autograd.grad((sr.double().square().mean() * size).to(sr.dtype), leaf)[0]


def off(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_in_a_network() -> None:
    """Near to the blocks themselves, and far nearer than without them."""
    generator, lr = network(), torch.rand(2, 3, 9, 7)
    with frozen(generator):
        sr, exact = gradient(generator, lr)
        found_sr, found = gradient(generator, lr, body=Fp8Body(generator))
        without_sr, without = gradient(generator, lr, body=lambda features: features)
    assert 0 < off(found_sr, sr) < 0.1 * off(without_sr, sr)
    assert 0 < off(found, exact) < 0.2 * off(without, exact)


@pytest.mark.parametrize("size", [1e-12, 1e12])
def test_the_size_of_the_gradient_is_no_matter(size: float) -> None:
    """Within rounding, at sizes that e5m2 has no numbers for."""
    generator, lr = network(), torch.rand(2, 3, 8, 8)
    with frozen(generator):
        body = Fp8Body(generator)
        _, one = gradient(generator, lr, body=body)
        _, other = gradient(generator, lr, size, body=body)
    assert off(other / size, one) < 0.02  # not a power of two: other numbers are rounded


def test_each_image_has_a_size_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest gradient that comes to the blocks is from half of GRADIENT_SIZE to all of it, or zero."""
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
    torch.testing.assert_close(grad, weight.expand_as(grad) * 1.2**2)  # two blocks that hand on what came in
    largest = seen[0].abs().amax((1, 2, 3)) / 0.2  # the last block's
    assert largest[1] == 0
    for one in (largest[0], largest[2]):
        assert GRADIENT_SIZE / 2 * 0.999 <= one <= GRADIENT_SIZE * 1.001


def test_trained_weights_are_refused() -> None:
    generator = network()
    with pytest.raises(ValueError, match=r"weights\[0\] must not require a gradient: fp8 is for frozen blocks"):
        Fp8Body(generator)


def inside(ball: Ball, theta: Any, start: Any) -> bool:
    for group in ("weights", "noises", "slopes"):
        pairs = zip(getattr(theta, group), getattr(start, group), strict=True)
        squares = sum((one - other).double().reshape(len(one), -1).square().sum(1) for one, other in pairs)
        radius = {"weights": ball.convolution, "noises": ball.noise, "slopes": ball.slope}[group]
        if not bool((squares.sqrt() <= radius * (1 + 1e-5)).all()):
            return False
    return True


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_ascent_of_a_step(autocast: torch.dtype | None) -> None:
    """Theta is in the ball and, for a small G of eight blocks' weight, as strong as without fp8 to one in a hundred."""
    found = {}
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
        found[precision] = worst - clean
        assert all(one.requires_grad for one in step.generator.parameters())
    strength = found["fp8"] / found["same"]
    assert not torch.equal(found["fp8"], found["same"])
    assert strength.mean() > 0.99
    assert strength.min() > 0.98


def test_quantises_weights_in_each_step() -> None:
    step = make(steps=2, settings={"precision": "fp8"})
    losses = []
    for _ in range(2):
        losses.append(step.gradients([crops()], 0)["loss_gain"])
        with torch.no_grad():
            for one in step.generator.parameters():
                one.mul_(1.5)
    assert losses[0] != losses[1]
