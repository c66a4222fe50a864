"""Checkpoints of a run: written atomically, verified when read, never unpickled.

Layout of a checkpoint folder, OUTPUT/checkpoints/{stage}-{step:08d}::

    *.safetensors   weights: generator, generator_ema, discriminator ...
    state.pt        optimizers, gradient scaler, random number generators, positions ...
    manifest.json   sizes and SHA-256 of the other files

A checkpoint is written to a hidden folder, synced to disk and renamed. A folder under its final name is therefore
complete unless it was damaged later. Damage is an error: a run never falls back to an older checkpoint by itself.
"""

import hashlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from andfast.config.stages import STAGES, position
from andfast.files import atomic_file, sync_file, sync_folder

FORMAT: Final = 1
_NAME: Final = re.compile(rf"({'|'.join(STAGES)})-(\d{{8,}})")
_TEMPORARY: Final = ".tmp-"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or an existing one cannot be used."""


class Checkpoint(NamedTuple):
    """Contents of a checkpoint; all tensors are on the CPU."""

    stage: str
    step: int
    """Optimizer steps of the stage so far."""
    state: dict[str, Any]
    weights: dict[str, dict[str, Tensor]]


def save_checkpoint(
    output: Path,
    state: Mapping[str, object],
    weights: Mapping[str, Mapping[str, Tensor]] | None = None,
    *,
    stage: str,
    step: int,
    keep: int,
) -> Path:
    """Write a checkpoint atomically, then delete all but the newest ``keep``.

    Args:
        output: the run folder.
        state: nested dictionaries, lists and tuples of tensors, numbers, strings, booleans and None, for state.pt.
        weights: state dictionaries by name; each becomes NAME.safetensors, with values and dtypes unchanged.
        stage: "net" or "gan".
        step: optimizer steps of this stage so far, 0 or more.
        keep: number of checkpoints to keep over both stages, 1 or more.

    Returns:
        The checkpoint's folder; an existing one of this stage and step is replaced.

    Raises:
        TypeError: ``state`` holds a value of another type; the message names it. Nothing is written.
        ValueError: invalid ``stage``, ``step``, ``keep`` or name in ``weights``.
        CheckpointError: writing failed (a full disk, for instance); earlier checkpoints are intact.
    """
    if stage not in STAGES:
        raise ValueError(f"stage must be one of {STAGES}, was {stage!r}")
    if step < 0 or keep < 1:
        raise ValueError(f"step must be at least 0 and keep at least 1, were {step} and {keep}")
    for name in weights or {}:
        if not re.fullmatch(r"\w+", name):
            raise ValueError(f"names in weights must consist of letters, digits and underscores, was {name!r}")
    plain = plain_state(state, "state")
    folder = output / "checkpoints"
    final = folder / f"{stage}-{step:08d}"
    temporary = folder / f"{_TEMPORARY}{final.name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _restore_replaced(folder)
        _delete_temporary(folder)
        temporary.mkdir()
        for name, tensors in (weights or {}).items():
            save_file({key: _portable(tensor) for key, tensor in tensors.items()}, temporary / f"{name}.safetensors")
        torch.save(plain, temporary / "state.pt")
        _write_manifest(temporary, stage, step)
        _put_in_place(temporary, final)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"checkpoint {final} could not be written, earlier ones are intact: {reason} ({_free_space(output)})"
        ) from error
    _prune(folder, keep)
    return final


def checkpoints(output: Path) -> list[Path]:
    """The complete checkpoint folders of a run, oldest first (net before gan, then by step)."""
    folder = output / "checkpoints"
    paths = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(paths, key=lambda path: position(*_stage_and_step(path)))


def latest(output: Path) -> Path | None:
    """The newest checkpoint of a run, verified; None if there is none.

    Raises:
        CheckpointError: the newest one is damaged; the message names it and the newest usable one.
    """
    _restore_replaced(output / "checkpoints")
    paths = checkpoints(output)
    if not paths:
        return None
    *earlier, newest = paths
    if (damage := damage_of(newest)) is None:
        return newest
    usable = next((path for path in reversed(earlier) if damage_of(path) is None), None)
    remedy = (
        f"to resume from {usable} instead, delete the damaged folder" if usable else "no earlier checkpoint is usable"
    )
    raise CheckpointError(f"the newest checkpoint, {newest}, is damaged: {damage}; {remedy}")


def clean_up(output: Path) -> None:
    """Before resuming, finish or undo a checkpoint that a killed process left incomplete."""
    _restore_replaced(output / "checkpoints")
    _delete_temporary(output / "checkpoints")


def damage_of(folder: Path) -> str | None:
    """Compare a checkpoint's files with its manifest; return the first difference, None if there is none."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        files = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
        file_format = manifest["format"]
    except FileNotFoundError:
        return "manifest.json is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "manifest.json is not readable"
    if file_format != FORMAT:
        return f"its format is {file_format!r}, this version reads {FORMAT}"
    for name, (size, digest) in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, {size} were written"
        if _sha256(path) != digest:
            return f"{name} has changed since it was written (SHA-256)"
    return None


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint; only tensors and plain values are unpickled.

    Raises:
        FileNotFoundError: ``folder`` is not a folder.
        CheckpointError: it is damaged, or not a checkpoint.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"a checkpoint must be a folder, {str(folder)!r} is not")
    damage = damage_of(folder)
    if damage is not None:
        raise CheckpointError(f"checkpoint {folder} is damaged: {damage}")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    try:
        state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).partition(". ")[0]
        raise CheckpointError(f"checkpoint {folder} was not written by andfast: state.pt: {reason}") from error
    weights = {Path(name).stem: load_file(folder / name) for name in manifest["files"] if name.endswith(".safetensors")}
    return Checkpoint(manifest["stage"], manifest["step"], state, weights)


