"""The rows of the ablation: what each changes in the settings that all share, and the sizes that there are."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

Settings = Mapping[str, Any]
"""Settings of ``andfast.train`` by dotted name."""


class Row(NamedTuple):
    """One training.

    Attributes:
        label: for tables.
        settings: that differ from those all rows share.
    """

    label: str
    settings: Settings


START: Final = Row("start of all rows", {})

ROWS: Final[dict[str, Row]] = {
    "pgd": Row("AND, three balls of about 30 dB", {}),
    "pgd-paper": Row("AND, the paper's joint ball", {"adversary.preset": "paper"}),
}
"""Rows by name, in the order of the table."""


class Size(NamedTuple):
    """Networks, crops and numbers of steps of an ablation.

    Attributes:
        settings: shared by all rows and the start.
        start_steps: steps of the classical training that all rows start from.
        steps: steps of each row.
        test_crop: side in HR pixels of the held-out crops.
    """

    settings: Settings
    start_steps: int
    steps: int
    test_crop: int


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
        start_steps=4000,
        steps=1000,
        test_crop=256,
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
            "data.patch_size": 128,
            "data.workers": 4,
            "net.lr": 2e-4,
        },
        start_steps=2000,
        steps=600,
        test_crop=256,
    ),
}
"""cpu: about 90 minutes per seed on two cores. gpu: for a GPU of the H100's class."""

CHECKPOINTS: Final = 5
"""Checkpoints of each row, whose scores make the curves."""
