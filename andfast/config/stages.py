"""The two stages and their settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from andfast.config.rules import check_at_least, check_number, check_positive

Stage = Literal["net", "gan"]
"""``net`` trains ANDNet with L1 only; ``gan`` trains ANDGAN with content and GAN loss."""
STAGES: Final[tuple[Stage, ...]] = ("net", "gan")
"""The stages in the order in which they run."""

LRSchedule = Literal["constant", "milestones", "cosine"]
ESRGAN_MILESTONES: Final[Mapping[Stage, tuple[int, ...]]] = {
    "net": (200_000, 400_000, 600_000, 800_000),
    "gan": (50_000, 100_000, 200_000, 300_000),
}
"""Steps after which ESRGAN halves the learning rate."""
ESRGAN_GAMMA: Final = 0.5


@dataclass
class NetConfig:
    """Stage net (ANDNet)"""

    steps: int = 1_000_000
    """Training steps (paper: 1,000,000)."""
    lr: float = 1e-4
    """Adam's learning rate (paper: 1e-4)."""
    lr_schedule: LRSchedule = "constant"
    """constant: lr throughout (paper); milestones: times lr_gamma at each milestone; cosine: from lr to 0 at steps."""
    lr_milestones: list[int] | None = None
    """Steps after which lr_schedule milestones lowers the rate; null: ESRGAN's, every 200,000 up to 800,000."""
    lr_gamma: float | None = None
    """Factor at each milestone; null: ESRGAN's, 0.5."""
    lr_warmup: int = 0
    """Steps over which the rate rises linearly to lr, with any schedule."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Adam's betas."""


@dataclass
class GanConfig:
    """Stage gan (ANDGAN)"""

    steps: int = 500_000
    """Training steps (paper: 500,000)."""
    lr: float = 1e-4
    """Adam's learning rate of G and D (paper: 1e-4)."""
    lr_schedule: LRSchedule = "constant"
    """constant: lr throughout (paper); milestones: times lr_gamma at each milestone; cosine: from lr to 0 at steps."""
    lr_milestones: list[int] | None = None
    """Steps after which lr_schedule milestones lowers the rate; null: ESRGAN's, 50,000, 100,000, 200,000, 300,000."""
    lr_gamma: float | None = None
    """Factor at each milestone; null: ESRGAN's, 0.5."""
    lr_warmup: int = 0
    """Steps over which the rate rises linearly to lr, with any schedule."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Adam's betas of G and D."""


StageConfig = NetConfig | GanConfig
"""The settings of either stage."""


def validate_stage(name: Stage, stage: StageConfig) -> None:
    """Check the settings of a stage.

    Raises:
        ValueError: the first rule that is broken.
    """
    check_at_least(f"{name}.steps", stage.steps, 1)
    check_positive(f"{name}.lr", stage.lr)
    _validate_schedule(name, stage)
    if not all(0 <= beta < 1 for beta in stage.betas):
        raise ValueError(f"{name}.betas must be two numbers from 0 to below 1, was {list(stage.betas)}")


def _validate_schedule(name: Stage, stage: StageConfig) -> None:
    if stage.lr_schedule != "milestones":
        for setting, value in (("lr_milestones", stage.lr_milestones), ("lr_gamma", stage.lr_gamma)):
            if value is not None:
                raise ValueError(
                    f"{name}.{setting} must be null with {name}.lr_schedule {stage.lr_schedule!r}, was {value}; set "
                    f"{name}.lr_schedule to 'milestones'"
                )
    milestones = stage.lr_milestones
    if milestones is not None and (milestones != sorted(set(milestones)) or not milestones or milestones[0] < 1):
        raise ValueError(
            f"{name}.lr_milestones must be steps in increasing order, the first at least 1, was {milestones}"
        )
    check_number(f"{name}.lr_gamma", stage.lr_gamma, lambda gamma: 0 < gamma <= 1, "above 0 and at most 1, or null")
    check_at_least(f"{name}.lr_warmup", stage.lr_warmup, 0)
    if stage.lr_schedule == "cosine" and stage.lr_warmup >= stage.steps:
        raise ValueError(
            f"{name}.lr_warmup must be below {name}.steps, {stage.steps}, with {name}.lr_schedule 'cosine', was "
            f"{stage.lr_warmup}"
        )


def position(stage: str, step: int) -> tuple[int, int]:
    """Sort key of a step within a run.

    Raises:
        ValueError: unknown stage.
    """
    return STAGES.index(stage), step
