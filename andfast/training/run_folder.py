"""The folder of a run: its files, setting an earlier run aside, and records of configuration and versions.

Layout of OUTPUT::

    run.json run.lock                   the mark of a run, with its id; the lock of the process that writes
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
import os
import re
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from andfast import __version__
from andfast.config.files import dump
from andfast.config.schema import TrainConfig
from andfast.files import atomic_file
from andfast.nn.weights import read_state, save_weights
from andfast.provenance import versions

_WEIGHTS_NAMES: Final = {"net": "andnet", "gan": "andgan"}
_FOLDERS: Final = ("weights", "checkpoints", "failures", "tensorboard", "samples")
_NAMES: Final = (*_FOLDERS, "metrics.jsonl", "config.yaml", "versions.json", "summary.json")
MARK: Final = "run.json"
_SET_ASIDE: Final = ".replaced"
_DELETED: Final = ".deleted"
_COMPLETE: Final = "complete"

_OWN_FILES: Final = (
    r"checkpoints/(\.tmp-(replaced-|old-)?)?(net|gan)-\d{8,}/[^/]+",
    r"weights/(\.tmp-)?(andnet|andgan)(_best)?\.safetensors",
    r"samples/(\.tmp-)?(net|gan)-\d{8,}\.png",
    r"failures/(\.tmp-)?(net|gan)-\d{8,}-[\w.+-]+\.pt",
    r"tensorboard/(net|gan)/events\.out\.tfevents\.[^/]+",
    r"(\.tmp-)?(metrics\.jsonl|config\.yaml|versions\.json|images\.json|summary\.json|sheet\.png|loss_curve\.png|run\.json)",
)
"""Patterns of the paths, relative to the folder, that a run writes, data/ excepted."""


def check_run_folder(output: Path, *, resume: bool, overwrite: bool) -> None:
    """Check that ``output`` can be used, without changing it.

    A folder holds a run if run.json says so, or versions.json of a run from before run.json was written.

    Raises:
        FileExistsError: a run exists, and neither ``resume`` nor ``overwrite`` is set; or the folder holds no run, but
            files with names that a run writes.
        FileNotFoundError: ``resume`` is set, but there is no run.
        NotADirectoryError: ``output`` is a file.
    """
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"output must be a folder, {str(output)!r} is a file")
    started = any((output / name).exists() for name in _NAMES)
    is_run = (started and ((output / MARK).exists() or _is_run_without_mark(output))) or (output / _SET_ASIDE).is_dir()
    if resume:
        if not is_run and not any((output / name).exists() for name in ("checkpoints", "metrics.jsonl")):
            raise FileNotFoundError(f"--resume must find a run in output, {str(output)!r} has none")
        return
    if is_run:
        if not overwrite:
            raise FileExistsError(
                f"output {str(output)!r} holds a run already: --resume continues it, --overwrite deletes it, "
                "or use another --output"
            )
    elif foreign := [name for name in _NAMES if (output / name).exists()]:
        raise FileExistsError(
            f"output must be a run of andfast or a folder without {', '.join(_NAMES)}, {str(output)!r} has "
            f"{foreign[0]} but no {MARK}: use another --output"
        )


def begin_run(output: Path) -> str:
    """Set the files of an earlier run aside, mark the folder as that of a new run, and return its id.

    The earlier run's files are moved to OUTPUT/.replaced until :func:`delete_replaced`; if the new run fails before
    that, :func:`restore_replaced` moves them back. Files that a run does not write stay where they are.
    """
    restore_replaced(output)
    files = own_files(output)
    if files:
        (output / _SET_ASIDE).mkdir()
        for path in sorted(files, key=lambda path: path.name in (MARK, "config.yaml")):  # resuming reads these two
            _move(path, output, output / _SET_ASIDE)
        (output / _SET_ASIDE / _COMPLETE).touch()
    run = new_run_id()
    with atomic_file(output / MARK) as file:
        file.write((json.dumps({"andfast": __version__, "run": run}) + "\n").encode())
    return run


def new_run_id() -> str:
    """A random id, unique to a run."""
    return uuid.uuid4().hex


def delete_replaced(output: Path) -> None:
    """Delete the run that :func:`begin_run` has set aside."""
    if (output / _SET_ASIDE).is_dir():
        os.replace(output / _SET_ASIDE, output / _DELETED)
    shutil.rmtree(output / _DELETED, ignore_errors=True)


def restore_replaced(output: Path) -> None:
    """Restore a run that was set aside by a run that did not start, and delete that run's files."""
    shutil.rmtree(output / _DELETED, ignore_errors=True)
    aside = output / _SET_ASIDE
    if not aside.is_dir():
        return
    if (aside / _COMPLETE).exists():
        for path in own_files(output):
            path.unlink()
        (aside / _COMPLETE).unlink()
    for path in own_files(aside):
        _move(path, aside, output)
    shutil.rmtree(aside)


