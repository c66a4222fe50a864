"""Upscale image files one after the other: failures are logged and do not stop the rest."""

import logging
import os
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from andfast.data.images import TooManyPixelsError, UnusableImageError
from andfast.files import atomic_file, printable
from andfast.inference.channels import ChannelsRestorer
from andfast.inference.color_shift import ColorShift
from andfast.inference.jobs import Job
from andfast.inference.metadata import Metadata
from andfast.inference.models import Restorer
from andfast.inference.reading import MAX_PIXELS, DecodedImage, read_image
from andfast.inference.tiles import check_tile, count_tiles, restore_bands
from andfast.inference.writers import Writer, check_writable, format_of, open_writer
from andfast.progress import Progress

_ROWS = 64  # rounded at a time
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
_FIRST_TILE = 512  # after a whole image did not fit in memory
_LOG = logging.getLogger(__name__)


class _CannotRestoreError(Exception):
    """The image cannot be restored; the message is the reason, in one line."""


@dataclass
class Report:
    """Result of :func:`upscale_files`.

    Attributes:
        done: Files written.
        skipped: Existing files that were skipped.
        failed: (file, reason) of each image without a result.
    """

    done: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    failed: list[tuple[Path, str]] = field(default_factory=list)


def upscale_files(
    jobs: Sequence[Job],
    restorer: Restorer,
    *,
    tile: int = 256,
    overlap: int = 32,
    quality: int = 95,
    overwrite: bool = False,
    skip_existing: bool = False,
    max_pixels: int = MAX_PIXELS,
    progress: bool = True,
) -> Report:
    """Upscale files; each result is written atomically.

    When memory runs out, the image is restarted with tiles of half the size, which later images use too. Messages about
    an image are logged: a warning for a property that is not kept, an error for a failure.

    Args:
        jobs: See :func:`andfast.inference.jobs.find_jobs`.
        restorer: RGB restorer; extended to grey and alpha here.
        tile: See :func:`andfast.inference.tiles.restore_tiled`.
        overlap: See :func:`andfast.inference.tiles.restore_tiled`.
        quality: Quality of JPEG and WebP.
        overwrite: Replace existing results.
        skip_existing: Skip images with existing results; with neither flag they count as failed.
        max_pixels: Maximum number of pixels of an image.
        progress: Show progress bars for images and tiles.

    Raises:
        ValueError: ``tile`` or ``overlap`` does not fit the restorer.
    """
    check_tile(tile, overlap, restorer.multiple)
    upscaler = _Upscaler(ChannelsRestorer(restorer), tile, overlap, quality, max_pixels, progress)
    report = Report()
    with Progress("images", len(jobs), unit="image", enabled=progress and len(jobs) > 1) as bar:
        for job in jobs:
            try:
                if not job.target.exists() or overwrite:
                    upscaler.upscale(job)
                    report.done.append(job.target)
                elif skip_existing:
                    report.skipped.append(job.target)
                else:
                    raise _CannotRestoreError(f"{job.target} already exists")
            except (_CannotRestoreError, UnusableImageError, ValueError, OSError, MemoryError) as error:
                reason = str(error) or "not enough memory for the image"
                report.failed.append((job.source, reason))
                _LOG.error(printable(f"{job.source}: not restored: {reason}"))
            bar.advance()
    return report


@dataclass
class _Upscaler:
    restorer: ChannelsRestorer
    tile: int
    overlap: int
    quality: int
    max_pixels: int
    progress: bool

    def upscale(self, job: Job) -> None:
        format_ = format_of(job.target)
        try:
            image = read_image(job.source, max_pixels=self.max_pixels)
        except TooManyPixelsError as error:
            raise UnusableImageError(f"{error} (see --max-pixels)") from error
        bits, metadata = _fit_format(image, format_)
        height, width, channels = image.samples.shape
        size = width * self.restorer.scale, height * self.restorer.scale
        check_writable(format_, *size, channels)
        for note in image.notes:
            _LOG.warning(printable(f"{job.source}: {note}"))
        _make_folder(job)
        while True:
            try:
                with atomic_file(job.target) as file:
                    writer = open_writer(
                        file,
                        format_,
                        *size,
                        channels=channels,
                        bits=bits,
                        quality=self.quality,
                        metadata=metadata,
                    )
                    shift = self._restore(image, writer, bits, job.source.name)
                    writer.close()
                if (warning := shift.warning()) is not None:
                    _LOG.warning(printable(f"{job.source}: {warning}"))
                return
            except (MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
            self._halve_tile(job, max(height, width))

    def _restore(self, image: DecodedImage, writer: Writer, bits: int, name: str) -> ColorShift:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # it is only read
            lr = torch.from_numpy(image.samples).permute(2, 0, 1)[None]
        shift = ColorShift(image.samples)
        tiles = count_tiles(self.restorer, *lr.shape[2:], tile=self.tile, overlap=self.overlap)
        shown = self.progress and tiles > 1
        with Progress(printable(name), tiles, unit="tile", leave=False, enabled=shown) as bar:
            for band in restore_bands(self.restorer, lr, tile=self.tile, overlap=self.overlap, on_tile=bar.advance):
                for start in range(0, band.shape[2], _ROWS):
                    rows = _rounded(band[0, :, start : start + _ROWS], bits)
                    shift.add(rows)
                    writer.write(rows)
                del band  # free it before the next band is restored
        return shift

    def _halve_tile(self, job: Job, side: int) -> None:
        """Continue with smaller tiles, or give up on the image."""
        if self.restorer.device.type == "cuda":
            torch.cuda.empty_cache()
        smaller = min(self.tile or 2 * _FIRST_TILE, side) // 2
        try:
            check_tile(smaller or 1, self.overlap, self.restorer.multiple)
        except ValueError:
            raise _CannotRestoreError(
                f"not enough memory even for tiles of {self.tile or side} with an overlap of {self.overlap}"
            ) from None
        message = f"{job.source}: not enough memory for tiles of {self.tile or side}, continuing with {smaller}"
        _LOG.warning(printable(message))
        self.tile = smaller


def _fit_format(image: DecodedImage, format_: str) -> tuple[int, Metadata]:
    """Bits and metadata of the result; adds a note for everything that the format cannot hold."""
    bits = image.samples.dtype.itemsize * 8
    if bits == 16 and format_ in {"JPEG", "WEBP"}:
        bits = 8
        image.notes.append(f"16 bits are reduced to 8, the maximum of {format_}")
    metadata, notes = image.metadata.fit(format_, image.samples.shape[2])
    image.notes += notes
    return bits, metadata


def _rounded(rows: Tensor, bits: int) -> NDArray[np.uint8 | np.uint16]:
    """(C, n, W) in [0, 1] to (n, W, C) integers, rounding half up."""
    top = (1 << bits) - 1
    if not rows.isfinite().all():
        raise _CannotRestoreError("the restorer returned values that are not finite; try fp32 or bf16 instead of fp16")
    integers = (rows.permute(1, 2, 0).clamp(0, 1) * top + 0.5).numpy()
    return integers.astype(np.uint16 if bits == 16 else np.uint8)


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(text in str(error).lower() for text in _OUT_OF_MEMORY)


def _make_folder(job: Job) -> None:
    """Create the target's folder, unless a link leads it out of the output folder."""
    folder = job.target.parent
    if job.inside is not None:
        inside = os.path.realpath(job.inside)
        if os.path.commonpath([inside, os.path.realpath(folder)]) != inside:
            raise _CannotRestoreError(f"{folder} leads out of the output folder {job.inside}")
    with suppress(FileExistsError):
        folder.mkdir(parents=True)