def plain_state(value: object, name: str) -> Any:
    """Copy nested values so that ``torch.load(weights_only=True)`` can read them; tensors move to the CPU.

    Raises:
        TypeError: a value is neither a tensor nor plain; the message says where.
    """
    if isinstance(value, Tensor):
        tensor = value.detach().cpu()
        owns_storage = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        return tensor if owns_storage else tensor.clone()  # torch.save writes whole storages
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Mapping):
        for key in value:
            if type(key) not in (str, int):
                raise TypeError(f"{name} must have strings or integers as keys, was {key!r} ({type(key).__name__})")
        return {key: plain_state(item, f"{name}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        items = [plain_state(item, f"{name}[{index}]") for index, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    raise TypeError(
        f"{name} must be a tensor, number, string, boolean, None, or a dictionary, list or tuple of these, "
        f"was {type(value).__name__}"
    )


def _portable(tensor: Tensor) -> Tensor:
    """A contiguous copy on the CPU, as safetensors requires."""
    return tensor.detach().cpu().contiguous().clone()


def _stage_and_step(folder: Path) -> tuple[str, int]:
    stage, _, step = folder.name.partition("-")
    return stage, int(step)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_manifest(folder: Path, stage: str, step: int) -> None:
    """Write the manifest and sync all files to disk."""
    files = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(folder.iterdir())}
    for name in files:
        sync_file(folder / name)
    manifest = {"format": FORMAT, "stage": stage, "step": step, "files": files}
    with atomic_file(folder / "manifest.json") as file:
        file.write(json.dumps(manifest, indent=1).encode())


def _put_in_place(temporary: Path, final: Path) -> None:
    """Rename to the final name, replacing a checkpoint of the same step."""
    replaced = final.with_name(f"{_TEMPORARY}replaced-{final.name}")
    if final.exists():
        os.replace(final, replaced)
    try:
        os.replace(temporary, final)
    except OSError:
        if replaced.exists():
            os.replace(replaced, final)
        raise
    sync_folder(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _restore_replaced(folder: Path) -> None:
    """Rename back a checkpoint that a killed process was replacing; it may be the only one."""
    prefix = f"{_TEMPORARY}replaced-"
    for replaced in sorted(folder.glob(f"{prefix}*")):
        final = folder / replaced.name.removeprefix(prefix)
        if not final.exists():
            os.replace(replaced, final)


def _prune(folder: Path, keep: int) -> None:
    """Delete old checkpoints; each is hidden first, so that a kill leaves none half-deleted."""
    for old in checkpoints(folder.parent)[:-keep]:
        hidden = old.with_name(f"{_TEMPORARY}old-{old.name}")
        os.replace(old, hidden)
        shutil.rmtree(hidden)


def _delete_temporary(folder: Path) -> None:
    """Delete the temporary folders of killed processes."""
    for path in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(path)


def _free_space(output: Path) -> str:
    try:
        return f"{shutil.disk_usage(output).free / 1e6:.0f} MB free on its disk"
    except OSError:
        return "free space unknown"
