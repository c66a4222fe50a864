"""LR of held-out images, clean and under attack."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from andfast.adversary import Attack, Objective, seeded_generator
from andfast.functional import blur_pool
from andfast.training.validation_set import ValidationSet

_SEED_STEP = 2**31 - 1
"""Step number that seeds held-out identity networks; training never reaches it."""


def input_images(validation: ValidationSet) -> list[Tensor]:
    """LR of each held-out image: the pairs' own, or the clean LR of the crops; float in [0, 1]."""
    if validation.lr is not None:
        return [image.float() / 255 if image.dtype == torch.uint8 else image for image in validation.lr]
    hr = torch.stack([image.float() / 255 for image in validation.hr])
    return list(blur_pool(hr, validation.scale).clamp(0, 1))


def held_out_crops(validation: ValidationSet, count: int, size: int, scale: int) -> Tensor:
    """Up to ``count`` square crops around the centers of the HR images, (N, 3, P, P) float in [0, 1].

    Args:
        size: P; reduced to the smallest image's side if that is smaller.
    """
    images = list(validation.hr)[:count]
    side = min(size, *(min(image.shape[1:]) for image in images)) // scale * scale
    crops = []
    for image in images:
        top, left = ((length - side) // 2 for length in image.shape[1:])
        crops.append(image[:, top : top + side, left : left + side])
    batch = torch.stack(crops)
    return batch.float() / 255 if batch.dtype == torch.uint8 else batch.float()


def attack_crops(
    attack: Attack, generator: nn.Module, hr: Tensor, *, seed: int, batch_size: int = 4
) -> tuple[Tensor, Tensor]:
    """Degrade ``hr`` by the run's attack on ``generator`` under L1.

    Identity networks and factors of radii are the same in each call, radii are scaled to this size, and the objective
    is L1 in both stages, so that the stages' results are comparable.

    Args:
        attack: of a stage.
        generator: the G to attack, in eval mode.
        hr: (N, 3, P, P) in [0, 1].
        seed: of the run.
        batch_size: images per batch.

    Returns:
        (adversarial LR, clean LR), each (N, 3, P / scale, P / scale), clamped to [0, 1], on the CPU.
    """
    device = next(generator.parameters()).device
    attack = replace(
        attack,
        generator=generator,
        objective=Objective(l1=1.0, impl=attack.objective.impl),
        settings=replace(attack.settings.for_size(hr.shape[2], hr.shape[3]), images_per_network=1),
    )
    adversarial, clean = [], []
    for number, part in enumerate(hr.split(batch_size)):
        images = part.to(device)
        start = attack.start(images, seeded_generator(device, seed, 0, _SEED_STEP - number))
        _, ascent = attack.search(images, start)
        lr, clean_lr = attack.degrade(images, ascent.theta)
        adversarial.append(lr.cpu())
        clean.append(clean_lr.clamp(0, 1).cpu())
    return torch.cat(adversarial), torch.cat(clean)
