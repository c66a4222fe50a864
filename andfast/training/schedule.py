"""Learning rate as a function of the step number, so that a resumed run continues with the same rates."""

import math

from andfast.config.stages import ESRGAN_GAMMA, ESRGAN_MILESTONES, Stage, StageConfig


def learning_rate(stage: Stage, settings: StageConfig, done: int) -> float:
    """The rate of the step that follows ``done`` steps of a stage.

    After a linear warm-up over ``lr_warmup`` steps the rate is ``lr`` throughout (constant), ``lr`` times ``lr_gamma``
    for each milestone that is done (milestones, as ESRGAN), or half a cosine period from ``lr`` to 0 at ``steps``.
    """
    rate, warmup = settings.lr, settings.lr_warmup
    if done < warmup:
        return rate * (done + 1) / warmup
    if settings.lr_schedule == "milestones":
        milestones = ESRGAN_MILESTONES[stage] if settings.lr_milestones is None else settings.lr_milestones
        gamma = ESRGAN_GAMMA if settings.lr_gamma is None else settings.lr_gamma
        return rate * float(gamma ** sum(done >= milestone for milestone in milestones))
    if settings.lr_schedule == "cosine":
        progress = min((done - warmup) / (settings.steps - warmup), 1.0)
        return rate * (1 + math.cos(math.pi * progress)) / 2
    return rate


def is_constant(settings: StageConfig) -> bool:
    """Whether every step of a stage has the same rate."""
    return settings.lr_schedule == "constant" and settings.lr_warmup == 0
