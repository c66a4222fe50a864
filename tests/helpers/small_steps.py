"""Tiny training steps, and a comparison of their gradients."""

import functools
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import skimage.data
import torch
from torch import Tensor, nn

from andfast.adversary import PRESETS, Attack, AttackSettings, Objective
from andfast.losses import GANLoss, PerceptualLoss
from andfast.nn import DegradationNetwork, RRDBNet, Theta, UNetDiscriminator, VGGDiscriminator
from andfast.training.cuda_graph import Backend, CUDAGraphCallable
from andfast.training.profiling import StepTimer
from andfast.training.step import RankInfo, TrainingStep

SIZE = 32


@functools.cache
def photographs() -> list[Any]:
    return [skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea()]


def crops(n: int = 4, size: int = SIZE) -> Tensor:
    """Crops of photographs, (n, 3, size, size) in [0, 1]."""
    sources = itertools.cycle(photographs())
    parts = [image[40 + 30 * i :, 100 + 40 * i :][:size, :size] for i, image in zip(range(n), sources, strict=False)]
    return torch.stack([torch.from_numpy(part.copy()).permute(2, 0, 1).float() / 255 for part in parts])


def make(
    discriminator: str | None = None,
    gan: Any = "vanilla",
    *,
    size: int = SIZE,
    rank_info: RankInfo | None = None,
    steps: int = 3,
    perceptual: bool = True,
    l1: float = 1.0,
    generator: RRDBNet | None = None,
    degradation: DegradationNetwork | None = None,
    settings: dict[str, Any] | None = None,
    attack: dict[str, Any] | None = None,
    backend: Backend | None = None,
    capture: dict[str, Any] | None = None,
    **options: Any,
) -> TrainingStep:
    """A step of stage net, or of stage gan with a discriminator, with tiny networks and fixed initial weights.

    Args:
        discriminator: "vgg" or "unet"; None for stage net.
        generator, degradation: replace the tiny networks.
        settings: fields of AttackSettings.
        attack: options of Attack.
        backend: backend that captures the search.
        capture: options of CUDAGraphCallable.
        options: of TrainingStep.
    """
    torch.manual_seed(3)
    tiny = RRDBNet(features=6, blocks=1, growth=3)
    objective = Objective(l1)
    if discriminator is not None:
        d = VGGDiscriminator(size, features=4) if discriminator == "vgg" else UNetDiscriminator(features=4)
        vgg = PerceptualLoss({"conv1_2": 1.0}, weights="random") if perceptual else None
        objective = Objective(l1, 1.0, 0.1, vgg, d, GANLoss(gan))
    defaults = {"ball": PRESETS["calibrated"].ball_for(size, size), "steps": steps, "patch_size": size, "channels": 8}
    attack_settings = AttackSettings(**defaults | (settings or {}))
    of_step = Attack(
        degradation or DegradationNetwork(), generator or tiny, objective, attack_settings, **(attack or {})
    )
    if backend is not None:
        options["search"] = CUDAGraphCallable(
            of_step.search, backend, **{"static_tensors": of_step.static_tensors} | (capture or {})
        )
    return TrainingStep(of_step, rank_info or RankInfo(seed=1, stage=0), **options)


def identity(step: TrainingStep, hr: Tensor, number: int = 0) -> Theta:
    """Identity networks that a step draws for its first micro-batch."""
    info = step.rank_info
    return step.attack.sample(hr, info.generator(hr.device, number), shard=info.shard(0))


def gradients(module: nn.Module | None) -> dict[str, Tensor]:
    assert module is not None
    return {name: parameter.grad.clone() for name, parameter in module.named_parameters() if parameter.grad is not None}


def assert_close(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float) -> None:
    """Equal names, and the norm of all differences below tolerance times the norm of all values."""
    assert a.keys() == b.keys()
    difference = torch.stack([(a[name] - b[name]).norm() for name in a]).norm()
    assert difference <= tolerance * torch.stack([value.norm() for value in b.values()]).norm()


class RecordedPhases(StepTimer):
    """Records the phases of a step, has the current one in ``now``, and calls ``after(name)`` at the end of each."""

    def __init__(self, after: Any = None) -> None:
        super().__init__(torch.device("cpu"))
        self.names: list[str] = []
        self.now: str | None = None
        self.after = after

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        self.names.append(name)
        self.now = name
        yield
        self.now = None
        if self.after is not None:
            self.after(name)
