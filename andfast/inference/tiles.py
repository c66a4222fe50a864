"""Restore large pictures in tiles that overlap, blended so that no seam shows.

Along each axis, tiles of equal size are spread evenly. Where two neighbours overlap, the middle of the overlap is where
one hands over to the other: over half of the asked-for overlap, linearly; the quarter next to a tile's own border,
where its network saw padding instead of the picture, is never used. The weights add up to 1 everywhere.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor


class Restores(Protocol):
    """What tiles need of a restorer, see :class:`andfast.inference.models.Restorer`."""

    scale: int
    device: torch.device
    multiple: int

    def restore(self, lr: Tensor) -> Tensor:
        """Restore pictures (N, C, H, W) to (N, C, H * scale, W * scale)."""


@dataclass(frozen=True)
class Span:
    """One tile along one axis.

    Attributes:
        start, stop: LR pixels that the restorer is given.
        first, last: HR pixels of the picture that it has a say in, a half-open range.
        weights: (last - first,) fp32, in (0, 1]: how much.
    """

    start: int
    stop: int
    first: int
    last: int
    weights: Tensor


def restore_tiled(restorer: Restores, lr: Tensor, *, tile: int, overlap: int) -> Tensor:
    """Restore pictures tile by tile.

    Args:
        restorer: what restores a tile.
        lr: (N, C, H, W), floating point in [0, 1]; C is 3 for a restorer of RGB.
        tile: height and width of a tile in LR pixels, its overlaps included; 0 restores the whole picture at once.
        overlap: LR pixels that neighbours share, at the least.

    Returns:
        (N, C, H * scale, W * scale), fp32, on lr's device.

    Raises:
        TypeError, ValueError: lr is no such tensor; overlap is negative; tile is less than twice the overlap.
    """
    bands = list(restore_bands(restorer, lr, tile=tile, overlap=overlap))
    return bands[0] if len(bands) == 1 else torch.cat(bands, dim=2)


def restore_bands(
    restorer: Restores,
    lr: Tensor,
    *,
    tile: int,
    overlap: int,
    on_tile: Callable[[], object] = lambda: None,
) -> Iterator[Tensor]:
    """As :func:`restore_tiled`, in bands of finished rows from top to bottom, so that nobody has to hold the picture.

    What is held at any time is about one row of tiles, ``4 * C * scale**2 * tile * W`` bytes on lr's device, and one
    tile's activations on the restorer's.

    Args:
        restorer, lr, tile, overlap: see :func:`restore_tiled`. lr may be uint8 or uint16 too: each tile is then divided
            by 255 or 65535 on its own, so that a large picture is never held in floating point.
        on_tile: called after each tile; there are :func:`count_tiles` of them.

    Yields:
        (N, C, rows, W * scale), fp32, on lr's device.
    """
    check_tile(tile, overlap, restorer.multiple)
    if not isinstance(lr, Tensor):
        raise TypeError(f"lr must be a tensor, was {type(lr).__name__}")
    if lr.dim() != 4 or min(lr.shape[1:]) < 1:
        raise ValueError(f"lr must have shape (N, C, H, W), C, H and W at least 1, was {tuple(lr.shape)}")
    scale = restorer.scale
    height, width = lr.shape[2:]
    rows, columns = (spans(size, tile, overlap, restorer) for size in (height, width))
    if len(rows) == len(columns) == 1:
        yield _restore(restorer, lr)
        on_tile()
        return
    kept = torch.zeros(*lr.shape[:2], 0, width * scale, device=lr.device)  # rows that the next tiles add to
    for number, row in enumerate(rows):
        band = torch.zeros(*lr.shape[:2], row.last - row.first, width * scale, device=lr.device)
        band[:, :, : kept.shape[2]] = kept
        for column in columns:
            sr = _restore(restorer, lr[:, :, row.start : row.stop, column.start : column.stop])
            sr = sr[:, :, row.first - row.start * scale : row.last - row.start * scale]
            sr = sr[:, :, :, column.first - column.start * scale : column.last - column.start * scale]
            weights = row.weights[:, None] * column.weights
            band[:, :, :, column.first : column.last].addcmul_(sr, weights.to(lr.device))
            on_tile()
        done = (rows[number + 1].first if number + 1 < len(rows) else row.last) - row.first
        kept = band[:, :, done:].clone()
        yield band[:, :, :done]
        del band, sr  # before the next one is made


def count_tiles(restorer: Restores, height: int, width: int, *, tile: int, overlap: int) -> int:
    """How many tiles an LR picture of that size is restored in."""
    return len(spans(height, tile, overlap, restorer)) * len(spans(width, tile, overlap, restorer))


def check_tile(tile: int, overlap: int, multiple: int = 1) -> None:
    """Refuse tiles of which more than half would be overlap.

    Raises:
        ValueError: overlap is negative; tile is not 0 and less than twice the overlap, or than what an overlap leaves
            room for where tiles begin at multiples only.
    """
    if overlap < 0:
        raise ValueError(f"overlap must be at least 0, was {overlap}")
    least = -(-max(2 * overlap, overlap + multiple) // multiple) * multiple
    if tile != 0 and tile < least:
        raise ValueError(f"tile must be at least {least} with an overlap of {overlap}, or 0 for no tiles, was {tile}")


def spans(size: int, tile: int, overlap: int, restorer: Restores) -> list[Span]:
    """The tiles along an axis of ``size`` LR pixels."""
    scale, multiple = restorer.scale, restorer.multiple
    tile = tile // multiple * multiple if tile else size
    if size <= tile:
        return [Span(0, size, 0, size * scale, torch.ones(size * scale))]
    units = -(-size // multiple)  # tiles begin at multiples only, so count in them
    length = tile // multiple
    stride = (tile - overlap) // multiple
    count = 1 + -(-(units - length) // stride)
    starts = [k * (units - length) // (count - 1) * multiple for k in range(count)]
    # The middles of the overlaps, in HR pixels, and half of the width over which the tiles there are blended.
    middles = [(after + before + tile) * scale / 2 for before, after in pairwise(starts)]
    half = overlap * scale / 4
    rises = [torch.ones(size * scale), *(_rise(size * scale, middle, half) for middle in middles)]
    rises.append(torch.zeros(size * scale))
    found = []
    for start, (rise, fall) in zip(starts, pairwise(rises), strict=True):
        weights = rise - fall
        inside = torch.nonzero(weights)
        first, last = int(inside[0]), int(inside[-1]) + 1
        found.append(Span(start, min(start + tile, size), first, last, weights[first:last]))
    return found


def _rise(size: int, middle: float, half: float) -> Tensor:
    """From 0 to 1 over ``2 * half`` pixels around ``middle``."""
    centres = torch.arange(size, dtype=torch.float64) + 0.5
    if half == 0:
        return (centres > middle).float()
    return ((centres - middle) / (2 * half) + 0.5).clamp(0, 1).float()


def _restore(restorer: Restores, lr: Tensor) -> Tensor:
    top = {torch.uint8: 255.0, torch.uint16: 65535.0}.get(lr.dtype)
    return restorer.restore(lr if top is None else lr.to(restorer.device).float() / top).to(lr.device)
