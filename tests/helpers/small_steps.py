"""Tiny training steps, and how their gradients are compared."""

import functools
import itertools
from typing import Any

import skimage.data
import torch
from torch import Tensor, nn

from andfast.adversary import PRESETS
from andfast.adversary.objective import Objective
from andfast.losses import GANLoss, PerceptualLoss
from andfast.nn import DegradationNetwork, RRDBNet, UNetDiscriminator, VGGDiscriminator
from andfast.training.step import TrainingStep
from andfast.training.step_settings import AttackSettings, RankInfo

SIZE = 32


@functools.cache
def photographs() -> list[Any]:
    return [skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea()]


def crops(n: int = 4, size: int = SIZE) -> Tensor:
    """Parts of photographs, (n, 3, size, size) in [0, 1]."""
    sources = itertools.cycle(photographs())
    found = [image[40 + 30 * i :, 100 + 40 * i :][:size, :size] for i, image in zip(range(n), sources, strict=False)]
    return torch.stack([torch.from_numpy(one.copy()).permute(2, 0, 1).float() / 255 for one in found])


def make(
    discriminator: str | None = None,
    gan: Any = "vanilla",
    *,
    size: int = SIZE,
    place: RankInfo | None = None,
    steps: int = 3,
    images_per_network: int = 1,
    perceptual: bool = True,
    **options: Any,
) -> TrainingStep:
    """A step of stage net, or of stage gan with a discriminator, with tiny networks that are always the same."""
    torch.manual_seed(3)
    generator = RRDBNet(features=6, blocks=1, growth=3)
    d: nn.Module | None = None
    objective = Objective(1.0)
    if discriminator is not None:
        d = VGGDiscriminator(size, features=4) if discriminator == "vgg" else UNetDiscriminator(features=4)
        vgg = PerceptualLoss({"conv1_2": 1.0}, weights="random") if perceptual else None
        objective = Objective(1.0, 1.0, 0.1, vgg, d, GANLoss(gan))
    adversary = AttackSettings(
        PRESETS["calibrated"].ball_for(size, size), steps=steps, channels=8, images_per_network=images_per_network
    )
    place = place or RankInfo(seed=1, stage=0)
    return TrainingStep(DegradationNetwork(), generator, objective, adversary, size, place, d, **options)


def gradients(module: nn.Module | None) -> dict[str, Tensor]:
    assert module is not None
    return {name: one.grad.clone() for name, one in module.named_parameters() if one.grad is not None}


def assert_close(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float) -> None:
    """Equal names, and the norm of all differences below tolerance times the norm of all values."""
    assert a.keys() == b.keys()
    difference = torch.stack([(a[name] - b[name]).norm() for name in a]).norm()
    assert difference <= tolerance * torch.stack([one.norm() for one in b.values()]).norm()
