"""The gallery as one PNG: sections of cells, each with G's input above its output."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from andfast.drawing import GAP, GREY, INK, MARGIN, PAPER, pixels, write_text
from andfast.files import atomic_file

_MIN_CELL: Final = 200  # smaller cells are enlarged by repeating pixels
_TITLE, _NAME, _CAPTION = 20, 16, 14  # font sizes


class Cell(NamedTuple):
    """One column of a section.

    Attributes:
        name: title above the images.
        images: one or two, top to bottom, (3, H, W), floating point in [0, 1] or uint8.
        captions: one below each image.
    """

    name: str
    images: tuple[Tensor, ...]
    captions: tuple[str, ...]


def gallery_sheet(path: str | Path, heading: str, sections: Sequence[tuple[str, Sequence[Cell]]]) -> None:
    """Write sections, each a title and a row of cells, as a PNG, atomically.

    All images are enlarged by repeating pixels to the size of the largest, which must be a multiple of theirs.

    Raises:
        ValueError: no cell, or an image whose size does not divide that of the largest.
    """
    all_cells = [cell for _, cells in sections for cell in cells]
    if not all_cells:
        raise ValueError("sections must have at least one cell, had none")
    height, width = (max(image.shape[axis] for cell in all_cells for image in cell.images) for axis in (1, 2))
    zoom = math.ceil(_MIN_CELL / max(height, width))
    height, width = height * zoom, width * zoom
    columns = max(len(cells) for _, cells in sections)
    rows = [max(len(cell.images) for cell in cells) for _, cells in sections]
    line = round(1.6 * _CAPTION)
    title_height, name_height = round(2.2 * _TITLE), round(1.6 * _NAME)
    total = MARGIN + title_height + sum(title_height + name_height + n * (height + line) + GAP for n in rows)
    sheet = Image.new("RGB", (2 * MARGIN + columns * (width + GAP) - GAP, total + MARGIN - GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    room = sheet.width - 2 * MARGIN
    write_text(draw, (MARGIN, MARGIN), heading, size=_TITLE, room=room, colour=INK, anchor="lt")
    top = MARGIN + title_height
    for (title, cells), count in zip(sections, rows, strict=True):
        at = (MARGIN, top + title_height - round(0.4 * _TITLE))
        write_text(draw, at, title, size=_NAME, room=room, colour=INK, anchor="ls")
        top += title_height
        for column, cell in enumerate(cells):
            left = MARGIN + column * (width + GAP)
            middle = left + width // 2
            name_at = (middle, top + round(1.05 * _NAME))
            write_text(draw, name_at, cell.name, size=_NAME, room=width, colour=INK, anchor="ms")
            for row, (image, caption) in enumerate(zip(cell.images, cell.captions, strict=True)):
                upper = top + name_height + row * (height + line)
                sheet.paste(Image.fromarray(_enlarge(cell.name, image, height, width)), (left, upper))
                caption_at = (middle, upper + height + round(1.05 * _CAPTION))
                write_text(draw, caption_at, caption, size=_CAPTION, room=width, colour=GREY, anchor="ms")
        top += name_height + count * (height + line) + GAP
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    with atomic_file(Path(path)) as file:
        file.write(buffer.getvalue())


def _enlarge(name: str, image: Tensor, height: int, width: int) -> NDArray[np.uint8]:
    factor = height // image.shape[1]
    if (image.shape[1] * factor, image.shape[2] * factor) != (height, width):
        raise ValueError(
            f"images of {name!r} must have a size that divides {height}x{width}, was {image.shape[1]}x{image.shape[2]}"
        )
    return pixels(image).repeat(factor, 0).repeat(factor, 1)
