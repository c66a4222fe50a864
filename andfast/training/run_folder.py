"""The folder of a run: its files, how it is opened, and the records of its configuration and versions.

Layout of OUTPUT::

    config.yaml versions.json           resolved settings; versions of packages, commit and device
    metrics.jsonl tensorboard/          losses and timing (:mod:`andfast.training.metrics_log`)
    checkpoints/                        :mod:`andfast.training.checkpoint`
    weights/andnet.safetensors          stage net's newest weights, their EMA if enabled; andgan: stage gan's
    weights/andnet_best.safetensors     the best in validation; andgan_best
    samples/{stage}-{step:08d}.png      validation sheets
    sheet.png loss_curve.png summary.json   results of the finished stages
    failures/                           dumps of failed steps (:mod:`andfast.training.failure`)
    data/                               packed training images, unless data.pack is set
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from torch import Tensor, nn

from andfast.config.files import dump
from andfast.config.schema import TrainConfig
from andfast.files import atomic_file
from andfast.nn.weights import save_weights
from andfast.provenance import versions

_WEIGHTS_NAMES: Final = {"net": "andnet", "gan": "andgan"}
_OWN_FILES: Final = (
    "weights", "checkpoints", "failures", "tensorboard", "samples",
    "metrics.jsonl", "config.yaml", "versions.json", "summary.json", "sheet.png", "loss_curve.png",
)  # fmt: skip

RunStart = Literal["new", "resumed"]


def open_run(output: Path, *, resume: bool, overwrite: bool) -> RunStart:
    """Create the folder of a new run, or check that there is one to resume.

    Raises:
        FileExistsError: a run exists, and neither ``resume`` nor ``overwrite`` is set.
        FileNotFoundError: ``resume`` is set, but there is no run.
        NotADirectoryError: ``output`` is a file.
    """
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"output must be a folder, {str(output)!r} is a file")
    earlier = [output / name for name in _OWN_FILES if (output / name).exists()]
    if resume:
        if not earlier:
            raise FileNotFoundError(f"--resume must find a run in output, {str(output)!r} has none")
        return "resumed"
    if earlier and not overwrite:
        raise FileExistsError(
            f"output {str(output)!r} holds a run already: --resume continues it, --overwrite deletes it, "
            "or use another --output"
        )
    for path in earlier:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    output.mkdir(parents=True, exist_ok=True)
    return "new"


def write_run_info(output: Path, config: TrainConfig, *, device: str = "cpu") -> None:
    """Write config.yaml and versions.json.

    If a run is resumed under other versions, versions.json keeps the previous ones under "earlier".
    """
    output.mkdir(parents=True, exist_ok=True)
    with atomic_file(output / "config.yaml") as file:
        file.write(dump(config).encode())
    path = output / "versions.json"
    record: dict[str, Any] = versions(device)
    if path.exists():
        previous = json.loads(path.read_text(encoding="utf-8"))
        earlier = previous.pop("earlier", [])
        if previous != record:
            earlier = [*earlier, previous]
        if earlier:
            record["earlier"] = earlier
    with atomic_file(path) as file:
        file.write((json.dumps(record, indent=2) + "\n").encode())


def weights_path(output: Path, stage: str, *, best: bool = False) -> Path:
    """Path of a stage's weights."""
    return output / "weights" / f"{_WEIGHTS_NAMES[stage]}{'_best' if best else ''}.safetensors"


def save_stage_weights(
    output: Path,
    stage: str,
    generator: nn.Module | Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    best: bool = False,
) -> Path:
    """Write a stage's generator atomically, under BasicSR's parameter names; return the path."""
    path = weights_path(output, stage, best=best)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_weights(path, generator, dict(metadata))
    return path
