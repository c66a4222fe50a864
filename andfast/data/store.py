"""On-disk format of a pack: many images in a few large memory-mapped files.

A pack is a folder with
- ``pixels-NNNN.bin``: shards of concatenated images, each height * width * 3 bytes (row-major, RGB).
- ``index.json``: format version, shards with their lengths, and per image: name, source file (path, size, modification
  time), shard, offset, height, width and digest of its pixels. Shards that the index does not list are ignored.
- ``progress.json``: only while packing or after an interrupted run: images in finished shards that are not yet in the
  index, so that the next run need not decode them again. Readers ignore it.
- ``pack.lock``: flock held by the packing process; the first file of a new pack.

A shard is immutable once written and its name is never reused. The index is replaced atomically after everything it
lists is on disk, so an interruption leaves either the previous or the new pack. Version 1 had no digests; it is still
read, and upgraded by the next run that packs.
"""

import contextlib
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from andfast.files import atomic_file, printable
from andfast.progress import Progress

FORMAT, VERSION = "andfast-pack", 2
INDEX, PROGRESS, LOCK = "index.json", "progress.json", "pack.lock"
SHARD_PATTERN = "pixels-*.bin"
SHARD_BYTES = 1 << 30
_LARGE = 1 << 30  # bytes of a pack whose verification shows a progress bar


class PackError(ValueError):
    """The folder does not hold a readable pack."""


@dataclass(frozen=True)
class Entry:
    """One image of a pack: its source file, the location of its pixels and their digest ("" in version 1)."""

    name: str
    path: str
    size: int
    mtime_ns: int
    shard: str
    offset: int
    height: int
    width: int
    digest: str = ""

    @property
    def bytes(self) -> int:
        """Number of bytes of its pixels."""
        return self.height * self.width * 3


@dataclass(frozen=True)
class Index:
    """Contents of ``index.json`` or ``progress.json``."""

    decoder: int
    next_shard: int
    shards: dict[str, int]  # name: bytes
    images: list[Entry]


def read_index(path: Path) -> Index:
    """Read and check an index.

    Raises:
        FileNotFoundError: The file does not exist.
        PackError: The file is not an index, is damaged, or has another format version.
    """
    try:
        data: Any = json.loads(path.read_bytes())
    except (ValueError, UnicodeDecodeError) as error:
        raise PackError(f"{path} is damaged: {error}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise PackError(f"{path} is not the index of an andfast pack")
    if data.get("version") not in {1, VERSION}:
        raise PackError(f"{path} must have format version 1 or {VERSION}, was {data.get('version')}")
    try:
        images = [Entry(**dict(zip(data["columns"], row, strict=True))) for row in data["images"]]
        index = Index(data["decoder"], data["next_shard"], data["shards"], images)
        for entry in images:
            if entry.offset < 0 or entry.bytes <= 0 or entry.offset + entry.bytes > index.shards[entry.shard]:
                raise ValueError(f"{entry.name} is outside of its shard")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PackError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    return index


def write_index(path: Path, index: Index) -> None:
    """Atomically replace an index; its shards must already be on disk."""
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


def digest_of(pixels: NDArray[np.uint8]) -> str:
    """BLAKE2b-128 (hexadecimal) of an image's pixels, which must be contiguous."""
    return hashlib.blake2b(pixels.data, digest_size=16).hexdigest()


class ShardWriter:
    """Append images to new shards.

    Attributes:
        shards: Finished shards and their lengths in bytes.
        next_shard: Number of the next shard.
    """

    def __init__(self, folder: Path, first_shard: int, shard_bytes: int = SHARD_BYTES) -> None:
        self.shards: dict[str, int] = {}
        self.next_shard = first_shard
        self._folder, self._limit = folder, shard_bytes
        self._file: BinaryIO | None = None
        self._name, self._length = "", 0

    def add(self, pixels: NDArray[np.uint8]) -> tuple[str, int]:
        """Append a contiguous array; return the name of its shard and its offset."""
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
        """Sync the current shard, if any, to disk and close it."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None
            self.shards[self._name] = self._length

    def abandon(self, *, everything: bool) -> None:
        """Delete the unfinished shard, or all new shards."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # closing fails too on a full disk; the file is deleted anyway
                self._file.close()
            self._file = None
            (self._folder / self._name).unlink(missing_ok=True)
        if everything:
            for name in self.shards:
                (self._folder / name).unlink(missing_ok=True)
            self.shards = {}


class PackedImages:
    """Memory-mapped images of a pack, in the order of its sources.

    ``images[i]`` is a read-only (H, W, 3) uint8 view of the file: copy it before ``torch.from_numpy``. Pickling keeps
    the path only; the copy maps the same shards on first use. An open pack stays readable while it is replaced.

    Attributes:
        path: Folder of the pack.
        names: Unique image names.
        sizes: (n, 2) int64, height and width.
        digests: BLAKE2b-128 of each image's pixels, hexadecimal; "" for packs of format version 1.

    Args:
        path: Folder of the pack.
        verify: Compare all pixels with their digests, in threads, with a progress bar above 1 GB. Unpickled copies do
            not verify again.

    Raises:
        FileNotFoundError: The folder holds no pack.
        PackError: The pack is damaged or has another format version; the message names the file.
    """

    def __init__(self, path: str | Path, *, verify: bool = True) -> None:
        self.path = Path(path)
        # Another process may replace the pack between reading the index and opening the shards.
        for attempt in range(3):
            try:
                index = read_index(self.path / INDEX)
            except FileNotFoundError:
                raise FileNotFoundError(
                    f"{self.path} holds no pack: create one with python -m andfast.prepare FOLDER --output {self.path}"
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
        self.digests = [entry.digest for entry in index.images]
        self._locations = [(entry.shard, entry.offset, entry.height, entry.width) for entry in index.images]

        if verify:
            self._verify()

    def _verify(self) -> None:
        total = sum(height * width * 3 for _, _, height, width in self._locations)
        hashed = [index for index, digest in enumerate(self.digests) if digest]
        with (
            ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="verify") as pool,
            Progress("verifying", len(hashed), unit="image", enabled=total > _LARGE) as bar,
        ):
            try:
                for index, digest in zip(hashed, pool.map(self._digest, hashed), strict=True):
                    if digest != self.digests[index]:
                        file, name = self.path / self._locations[index][0], printable(self.names[index])
                        raise PackError(
                            f"{file} is damaged: the pixels of {name} differ from their checksum in {INDEX}; delete "
                            f"{self.path} and pack again"
                        )
                    bar.advance()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _digest(self, index: int) -> str:
        return digest_of(self[index])

    def _map(self) -> dict[str, NDArray[np.uint8]]:
        maps = {}
        for name, length in self._shards.items():
            file = self.path / name
            try:
                size = file.stat().st_size
                if size != length:
                    raise PackError(f"{file} must have {length} bytes, has {size}: delete {self.path} and pack again")
                maps[name] = np.asarray(np.memmap(file, np.uint8, "r"))
            except FileNotFoundError:
                raise PackError(f"{file} is missing: delete {self.path} and pack again") from None
        return maps

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        if self._maps is None:
            self._maps = self._map()
        shard, offset, height, width = self._locations[index]
        return self._maps[shard][offset : offset + height * width * 3].reshape(height, width, 3)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": None}
