"""The loss that G minimises and the attack maximises: content and GAN loss (paper, equations 1 to 3)."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from andfast.losses import GANLoss, PerceptualLoss, l1_loss


class Targets(NamedTuple):
    """The inputs of the loss that depend on HR alone, computed once for all passes of a step.

    Attributes:
        hr: (N, 3, H, W).
        features: VGG's, by layer; None without a perceptual loss.
        logits: D's; None unless the GAN loss is relativistic.
    """

    hr: Tensor
    features: dict[str, Tensor] | None
    logits: Tensor | None


@dataclass(frozen=True)
class Objective:
    """Weighted sum of L1, perceptual and GAN loss; terms without a network are left out.

    Attributes:
        l1, perceptual, gan: weights; gan is the paper's lambda.
        vgg: the perceptual loss, or None.
        discriminator, gan_loss: D and its loss, or None.
        impl: implementation of :func:`andfast.functional.mean_distance` for L1.
    """

    l1: float
    perceptual: float = 0.0
    gan: float = 0.0
    vgg: PerceptualLoss | None = None
    discriminator: nn.Module | None = None
    gan_loss: GANLoss | None = None
    impl: str = "auto"

    def targets(self, hr: Tensor) -> Targets:
        """The targets for HR. Moves D's buffers, so freeze D (:func:`andfast.nn.frozen`)."""
        with torch.no_grad():
            features = self.vgg.features(hr) if self.vgg is not None else None
            relativistic = self.gan_loss is not None and self.gan_loss.needs_real
            logits = self.discriminator(hr) if self.discriminator is not None and relativistic else None
        return Targets(hr, features, logits)

    def terms(self, sr: Tensor, targets: Targets, logits: Tensor | None = None) -> dict[str, Tensor]:
        """Unweighted terms by name, fp32 scalars; ``logits`` are D's on SR, computed here if None."""
        terms = {"l1": l1_loss(sr, targets.hr, self.impl)}
        if self.vgg is not None and targets.features is not None:
            terms["perceptual"] = self.vgg(sr, targets.features)
        if self.discriminator is not None and self.gan_loss is not None:
            logits = self.discriminator(sr) if logits is None else logits
            terms["gan"] = self.gan_loss.generator(logits, targets.logits)
        return terms

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """Weighted sum of the terms, a scalar."""
        weights = {"l1": self.l1, "perceptual": self.perceptual, "gan": self.gan}
        return torch.stack([weights[name] * term for name, term in terms.items()]).sum()
