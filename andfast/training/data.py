"""The training data of a run: packing, what a resumed run must find, and the batches of a stage."""

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from torch import Tensor

from andfast.config.schema import TrainConfig
from andfast.data.crops import CropDataset
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
_SHOWN: Final = 5


class DataLoadingError(RuntimeError):
    """The data loader's workers cannot run, or one of them has died."""


def pack_training_images(config: TrainConfig) -> tuple[PackedImages, list[str]]:
    """Pack the training images; return them and the names of the files that cannot be used."""
    data = config.data
    folder = _pack_folder(config)
    report = pack_images(data.train, folder, min_size=data.patch_size, include=data.include, exclude=data.exclude)
    logger.info("%s", report)
    return PackedImages(folder), [name for name, _ in report.skipped]


def open_packed_images(config: TrainConfig) -> PackedImages:
    """Open the pack that rank 0 has written or checked."""
    return PackedImages(_pack_folder(config))


def resume_training_images(config: TrainConfig, digest: str) -> PackedImages:
    """The training images of a run that is resumed: its pack, or a new one if the pack is lost.

    A pack with the recorded images is used as it is, without its sources. Before a lost or changed pack is written
    again, the sources are compared with the images that the run has recorded.

    Args:
        config: of the run.
        digest: :func:`image_set_digest` of the run.

    Raises:
        CheckpointError: the images differ; the message names the first differences. The pack is untouched if the
            sources' names differ.
    """
    try:
        images = open_packed_images(config)
    except (OSError, ValueError) as error:
        logger.warning("the pack of training images cannot be used: %s", error)
    else:
        if image_set_digest(images) == digest:
            return images
    data = config.data
    sizes, skipped = read_image_record(config.output)
    if sizes:
        try:
            found = {file.name for file in find_images(data.train, include=data.include, exclude=data.exclude)}
        except FileNotFoundError as error:
            raise CheckpointError(
                f"--resume must find the training images of the run or their pack: {error}"
            ) from error
        _check_equal(sizes.keys(), found, sizes.keys(), found - skipped, config)
    images, _ = pack_training_images(config)
    if image_set_digest(images) != digest:
        now = dict(zip(images.names, map(tuple, images.sizes.tolist()), strict=True))
        _check_equal(sizes.keys(), now.keys(), sizes.items(), now.items(), config)
        raise CheckpointError(
            f"--resume must use the training images of the run in {config.output}, but data.train has others now"
        )
    return images


def image_set_digest(images: PackedImages) -> str:
    """SHA-256 (hexadecimal) of the names and sizes of the training images."""
    listing = [*images.names, *images.sizes.ravel().tolist()]
    return hashlib.sha256(repr(listing).encode()).hexdigest()


def write_image_record(output: Path, images: PackedImages, skipped: list[str]) -> None:
    """Record the names and sizes of the training images in OUTPUT/images.json."""
    record = {"images": dict(zip(images.names, images.sizes.tolist(), strict=True)), "skipped": skipped}
    with atomic_file(output / RECORD) as file:
        file.write(json.dumps(record).encode())


def read_image_record(output: Path) -> tuple[dict[str, tuple[int, int]], set[str]]:
    """Sizes by name and the names of unusable files; nothing for a run from before images.json was written."""
    path = output / RECORD
    if not path.exists():
        return {}, set()
    record = read_json(path)
    return {name: (size[0], size[1]) for name, size in record["images"].items()}, set(record["skipped"])


@contextmanager
def training_batches(
    config: TrainConfig, images: PackedImages, group: ProcessGroup, *, stage: str, steps_done: int
) -> Iterator[DevicePrefetcher]:
    """This rank's batches of HR crops on its device, from the step after ``steps_done`` on.

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
        DataLoadingError: a worker has died.
    """
    try:
        return [next(batches) for _ in range(count)]
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        if "DataLoader worker" not in reason and "shared memory" not in reason:
            raise
        raise DataLoadingError(
            f"a data worker has died: {reason.partition('. ')[0]}. If memory was short, lower data.workers (0: none); "
            "if it was shared memory (Bus error), enlarge /dev/shm (docker run --shm-size)"
        ) from error


def _pack_folder(config: TrainConfig) -> Path:
    return config.data.pack or config.output / "data"


def _check_equal(before, after, recorded, current, config: TrainConfig) -> None:  # type: ignore[no-untyped-def]
    """Raise if images are missing, new or of another size."""
    missing, new = sorted(set(before) - set(after)), sorted(set(current) - set(recorded), key=str)
    parts = [
        f"{label} {', '.join(map(str, names[:_SHOWN]))}"
        + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
        for label, names in (("missing:", missing), ("new or changed:", new))
        if names
    ]
    if parts:
        raise CheckpointError(
            f"--resume must use the training images of the run in {config.output}, but data.train has others now: "
            f"{'; '.join(parts)}"
        )
