"""Checkpoints and weights of a run folder: written atomically, verified when read, never unpickled.

A run folder (OUTPUT)::

    weights/andnet.safetensors       stage net's newest weights (the average if it is on); andgan: gan's
    weights/andnet_best.safetensors  the weights that did best in validation; andgan_best
    checkpoints/{stage}-{step:08d}/  *.safetensors   weights: generator, generator_ema, discriminator ...
                                     state.pt        optimizers, scaler, random generators, positions ...
                                     manifest.json   the sizes and SHA-256 of the others

A checkpoint is written into a hidden folder, synced to disk, and renamed, so a folder under its final name is
whole unless the disk or a person damaged it, and that is an error, never a reason to go on from an older one
unasked.
"""

import hashlib
import json
import os
import pickle
import random
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from andfast.config.schema import STAGES
from andfast.files import atomic_file, sync_file, sync_folder

FORMAT: Final = 1
WEIGHTS_NAMES: Final = {"net": "andnet", "gan": "andgan"}
_NAME: Final = re.compile(rf"({'|'.join(STAGES)})-(\d{{8,}})")
_TEMPORARY: Final = ".tmp-"
_WRITTEN_BY_RUNS: Final = (
    "weights", "checkpoints", "failures", "tensorboard", "samples",
    "metrics.jsonl", "config.yaml", "versions.json", "summary.json", "sheet.png", "loss_curve.png",
)  # fmt: skip


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or what is there cannot be used."""


class Checkpoint(NamedTuple):
    """What :func:`load_checkpoint` returns; all tensors are on the CPU."""

    stage: str
    step: int
    """Optimizer steps of the stage that were done when it was written."""
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
        state: nested dictionaries, lists and tuples of tensors, numbers, text, booleans and None; goes to
            state.pt.
        weights: a module's state dictionary for every name; each becomes NAME.safetensors, values and dtypes
            untouched.
        stage: "net" or "gan".
        step: optimizer steps of this stage that are done, 0 or more.
        keep: number of checkpoints to keep over both stages, 1 or more. Older ones go after this one is safe.

    Returns:
        The checkpoint's folder. One that is there already for this stage and step is replaced.

    Raises:
        TypeError: ``state`` holds something else; the text names it. Nothing is written.
        ValueError: ``stage``, ``step``, ``keep`` or a name in ``weights`` is impossible.
        CheckpointError: it could not be written (a full disk, say); earlier checkpoints are as they were.
    """
    if stage not in STAGES:
        raise ValueError(f"stage must be one of {STAGES}, was {stage!r}")
    if step < 0 or keep < 1:
        raise ValueError(f"step must be at least 0 and keep at least 1, were {step} and {keep}")
    for name in weights or {}:
        if not re.fullmatch(r"\w+", name):
            raise ValueError(f"a name in weights must be letters, digits and _, was {name!r}")
    plain = plain_state(state, "state")
    folder = output / "checkpoints"
    final = folder / f"{stage}-{step:08d}"
    temporary = folder / f"{_TEMPORARY}{final.name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
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
    """The checkpoint folders of a run, oldest first (net before gan, then by step), half-written ones not."""
    folder = output / "checkpoints"
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=lambda path: position(*_stage_and_step(path)))


def latest(output: Path) -> Path | None:
    """The newest checkpoint of a run, verified, or None if there is none.

    Raises:
        CheckpointError: the newest one is damaged; the text names it and the newest one that is usable.
    """
    found = checkpoints(output)
    if not found:
        return None
    damage = damage_of(found[-1])
    if damage is None:
        return found[-1]
    usable = next((path for path in reversed(found[:-1]) if damage_of(path) is None), None)
    way_on = f"to go on from {usable} instead, delete the damaged folder" if usable else "no other is usable"
    raise CheckpointError(f"the newest checkpoint, {found[-1]}, is damaged: {damage}; {way_on}")


