"""What G minimises and the adversary maximises: the content loss and the GAN loss (paper, equations 1 to 3)."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from andfast.losses import GANLoss, PerceptualLoss, l1_loss


class Targets(NamedTuple):
    """What a step needs of HR and computes once for all its passes."""

    hr: Tensor
    features: dict[str, Tensor] | None
    logits: Tensor | None


@dataclass(frozen=True)
class Objective:
    """The weighted sum of L1, VGG and GAN terms; a term without its network is left out.

    Attributes:
        l1, perceptual, gan: the weights; gan is the paper's lambda.
        vgg: the perceptual loss, or None.
        discriminator: D and the form of its loss, or None.
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
        """HR's features, and where the GAN loss is relativistic its logits; D's buffers move, so freeze D."""
        with torch.no_grad():
            features = self.vgg.features(hr) if self.vgg is not None else None
            relativistic = self.gan_loss is not None and self.gan_loss.needs_real
            logits = self.discriminator(hr) if self.discriminator is not None and relativistic else None
        return Targets(hr, features, logits)

    def terms(self, sr: Tensor, targets: Targets, logits: Tensor | None = None) -> dict[str, Tensor]:
        """The unweighted terms by name, fp32 scalars; ``logits`` are D's on SR where the caller has them already."""
        terms = {"l1": l1_loss(sr, targets.hr, self.impl)}
        if self.vgg is not None and targets.features is not None:
            terms["perceptual"] = self.vgg(sr, targets.features)
        if self.discriminator is not None and self.gan_loss is not None:
            logits = self.discriminator(sr) if logits is None else logits
            terms["gan"] = self.gan_loss.generator(logits, targets.logits)
        return terms

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """The weighted sum."""
        weights = {"l1": self.l1, "perceptual": self.perceptual, "gan": self.gan}
        return torch.stack([weights[name] * term for name, term in terms.items()]).sum()
