"""The pack on disk: many pictures in a few large files, mapped into memory; how it is written and read.

A pack is a folder of
- ``pixels-NNNN.bin``: shards, pictures one after another, each as height * width * 3 bytes (row by row, RGB).
- ``index.json``: what is a pack: the format's version, the shards with their lengths, and for each picture
  its name, source file (path, size, modification time), shard, offset, height and width. It alone counts; a
  shard that it does not name does not exist.
- ``progress.json``: only while packing, or after packing was cut off: pictures in shards that are finished
  but not yet in the index, so that the next run need not decode them again. Readers ignore it.
- ``pack.lock``: held (flock) by whoever packs; the first file of a new pack.

Shards are never changed once written and their names never used twice. The index is replaced in one step
after all it names is on the disk, so that whatever happens in between, the pack is either as before or as
after.
"""

import contextlib
import errno
import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from andfast.files import atomic_file

FORMAT, VERSION = "andfast-pack", 1
INDEX, PROGRESS, LOCK = "index.json", "progress.json", "pack.lock"
SHARD_PATTERN = "pixels-*.bin"
SHARD_BYTES = 1 << 30
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class PackError(ValueError):
    """A folder holds no pack that can be read."""


@dataclass(frozen=True)
class Entry:
    """One picture of a pack: where it came from and where its pixels are."""

    name: str
    path: str
    size: int
    mtime_ns: int
    shard: str
    offset: int
    height: int
    width: int

    @property
    def bytes(self) -> int:
        """The length of its pixels."""
        return self.height * self.width * 3


@dataclass(frozen=True)
class Index:
    """The contents of ``index.json`` or ``progress.json``."""

    decoder: int
    next_shard: int
    shards: dict[str, int]  # name: bytes
    images: list[Entry]


def read_index(path: Path) -> Index:
    """Read an index and check that it is one.

    Raises:
        FileNotFoundError: there is no such file.
        PackError: it is something else, damaged, or of another version.
    """
    try:
        data: Any = json.loads(path.read_bytes())
    except (ValueError, UnicodeDecodeError) as error:
        raise PackError(f"{path} is damaged: {error}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise PackError(f"{path} is not the index of a pack of andfast")
    if data.get("version") != VERSION:
        raise PackError(f"{path} is of version {data.get('version')}, this andfast reads version {VERSION}")
    try:
        images = [Entry(**dict(zip(data["columns"], row, strict=True))) for row in data["images"]]
        index = Index(data["decoder"], data["next_shard"], data["shards"], images)
        for entry in images:
            if entry.offset < 0 or entry.bytes <= 0 or entry.offset + entry.bytes > index.shards[entry.shard]:
                raise ValueError(f"{entry.name} lies outside of its shard")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PackError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    return index


def write_index(path: Path, index: Index) -> None:
    """Replace an index in one step; its shards must be on the disk. On an error the old one is there."""
    data = {
        "format": FORMAT,
        "version": VERSION,
        "decoder": index.decoder,
        "next_shard": index.next_shard,
        "shards": index.shards,
        "columns": [field.name for field in fields(Entry)],
        "images": [list(asdict(entry).values()) for entry in index.images],
    }
    with atomic_file(path) as file:
        file.write(json.dumps(data, separators=(",", ":")).encode("ascii"))


class ShardWriter:
    """Appends pictures to new shards.

    Attributes:
        shards: the finished shards and their lengths.
        next_shard: the number of the next one.
    """

    def __init__(self, folder: Path, first_shard: int, shard_bytes: int = SHARD_BYTES) -> None:
        self.shards: dict[str, int] = {}
        self.next_shard = first_shard
        self._folder, self._limit = folder, shard_bytes
        self._file: BinaryIO | None = None
        self._name, self._length = "", 0

    def add(self, pixels: NDArray[np.uint8]) -> tuple[str, int]:
        """Append a contiguous array; return the shard's name and the offset in it."""
        if self._file is not None and self._length + pixels.nbytes > self._limit:
            self.finish_shard()
        if self._file is None:
            self._name, self._length = f"pixels-{self.next_shard:04d}.bin", 0
            self._file = open(self._folder / self._name, "xb")  # noqa: SIM115 - open until the shard is full
            self.next_shard += 1
        offset = self._length
        self._file.write(pixels.data)
        self._length += pixels.nbytes
        return self._name, offset

    def finish_shard(self) -> None:
        """Bring the shard being written, if any, onto the disk."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None
            self.shards[self._name] = self._length

    def abandon(self, *, everything: bool) -> None:
        """Delete the unfinished shard, or all new ones."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # on a full disk closing fails too, and the file goes in any case
                self._file.close()
            self._file = None
            (self._folder / self._name).unlink(missing_ok=True)
        if everything:
            for name in self.shards:
                (self._folder / name).unlink(missing_ok=True)
            self.shards = {}


class PackedImages:
    """The pictures of a pack, in the order of their sources, read through memory maps.

    ``images[i]`` is a read-only (H, W, 3) uint8 view of the file: copy it before giving it to
    ``torch.from_numpy``. Can be pickled; the copy maps the same shards when first used. A pack that is
    replaced meanwhile stays readable here.

    Attributes:
        path: the pack's folder.
        names: the pictures' names, unique.
        sizes: (n, 2) int64, height and width.

    Raises:
        FileNotFoundError: the folder holds no pack.
        PackError: the pack is damaged or of another version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        # Another process may replace the pack between the reading of the index and the opening of its shards.
        for attempt in range(3):
            try:
                index = read_index(self.path / INDEX)
            except FileNotFoundError:
                raise FileNotFoundError(
                    f"{self.path} holds no pack, which python -m andfast.prepare FOLDER --output PACK makes"
                ) from None
            self._shards = index.shards
            try:
                self._maps: dict[str, NDArray[np.uint8]] | None = self._map()
                break
            except PackError:
                if attempt == 2:
                    raise
        self.names = [entry.name for entry in index.images]
        self.sizes = np.array([(entry.height, entry.width) for entry in index.images], np.int64).reshape(-1, 2)
        self._places = [(entry.shard, entry.offset, entry.height, entry.width) for entry in index.images]

    def _map(self) -> dict[str, NDArray[np.uint8]]:
        maps = {}
        for name, length in self._shards.items():
            file = self.path / name
            try:
                found = file.stat().st_size
                if found != length:
                    raise PackError(f"{file} has {found} bytes instead of {length}: delete {self.path} and pack again")
                maps[name] = np.asarray(np.memmap(file, np.uint8, "r"))
            except FileNotFoundError:
                raise PackError(f"{file} is missing: delete {self.path} and pack again") from None
        return maps

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        if self._maps is None:
            self._maps = self._map()
        shard, offset, height, width = self._places[index]
        return self._maps[shard][offset : offset + height * width * 3].reshape(height, width, 3)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": None}
