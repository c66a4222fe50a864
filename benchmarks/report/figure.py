"""The picture of a run: every kernel on the roofline, and a training step's bars by part."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

MARKERS = "osD^vP*Xh<>"
COLORS = mpl.color_sequences["tab10"]


def draw(results: dict[str, Any], path: Path) -> None:
    """Write the picture of results of :func:`benchmarks.report.pages.load`; what was not measured is left out."""
    steps = [row for row in results["rows"] if row["extra_info"].get("parts")]
    kernels = [row for row in results["rows"] if row["extra_info"].get("tflop_per_s")]
    figure = Figure(figsize=(9, 6 + (0.35 * len(steps) + 1.5 if steps else 0)), layout="constrained")
    if steps:
        upper, lower = figure.subplots(2, 1, height_ratios=[6, 0.35 * len(steps) + 1.5])
        _bars(lower, steps)
    else:
        upper = figure.subplots()
    _roofline(upper, kernels, results.get("rates"))
    figure.suptitle(results["machine"].get("name", ""), fontsize=10)
    figure.savefig(path, dpi=150)


def _roofline(axes: Axes, rows: list[dict[str, Any]], rates: dict[str, Any] | None) -> None:
    """TFLOP/s over operations per byte; a color per implementation, a marker per op and direction."""
    axes.set(xscale="log", yscale="log", xlabel="operations per byte", ylabel="TFLOP/s")
    axes.grid(alpha=0.3, which="both", linewidth=0.4)
    intensities = [row["extra_info"]["intensity"] for row in rows] or [1.0, 1000.0]
    left, right = min(intensities) / 3, max(intensities) * 10
    if rates:
        # Equal rates share a label.
        for rate in dict.fromkeys(rates["matrix"].values()):
            name = ", ".join(precision for precision, value in rates["matrix"].items() if value == rate)
            knee = rate / rates["bandwidth"]
            points = [left, min(max(knee, left), right), right]
            axes.plot(
                points, [min(x * rates["bandwidth"], rate) / 1e12 for x in points], color="0.4", linewidth=0.8, zorder=1
            )
            axes.annotate(name, (right, rate / 1e12), fontsize=7, color="0.3", ha="right", va="bottom")
    names = list(dict.fromkeys(row["extra_info"]["implementation"] for row in rows))
    kinds = list(dict.fromkeys((row["extra_info"]["op"], row["extra_info"]["direction"]) for row in rows))
    for row in rows:
        extra = row["extra_info"]
        axes.scatter(
            extra["intensity"],
            extra["tflop_per_s"],
            s=22,
            alpha=0.8,
            linewidths=0,
            color=COLORS[names.index(extra["implementation"]) % len(COLORS)],
            marker=MARKERS[kinds.index((extra["op"], extra["direction"])) % len(MARKERS)],
        )
    for index, name in enumerate(names):
        axes.scatter([], [], s=22, color=COLORS[index % len(COLORS)], label=name)
    for index, kind in enumerate(kinds):
        axes.scatter([], [], s=22, color="0.3", marker=MARKERS[index % len(MARKERS)], label=" ".join(kind))
    if rows:
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _bars(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """One bar a row of the step's suite, milliseconds an image, stacked by part."""
    parts = list(dict.fromkeys(part for row in rows for part in row["extra_info"]["parts"]))
    labels = []
    for place, row in enumerate(rows):
        extra, left = row["extra_info"], 0.0
        labels.append(f"{extra.get('variant', row['name'])}, {extra.get('step', '')} {extra.get('stage', '')}")
        for part, seconds in extra["parts"].items():
            width = 1e3 * seconds / extra.get("batch", 1)
            axes.barh(place, width, left=left, color=COLORS[parts.index(part) % len(COLORS)], height=0.7)
            left += width
    axes.set_yticks(range(len(rows)), labels, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds an image")
    for index, part in enumerate(parts):
        axes.barh(0, 0, color=COLORS[index % len(COLORS)], label=part)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
