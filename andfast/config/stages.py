"""The two stages and their settings."""

from dataclasses import dataclass
from typing import Final, Literal

from andfast.config.rules import check_at_least, check_positive

Stage = Literal["net", "gan"]
"""``net`` trains ANDNet with L1 only; ``gan`` trains ANDGAN with content and GAN loss."""
STAGES: Final[tuple[Stage, ...]] = ("net", "gan")
"""The stages in the order in which they run."""


@dataclass
class NetConfig:
    """Stage net (ANDNet)"""

    steps: int = 1_000_000
    """Training steps (paper: 1,000,000)."""
    lr: float = 1e-4
    """Adam's learning rate (paper: 1e-4)."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Adam's betas."""


@dataclass
class GanConfig:
    """Stage gan (ANDGAN)"""

    steps: int = 500_000
    """Training steps (paper: 500,000)."""
    lr: float = 1e-4
    """Adam's learning rate of G and D (paper: 1e-4)."""
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
    if not all(0 <= beta < 1 for beta in stage.betas):
        raise ValueError(f"{name}.betas must be two numbers from 0 to below 1, was {list(stage.betas)}")


def position(stage: str, step: int) -> tuple[int, int]:
    """Sort key of a step within a run.

    Raises:
        ValueError: unknown stage.
    """
    return STAGES.index(stage), step
