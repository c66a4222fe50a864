"""Labelled contact sheets of images."""

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from andfast import checks
from andfast.drawing.canvas import GAP, GREY, INK, MARGIN, PAPER, pixels, write_text
from andfast.files import atomic_file

_MIN_CELL = 224  # pixels; smaller cells are enlarged, so that captions fit
_MAX_CELL = 512  # pixels; of larger images the center is shown


def sample_sheet(
    rows: Sequence[Sequence[Tensor]],
    path: str | Path,
    *,
    titles: Sequence[str],
    captions: Sequence[Sequence[str]],
    heading: str = "",
) -> None:
    """Write a labelled contact sheet as PNG: a row per scene, a column per version of it.

    Images smaller than the row's largest, such as LR, are enlarged by nearest neighbor, and so are all images if cells
    would be too small for their captions. Of very large images the center is shown.

    Args:
        rows: images of each row, one per title: (3, H, W), uint8 or floating point (clamped to [0, 1]). Within a row,
            the largest height and width must be the same integer multiple of each image's.
        path: the PNG, written atomically; its folder must exist.
        titles: column titles, e.g. ["HR", "clean LR", "adversarial LR", "bicubic", "SR"].
        captions: text below each image, e.g. "27.31 dB"; may be empty.
        heading: a line above the sheet.

    Raises:
        TypeError, ValueError: no images, uneven rows, or an image that does not fit its row.
    """
    if not rows or not titles:
        raise ValueError(f"rows and titles must not be empty, was {len(rows)} rows and {len(titles)} titles")
    if len(captions) != len(rows):
        raise ValueError(f"captions must have a row for each of the {len(rows)} rows, was {len(captions)}")
    cells: list[list[NDArray[np.uint8]]] = []
    for number, (images, texts) in enumerate(zip(rows, captions, strict=True)):
        for name, count in ((f"rows[{number}]", len(images)), (f"captions[{number}]", len(texts))):
            if count != len(titles):
                raise ValueError(f"{name} must have {len(titles)} entries, one per title, was {count}")
        cells.append(_same_size(f"rows[{number}]", images))

    largest = max(max(cell.shape[:2]) for row in cells for cell in row)
    zoom = math.ceil(_MIN_CELL / largest)
    cells = [[cell.repeat(zoom, 0).repeat(zoom, 1) for cell in row] for row in cells]
    width = max(cell.shape[1] for row in cells for cell in row)

    size = min(max(width // 15, 15), 24)
    line = round(1.7 * size)
    top = MARGIN + (round(2.2 * size) if heading else 0) + line
    heights = [max(cell.shape[0] for cell in row) + line + GAP for row in cells]
    sheet = Image.new(
        "RGB",
        (2 * MARGIN + len(titles) * (width + GAP) - GAP, top + sum(heights) + MARGIN - GAP),
        PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    if heading:
        room = sheet.width - 2 * MARGIN
        write_text(draw, (MARGIN, MARGIN), heading, size=size + 4, room=room, colour=INK, anchor="lt")
    lefts = [MARGIN + column * (width + GAP) for column in range(len(titles))]
    for left, title in zip(lefts, titles, strict=True):
        at = (left + width // 2, top - round(0.55 * size))
        write_text(draw, at, title, size=size, room=width, colour=INK, anchor="ms")
    for row, texts, height in zip(cells, captions, heights, strict=True):
        for left, cell, text in zip(lefts, row, texts, strict=True):
            sheet.paste(Image.fromarray(cell), (left + (width - cell.shape[1]) // 2, top))
            at = (left + width // 2, top + cell.shape[0] + round(1.05 * size))
            write_text(draw, at, text, size=size - 2, room=width, colour=GREY, anchor="ms")
        top += height
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    with atomic_file(Path(path)) as file:
        file.write(buffer.getvalue())


def _same_size(name: str, row: Sequence[Tensor]) -> list[NDArray[np.uint8]]:
    """Images of a row as (H, W, 3) uint8 arrays of one size: small ones enlarged, large ones cropped."""
    for column, image in enumerate(row):
        checks.tensor(f"{name}[{column}]", image)
        if image.dim() != 3 or image.shape[0] != 3 or not image.numel():
            raise ValueError(f"{name}[{column}] must have shape (3, H, W), was {checks.shape(image)}")
        if image.dtype != torch.uint8:
            checks.floating(f"{name}[{column}]", image)
    height, width = (max(image.shape[axis] for image in row) for axis in (1, 2))
    factors = [height // image.shape[1] for image in row]
    for column, (image, factor) in enumerate(zip(row, factors, strict=True)):
        if (image.shape[1] * factor, image.shape[2] * factor) != (height, width):
            raise ValueError(
                f"{name}[{column}] must divide {height}x{width}, the row's largest, by an integer, "
                f"was {image.shape[1]}x{image.shape[2]}"
            )
    # Crop on a grid that all images share, so that they show the same part of the scene.
    grid = math.lcm(*factors)
    tall, wide = (side if side <= _MAX_CELL else _MAX_CELL // grid * grid or grid for side in (height, width))
    top, left = ((side - cut) // 2 // grid * grid for side, cut in ((height, tall), (width, wide)))
    return [
        pixels(image[:, top // f : (top + tall) // f, left // f : (left + wide) // f]).repeat(f, 0).repeat(f, 1)
        for image, f in zip(row, factors, strict=True)
    ]
