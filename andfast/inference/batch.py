"""Upscale picture files one after the other: what fails is reported and the rest goes on."""

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from andfast.data.images import UnusableImageError
from andfast.files import atomic_file, printable
from andfast.inference.channels import ChannelsRestorer
from andfast.inference.jobs import Job
from andfast.inference.models import Restorer
from andfast.inference.pictures import MAX_PIXELS, Picture, read_picture
from andfast.inference.tiles import check_tile, count_tiles, restore_bands
from andfast.inference.writers import Writer, check_writable, format_of, open_writer

_ROWS = 64  # that are rounded at a time
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
_FIRST_TILE = 512  # to try where a whole picture was too large


class _CannotRestoreError(Exception):
    """Why a picture was not restored, in one line."""


def tell(line: str) -> None:
    """Print a line on stderr, above the progress bars."""
    tqdm.write(line, file=sys.stderr)


@dataclass
class Report:
    """What became of the pictures.

    Attributes:
        done: files written.
        passed: files that were there already and were to be passed over.
        failed: (file, reason) of each picture without a result.
    """

    done: list[Path] = field(default_factory=list)
    passed: list[Path] = field(default_factory=list)
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
    say: Callable[[str], object] = tell,
) -> Report:
    """Upscale files, each written whole or not at all.

    Where memory runs out, the picture is begun anew with tiles of half the size, which later pictures then have too.

    Args:
        jobs: see :func:`andfast.inference.jobs.find_jobs`.
        restorer: of RGB; grey and alpha are taken care of.
        tile, overlap: see :func:`andfast.inference.tiles.restore_tiled`.
        quality: of JPEG and WebP.
        overwrite: replace results that exist already.
        skip_existing: pass them over; with neither, they count as failed.
        max_pixels: pictures of more are refused.
        progress: show bars of pictures and tiles, on a terminal.
        say: takes each line about a picture.

    Raises:
        ValueError: tile or overlap does not fit the restorer.
    """
    check_tile(tile, overlap, restorer.multiple)
    run = _Run(ChannelsRestorer(restorer), tile, overlap, quality, max_pixels, progress, say)
    report = Report()
    for job in tqdm(jobs, desc="pictures", unit="picture", disable=_hidden(progress and len(jobs) > 1)):
        try:
            if job.target.exists() and not overwrite:
                if skip_existing:
                    report.passed.append(job.target)
                    continue
                raise _CannotRestoreError(f"{job.target} exists already")
            run.upscale(job)
        except (_CannotRestoreError, UnusableImageError, ValueError, OSError, MemoryError) as error:
            reason = str(error) or "not enough memory for the picture"
            report.failed.append((job.source, reason))
            say(printable(f"{job.source}: not restored: {reason}"))
        else:
            report.done.append(job.target)
    return report


def _hidden(wanted: bool) -> bool | None:
    """What tqdm is told: None shows a bar on a terminal, and none in a log."""
    return None if wanted else True


@dataclass
class _Run:
    restorer: ChannelsRestorer
    tile: int
    overlap: int
    quality: int
    max_pixels: int
    progress: bool
    say: Callable[[str], object]

    def upscale(self, job: Job) -> None:
        format_ = format_of(job.target)
        picture = read_picture(job.source, max_pixels=self.max_pixels)
        bits, profile = self._fitted(picture, format_)
        height, width, channels = picture.samples.shape
        size = width * self.restorer.scale, height * self.restorer.scale
        check_writable(format_, *size, channels)
        for note in picture.notes:
            self.say(printable(f"{job.source}: {note}"))
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
                        profile=profile,
                        exif=picture.exif,
                    )
                    self._restore(picture, writer, bits, job.source.name)
                    writer.close()
                return
            except (MemoryError, RuntimeError) as error:
                if not _out_of_memory(error):
                    raise
            self._halve_tiles(job, max(height, width))

    def _fitted(self, picture: Picture, format_: str) -> tuple[int, bytes | None]:
        """Bits and profile of the result, with a note on what the format cannot keep."""
        bits, profile = picture.samples.dtype.itemsize * 8, picture.profile
        if bits == 16 and format_ in {"JPEG", "WEBP"}:
            bits = 8
            picture.notes.append(f"16 bits become 8, as {format_} has no more")
        if profile is not None and format_ == "WEBP" and picture.samples.shape[2] < 3:
            profile = None
            picture.notes.append("its grey colour profile is not kept, as WEBP has only RGB")
        if picture.exif is not None and format_ == "TIFF":
            picture.notes.append("its EXIF is not kept in a TIFF")
        return bits, profile

    def _restore(self, picture: Picture, writer: Writer, bits: int, name: str) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nor is it written to
            lr = torch.from_numpy(picture.samples).permute(2, 0, 1)[None]
        tiles = count_tiles(self.restorer, *lr.shape[2:], tile=self.tile, overlap=self.overlap)
        with tqdm(
            total=tiles, desc=printable(name), unit="tile", leave=False, disable=_hidden(self.progress and tiles > 1)
        ) as bar:
            for band in restore_bands(self.restorer, lr, tile=self.tile, overlap=self.overlap, on_tile=bar.update):
                for start in range(0, band.shape[2], _ROWS):
                    writer.write(_rounded(band[0, :, start : start + _ROWS], bits))
                del band  # before the next one is made

    def _halve_tiles(self, job: Job, side: int) -> None:
        """Go on with smaller tiles, or give the picture up."""
        if self.restorer.device.type == "cuda":
            torch.cuda.empty_cache()
        smaller = min(self.tile or 2 * _FIRST_TILE, side) // 2
        try:
            check_tile(smaller or 1, self.overlap, self.restorer.multiple)
        except ValueError:
            raise _CannotRestoreError(
                f"not enough memory even for tiles of {self.tile or side} with an overlap of {self.overlap}"
            ) from None
        self.say(
            printable(f"{job.source}: not enough memory for tiles of {self.tile or side}, going on with {smaller}")
        )
        self.tile = smaller


def _rounded(rows: Tensor, bits: int) -> NDArray[np.uint8 | np.uint16]:
    """(C, n, W) in [0, 1] to (n, W, C) of whole numbers, half up."""
    top = (1 << bits) - 1
    if not rows.isfinite().all():
        raise _CannotRestoreError("the restorer gave values that are not finite; fp32 or bf16 may do better than fp16")
    whole = (rows.permute(1, 2, 0).clamp(0, 1) * top + 0.5).numpy()
    return whole.astype(np.uint16 if bits == 16 else np.uint8)


def _out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(text in str(error).lower() for text in _OUT_OF_MEMORY)


def _make_folder(job: Job) -> None:
    """Make the target's folder, unless a link would lead it out of the output."""
    folder = job.target.parent
    if job.inside is not None:
        inside = os.path.realpath(job.inside)
        if os.path.commonpath([inside, os.path.realpath(folder)]) != inside:
            raise _CannotRestoreError(f"{folder} leads out of the output folder {job.inside}")
    with suppress(FileExistsError):
        folder.mkdir(parents=True)
