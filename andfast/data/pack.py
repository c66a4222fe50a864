"""Pack image files into memory-mapped arrays once; later runs decode only what changed.

A file counts as unchanged while its path, size and modification time are the same. Files that were removed, or that the
filters exclude, leave the pack at once. Their space is reclaimed by the next run that packs anything, or as soon as
more than half of a shard is unused: the rest of such a shard is copied into a new one. So are shards less than an
eighth full, so that many small runs do not leave many small files.
"""

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from andfast.files import FULL, printable

from . import store
from .pack_update import PackUpdate, shown
from .sources import find_images
from .store import PackError

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackReport:
    """Result of :func:`pack_images`.

    Attributes:
        packed: Number of images decoded and written by this run.
        reused: Number of images that the pack already had.
        removed: Number of images dropped from the pack (a changed file counts as packed).
        skipped: (name, reason) of each file that is not in the pack.
        bytes: Size of the pixels of all images, packed and reused.
    """

    packed: int
    reused: int
    removed: int
    skipped: list[tuple[str, str]]
    bytes: int

    def __str__(self) -> str:
        rows = [
            ("packed", self.packed), ("reused", self.reused), ("removed", self.removed), ("skipped", len(self.skipped)),
        ]  # fmt: skip
        lines = [f"{label:<8}{count:>12,}" for label, count in rows]
        lines += [f"{'MB':<8}{self.bytes / 1e6:>12,.1f}"]
        return "\n".join(lines + [f"skipped {printable(name)}: {reason}" for name, reason in self.skipped])


def pack_images(
    sources: Sequence[str | Path],
    output: str | Path,
    *,
    min_size: int,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    workers: int | None = None,
    progress: bool = True,
    add: bool = False,
) -> PackReport:
    """Update the pack in ``output`` to the image files of ``sources``.

    Unusable files are reported and skipped; images removed from the pack are logged. Concurrent runs on one pack wait
    for each other. A run that fails or is killed leaves the previous pack intact. A pack on a read-only file system is
    used as it is if it matches the sources.

    Args:
        sources: Folders (searched recursively), files, or ``package:NAME/sub/folder``; see ``sources.find_images``.
        output: Folder of the pack; created if missing.
        min_size: Minimum height and width of an image in pixels.
        include: Glob patterns on the file name or relative path; empty takes all files.
        exclude: Glob patterns of files to skip.
        workers: Number of decoding processes; None for one per core, 0 to decode in this process.
        progress: Show a progress bar on stderr.
        add: Keep images of the previous pack that are not in ``sources``; False removes them.

    Raises:
        FileNotFoundError: A source does not exist.
        ValueError: An argument is invalid, there is no usable image, ``output`` is neither a pack nor empty, or it is
            read-only and differs from the sources.
        OSError: The disk is full (the files of this run are deleted), or a folder cannot be read or written.
        DecoderKilledError: A decoding process was killed twice on one file; finished shards are kept for the next run.
    """
    for label, value, minimum in (("min_size", min_size, 1), ("workers", workers, 0)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < minimum):
            raise ValueError(f"{label} must be an integer of at least {minimum}, was {value!r}")
    if isinstance(sources, str | Path) or not sources:
        raise ValueError(f"sources must be a list of at least one folder or file, was {sources!r}")
    for label, patterns in (("include", include), ("exclude", exclude)):
        if isinstance(patterns, str):
            raise ValueError(f"{label} must be a list of patterns, was the string {patterns!r}")
    output = Path(output)
    files = find_images(sources, include=include, exclude=exclude)
    if not files:
        raise ValueError(_empty_message("no image files", sources, include, exclude))
    if _is_read_only(output):
        update = PackUpdate(output, files, min_size, add=add)
        if (differences := update.differences(workers)) is not None:
            raise PackError(f"{output} is read-only and must match the sources, but differs: {differences}")
        return _report(update)
    with _locked(output):
        update = PackUpdate(output, files, min_size, add=add)
        update.decode(workers, progress)
        if not update.images:
            raise ValueError(_empty_message("no usable images", sources, include, exclude, update.skipped))
        if removed := update.removed:
            _LOG.warning(
                "%s: %d images that are not in %s are removed from the pack: %s",
                *(output, len(removed), ", ".join(map(str, sources)), shown(removed)),
            )
        update.finish()
        return _report(update)


def _report(update: PackUpdate) -> PackReport:
    return PackReport(
        packed=len(update.images) - update.reused,
        reused=update.reused,
        removed=len(update.removed),
        skipped=update.skipped,
        bytes=sum(entry.bytes for entry in update.images.values()),
    )


def _is_read_only(output: Path) -> bool:
    """Whether ``output`` is a pack that this process cannot write, on a read-only mount for instance."""
    if not (output / store.INDEX).exists():
        return False
    lock = output / store.LOCK
    return not os.access(output, os.W_OK) or (lock.exists() and not os.access(lock, os.W_OK))


@contextlib.contextmanager
def _locked(output: Path) -> Iterator[None]:
    """Hold the pack's lock; name the pack in the error of a full disk."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        _check_own_folder(output)
        with open(output / store.LOCK, "ab") as lock:
            try:  # the kernel releases the lock however this process ends
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _LOG.warning("waiting for another process that packs to %s", output)
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        if error.errno in FULL:
            raise OSError(error.errno, f"the disk is full, the pack {output} is unchanged") from error
        raise


def _check_own_folder(output: Path) -> None:
    """Raise for a folder with foreign files: packing deletes files by name."""
    names = sorted(path.name for path in output.iterdir())
    if not names or store.LOCK in names:
        return
    try:
        store.read_index(output / store.INDEX)  # a copied pack may lack the lock file
    except (FileNotFoundError, PackError):
        raise ValueError(
            f"output must be a pack or an empty folder, {output} has other files, for example {printable(names[0])}"
        ) from None


def _empty_message(
    missing: str,
    sources: Sequence[str | Path],
    include: Sequence[str],
    exclude: Sequence[str],
    skipped: Sequence[tuple[str, str]] = (),
) -> str:
    """One line with the sources and patterns, and the reasons why the first files were skipped."""
    text = f"sources hold {missing}: {', '.join(map(str, sources))}"
    if include:
        text += f"; include {', '.join(include)}"
    if exclude:
        text += f"; exclude {', '.join(exclude)}"
    reasons = [f"{printable(name)}: {reason}" for name, reason in skipped[:3]]
    if len(skipped) > len(reasons):
        reasons.append(f"and {len(skipped) - len(reasons)} more")
    return text + "".join(f"; {reason}" for reason in reasons)
