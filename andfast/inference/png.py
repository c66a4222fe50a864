"""Write a PNG row by row, with 8 or 16 bits and ancillary chunks, compressing in threads.

No library covers this: Pillow and torchvision (libpng) encode a whole image from memory and write no 16-bit RGB; OpenCV
and imageio encode from memory and drop ancillary chunks; pypng streams, but filters in pure Python. A result of 1.6
gigapixels (4.8 GB of RGB) must be written with less than 4 GB of memory.
"""

import struct
import zlib
from typing import Any, BinaryIO, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from andfast.inference.metadata import NO_METADATA, Metadata, png_chunks
from andfast.inference.ordered_pool import OrderedPool

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_COLOR_TYPES: Final = {1: 0, 2: 4, 3: 2, 4: 6}
_PAETH: Final = 4
_BLOCK: Final = 1 << 20  # bytes compressed independently by one thread; deflate's window is 32768
_LEVEL: Final = 4  # a third of the time of level 6, 10% larger
_ADLER_BASE: Final = 65521


class _Compressed(NamedTuple):
    content: bytes  # raw deflate, flushed to a byte boundary
    adler: int  # Adler-32 of the uncompressed bytes
    length: int  # of the uncompressed bytes


class PngWriter:
    """Write an image from top to bottom.

    Blocks of rows are compressed in threads. As in pigz, the raw deflate blocks are concatenated to one stream between
    zlib's header and the combined checksum.

    Args:
        file: Binary file open for writing.
        width: Width in pixels.
        height: Height in pixels.
        channels: 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha).
        bits: 8 or 16.
        metadata: Metadata to store in ancillary chunks.
    """

    def __init__(
        self,
        file: BinaryIO,
        width: int,
        height: int,
        *,
        channels: int,
        bits: int,
        metadata: Metadata = NO_METADATA,
    ) -> None:
        self._file = file
        self._pixel_bytes = channels * bits // 8
        self._dtype = ">u2" if bits == 16 else "u1"
        self._above = np.zeros(width * self._pixel_bytes, np.uint8)
        self._lines: list[NDArray[np.uint8]] = []
        self._pending_bytes = 0
        self._adler = 1
        self._blocks = OrderedPool(self._append)
        file.write(SIGNATURE)
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, _COLOR_TYPES[channels], 0, 0, 0))
        for name, content in png_chunks(metadata):
            self._chunk(name, content)
        if metadata.profile:
            self._chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(metadata.profile))
        if metadata.exif:
            self._chunk(b"eXIf", metadata.exif.removeprefix(b"Exif\0\0"))
        self._chunk(b"IDAT", b"\x78\x5e")  # zlib header: deflate, window of 32768

    def write(self, rows: NDArray[Any]) -> None:
        """Append rows, (n, width, channels), uint8 for 8 bits or uint16 for 16 bits."""
        step = max(1, _BLOCK // len(self._above))
        for start in range(0, len(rows), step):
            block = np.ascontiguousarray(rows[start : start + step].astype(self._dtype))
            self._lines.append(block.view(np.uint8).reshape(len(block), -1))
            self._pending_bytes += block.nbytes
            if self._pending_bytes >= _BLOCK:
                self._compress()

    def close(self) -> None:
        """Finish the image; the file stays open."""
        self._compress()
        self._blocks.finish()
        self._chunk(b"IDAT", b"\x03\0" + struct.pack(">I", self._adler))  # empty final block, checksum
        self._chunk(b"IEND", b"")

    def _compress(self) -> None:
        if self._lines:
            lines = np.concatenate(self._lines)
            self._blocks.submit(_compressed, lines, self._above, self._pixel_bytes)
            self._above, self._lines, self._pending_bytes = lines[-1], [], 0

    def _append(self, block: _Compressed) -> None:
        self._adler = _adler32_combine(self._adler, block.adler, block.length)
        self._chunk(b"IDAT", block.content)

    def _chunk(self, name: bytes, content: bytes) -> None:
        self._file.write(struct.pack(">I", len(content)) + name + content)
        self._file.write(struct.pack(">I", zlib.crc32(content, zlib.crc32(name))))


def _compressed(lines: NDArray[np.uint8], above: NDArray[np.uint8], pixel_bytes: int) -> _Compressed:
    """Filter and deflate lines that follow the line ``above``."""
    filtered = _filtered(lines, np.concatenate([above[None], lines[:-1]]), pixel_bytes)
    compressor = zlib.compressobj(_LEVEL, wbits=-zlib.MAX_WBITS)
    content = compressor.compress(filtered) + compressor.flush(zlib.Z_FULL_FLUSH)
    return _Compressed(content, zlib.adler32(filtered), len(filtered))


def _filtered(lines: NDArray[np.uint8], above: NDArray[np.uint8], pixel_bytes: int) -> bytes:
    """PNG filter 4 (Paeth), the best single filter for photographs: the residual of left + above - above left."""
    left, corner = np.zeros_like(lines), np.zeros_like(lines)
    left[:, pixel_bytes:], corner[:, pixel_bytes:] = lines[:, :-pixel_bytes], above[:, :-pixel_bytes]
    a, b, c = left.astype(np.int16), above.astype(np.int16), corner.astype(np.int16)
    to_a, to_b = np.abs(b - c), np.abs(a - c)  # |p - a| and |p - b| with p = a + b - c
    to_c = np.abs(a + b - 2 * c)
    nearest = np.where((to_a <= to_b) & (to_a <= to_c), left, np.where(to_b <= to_c, above, corner))
    out = np.empty((len(lines), lines.shape[1] + 1), np.uint8)
    out[:, 0] = _PAETH
    np.subtract(lines, nearest, out=out[:, 1:])
    return out.tobytes()


def _adler32_combine(first: int, second: int, length: int) -> int:
    """Adler-32 of a concatenation from the checksums of both parts and the length of the second (as in zlib)."""
    low = first & 0xFFFF
    high = length * low + (first >> 16) + (second >> 16) - length
    return high % _ADLER_BASE << 16 | (low + (second & 0xFFFF) - 1) % _ADLER_BASE
