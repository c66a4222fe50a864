"""The training data of a run: packing, and the batches of a stage."""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from andfast.config.schema import TrainConfig
from andfast.data.crops import CropDataset
from andfast.data.loader import DevicePrefetcher, training_loader
from andfast.data.pack import pack_images
from andfast.data.store import PackedImages
from andfast.training.distributed import ProcessGroup

logger = logging.getLogger(__name__)


def pack_training_images(config: TrainConfig, group: ProcessGroup) -> PackedImages:
    """Pack the training images on rank 0; open the pack on every rank."""
    data = config.data
    folder = data.pack or config.output / "data"
    if group.is_main:
        report = pack_images(data.train, folder, min_size=data.patch_size, include=data.include, exclude=data.exclude)
        logger.info("%s", report)
    group.barrier()
    return PackedImages(folder)


def image_set_digest(images: PackedImages) -> str:
    """SHA-256 (hexadecimal) of the names and sizes of the training images."""
    listing = [*images.names, *images.sizes.ravel().tolist()]
    return hashlib.sha256(repr(listing).encode()).hexdigest()


@contextmanager
def training_batches(
    config: TrainConfig, images: PackedImages, group: ProcessGroup, *, stage: str, steps_done: int
) -> Iterator[DevicePrefetcher]:
    """This rank's batches of HR crops on its device, from the step after ``steps_done`` on."""
    loader = training_loader(
        CropDataset(images, config.data.patch_size, seed=config.seed, stage=stage),
        batch_size=config.batch_size,
        start_batch=steps_done * config.accumulate,
        rank=group.rank,
        world_size=group.world_size,
        workers=config.data.workers,
        pin_memory=group.device.type == "cuda",
    )
    with DevicePrefetcher(loader, group.device) as batches:
        yield batches
