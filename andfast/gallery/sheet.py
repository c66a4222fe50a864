"""The gallery as one picture: sections of cells, each with what G gets above what G makes of it."""

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

_SMALLEST: Final = 200  # pixels below which cells are enlarged by repeating pixels
_TITLE, _NAME, _CAPTION = 20, 16, 14  # font sizes


class Cell(NamedTuple):
    """One column of a section.

    Attributes:
        name: above the pictures.
        pictures: one or two, from the top, (3, H, W) each, floating point in [0, 1] or uint8.
        captions: below each of them.
    """

    name: str
    pictures: tuple[Tensor, ...]
    captions: tuple[str, ...]


def gallery_sheet(path: str | Path, heading: str, sections: Sequence[tuple[str, Sequence[Cell]]]) -> None:
    """Write sections, each a title and cells side by side, as a PNG; it appears complete or not at all.

    All pictures are enlarged by repeating pixels to the size of the largest, which their sizes must divide.

    Raises:
        ValueError: there is no cell, or a picture's size does not divide that of the largest.
    """
    cells = [cell for _, some in sections for cell in some]
    if not cells:
        raise ValueError("sections must have at least one cell, had none")
    height, width = (max(one.shape[axis] for cell in cells for one in cell.pictures) for axis in (1, 2))
    zoom = math.ceil(_SMALLEST / max(height, width))
    height, width = height * zoom, width * zoom
    columns = max(len(some) for _, some in sections)
    rows = [max(len(cell.pictures) for cell in some) for _, some in sections]
    line = round(1.6 * _CAPTION)
    title_height, name_height = round(2.2 * _TITLE), round(1.6 * _NAME)
    total = MARGIN + title_height + sum(title_height + name_height + n * (height + line) + GAP for n in rows)
    sheet = Image.new("RGB", (2 * MARGIN + columns * (width + GAP) - GAP, total + MARGIN - GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    room = sheet.width - 2 * MARGIN
    write_text(draw, (MARGIN, MARGIN), heading, size=_TITLE, room=room, colour=INK, anchor="lt")
    top = MARGIN + title_height
    for (title, some), count in zip(sections, rows, strict=True):
        at = (MARGIN, top + title_height - round(0.4 * _TITLE))
        write_text(draw, at, title, size=_NAME, room=room, colour=INK, anchor="ls")
        top += title_height
        for column, cell in enumerate(some):
            left = MARGIN + column * (width + GAP)
            middle = left + width // 2
            name_at = (middle, top + round(1.05 * _NAME))
            write_text(draw, name_at, cell.name, size=_NAME, room=width, colour=INK, anchor="ms")
            for row, (picture, caption) in enumerate(zip(cell.pictures, cell.captions, strict=True)):
                upper = top + name_height + row * (height + line)
                sheet.paste(Image.fromarray(_enlarged(cell.name, picture, height, width)), (left, upper))
                caption_at = (middle, upper + height + round(1.05 * _CAPTION))
                write_text(draw, caption_at, caption, size=_CAPTION, room=width, colour=GREY, anchor="ms")
        top += name_height + count * (height + line) + GAP
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    with atomic_file(Path(path)) as file:
        file.write(buffer.getvalue())


def _enlarged(name: str, picture: Tensor, height: int, width: int) -> NDArray[np.uint8]:
    factor = height // picture.shape[1]
    if (picture.shape[1] * factor, picture.shape[2] * factor) != (height, width):
        raise ValueError(
            f"the pictures of {name!r} must fit {height}x{width} a whole number of times, was "
            f"{picture.shape[1]}x{picture.shape[2]}"
        )
    return pixels(picture).repeat(factor, 0).repeat(factor, 1)
