"""Held-out photographs under the adversary: how well G restores what was degraded against it."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from andfast.adversary import resized
from andfast.adversary.objective import Objective
from andfast.functional import blur_pool
from andfast.nn import frozen
from andfast.training.step import TrainingStep
from andfast.training.validation_set import ValidationSet

_SEED_STEP = 2**31 - 1
"""Draws of held-out identity networks are those of a step that no training reaches."""


def input_images(validation: ValidationSet) -> list[Tensor]:
    """LR of every held-out picture: the pairs' own, or the clean LR of the crops; float in [0, 1]."""
    if validation.lr is not None:
        return [one.float() / 255 if one.dtype == torch.uint8 else one for one in validation.lr]
    hr = torch.stack([one.float() / 255 for one in validation.hr])
    return list(blur_pool(hr, validation.scale).clamp(0, 1))


def held_out_crops(validation: ValidationSet, count: int, size: int, scale: int) -> Tensor:
    """Up to ``count`` square crops around the centers of the HR pictures, (N, 3, P, P) float in [0, 1].

    Args:
        size: the wanted P; smaller where a picture is.
    """
    pictures = list(validation.hr)[:count]
    side = min(size, *(min(one.shape[1:]) for one in pictures)) // scale * scale
    crops = []
    for one in pictures:
        top, left = ((length - side) // 2 for length in one.shape[1:])
        crops.append(one[:, top : top + side, left : left + side])
    batch = torch.stack(crops)
    return batch.float() / 255 if batch.dtype == torch.uint8 else batch.float()


def degrade_against(step: TrainingStep, generator: nn.Module, hr: Tensor, *, batch: int = 4) -> tuple[Tensor, Tensor]:
    """The LR that the run's adversary finds against ``generator`` under L1, and the clean LR; on the CPU.

    The identity networks are the same at every call, the ball has the run's strength at this size, and L1 is what is
    raised in either stage, so that the numbers of the stages compare.

    Args:
        step: a stage's step, for its F and its adversary.
        generator: the G to work against, in eval mode.
        hr: (N, 3, P, P) in [0, 1].
        batch: images at a time.

    Returns:
        (adversarial LR, clean LR), each (N, 3, P / scale, P / scale), clamped to [0, 1].
    """
    device = next(generator.parameters()).device
    patch = step.patch_size
    ball = step.adversary.ball
    if not ball.joint:
        ball = resized(ball, (patch, patch), (hr.shape[2], hr.shape[3]))
    probe = replace(
        step,
        generator=generator,
        discriminator=None,
        objective=Objective(l1=1.0, impl=step.objective.impl),
        adversary=replace(step.adversary, ball=ball, images_per_network=1),
        place=replace(step.place, stage=0, rank=0, world_size=1, accumulate=1),
        generator_parallel=None,
        discriminator_parallel=None,
        stopwatch=None,
        capture=None,
    )
    found, clean = [], []
    for number, part in enumerate(hr.split(batch)):
        images = part.to(device)
        identity = probe.draw_identity(images, _SEED_STEP - number)
        with frozen(generator), probe.mixed(images):
            theta = probe.search(images, probe.objective.targets(images), identity).theta
        found.append(probe.degrade(images, theta)[0].cpu())
        clean.append(blur_pool(images, step.degradation.scale, impl=step.degradation.impl).clamp(0, 1).cpu())
    return torch.cat(found), torch.cat(clean)
