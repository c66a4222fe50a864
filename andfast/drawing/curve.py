"""The loss curve of a run, drawn from its metrics.jsonl."""

import io
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from andfast.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STAGES = {"net": "ANDNet (stage net)", "gan": "ANDGAN (stage gan)"}
_CLEAN, _ADVERSARIAL, _LR, _FACTOR = "#1f77b4", "#d1495b", "#3b7a57", "#8a6d3b"
_SMOOTHING_THRESHOLD = 60  # points from which a running mean is drawn over the points
_CLEAN_KEY, _ADVERSARIAL_KEY, _LR_KEY, _FACTOR_KEY = "loss_clean", "loss", "lr_psnr", "radius_factor"
_START_KEY = "loss_start"  # in place of loss_clean, of ascents that start elsewhere
_KEYS = (_CLEAN_KEY, _START_KEY, _ADVERSARIAL_KEY, _LR_KEY, _FACTOR_KEY)


def loss_curve(metrics_path: str | Path, path: str | Path) -> None:
    """Plot the loss on the clean and the adversarial LR, and the adversarial LR's PSNR, over the steps of each stage.

    A factor on the radii ("radius_factor"), if logged, has an axis of its own over the PSNR's.

    Needs matplotlib (``pip install "andfast[demo]"``).

    Args:
        metrics_path: metrics.jsonl, a JSON object per line. Lines with "stage", "step" and at least one of
            "loss_clean", "loss_start", "loss" and "lr_psnr" (dB) are drawn; of repeated steps the last. Other lines are
            ignored, and so is a last line without a newline, which a running job is still writing.
        path: the PNG, written atomically; its folder must exist.

    Raises:
        FileNotFoundError: ``metrics_path`` does not exist.
        ValueError: a line is not a JSON object, or there is nothing to draw.
        ModuleNotFoundError: matplotlib is not installed.
    """
    stages = _stages(Path(metrics_path))
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
        from matplotlib.figure import Figure  # noqa: PLC0415
        from matplotlib.ticker import MaxNLocator, StrMethodFormatter  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'the loss curve requires matplotlib: pip install "andfast[demo]" ({error})'
        ) from error

    figure = Figure(figsize=(1.2 + 5.4 * len(stages), 6.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(stages), squeeze=False, sharex="col", height_ratios=(3, 2))
    for column, (stage, records) in enumerate(stages.items()):
        steps = np.array(sorted(records), dtype=float)
        series = {key: np.array([records[int(step)].get(key, math.nan) for step in steps]) for key in _KEYS}
        top, bottom = axes[0, column], axes[1, column]
        top.set_title(_STAGES.get(stage, f"stage {stage}"), fontsize=13, pad=10)
        if np.isfinite(series[_START_KEY]).any():
            _draw_losses(top, steps, series[_START_KEY], series[_ADVERSARIAL_KEY], "before the ascent")
        else:
            _draw_losses(top, steps, series[_CLEAN_KEY], series[_ADVERSARIAL_KEY], "clean case")
        _draw_line(bottom, steps, series[_LR_KEY], _LR, "adversarial LR against clean LR")
        if np.isfinite(series[_FACTOR_KEY]).any():
            _draw_factor(bottom, steps, series[_FACTOR_KEY])
        bottom.set_xlabel("training step")
        bottom.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True))
        bottom.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        if column:  # decibels are comparable between stages, losses are not
            bottom.sharey(axes[1, 0])
        for axis in (top, bottom):
            _tidy(axis)
    axes[0, 0].set_ylabel("loss")
    axes[1, 0].set_ylabel("LR PSNR (dB)")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    with atomic_file(Path(path)) as file:
        file.write(buffer.getvalue())


def _stages(path: Path) -> dict[str, dict[int, dict[str, float]]]:
    """{stage: {step: {key: number}}} of a metrics file."""
    if not path.is_file():
        raise FileNotFoundError(f"metrics_path must be a metrics.jsonl, there is none at {path}")
    stages: dict[str, dict[int, dict[str, float]]] = {}
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
        # An infinite PSNR (LR unchanged) cannot be drawn.
        numbers = {
            key: float(record[key])
            for key in _KEYS
            if isinstance(record.get(key), (int, float)) and math.isfinite(record[key])
        }
        if numbers and "stage" in record and "step" in record:
            stages.setdefault(str(record["stage"]), {})[int(record["step"])] = numbers
    if not stages:
        raise ValueError(f'{path} must have lines with "stage", "step" and one of {", ".join(_KEYS)}; it has none')
    return stages


def _draw_losses(
    axis: "Axes", steps: NDArray[Any], before: NDArray[Any], adversarial: NDArray[Any], label: str
) -> None:
    low = _draw_line(axis, steps, before, _CLEAN, label)
    high = _draw_line(axis, steps, adversarial, _ADVERSARIAL, "adversarial case")
    if np.isfinite(before).any():
        axis.fill_between(steps, low, high, color=_ADVERSARIAL, alpha=0.10, linewidth=0, label="gain of the ascent")
    drawn = np.concatenate([low, high])
    drawn = drawn[np.isfinite(drawn)]
    if drawn.size and drawn.min() > 0 and drawn.max() > 20 * drawn.min():
        axis.set_yscale("log")
    elif drawn.size and drawn.min() > 0:
        axis.set_ylim(bottom=0)


def _draw_factor(axis: "Axes", steps: NDArray[Any], factor: NDArray[Any]) -> None:
    """Draw the factor on the radii over a logarithmic axis on the right."""
    right = axis.twinx()
    right.plot(steps, factor, color=_FACTOR, linewidth=1.2, linestyle="--", label="factor on the radii")
    right.set_yscale("log")
    right.set_ylabel("factor on the radii", color=_FACTOR)
    right.tick_params(which="both", colors=_FACTOR)
    right.spines["top"].set_visible(False)


def _draw_line(axis: "Axes", steps: NDArray[Any], points: NDArray[Any], color: str, label: str) -> NDArray[Any]:
    """Draw a series, as a running mean over its points if there are many; return the values of the line."""
    if not np.isfinite(points).any():
        return points
    if len(points) < _SMOOTHING_THRESHOLD:
        style = "o" if len(points) < _SMOOTHING_THRESHOLD // 2 else ""
        axis.plot(steps, points, color=color, label=label, linewidth=1.8, marker=style, markersize=3.5)
        return points
    axis.plot(steps, points, color=color, alpha=0.25, linewidth=0.8)
    smooth = _running_mean(points, max(3, len(points) // 40))
    axis.plot(steps, smooth, color=color, label=label, linewidth=1.8)
    return smooth


def _running_mean(points: NDArray[Any], reach: int) -> NDArray[Any]:
    """The mean over up to ``reach`` points on either side, ignoring missing ones."""
    valid = np.isfinite(points)
    window = np.ones(2 * reach + 1)
    total = np.convolve(np.where(valid, points, 0.0), window, "same")
    count = np.convolve(valid.astype(float), window, "same")
    return np.where(valid, total / np.maximum(count, 1), math.nan)


def _tidy(axis: "Axes") -> None:
    axis.grid(True, color="#dddddd", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(x=0.02)
    if axis.get_legend_handles_labels()[1]:
        axis.legend(frameon=False, fontsize=9.5)
