"""Text and pixels on the project's images: shared colors and spacing."""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ImageDraw, ImageFont
from torch import Tensor

MARGIN, GAP = 24, 10
PAPER, INK, GREY = "#ffffff", "#1a1a1a", "#5f6368"
_MIN_FONT_SIZE = 9


def pixels(image: Tensor) -> NDArray[np.uint8]:
    """(3, H, W) to (H, W, 3) uint8; NaN becomes black."""
    image = image.detach().cpu()
    if image.dtype != torch.uint8:
        image = (image.float().nan_to_num(0.0).clamp(0, 1) * 255).round().to(torch.uint8)
    return image.permute(1, 2, 0).contiguous().numpy()


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType, which text on images needs")
    return font


def write_text(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    text: str,
    *,
    size: int,
    room: int,
    colour: str,
    anchor: str,
) -> None:
    """Draw one line, shrunk from ``size`` to fit ``room`` pixels, and truncated if it cannot be shrunk enough."""
    length = draw.textlength(text, _font(size))
    font = _font(size if length <= room else max(_MIN_FONT_SIZE, int(size * room / length)))
    while len(text) > 4 and draw.textlength(text, font) > room:
        text = text[:-4] + "..."
    draw.text(at, text, colour, font, anchor=anchor)
