"""The pictures a run leaves for people: sheets of samples, and the loss curve drawn from metrics.jsonl."""

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from andfast import checks
from andfast.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# ----------------------------------------------------------------------------------------------- sample sheet

_SMALLEST_CELL = 224  # pixels below which a cell is enlarged, so that its caption has room
_LARGEST_CELL = 512  # pixels above which only the middle of the pictures is shown
_SMALLEST_FONT = 9
MARGIN, GAP = 24, 10
PAPER, INK, GREY = "#ffffff", "#1a1a1a", "#5f6368"


def sample_sheet(
    rows: Sequence[Sequence[Tensor]],
    path: str | Path,
    *,
    titles: Sequence[str],
    captions: Sequence[Sequence[str]],
    heading: str = "",
) -> None:
    """Write a labelled contact sheet as PNG: one row a photograph, one column a kind of picture.

    Pixels stay pixels: a picture smaller than the row's largest, such as LR, is enlarged by repeating pixels,
    and so are all if the cells would be too small for their captions. Of very large pictures the middle is
    shown.

    Args:
        rows: each row's pictures, (3, H, W), uint8 or floating point (clamped to [0, 1]), as many as titles.
            Within a row, the largest height and width must be the same whole multiple of every picture's.
        path: the PNG; it appears complete or not at all. Its folder must exist.
        titles: of the columns, e.g. ["HR", "clean LR", "adversarial LR", "bicubic", "SR"].
        captions: below each picture, e.g. "27.31 dB"; as many as pictures, "" for none.
        heading: a line above all.

    Raises:
        TypeError, ValueError: no pictures, uneven rows, or a picture that does not fit its row.
    """
    if not rows or not titles:
        raise ValueError(f"rows and titles must not be empty, was {len(rows)} rows and {len(titles)} titles")
    if len(captions) != len(rows):
        raise ValueError(f"captions must have a row for each of the {len(rows)} rows, was {len(captions)}")
    cells: list[list[NDArray[np.uint8]]] = []
    for number, (images, texts) in enumerate(zip(rows, captions, strict=True)):
        for name, count in ((f"rows[{number}]", len(images)), (f"captions[{number}]", len(texts))):
            if count != len(titles):
                raise ValueError(f"{name} must have {len(titles)} entries, one a title, was {count}")
        cells.append(_same_size(f"rows[{number}]", images))

    largest = max(max(cell.shape[:2]) for row in cells for cell in row)
    zoom = math.ceil(_SMALLEST_CELL / largest)
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
    """A row's pictures as (H, W, 3) uint8 arrays of one size, small ones enlarged, large ones cut."""
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
                f"{name}[{column}] must fit {height}x{width}, the row's largest, a whole number of times, "
                f"was {image.shape[1]}x{image.shape[2]}"
            )
    # The window is cut on a grid that all the pictures share, so that they show the same part of the scene.
    grid = math.lcm(*factors)
    tall, wide = (side if side <= _LARGEST_CELL else _LARGEST_CELL // grid * grid or grid for side in (height, width))
    top, left = ((side - cut) // 2 // grid * grid for side, cut in ((height, tall), (width, wide)))
    return [
        pixels(image[:, top // f : (top + tall) // f, left // f : (left + wide) // f]).repeat(f, 0).repeat(f, 1)
        for image, f in zip(row, factors, strict=True)
    ]


def pixels(image: Tensor) -> NDArray[np.uint8]:
    """(3, H, W) to (H, W, 3) uint8; what is not a number becomes black."""
    image = image.detach().cpu()
    if image.dtype != torch.uint8:
        image = (image.float().nan_to_num(0.0).clamp(0, 1) * 255).round().to(torch.uint8)
    return image.permute(1, 2, 0).contiguous().numpy()


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType, which the text of a sample sheet needs")
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
    """One line at `size`, or smaller until it is `room` pixels wide, cut short below that."""
    length = draw.textlength(text, _font(size))
    font = _font(size if length <= room else max(_SMALLEST_FONT, int(size * room / length)))
    while len(text) > 4 and draw.textlength(text, font) > room:
        text = text[:-4] + "..."
    draw.text(at, text, colour, font, anchor=anchor)


# ------------------------------------------------------------------------------------------------- loss curve

_STAGES = {"net": "ANDNet (stage net)", "gan": "ANDGAN (stage gan)"}
_CLEAN, _ADVERSARIAL, _LR = "#1f77b4", "#d1495b", "#3b7a57"
_MANY = 60  # points from which a running mean is drawn over the points


def loss_curve(
    metrics_path: str | Path,
    path: str | Path,
    *,
    clean: str = "loss_clean",
    adversarial: str = "loss",
    lr_psnr: str = "lr_psnr",
) -> None:
    """Draw the losses of the clean and the adversarial case, and the adversarial LR's PSNR, against the step.

    One column a stage, in the order they ran. Needs matplotlib (`pip install "andfast[demo]"`).

    Args:
        metrics_path: metrics.jsonl, one JSON object a line. Lines with "stage", "step" and one at least of
            the three keys below are drawn, the last one of a step counting; other lines are left out, and so
            is a last line without its newline, which a running job is still writing.
        path: the PNG; it appears complete or not at all. Its folder must exist.
        clean, adversarial: keys of the losses on the clean case (identity F) and on the adversarial one.
        lr_psnr: key of the PSNR in dB of the adversarial LR against the clean LR.

    Raises:
        FileNotFoundError: no metrics.
        ValueError: a line that is not a JSON object, or nothing to draw.
        ModuleNotFoundError: no matplotlib.
    """
    stages = _stages(Path(metrics_path), (clean, adversarial, lr_psnr))
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
        from matplotlib.figure import Figure  # noqa: PLC0415
        from matplotlib.ticker import MaxNLocator, StrMethodFormatter  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f'the loss curve needs matplotlib, pip install "andfast[demo]" ({error})') from error

    figure = Figure(figsize=(1.2 + 5.4 * len(stages), 6.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(stages), squeeze=False, sharex="col", height_ratios=(3, 2))
    for column, (stage, records) in enumerate(stages.items()):
        steps = np.array(sorted(records), dtype=float)
        series = {
            key: np.array([records[int(step)].get(key, math.nan) for step in steps])
            for key in (clean, adversarial, lr_psnr)
        }
        top, bottom = axes[0, column], axes[1, column]
        top.set_title(_STAGES.get(stage, f"stage {stage}"), fontsize=13, pad=10)
        _draw_losses(top, steps, series[clean], series[adversarial])
        _draw_line(bottom, steps, series[lr_psnr], _LR, "adversarial LR against clean LR")
        bottom.set_xlabel("training step")
        bottom.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True))
        bottom.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        if column:  # decibels compare across stages, losses do not
            bottom.sharey(axes[1, 0])
        for axis in (top, bottom):
            _tidy(axis)
    axes[0, 0].set_ylabel("loss")
    axes[1, 0].set_ylabel("LR PSNR (dB)")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    with atomic_file(Path(path)) as file:
        file.write(buffer.getvalue())


def _stages(path: Path, keys: tuple[str, ...]) -> dict[str, dict[int, dict[str, float]]]:
    """{stage: {step: {key: number}}} of a metrics file."""
    if not path.is_file():
        raise FileNotFoundError(f"metrics_path must be a metrics.jsonl, there is none at {path}")
    found: dict[str, dict[int, dict[str, float]]] = {}
    *lines, _unfinished = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record: Any = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}, must be a JSON object: {error}") from error
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {number}, must be a JSON object, was {line[:80]}")
        # Infinite values (LR left as it was) have no place on an axis.
        numbers = {
            key: float(record[key])
            for key in keys
            if isinstance(record.get(key), (int, float)) and math.isfinite(record[key])
        }
        if numbers and "stage" in record and "step" in record:
            found.setdefault(str(record["stage"]), {})[int(record["step"])] = numbers
    if not found:
        raise ValueError(f'{path} must have lines with "stage", "step" and one of {", ".join(keys)}; it has none')
    return found


def _draw_losses(axis: "Axes", steps: NDArray[Any], clean: NDArray[Any], adversarial: NDArray[Any]) -> None:
    low = _draw_line(axis, steps, clean, _CLEAN, "clean case")
    high = _draw_line(axis, steps, adversarial, _ADVERSARIAL, "adversarial case")
    axis.fill_between(steps, low, high, color=_ADVERSARIAL, alpha=0.10, linewidth=0, label="gain of the ascent")
    drawn = np.concatenate([low, high])
    drawn = drawn[np.isfinite(drawn)]
    if drawn.size and drawn.min() > 0 and drawn.max() > 20 * drawn.min():
        axis.set_yscale("log")
    elif drawn.size and drawn.min() > 0:
        axis.set_ylim(bottom=0)


def _draw_line(axis: "Axes", steps: NDArray[Any], points: NDArray[Any], colour: str, label: str) -> NDArray[Any]:
    """Draw one series, as a running mean over its points if there are many; returns what the line shows."""
    if not np.isfinite(points).any():
        return points
    if len(points) < _MANY:
        style = "o" if len(points) < _MANY // 2 else ""
        axis.plot(steps, points, color=colour, label=label, linewidth=1.8, marker=style, markersize=3.5)
        return points
    axis.plot(steps, points, color=colour, alpha=0.25, linewidth=0.8)
    smooth = _running_mean(points, max(3, len(points) // 40))
    axis.plot(steps, smooth, color=colour, label=label, linewidth=1.8)
    return smooth


def _running_mean(points: NDArray[Any], reach: int) -> NDArray[Any]:
    """The mean of up to `reach` points before and after each, leaving out what is missing."""
    there = np.isfinite(points)
    window = np.ones(2 * reach + 1)
    total = np.convolve(np.where(there, points, 0.0), window, "same")
    count = np.convolve(there.astype(float), window, "same")
    return np.where(there, total / np.maximum(count, 1), math.nan)


def _tidy(axis: "Axes") -> None:
    axis.grid(True, color="#dddddd", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(x=0.02)
    if axis.get_legend_handles_labels()[1]:
        axis.legend(frameon=False, fontsize=9.5)