def recover_run(output: Path) -> None:
    """Before resuming, restore a run that a killed process had set aside only in part."""
    if not ((output / _SET_ASIDE / _COMPLETE).exists() and (output / MARK).exists()):
        restore_replaced(output)


def own_files(output: Path) -> list[Path]:
    """The files in a folder with names that a run writes; links are not followed."""
    files = []
    for folder, folders, names in os.walk(output):
        folders[:] = [name for name in folders if Path(folder) != output or name in _FOLDERS]
        for name in names:
            path = Path(folder) / name
            relative = path.relative_to(output).as_posix()
            if any(re.fullmatch(pattern, relative) for pattern in _OWN_FILES):
                files.append(path)
    return files


def read_run_id(output: Path) -> str | None:
    """The id of the run in a folder; None for a run from before run.json was written.

    Raises:
        ValueError: run.json is damaged.
    """
    path = output / MARK
    if not path.exists():
        return None
    run = read_json(path).get("run")
    if not isinstance(run, str):
        raise ValueError(f"{path} is damaged: it has no run id")
    return run


def mark_run(output: Path, run: str, resumed: Mapping[str, object]) -> None:
    """Write run.json again, with an entry added to its "resumed" list."""
    path = output / MARK
    contents: dict[str, Any] = read_json(path) if path.exists() else {"andfast": __version__}
    contents["run"] = run
    contents["resumed"] = [*contents.get("resumed", []), dict(resumed)]
    with atomic_file(path) as file:
        file.write((json.dumps(contents) + "\n").encode())


def check_still_there(output: Path) -> None:
    """Raise if the folder was deleted while the run was writing to it.

    Raises:
        FileNotFoundError: run.json is missing.
    """
    if not (output / MARK).exists():
        raise FileNotFoundError(f"output {str(output)!r} was deleted while the run was writing to it")


def check_inputs(config: TrainConfig) -> None:
    """Check that no input is inside the run's folder, nor the folder inside an input.

    Raises:
        ValueError: an input is inside ``output``, or ``output`` inside an input.
    """
    output = config.output.resolve()
    inputs: dict[str, Sequence[str | Path | None]] = {
        "data.train": config.data.train, "validation.hr": config.validation.hr, "validation.lr": [config.validation.lr],
        "init_weights": [config.init_weights], "loss.vgg_weights": [config.loss.vgg_weights],
        "data.pack": [config.data.pack],
    }  # fmt: skip
    for name, paths in inputs.items():
        for source in paths:
            if source is None or str(source).startswith("package:"):
                continue
            path = Path(source).resolve()
            if not path.exists():
                continue
            if output == path or path in output.parents:
                raise ValueError(f"output must be outside {name} {str(source)!r}, was {str(config.output)!r}")
            if output in path.parents and name != "data.pack":
                raise ValueError(f"{name} must be outside output {str(config.output)!r}, was {str(source)!r}")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: the file is damaged; the message names it.
    """
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; delete it to go on without it") from error
    if not isinstance(contents, dict):
        raise ValueError(f"{path} is damaged: it must hold a JSON object; delete it to go on without it")
    return contents


def _move(path: Path, source: Path, target: Path) -> None:
    destination = target / path.relative_to(source)
    destination.parent.mkdir(parents=True, exist_ok=True)
    os.replace(path, destination)
    folder = path.parent
    while folder != source and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def _is_run_without_mark(output: Path) -> bool:
    """Whether config.yaml and versions.json are those of a run from before run.json was written."""
    try:
        return "andfast" in read_json(output / "versions.json") and (output / "config.yaml").is_file()
    except (OSError, ValueError):
        return False


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
        previous = read_json(path)
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


def damaged_weights(output: Path) -> list[str]:
    """Error messages about weights of a run that cannot be read, one per file."""
    notes = []
    for path in sorted((output / "weights").glob("and*.safetensors")):
        try:
            read_state(path)
        except ValueError as error:
            notes.append(str(error))
    return notes


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
