"""One update of a pack: reuse unchanged images, decode new ones, reclaim space, replace the index."""

import contextlib
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path

import numpy as np

from andfast.files import FULL, printable, sync_folder
from andfast.progress import Progress

from . import store
from .decoding import DecodedPixels, decode_files
from .images import DECODER_VERSION
from .sources import SourceFile
from .store import Entry, Index, PackError, ShardWriter, digest_of

_Key = tuple[str, int, int]  # real path, size, modification time


class PackUpdate:
    """State of one update; nothing is written before :meth:`decode`, for which the caller must hold the pack's lock.

    Args:
        output: Folder of the pack.
        files: Image files of the new pack.
        min_size: Minimum height and width in pixels.
        add: Keep images of the previous pack whose files are not among ``files``.

    Attributes:
        images: Entries of the new pack, by name.
        reused: Number of entries taken from the old pack.
        skipped: (name, reason) of each unusable file, in the order of ``files``.
    """

    def __init__(self, output: Path, files: Sequence[SourceFile], min_size: int, *, add: bool = False) -> None:
        self._output, self._min_size = output, min_size
        self._before, self._old = _read_old_indices(output)
        known = {(entry.path, entry.size, entry.mtime_ns): entry for entry in self._old.images}
        self.images: dict[str, Entry] = {}
        self._skipped: dict[str, str] = {}
        self._new: list[tuple[SourceFile, _Key]] = []
        for file in files:
            try:
                status = os.stat(file.path)
            except OSError as error:
                self._skipped[file.name] = error.strerror or str(error)
                continue
            key = (file.path, status.st_size, status.st_mtime_ns)
            entry = known.get(key)
            if entry is None:
                self._new.append((file, key))
            elif min(entry.height, entry.width) < min_size:
                reason = f"{entry.width}x{entry.height} pixels, smaller than the minimum of {min_size}"
                self._skipped[file.name] = reason
            else:
                self.images[file.name] = replace(entry, name=file.name)
        self._order = {file.name: position for position, file in enumerate(files)}
        if add:
            self._keep_unlisted(files)
        self.reused = len(self.images)
        self._writer = ShardWriter(output, self._old.next_shard, store.SHARD_BYTES)

    @property
    def skipped(self) -> list[tuple[str, str]]:
        return sorted(self._skipped.items(), key=lambda item: self._order[item[0]])

    @property
    def removed(self) -> list[str]:
        """Names of images of the previous index whose files are not in the new pack."""
        paths = {entry.path for entry in self.images.values()}
        return [entry.name for entry in self._before.images if entry.path not in paths]

    def differences(self, workers: int | None) -> str | None:
        """How the pack differs from the files, or None, without writing; new files are decoded to see if they count."""
        decoded = decode_files([file.path for file, _ in self._new], min_size=self._min_size, workers=workers)
        unpacked = []
        for (file, _), result in zip(self._new, decoded, strict=True):
            if isinstance(result, str):
                self._skipped[file.name] = result
            else:
                unpacked.append(file.name)
        parts = []
        for names, text in ((unpacked, "not packed"), (self.removed, "not in the sources")):
            if names:
                parts.append(f"{len(names)} {text} ({shown(names)})")
        if not parts and self._sorted() != self._before.images:
            parts.append("the names or the order of the images")
        return ", ".join(parts) or None

    def decode(self, workers: int | None, progress: bool) -> None:
        """Decode new and changed files into new shards."""
        _delete_unlisted_shards(self._output, keep=self._before.shards.keys() | self._old.shards.keys())
        paths = [file.path for file, _ in self._new]
        decoded = decode_files(paths, min_size=self._min_size, workers=workers)
        bar = Progress("packing", len(paths), unit="image", enabled=bool(progress and paths))
        with self._rolled_back_on_error(), contextlib.closing(decoded), bar:
            for (file, key), result in zip(self._new, decoded, strict=True):
                if isinstance(result, str):
                    self._skipped[file.name] = result
                else:
                    self._add(file.name, key, result)
                bar.advance()

    def finish(self) -> None:
        """Compact shards, replace the index, delete shards that it no longer lists."""
        with self._rolled_back_on_error():
            self._hash_old_images()
            self._compact()
            self._writer.finish_shard()
            images = self._sorted()
            if images != self._before.images or self._writer.shards:
                self._write_index(store.INDEX, images)
        # The new index is in place: from here on only leftovers are deleted.
        sync_folder(self._output)
        (self._output / store.PROGRESS).unlink(missing_ok=True)
        _delete_unlisted_shards(self._output, keep={entry.shard for entry in images})

    @contextlib.contextmanager
    def _rolled_back_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            full = isinstance(error, OSError) and error.errno in FULL
            self._writer.abandon(everything=full)
            if full:
                (self._output / store.PROGRESS).unlink(missing_ok=True)
                _delete_unlisted_shards(self._output, keep=self._before.shards.keys())
            raise

    def _keep_unlisted(self, files: Sequence[SourceFile]) -> None:
        """Keep previous images whose files are not listed, in front; one whose name is taken gets its path as name."""
        paths = {file.path for file in files}
        usable = {entry.path: entry for entry in self._old.images}
        kept = [entry for entry in self._before.images if entry.path not in paths and entry.path in usable]
        for position, entry in enumerate(kept):
            name = entry.path if entry.name in self._order else entry.name
            self.images[name] = replace(usable[entry.path], name=name)
            self._order[name] = position - len(kept)

    def _sorted(self) -> list[Entry]:
        return [self.images[name] for name in sorted(self.images, key=self._order.__getitem__)]

    def _add(self, name: str, key: _Key, decoded: DecodedPixels) -> None:
        finished = len(self._writer.shards)
        shard, offset = self._writer.add(decoded.pixels)
        height, width = decoded.pixels.shape[:2]
        self.images[name] = Entry(name, *key, shard, offset, height, width, decoded.digest)
        if len(self._writer.shards) > finished:
            finished_shards = self._old.shards.keys() | self._writer.shards.keys()
            entries = [entry for entry in self.images.values() if entry.shard in finished_shards]
            self._write_index(store.PROGRESS, entries)

    def _write_index(self, name: str, images: list[Entry]) -> None:
        sync_folder(self._output)
        lengths = {**self._old.shards, **self._writer.shards}
        shards = {shard: lengths[shard] for shard in sorted({entry.shard for entry in images})}
        store.write_index(self._output / name, Index(DECODER_VERSION, self._writer.next_shard, shards, images))

    def _hash_old_images(self) -> None:
        """Add the digests that packs of format version 1 lack."""
        for entry in [entry for entry in self.images.values() if not entry.digest]:
            pixels = np.memmap(self._output / entry.shard, np.uint8, "r", entry.offset, (entry.bytes,))
            self.images[entry.name] = replace(entry, digest=digest_of(pixels))

    def _compact(self) -> None:
        live: dict[str, list[Entry]] = defaultdict(list)
        for entry in self.images.values():
            if entry.shard in self._old.shards:
                live[entry.shard].append(entry)
        writing = self._writer.next_shard > self._old.next_shard
        for shard, entries in sorted(live.items()):
            used, length = sum(entry.bytes for entry in entries), self._old.shards[shard]
            if 2 * used < length or (writing and 8 * used < store.SHARD_BYTES):
                pixels = np.memmap(self._output / shard, np.uint8, "r")
                for entry in sorted(entries, key=lambda entry: entry.offset):
                    shard_name, offset = self._writer.add(pixels[entry.offset : entry.offset + entry.bytes])
                    self.images[entry.name] = replace(entry, shard=shard_name, offset=offset)