def damage_of(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None if they are what was written."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        files = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
        written_by = manifest["format"]
    except FileNotFoundError:
        return "manifest.json is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "manifest.json is not readable"
    if written_by != FORMAT:
        return f"its format is {written_by!r}, this version reads {FORMAT}"
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
    """Read a checkpoint; nothing in it is unpickled beyond tensors and plain values.

    Raises:
        FileNotFoundError: ``folder`` is not a folder.
        CheckpointError: it is damaged, or no checkpoint at all.
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


def position(stage: str, step: int) -> tuple[int, int]:
    """A sort key: where in a run a stage's step is."""
    return STAGES.index(stage), step


def weights_path(output: Path, stage: str, *, best: bool = False) -> Path:
    """Where a stage's weights are in a run folder."""
    return output / "weights" / f"{WEIGHTS_NAMES[stage]}{'_best' if best else ''}.safetensors"


def save_stage_weights(
    output: Path,
    stage: str,
    generator: nn.Module | Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    best: bool = False,
) -> Path:
    """Write a stage's generator under BasicSR's names (atomic) and return the file's path."""
    from andfast.nn.weights import save_weights  # noqa: PLC0415  (keeps checkpoints free of the networks)

    path = weights_path(output, stage, best=best)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_weights(path, generator, dict(metadata))
    return path


RunStart = Literal["new", "resumed"]


def open_run(output: Path, *, resume: bool, overwrite: bool) -> RunStart:
    """Make a run folder ready: refuse to mix two runs, and delete an earlier one only if asked to.

    Raises:
        FileExistsError: a run is there, and neither ``resume`` nor ``overwrite`` was asked for.
        FileNotFoundError: ``resume`` was asked for, but no run is there.
        NotADirectoryError: ``output`` is a file.
    """
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"output must be a folder, {str(output)!r} is a file")
    earlier = [output / name for name in _WRITTEN_BY_RUNS if (output / name).exists()]
    if resume:
        if not earlier:
            raise FileNotFoundError(f"--resume must find a run in output, {str(output)!r} has none")
        return "resumed"
    if earlier and not overwrite:
        raise FileExistsError(
            f"output {str(output)!r} holds a run already: --resume goes on with it, --overwrite deletes it, "
            "or take another --output"
        )
    for path in earlier:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    output.mkdir(parents=True, exist_ok=True)
    return "new"


def seed_everything(seed: int) -> None:
    """Seed the global generators that :func:`rng_state` takes."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rng_state() -> dict[str, object]:
    """The global generators of Python, NumPy, PyTorch and every CUDA device, as plain values."""
    version, internal, gauss = random.getstate()
    legacy: dict[str, Any] = np.random.get_state(legacy=False)
    return {
        "python": [version, list(internal), gauss],
        "numpy": {
            "key": torch.from_numpy(legacy["state"]["key"].astype(np.int64)),
            "position": int(legacy["state"]["pos"]),
            "has_gauss": int(legacy["has_gauss"]),
            "gauss": float(legacy["gauss"]),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_rng_state(state: Mapping[str, Any]) -> bool:
    """Put back what :func:`rng_state` took.

    Returns:
        Whether all of it went back: False where this machine has another number of CUDA devices, whose
        generators are then left alone, so that what is drawn there goes on differently.
    """
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    numpy_state = state["numpy"]
    np.random.set_state(
        {
            "bit_generator": "MT19937",
            "state": {"key": numpy_state["key"].numpy().astype(np.uint32), "pos": numpy_state["position"]},
            "has_gauss": numpy_state["has_gauss"],
            "gauss": numpy_state["gauss"],
        }
    )
    torch.set_rng_state(state["torch"].cpu())
    if len(state["cuda"]) != torch.cuda.device_count():
        return False
    torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])
    return True


def plain_state(value: object, name: str) -> Any:
    """Copy ``value`` into what ``torch.load(weights_only=True)`` reads back: tensors go to the CPU.

    Raises:
        TypeError: something in it is neither a tensor nor a plain value; the text says where.
    """
    if isinstance(value, Tensor):
        tensor = value.detach().cpu()
        whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        return tensor if whole else tensor.clone()  # torch.save writes whole storages
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Mapping):
        for key in value:
            if type(key) not in (str, int):
                raise TypeError(f"{name} must have text or integers for keys, was {key!r} ({type(key).__name__})")
        return {key: plain_state(item, f"{name}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        items = [plain_state(item, f"{name}[{index}]") for index, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    raise TypeError(
        f"{name} must be a tensor, number, text, boolean, None, or a dictionary, list or tuple of them, "
        f"was {type(value).__name__}"
    )


def _portable(tensor: Tensor) -> Tensor:
    """safetensors takes contiguous tensors that share no memory."""
    return tensor.detach().cpu().contiguous().clone()


def _stage_and_step(folder: Path) -> tuple[str, int]:
    stage, _, step = folder.name.partition("-")
    return stage, int(step)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_manifest(folder: Path, stage: str, step: int) -> None:
    """List the files, and sync everything to disk."""
    files = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(folder.iterdir())}
    for name in files:
        sync_file(folder / name)
    manifest = {"format": FORMAT, "stage": stage, "step": step, "files": files}
    with atomic_file(folder / "manifest.json") as file:
        file.write(json.dumps(manifest, indent=1).encode())


def _put_in_place(temporary: Path, final: Path) -> None:
    """Rename, replacing an earlier checkpoint of the same step."""
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


def _prune(folder: Path, keep: int) -> None:
    """Delete old checkpoints; each is renamed first, so that a kill in between leaves none half-deleted."""
    for old in checkpoints(folder.parent)[:-keep]:
        doomed = old.with_name(f"{_TEMPORARY}old-{old.name}")
        os.replace(old, doomed)
        shutil.rmtree(doomed)


def _delete_temporary(folder: Path) -> None:
    """Remove what writers that were killed have left."""
    for path in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(path)


def _free_space(output: Path) -> str:
    try:
        return f"{shutil.disk_usage(output).free / 1e6:.0f} MB free on its disk"
    except OSError:
        return "its disk cannot be asked for free space"
