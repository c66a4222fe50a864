"""Write a PNG row by row, in 8 or 16 bits: Pillow writes no 16-bit RGB, and wants a whole picture in memory."""

import struct
import zlib
from typing import Any, BinaryIO, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from andfast.inference.in_order import InOrder

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES: Final = {1: 0, 2: 4, 3: 2, 4: 6}
_PAETH: Final = 4
_BLOCK: Final = 1 << 20  # bytes that a thread compresses by themselves; deflate looks back 32768 at most
_LEVEL: Final = 4  # a third of the time of 6, a tenth more bytes
_ADLER_BASE: Final = 65521


class _Compressed(NamedTuple):
    content: bytes  # deflated, ending on a byte
    adler: int  # checksum of what it was
    length: int  # of what it was


class PngWriter:
    """Writes one picture from top to bottom.

    The rows are compressed in threads, a block of them in each: blocks of raw deflate one after the other are one
    stream, as pigz makes it, between zlib's header and the checksum of all.

    Args:
        file: where to, a file open for writing bytes.
        width, height: the picture's.
        channels: 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha).
        bits: 8 or 16.
        profile: an ICC profile.
        exif: an EXIF block, with or without the "Exif" marker of JPEG.
    """

    def __init__(
        self,
        file: BinaryIO,
        width: int,
        height: int,
        *,
        channels: int,
        bits: int,
        profile: bytes | None = None,
        exif: bytes | None = None,
    ) -> None:
        self._file = file
        self._bytes = channels * bits // 8  # a pixel's
        self._type = ">u2" if bits == 16 else "u1"
        self._above = np.zeros(width * self._bytes, np.uint8)
        self._lines: list[NDArray[np.uint8]] = []
        self._count = 0  # of the bytes in them
        self._adler = 1
        self._blocks = InOrder(self._append)
        file.write(SIGNATURE)
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, _COLOUR_TYPES[channels], 0, 0, 0))
        if profile:
            self._chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(profile))
        if exif:
            self._chunk(b"eXIf", exif.removeprefix(b"Exif\0\0"))
        self._chunk(b"IDAT", b"\x78\x5e")  # zlib's header: deflate, a window of 32768

    def write(self, rows: NDArray[Any]) -> None:
        """Append rows: (n, width, channels), uint8 or uint16 as the bits say."""
        step = max(1, _BLOCK // len(self._above))
        for start in range(0, len(rows), step):
            block = np.ascontiguousarray(rows[start : start + step].astype(self._type))
            self._lines.append(block.view(np.uint8).reshape(len(block), -1))
            self._count += block.nbytes
            if self._count >= _BLOCK:
                self._compress()

    def close(self) -> None:
        """Finish the picture; the file stays open."""
        self._compress()
        self._blocks.finish()
        self._chunk(b"IDAT", b"\x03\0" + struct.pack(">I", self._adler))  # an empty last block, and the checksum
        self._chunk(b"IEND", b"")

    def _compress(self) -> None:
        if self._lines:
            lines = np.concatenate(self._lines)
            self._blocks.run(_compressed, lines, self._above, self._bytes)
            self._above, self._lines, self._count = lines[-1], [], 0

    def _append(self, block: _Compressed) -> None:
        self._adler = _adler_of_both(self._adler, block.adler, block.length)
        self._chunk(b"IDAT", block.content)

    def _chunk(self, name: bytes, content: bytes) -> None:
        self._file.write(struct.pack(">I", len(content)) + name + content)
        self._file.write(struct.pack(">I", zlib.crc32(content, zlib.crc32(name))))


def _compressed(lines: NDArray[np.uint8], above: NDArray[np.uint8], pixel: int) -> _Compressed:
    """Filter and deflate lines below the line ``above``; ``pixel`` is a pixel's bytes."""
    filtered = _filtered(lines, np.concatenate([above[None], lines[:-1]]), pixel)
    compressor = zlib.compressobj(_LEVEL, wbits=-zlib.MAX_WBITS)
    content = compressor.compress(filtered) + compressor.flush(zlib.Z_FULL_FLUSH)
    return _Compressed(content, zlib.adler32(filtered), len(filtered))


def _filtered(lines: NDArray[np.uint8], above: NDArray[np.uint8], pixel: int) -> bytes:
    """PNG's filter 4 (Paeth), the best single one for photographs: what is left of left + above - above left."""
    left, corner = np.zeros_like(lines), np.zeros_like(lines)
    left[:, pixel:], corner[:, pixel:] = lines[:, :-pixel], above[:, :-pixel]
    a, b, c = left.astype(np.int16), above.astype(np.int16), corner.astype(np.int16)
    to_a, to_b = np.abs(b - c), np.abs(a - c)  # |p - a| and |p - b| of p = a + b - c
    to_c = np.abs(a + b - 2 * c)
    nearest = np.where((to_a <= to_b) & (to_a <= to_c), left, np.where(to_b <= to_c, above, corner))
    out = np.empty((len(lines), lines.shape[1] + 1), np.uint8)
    out[:, 0] = _PAETH
    np.subtract(lines, nearest, out=out[:, 1:])
    return out.tobytes()


def _adler_of_both(first: int, second: int, length: int) -> int:
    """Adler-32 of two texts one after the other, of their checksums and the length of the second (zlib's combine)."""
    low = first & 0xFFFF
    high = length * low + (first >> 16) + (second >> 16) - length
    return high % _ADLER_BASE << 16 | (low + (second & 0xFFFF) - 1) % _ADLER_BASE
