"""Pack picture files into memory-mapped arrays, once; later runs pack only what changed.

A file is unchanged while its path, size and modification time are. Files that are gone, or that the filters
leave out, vanish from the pack at once. Their space comes back with the next run that packs anything, or by
itself as soon as more than half of a shard is unused: what is left of such a shard is copied into a new one
(and so are shards that are less than an eighth full, so that many small runs do not leave many small files).
"""

import contextlib
import fcntl
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from andfast.files import sync_folder

from . import store
from .decoding import decode_files
from .images import DECODER_VERSION
from .sources import SourceFile, find_images
from .store import Entry, Index, PackError, ShardWriter

_Key = tuple[str, int, int]  # real path, size, modification time


@dataclass(frozen=True)
class PackReport:
    """What a run did.

    Attributes:
        packed: pictures decoded and written by this run.
        reused: pictures that the pack already had.
        removed: pictures that the pack had and has no more (a changed file counts as packed, not here).
        skipped: (name, reason) of each file that is not in the pack.
        bytes: the pixels of all the pictures, packed and reused.
    """

    packed: int
    reused: int
    removed: int
    skipped: list[tuple[str, str]]
    bytes: int

    def __str__(self) -> str:
        rows = [
            ("packed", self.packed), ("reused", self.reused), ("removed", self.removed), ("skipped",
            len(self.skipped)),
        ]  # fmt: skip
        lines = [f"{label:<8}{count:>12,}" for label, count in rows]
        lines += [f"{'MB':<8}{self.bytes / 1e6:>12,.1f}"]
        return "\n".join(lines + [f"skipped {printable(name)}: {reason}" for name, reason in self.skipped])


def printable(name: str) -> str:
    """A file's name for people, whatever bytes it has, in one line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def pack_images(
    sources: Sequence[str | Path],
    output: str | Path,
    *,
    min_size: int,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    workers: int | None = None,
    progress: bool = True,
) -> PackReport:
    """Bring the pack in ``output`` up to date with the picture files of ``sources``.

    Files that cannot be used are reported and left out. Runs on the same pack wait for one another. When the
    run fails or is killed the pack is as before.

    Args:
        sources: folders (searched through), files, or "package:NAME/sub/folder"; see ``sources.find_images``.
        output: the pack's folder; made if need be.
        min_size: the least height and width of a picture, in pixels.
        include: glob patterns on the file's name or relative path; empty takes all.
        exclude: glob patterns of what to leave out.
        workers: decoding processes; None is one a core, 0 decodes in this process.
        progress: show a progress bar on stderr.

    Raises:
        FileNotFoundError: a source does not exist.
        ValueError: a wrong argument; no usable picture; or ``output`` is neither a pack nor empty.
        OSError: the disk is full (nothing is left of this run), or a folder cannot be read or written.
    """
    for label, value, least in (("min_size", min_size, 1), ("workers", workers, 0)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise ValueError(f"{label} must be an integer of at least {least}, was {value!r}")
    if isinstance(sources, str | Path) or not sources:
        raise ValueError(f"sources must be a list of at least one folder or file, was {sources!r}")
    for label, patterns in (("include", include), ("exclude", exclude)):
        if isinstance(patterns, str):
            raise ValueError(f"{label} must be a list of patterns, was the string {patterns!r}")
    output = Path(output)
    files = find_images(sources, include=include, exclude=exclude)
    if not files:
        raise ValueError(_nothing("no picture files", sources, include, exclude))
    with _writing(output, progress):
        run = _Run(output, files, min_size)
        run.decode(workers, progress)
        if not run.images:
            raise ValueError(_nothing("no usable pictures", sources, include, exclude, run.skipped))
        run.finish()
        return run.report()


@contextlib.contextmanager
def _writing(output: Path, progress: bool) -> Iterator[None]:
    """Hold the pack's lock; say plainly that a disk is full."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        _check_own_folder(output)
        with open(output / store.LOCK, "ab") as lock:
            try:  # the kernel lets go of the lock however this process ends
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if progress:
                    tqdm.write(f"waiting for another run that packs to {output}", file=sys.stderr)
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        if error.errno in store.FULL:
            raise OSError(error.errno, f"the disk is full, the pack {output} is as it was") from error
        raise


