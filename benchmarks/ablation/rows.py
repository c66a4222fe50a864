"""The rows of the ablation: what each changes in the settings that all share, and the sizes that there are."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from andfast.config.yaml_files import read_yaml

CONFIGS: Final = Path(__file__).resolve().parents[2] / "configs" / "table2"

Settings = Mapping[str, Any]
"""Settings of ``andfast.train`` by dotted name."""


@dataclass(frozen=True)
class Row:
    """One training.

    Attributes:
        label: for tables.
        config: file in configs/table2 with the settings of its adversary.
        settings: others that differ from those all rows share.
        test_damage: LR is damaged as in the second test, see :mod:`benchmarks.ablation.upper_bound`.
    """

    label: str
    config: str
    settings: Settings = field(default_factory=dict)
    test_damage: bool = False

    def all_settings(self) -> dict[str, Any]:
        """Settings of the row's file and its own.

        Raises:
            ConfigError: the file cannot be read.
        """
        adversary = read_yaml(CONFIGS / f"{self.config}.yaml")
        return {f"adversary.{name}": value for name, value in adversary.items()} | dict(self.settings)


_SYMMETRIC: Final[Settings] = {"adversary.preset": "symmetric"}

START: Final = Row("start of all rows", "classical_pooling")

ROWS: Final[dict[str, Row]] = {
    "classical": Row("classical, pooling", "classical_pooling"),
    "classical-bicubic": Row("classical, antialiased bicubic", "classical_bicubic"),
    "noise": Row("adversarial noise on LR", "adversarial_noise"),
    "random": Row("random point, AND's radii", "synthetic_augmentation", _SYMMETRIC),
    # The file's factor on the radii; the table has the LR PSNR of whole trainings.
    "random-far": Row("random point, AND's LR PSNR", "synthetic_augmentation_equal_psnr", _SYMMETRIC),
    "style": Row("random style shift", "style_shift", _SYMMETRIC),
    "real-esrgan": Row("Real-ESRGAN's pipeline", "real_esrgan"),
    "and-paper": Row("AND, the paper's ball", "complete_and", {"adversary.preset": "paper"}),
    "and-calibrated": Row("AND, three balls of 30 dB", "complete_and", {"adversary.preset": "calibrated"}),
    "and": Row("AND", "complete_and", _SYMMETRIC),
    "and-slope": Row("AND, slopes too", "complete_and", {**_SYMMETRIC, "adversary.radius_slope": 0.032}),
    "and-fast": Row(
        "AND, strategy fast",
        "complete_and",
        {**_SYMMETRIC, "adversary.strategy": "fast", "adversary.step_size": None},
    ),
    # A smaller ball around a point that is itself damaged as much as the ascent would.
    "and-random": Row(
        "AND around a random point",
        "and_random_start",
        {**_SYMMETRIC, "adversary.random_scale": 10.0, "adversary.radius_kernel": 0.12},
    ),
    "and-fast-random": Row("AND, strategy fast, around random noise", "and_fast_random_start", _SYMMETRIC),
    "test-damage": Row("the test's own damage, a bound", "real_esrgan", test_damage=True),
}
"""Rows by name, in the order of the table."""


class Size(NamedTuple):
    """Networks, crops and numbers of steps of an ablation.

    Attributes:
        settings: shared by all rows and the start.
        row_settings: of single rows, by name: what depends on the number of F's channels.
        start_steps: steps of the classical training that all rows start from.
        steps: steps of each row.
        test_crop: side in HR pixels of the crops that are damaged.
    """

    settings: Settings
    row_settings: Mapping[str, Settings]
    start_steps: int
    steps: int
    test_crop: int

    def settings_of(self, row: str) -> dict[str, Any]:
        """What a row changes in the settings that all rows share.

        Raises:
            ConfigError: the row's file cannot be read.
        """
        return ROWS[row].all_settings() | dict(self.row_settings.get(row, {}))


_SHARED: Final[Settings] = {
    "stages": ["net"],
    "scale": 4,
    "tensorboard": False,
    # 0.999 would remember the start of so short a run.
    "ema_decay": 0.99,
    "generator.start": "interpolation",
}

SIZES: Final[dict[str, Size]] = {
    "cpu": Size(
        {
            **_SHARED,
            "precision": "fp32",
            "channels_last": False,  # faster on a CPU at these sizes
            "batch_size": 4,
            "generator.features": 32,
            "generator.blocks": 2,
            "generator.growth": 16,
            "degradation.channels": 16,
            "data.patch_size": 96,
            "data.workers": 0,
            "net.lr": 5e-4,
        },
        {
            "and-random": {"adversary.radius_rest": 0.015},
            "and-fast-random": {"adversary.random_scale": {"noise": 10.0}},
        },
        start_steps=3000,
        steps=600,
        test_crop=160,
    ),
    "gpu": Size(
        {
            **_SHARED,
            "precision": "bf16",
            "batch_size": 16,
            "generator.features": 64,
            "generator.blocks": 4,
            "generator.growth": 32,
            "degradation.channels": 64,
            "data.patch_size": 96,
            "data.workers": 4,
            "net.lr": 2e-4,
        },
        # Half the preset's radius, as above. The other row's file is for 64 channels.
        {"and-random": {"adversary.radius_rest": 0.03}},
        start_steps=1500,
        steps=400,
        test_crop=160,
    ),
}
"""cpu: for at most 90 minutes per seed on two cores. gpu: for at most 8 on one H100 or H200, by counted operations."""

CHECKPOINTS: Final = 3
"""Checkpoints of each row, whose scores make the curves."""
