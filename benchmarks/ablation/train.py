"""Trainings of the ablation: every row of a seed from the same start, with the package's own trainer.

Layout of the output folder::

    plan.json                 settings that all trainings share, and the photographs; a later start must have the same
    data/                     packed photographs
    seed-0/start/             run folder of the classical training that all rows of the seed start from
    seed-0/rows/NAME/         run folder of a row
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from andfast.adversary.strategies import Synthetic
from andfast.config.files import build, load
from andfast.config.machine import validate_machine
from andfast.config.names import check_names
from andfast.config.resume import described, differences
from andfast.config.schema import RunOptions, TrainConfig
from andfast.files import atomic_file
from andfast.training.build import build_attack_settings, build_generator
from andfast.training.checkpoint import latest
from andfast.training.failure import NonFiniteLossError
from andfast.training.loop import run
from andfast.training.metrics_log import read_metrics
from andfast.training.run_folder import MARK, read_json, weights_path
from benchmarks.ablation.photographs import Photographs
from benchmarks.ablation.rows import CHECKPOINTS, ROWS, SIZES, START, Settings
from benchmarks.ablation.upper_bound import random_damage

STAGE: Final = "net"
UNCHANGED: Final = 100.0
"""dB from which LR counts as the clean LR, up to rounding."""


@dataclass(frozen=True)
class Plan:
    """What is to be trained.

    Attributes:
        output: folder of the ablation.
        size: name in SIZES.
        photographs: to train on.
        steps, start_steps: of each row and of the start.
        start_weights: weights that all rows start from; None trains a start for each seed.
        device: "auto", "cpu" or "cuda".
        overrides: by row, settings by dotted name that replace the row's own; those under "" are for all rows.
    """

    output: Path
    size: str
    photographs: Photographs
    steps: int
    start_steps: int
    start_weights: Path | None
    device: str
    overrides: Mapping[str, Settings]

    def folder(self, seed: int, row: str | None) -> Path:
        """Run folder of a row, or of the start if None."""
        folder = self.output / f"seed-{seed}"
        return folder / "start" if row is None else folder / "rows" / row

    def start(self, seed: int) -> Path:
        """Weights that the rows of a seed start from."""
        return self.start_weights or weights_path(self.folder(seed, None), STAGE)

    def config(self, seed: int, row: str | None, *, with_start: bool = True) -> TrainConfig:
        """Configuration of a training.

        Args:
            seed: of the training.
            row: name in ROWS, or None for the start.
            with_start: whether init_weights names the start, which may not exist yet.

        Raises:
            ValueError: a setting is invalid; the message names the row.
        """
        size = SIZES[self.size]
        steps = self.start_steps if row is None else self.steps
        settings: dict[str, Any] = {
            **size.settings,
            **(START.all_settings() if row is None else size.settings_of(row)),
            **({} if row is None else {**self.overrides.get("", {}), **self.overrides.get(row, {})}),
            "output": str(self.folder(seed, row)),
            "seed": seed,
            "device": self.device,
            "net.steps": steps,
            "data.train": [str(self.photographs.folder.resolve())],
            "data.exclude": self.photographs.exclude,
            "data.pack": str(self.output / "data"),
            "log_every": max(steps // 20, 1),
            "checkpoint_every": max(-(-steps // CHECKPOINTS), 1),
            "keep_checkpoints": CHECKPOINTS + 1,
        }
        if row is not None and with_start:
            settings["init_weights"] = str(self.start(seed).resolve())
        name = "the start" if row is None else f"row {row}"
        try:
            tree = _nested(settings)
            check_names(tree, "settings")
            config = build(tree)
            config.validate()
            validate_machine(config)
            build_attack_settings(config, STAGE)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        return config

    def record(self) -> dict[str, Any]:
        """Contents of plan.json."""
        start: dict[str, Any] = {"start_steps": self.start_steps}
        if self.start_weights is not None:
            start = {"start_weights": hashlib.sha256(self.start_weights.read_bytes()).hexdigest()}
        return {
            "size": self.size,
            "settings": dict(SIZES[self.size].settings),
            "steps": self.steps,
            **start,
            "trained_on": self.photographs.trained,
            "held_out": self.photographs.held_out,
        }


def open_output(plan: Plan) -> None:
    """Create the output folder, or check that it holds an ablation of the same plan.

    Raises:
        ValueError: the plan differs; the message names the differences.
        FileExistsError: the folder is not empty, and holds no ablation.
    """
    path = plan.output / "plan.json"
    record = json.loads(json.dumps(plan.record()))
    if path.is_file():
        earlier = read_json(path)
        changed = [name for name in {**earlier, **record} if earlier.get(name) != record.get(name)]
        if changed:
            texts = [_change(name, earlier.get(name), record.get(name)) for name in changed]
            raise ValueError(
                f"--output {plan.output} holds an ablation with other settings: {'; '.join(texts)}; "
                "use another --output"
            )
        return
    if plan.output.is_dir() and any(plan.output.iterdir()):
        raise FileExistsError(f"--output must be a new folder, or that of an ablation, was {plan.output}")
    plan.output.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write((json.dumps(record, indent=1) + "\n").encode())


def check_rows(plan: Plan, seeds: list[int], rows: list[str]) -> None:
    """Check the configurations of all trainings, and that finished rows had the same.

    Raises:
        ValueError: a configuration is invalid or has changed; the message names the row.
    """
    if plan.start_weights is not None:
        build_generator(plan.config(seeds[0], rows[0]))  # of the architecture that the size has
    for seed in seeds:
        for row in ([] if plan.start_weights else [None]) + rows:
            config = plan.config(seed, row, with_start=row is not None and plan.start(seed).is_file())
            path = config.output / "config.yaml"
            if not path.is_file():
                continue
            if changes := differences(load(path), config):
                raise ValueError(
                    f"{config.output} was trained with other settings: {described(changes)}; delete it, or use "
                    "another --output"
                )


def train(config: TrainConfig, row: str | None) -> str | None:
    """Train, or continue, or skip a training that is done.

    Args:
        config: of the training.
        row: its name in ROWS, or None for the start.

    Returns:
        Why it ended early, if a loss became infinite or NaN; the weights are those from before that step.

    Raises:
        Stopped, and all that :func:`andfast.training.loop.run` raises.
    """
    if is_done(config):
        return None
    strategy = Synthetic(random_damage) if row is not None and ROWS[row].test_damage else None
    try:
        run(config, RunOptions(resume=(config.output / MARK).is_file()), strategy=strategy)
    except NonFiniteLossError as error:
        return str(error)
    return None


def is_done(config: TrainConfig) -> bool:
    """Whether a training has no step left and its weights are written."""
    return steps_done(config.output) >= config.net.steps and weights_path(config.output, STAGE).is_file()


def steps_done(folder: Path) -> int:
    """Steps of the newest checkpoint in a run folder; 0 without one."""
    checkpoint = latest(folder)
    return 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])


def mean_lr_psnr(folder: Path) -> float | None:
    """Mean PSNR in dB of the LR that a run was trained on against clean LR, over its logged steps.

    None without logged steps, and where LR was the clean LR.
    """
    logged = [line.get("lr_psnr") for line in read_metrics(folder / "metrics.jsonl")]
    values = [float(value) for value in logged if value is not None and float(value) < UNCHANGED]
    return fmean(values) if values else None


def seconds_per_step(folder: Path) -> float | None:
    """Wall-clock time of a step, from a run's summary.json; None if the run has not ended."""
    path = folder / "summary.json"
    if not path.is_file():
        return None
    summary = read_json(path)
    return float(summary["seconds"]) / max(int(summary["steps"]), 1)


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted name as the tree of a YAML file."""
    tree: dict[str, Any] = {}
    for name, value in settings.items():
        *groups, key = name.split(".")
        group = tree
        for part in groups:
            group = group.setdefault(part, {})
        group[key] = value
    return tree


def _change(name: str, before: object, now: object) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if name in ("trained_on", "held_out"):
            return f"{name} differs in {', '.join(keys[:3])}{' ...' if len(keys) > 3 else ''}"
        return "; ".join(f"{key} was {before.get(key)}, is {now.get(key)}" for key in keys)
    return f"{name} was {before}, is {now}"