def _check_own_folder(output: Path) -> None:
    """Refuse a folder that holds other things: a pack deletes files by their names."""
    others = sorted(path.name for path in output.iterdir())
    if not others or store.LOCK in others:
        return
    try:
        store.read_index(output / store.INDEX)  # a copy of a pack may have come without its lock
    except (FileNotFoundError, PackError):
        raise ValueError(
            f"output must be a pack or an empty folder, {output} holds others, as {printable(others[0])}"
        ) from None


class _Run:
    """One update of a pack; the lock is held."""

    def __init__(self, output: Path, files: Sequence[SourceFile], min_size: int) -> None:
        self.output, self.min_size = output, min_size
        self.before, self.old = _old_indices(output)
        _delete_strays(output, keep=self.before.shards.keys() | self.old.shards.keys())
        known = {(e.path, e.size, e.mtime_ns): e for e in self.old.images}
        self.skipped: list[tuple[str, str]] = []
        self.images: dict[str, Entry] = {}
        self.todo: list[tuple[SourceFile, _Key]] = []
        for file in files:
            try:
                status = os.stat(file.path)
            except OSError as error:
                self.skipped.append((file.name, error.strerror or str(error)))
                continue
            key = (file.path, status.st_size, status.st_mtime_ns)
            entry = known.get(key)
            if entry is None:
                self.todo.append((file, key))
            elif min(entry.height, entry.width) < min_size:
                reason = f"{entry.width}x{entry.height} pixels, smaller than the minimum of {min_size}"
                self.skipped.append((file.name, reason))
            else:
                self.images[file.name] = replace(entry, name=file.name)
        self.order = {file.name: position for position, file in enumerate(files)}
        self.reused = len(self.images)
        self.writer = ShardWriter(output, self.old.next_shard, store.SHARD_BYTES)

    @contextlib.contextmanager
    def _undone_on_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            full = isinstance(error, OSError) and error.errno in store.FULL
            self.writer.abandon(everything=full)
            if full:
                (self.output / store.PROGRESS).unlink(missing_ok=True)
                _delete_strays(self.output, keep=self.before.shards.keys())
            raise

    def decode(self, workers: int | None, progress: bool) -> None:
        """Decode what is new into new shards."""
        paths = [file.path for file, _ in self.todo]
        decoded = decode_files(paths, min_size=self.min_size, workers=workers)
        bar = tqdm(total=len(paths), desc="packing", unit="image", disable=not (progress and paths))
        with self._undone_on_failure(), contextlib.closing(decoded), bar:
            for (file, key), result in zip(self.todo, decoded, strict=True):
                if isinstance(result, str):
                    self.skipped.append((file.name, result))
                else:
                    self._add(file.name, key, result)
                bar.update()

    def _add(self, name: str, key: _Key, pixels: np.ndarray) -> None:
        finished = len(self.writer.shards)
        shard, offset = self.writer.add(pixels)
        self.images[name] = Entry(name, *key, shard, offset, *pixels.shape[:2])
        if len(self.writer.shards) > finished:
            finished_shards = self.old.shards.keys() | self.writer.shards.keys()
            self._write(store.PROGRESS, [e for e in self.images.values() if e.shard in finished_shards])

    def finish(self) -> None:
        """Rewrite wasteful shards, replace the index, delete what it no longer names."""
        with self._undone_on_failure():
            self._compact()
            self.writer.finish_shard()
            images = [self.images[name] for name in sorted(self.images, key=self.order.__getitem__)]
            if images != self.before.images or self.writer.shards:
                self._write(store.INDEX, images)
        # From here on the new pack is the pack.
        sync_folder(self.output)
        (self.output / store.PROGRESS).unlink(missing_ok=True)
        _delete_strays(self.output, keep={entry.shard for entry in images})

    def _write(self, name: str, images: list[Entry]) -> None:
        sync_folder(self.output)
        lengths = {**self.old.shards, **self.writer.shards}
        shards = {shard: lengths[shard] for shard in sorted({entry.shard for entry in images})}
        store.write_index(self.output / name, Index(DECODER_VERSION, self.writer.next_shard, shards, images))

    def _compact(self) -> None:
        live: dict[str, list[Entry]] = defaultdict(list)
        for entry in self.images.values():
            if entry.shard in self.old.shards:
                live[entry.shard].append(entry)
        writing = self.writer.next_shard > self.old.next_shard
        for shard, entries in sorted(live.items()):
            used, length = sum(entry.bytes for entry in entries), self.old.shards[shard]
            if 2 * used < length or (writing and 8 * used < store.SHARD_BYTES):
                pixels = np.memmap(self.output / shard, np.uint8, "r")
                for entry in sorted(entries, key=lambda entry: entry.offset):
                    place = self.writer.add(pixels[entry.offset : entry.offset + entry.bytes])
                    self.images[entry.name] = replace(entry, shard=place[0], offset=place[1])

    def report(self) -> PackReport:
        """What the run did."""
        paths = {entry.path for entry in self.images.values()}
        return PackReport(
            packed=len(self.images) - self.reused,
            reused=self.reused,
            removed=sum(path not in paths for path in {entry.path for entry in self.before.images}),
            skipped=sorted(self.skipped, key=lambda one: self.order[one[0]]),
            bytes=sum(entry.bytes for entry in self.images.values()),
        )


