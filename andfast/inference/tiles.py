"""Restore large images in overlapping tiles, blended without visible seams.

Along each axis, tiles of equal size are spread evenly. Neighbours are blended linearly around the middle of their
overlap, over half of the requested overlap; the quarter next to a tile's own border, where its network saw zero padding
instead of the image, is dropped. The weights sum to 1 everywhere. Where the image itself ends, tiles are padded by
replication, see :mod:`andfast.inference.padding`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from andfast.inference.padding import ALL_SIDES, Sides


class Restores(Protocol):
    """The part of :class:`andfast.inference.models.Restorer` that tiling uses."""

    scale: int
    device: torch.device
    multiple: int

    def restore(self, lr: Tensor, sides: Sides = ALL_SIDES) -> Tensor:
        """Restore images (N, C, H, W) to (N, C, H * scale, W * scale), padding the given sides."""


@dataclass(frozen=True)
class Span:
    """One tile along one axis.

    Attributes:
        start: First LR pixel of the tile.
        stop: End of the half-open range of LR pixels.
        first: First HR pixel to which the tile contributes.
        last: End of the half-open range of HR pixels.
        weights: (last - first,) fp32 blending weights in (0, 1].
    """

    start: int
    stop: int
    first: int
    last: int
    weights: Tensor


def restore_tiled(restorer: Restores, lr: Tensor, *, tile: int, overlap: int) -> Tensor:
    """Restore images tile by tile.

    Args:
        restorer: Restorer of a tile.
        lr: (N, C, H, W), floating point in [0, 1]; C is 3 for an RGB restorer.
        tile: Height and width of a tile in LR pixels, including its overlaps; 0 restores the whole image at once.
        overlap: Minimum number of LR pixels shared by neighbours.

    Returns:
        (N, C, H * scale, W * scale), fp32, on lr's device.

    Raises:
        TypeError: ``lr`` is not a floating-point tensor.
        ValueError: ``lr`` has another shape, ``overlap`` is negative, or ``tile`` is less than twice the overlap.
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
    """Like :func:`restore_tiled`, yielding bands of finished rows from top to bottom.

    Peak memory is one row of tiles, ``4 * C * scale**2 * tile * W`` bytes on lr's device, and the activations of one
    tile on the restorer's device.

    Args:
        restorer: See :func:`restore_tiled`.
        lr: See :func:`restore_tiled`. May also be uint8 or uint16: each tile is then divided by 255 or 65535, so that a
            large image is never held in floating point.
        tile: See :func:`restore_tiled`.
        overlap: See :func:`restore_tiled`.
        on_tile: Called after each of the :func:`count_tiles` tiles.

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
        yield _restore(restorer, lr, ALL_SIDES)
        on_tile()
        return
    kept = torch.zeros(*lr.shape[:2], 0, width * scale, device=lr.device)  # rows shared with the next row of tiles
    for number, row in enumerate(rows):
        band = torch.zeros(*lr.shape[:2], row.last - row.first, width * scale, device=lr.device)
        band[:, :, : kept.shape[2]] = kept
        for column in columns:
            sides = Sides(column.start == 0, column.stop == width, row.start == 0, row.stop == height)
            sr = _restore(restorer, lr[:, :, row.start : row.stop, column.start : column.stop], sides)
            sr = sr[:, :, row.first - row.start * scale : row.last - row.start * scale]
            sr = sr[:, :, :, column.first - column.start * scale : column.last - column.start * scale]
            weights = row.weights[:, None] * column.weights
            band[:, :, :, column.first : column.last].addcmul_(sr, weights.to(lr.device))
            on_tile()
        done = (rows[number + 1].first if number + 1 < len(rows) else row.last) - row.first
        kept = band[:, :, done:].clone()
        yield band[:, :, :done]
        del band, sr  # free them before the next band is allocated


def count_tiles(restorer: Restores, height: int, width: int, *, tile: int, overlap: int) -> int:
    """Number of tiles of an LR image."""
    return len(spans(height, tile, overlap, restorer)) * len(spans(width, tile, overlap, restorer))


def check_tile(tile: int, overlap: int, multiple: int = 1) -> None:
    """Check that at most half of a tile is overlap.

    Raises:
        ValueError: ``overlap`` is negative, or ``tile`` is neither 0 nor at least twice the overlap (rounded up to a
            multiple, and leaving room for one multiple beyond the overlap).
    """
    if overlap < 0:
        raise ValueError(f"overlap must be at least 0, was {overlap}")
    minimum = -(-max(2 * overlap, overlap + multiple) // multiple) * multiple
    if tile != 0 and tile < minimum:
        raise ValueError(f"tile must be at least {minimum} with an overlap of {overlap}, or 0 for no tiles, was {tile}")


def spans(size: int, tile: int, overlap: int, restorer: Restores) -> list[Span]:
    """Tiles along an axis of ``size`` LR pixels."""
    scale, multiple = restorer.scale, restorer.multiple
    tile = tile // multiple * multiple if tile else size
    if size <= tile:
        return [Span(0, size, 0, size * scale, torch.ones(size * scale))]
    units = -(-size // multiple)  # tiles start at multiples: count in units of them
    length = tile // multiple
    stride = (tile - overlap) // multiple
    count = 1 + -(-(units - length) // stride)
    starts = [k * (units - length) // (count - 1) * multiple for k in range(count)]
    # Middles of the overlaps in HR pixels, and half of the width of the blending ramps.
    middles = [(after + before + tile) * scale / 2 for before, after in pairwise(starts)]
    half = overlap * scale / 4
    rises = [torch.ones(size * scale), *(_rise(size * scale, middle, half) for middle in middles)]
    rises.append(torch.zeros(size * scale))
    result = []
    for start, (rise, fall) in zip(starts, pairwise(rises), strict=True):
        weights = rise - fall
        inside = torch.nonzero(weights)
        first, last = int(inside[0]), int(inside[-1]) + 1
        result.append(Span(start, min(start + tile, size), first, last, weights[first:last]))
    return result


def _rise(size: int, middle: float, half: float) -> Tensor:
    """Linear ramp from 0 to 1 over ``2 * half`` pixels around ``middle``."""
    centres = torch.arange(size, dtype=torch.float64) + 0.5
    if half == 0:
        return (centres > middle).float()
    return ((centres - middle) / (2 * half) + 0.5).clamp(0, 1).float()


def _restore(restorer: Restores, lr: Tensor, sides: Sides) -> Tensor:
    top = {torch.uint8: 255.0, torch.uint16: 65535.0}.get(lr.dtype)
    return restorer.restore(lr if top is None else lr.to(restorer.device).float() / top, sides).to(lr.device)