def shown(names: Sequence[str], limit: int = 3) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(printable(name) for name in names[:limit]) + more


def _read_old_indices(output: Path) -> tuple[Index, Index]:
    """The pack's index, and the reusable part of it joined with the finished shards of an interrupted run."""
    empty = Index(DECODER_VERSION, 0, {}, [])
    shards = sorted(output.glob(store.SHARD_PATTERN))
    try:
        before = store.read_index(output / store.INDEX)
    except FileNotFoundError:
        before = empty
    except PackError:
        # Damaged or of another version: rebuild the pack under shard names that were never used.
        numbers = [int(number) for shard in shards if (number := shard.stem.removeprefix("pixels-")).isdecimal()]
        return empty, replace(empty, next_shard=max(numbers, default=-1) + 1)
    try:
        interrupted = store.read_index(output / store.PROGRESS)
    except (FileNotFoundError, PackError):
        interrupted = empty
    usable = {}
    entries = {}
    for index in (before, interrupted):
        if index.decoder == DECODER_VERSION:
            whole = {name: length for name, length in index.shards.items() if _length(output / name) == length}
            usable.update(whole)
            entries.update({(e.path, e.size, e.mtime_ns): e for e in index.images if e.shard in whole})
    next_shard = max(before.next_shard, interrupted.next_shard)
    return before, Index(DECODER_VERSION, next_shard, usable, list(entries.values()))


def _length(path: Path) -> int | None:
    return path.stat().st_size if path.exists() else None


def _delete_unlisted_shards(output: Path, keep: AbstractSet[str]) -> None:
    """Delete shards that no index lists, left by this or an interrupted run."""
    for shard in output.glob(store.SHARD_PATTERN):
        if shard.name not in keep:
            shard.unlink()
