"""Training data of a run: packing, checks on resume, and the batches of a stage."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from andfast.config.schema import TrainConfig
from andfast.data.crops import CropDataset
from andfast.data.image_set import describe_changes, image_set, image_set_digest
from andfast.data.loader import DevicePrefetcher, training_loader
from andfast.data.pack import pack_images
from andfast.data.sources import find_images
from andfast.data.store import PackedImages
from andfast.files import atomic_file
from andfast.training.checkpoint import CheckpointError
from andfast.training.distributed import ProcessGroup
from andfast.training.run_folder import read_json

logger = logging.getLogger(__name__)

RECORD: Final = "images.json"


class DataLoadingError(RuntimeError):
    """The data loader's workers cannot run, or a worker died."""


def pack_training_images(config: TrainConfig) -> tuple[PackedImages, list[str]]:
    """Pack the training images; return them and the names of unusable files."""
    data = config.data
    folder = _pack_folder(config)
    report = pack_images(data.train, folder, min_size=data.patch_size, include=data.include, exclude=data.exclude)
    logger.info("%s", report)
    return PackedImages(folder), [name for name, _ in report.skipped]


def open_packed_images(config: TrainConfig) -> PackedImages:
    """Open the pack that rank 0 has written or checked."""
    return PackedImages(_pack_folder(config))


def resume_training_images(config: TrainConfig, state: Mapping[str, Any]) -> PackedImages:
    """Open the pack of a resumed run, or pack the images again if it is lost.

    A pack that holds the recorded images is used without looking at its sources. Otherwise the sources' names are
    compared with the record before anything is packed.

    Args:
        config: of the run.
        state: of the checkpoint, with the entries of :func:`image_entries`; older checkpoints have only "pictures".

    Raises:
        CheckpointError: names, sizes or pixels of images differ; the message names the first differences. The pack is
            unchanged if names differ.
        PackError: the pack is damaged; the message names the file.
    """
    recorded, skipped = read_image_record(config.output)
    try:
        images = open_packed_images(config)
    except FileNotFoundError as error:
        logger.warning("the pack of training images is lost, packing again: %s", error)
    else:
        if _is_same(images, state):
            return images
    if recorded:
        data = config.data
        try:
            names = {file.name for file in find_images(data.train, include=data.include, exclude=data.exclude)}
        except FileNotFoundError as error:
            raise CheckpointError(f"--resume must find the run's training images or their pack: {error}") from error
        current = {name: size for name, size in recorded.items() if name in names}
        _check_unchanged(recorded, current | dict.fromkeys(sorted(names - recorded.keys() - skipped), ""), config)
    images, _ = pack_training_images(config)
    if not _is_same(images, state):
        _check_unchanged(recorded, image_set(images), config)
        raise CheckpointError(
            f"--resume must use the training images of the run in {config.output}, but those in data.train differ"
        )
    return images


def image_entries(images: PackedImages) -> dict[str, object]:
    """Entries of a checkpoint's state by which :func:`resume_training_images` recognizes the images."""
    listing = [*images.names, *images.sizes.ravel().tolist()]
    entries: dict[str, object] = {"pictures": hashlib.sha256(repr(listing).encode()).hexdigest()}
    if all(images.digests):  # packs of format version 1 have none
        entries["image_set"] = image_set_digest(image_set(images))
    return entries


def write_image_record(output: Path, images: PackedImages, skipped: list[str]) -> None:
    """Record the training images in OUTPUT/images.json: names, sizes and digests of their pixels."""
    with atomic_file(output / RECORD) as file:
        file.write(json.dumps({"images": image_set(images), "skipped": skipped}).encode())


def read_image_record(output: Path) -> tuple[dict[str, str], set[str]]:
    """The recorded images and the names of unusable files; empty for a run from before images.json was written.

    Raises:
        ValueError: the file is damaged; the message names it.
    """
    path = output / RECORD
    if not path.exists():
        return {}, set()
    record = read_json(path)
    images, skipped = record.get("images"), record.get("skipped")
    if not isinstance(images, dict) or not isinstance(skipped, list):
        raise ValueError(f"{path} is damaged: it does not list images; delete it to go on without it")
    return images, set(skipped)


@contextmanager
def training_batches(
    config: TrainConfig, images: PackedImages, group: ProcessGroup, *, stage: str, steps_done: int
) -> Iterator[DevicePrefetcher]:
    """Batches of HR crops of this rank on its device, starting with the step after ``steps_done``.

    Raises:
        DataLoadingError: shared memory is too small for the workers.
    """
    try:
        loader = training_loader(
            CropDataset(images, config.data.patch_size, seed=config.seed, stage=stage),
            batch_size=config.batch_size,
            start_batch=steps_done * config.accumulate,
            rank=group.rank,
            world_size=group.world_size,
            workers=config.data.workers,
            pin_memory=group.device.type == "cuda",
        )
    except RuntimeError as error:
        raise DataLoadingError(f"data.{error}") from error
    with DevicePrefetcher(loader, group.device) as batches:
        yield batches


def next_batches(batches: DevicePrefetcher, count: int) -> list[Tensor]:
    """The micro batches of a step.

    Raises:
        DataLoadingError: a worker died.
    """
    try:
        return [next(batches) for _ in range(count)]
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        if "DataLoader worker" not in reason and "shared memory" not in reason:
            raise
        raise DataLoadingError(
            f"a data worker died: {reason.partition('. ')[0].rstrip('.')}. If it ran out of memory, lower data.workers "
            "(0 loads in the main process); if out of shared memory (Bus error), enlarge /dev/shm (docker run "
            "--shm-size)"
        ) from error


def _pack_folder(config: TrainConfig) -> Path:
    return config.data.pack or config.output / "data"


def _is_same(images: PackedImages, state: Mapping[str, Any]) -> bool:
    entries = image_entries(images)
    return all(state[name] == entry for name, entry in entries.items() if name in state)


def _check_unchanged(recorded: Mapping[str, str], current: Mapping[str, str], config: TrainConfig) -> None:
    if recorded and (changes := describe_changes(recorded, current)) is not None:
        raise CheckpointError(
            f"--resume must use the training images of the run in {config.output}, but those in data.train differ: "
            f"{changes}"
        )
