"""Objective: the weighted sum that G minimises and the adversary maximises."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from andfast.adversary.objective import Objective
from andfast.losses import GANLoss, PerceptualLoss
from andfast.nn import UNetDiscriminator, frozen


class Counted(nn.Module):
    """A discriminator that counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        self.net = UNetDiscriminator(features=4)
        self.passes: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.passes.append(x.detach())
        return self.net(x)


@pytest.fixture(scope="module")
def vgg() -> PerceptualLoss:
    return PerceptualLoss({"conv1_1": 0.5, "conv1_2": 2.0}, weights="random")


def images() -> tuple[Tensor, Tensor]:
    return torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16, requires_grad=True)


def test_l1_only() -> None:
    hr, sr = images()
    objective = Objective(l1=0.25)
    targets = objective.targets(hr)
    assert targets.hr is hr
    assert targets.features is targets.logits is None
    terms = objective.terms(sr, targets)
    assert set(terms) == {"l1"}
    torch.testing.assert_close(terms["l1"], (sr - hr).abs().mean())
    torch.testing.assert_close(objective.total(terms), 0.25 * (sr - hr).abs().mean())


@pytest.mark.parametrize("kind", ["vanilla", "relativistic", "least_squares"])
def test_terms_match_definition(kind: Any, vgg: PerceptualLoss) -> None:
    hr, sr = images()
    discriminator = Counted().eval()  # no power iteration between the passes
    objective = Objective(2.0, 3.0, 0.1, vgg, discriminator, GANLoss(kind))
    targets = objective.targets(hr)
    assert targets.features is not None
    assert not any(tensor.requires_grad for tensor in targets.features.values())
    # D sees HR only if the loss needs it.
    assert len(discriminator.passes) == (kind == "relativistic")
    assert (targets.logits is not None) == (kind == "relativistic")
    terms = objective.terms(sr, targets)
    assert set(terms) == {"l1", "perceptual", "gan"}
    fake, real = discriminator.net(sr), discriminator.net(hr)
    perceptual = sum(
        weight * (vgg.features(sr)[name] - vgg.features(hr)[name]).abs().mean() for name, weight in vgg.layers.items()
    )
    gan = {
        "vanilla": -fake.sigmoid().log().mean(),
        "least_squares": (fake - 1).square().mean(),
        "relativistic": -(
            (1 - (real - fake.mean()).sigmoid()).log().mean() + (fake - real.mean()).sigmoid().log().mean()
        )
        / 2,
    }[kind]
    torch.testing.assert_close(terms["perceptual"], perceptual)
    torch.testing.assert_close(terms["gan"], gan)
    expected = 2 * (sr - hr).abs().mean() + 3 * perceptual + 0.1 * gan
    torch.testing.assert_close(objective.total(terms), expected)
    (ours,) = torch.autograd.grad(objective.total(terms), sr, retain_graph=True)
    torch.testing.assert_close(ours, torch.autograd.grad(expected, sr)[0])
    assert all(term.dim() == 0 and term.dtype == torch.float32 for term in terms.values())


def test_terms_without_network_are_left_out(vgg: PerceptualLoss) -> None:
    hr, sr = images()
    for objective, names in (
        (Objective(1.0, 1.0, 1.0), {"l1"}),
        (Objective(1.0, 1.0, 1.0, vgg), {"l1", "perceptual"}),
        (Objective(1.0, 1.0, 1.0, None, Counted(), GANLoss("vanilla")), {"l1", "gan"}),
        (Objective(1.0, 1.0, 1.0, None, Counted()), {"l1"}),
    ):
        assert set(objective.terms(sr, objective.targets(hr))) == names


def test_targets_have_no_graph(vgg: PerceptualLoss) -> None:
    """HR is data: nothing is kept for gradients to it, or to D."""
    hr, _ = images()
    objective = Objective(1.0, 1.0, 1.0, vgg, Counted(), GANLoss("relativistic"))
    targets = objective.targets(hr.requires_grad_())
    assert targets.features is not None
    assert targets.logits is not None
    assert not any(tensor.requires_grad for tensor in (*targets.features.values(), targets.logits))


def test_frozen_discriminator_gets_no_gradients(vgg: PerceptualLoss) -> None:
    hr, sr = images()
    discriminator = Counted()
    objective = Objective(1.0, 1.0, 1.0, vgg, discriminator, GANLoss("relativistic"))
    with frozen(discriminator):
        objective.total(objective.terms(sr, objective.targets(hr))).backward()
    assert sr.grad is not None
    assert all(tensor.grad is None for tensor in (*discriminator.parameters(), *vgg.parameters()))


def test_half_precision_images_give_float32_losses(vgg: PerceptualLoss) -> None:
    hr, sr = images()
    objective = Objective(1.0, 1.0, 0.1, vgg, Counted(), GANLoss("relativistic"))
    exact = objective.total(objective.terms(sr, objective.targets(hr)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = objective.terms(sr.bfloat16(), objective.targets(hr))
        total = objective.total(terms)
    assert all(tensor.dtype == torch.float32 for tensor in (*terms.values(), total))
    torch.testing.assert_close(total, exact, rtol=3e-2, atol=0)


def test_total_propagates_nan(vgg: PerceptualLoss) -> None:
    hr, sr = images()
    objective = Objective(1.0, 0.0, 0.0, vgg, Counted(), GANLoss("vanilla"))
    terms = objective.terms(sr, objective.targets(hr))
    for name in terms:
        assert objective.total(terms | {name: torch.tensor(math.nan)}).isnan()