def _old_indices(output: Path) -> tuple[Index, Index]:
    """What the index names; and what can be used again: that, and what a run cut off had finished."""
    empty = Index(DECODER_VERSION, 0, {}, [])
    shards = sorted(output.glob(store.SHARD_PATTERN))
    try:
        before = store.read_index(output / store.INDEX)
    except FileNotFoundError:
        before = empty
    except PackError:
        # Of another version, or damaged: pack anew, under names that were never used.
        numbers = [int(number) for shard in shards if (number := shard.stem.removeprefix("pixels-")).isdecimal()]
        return empty, replace(empty, next_shard=max(numbers, default=-1) + 1)
    try:
        cut_off = store.read_index(output / store.PROGRESS)
    except (FileNotFoundError, PackError):
        cut_off = empty
    usable = {}
    entries = {}
    for index in (before, cut_off):
        if index.decoder == DECODER_VERSION:
            whole = {name: length for name, length in index.shards.items() if _length(output / name) == length}
            usable.update(whole)
            entries.update({(e.path, e.size, e.mtime_ns): e for e in index.images if e.shard in whole})
    next_shard = max(before.next_shard, cut_off.next_shard)
    return before, Index(DECODER_VERSION, next_shard, usable, list(entries.values()))


def _length(path: Path) -> int | None:
    return path.stat().st_size if path.exists() else None


def _delete_strays(output: Path, keep: AbstractSet[str]) -> None:
    """Delete the shards that no index names: a run that was cut off, or this one, left them."""
    for shard in output.glob(store.SHARD_PATTERN):
        if shard.name not in keep:
            shard.unlink()


def _nothing(
    what: str,
    sources: Sequence[str | Path],
    include: Sequence[str],
    exclude: Sequence[str],
    skipped: Sequence[tuple[str, str]] = (),
) -> str:
    """One line that says where nothing was found, and why the first files were skipped."""
    text = f"sources hold {what}: {', '.join(map(str, sources))}"
    if include:
        text += f"; include {', '.join(include)}"
    if exclude:
        text += f"; exclude {', '.join(exclude)}"
    reasons = [f"{printable(name)}: {reason}" for name, reason in skipped[:3]]
    if len(skipped) > len(reasons):
        reasons.append(f"and {len(skipped) - len(reasons)} more")
    return text + "".join(f"; {reason}" for reason in reasons)
