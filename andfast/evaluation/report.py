"""Evaluation output: pairs that cannot be evaluated, tables for the terminal, and JSON."""

import json
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from statistics import fmean
from typing import Any

from andfast.evaluation.layouts import Listing
from andfast.evaluation.methods import BICUBIC
from andfast.evaluation.scores import DECIMALS, HIGHER_IS_BETTER, LABELS, Score, Summary
from andfast.files import atomic_file, printable
from andfast.metrics import MAX_COLOR_SHIFT
from andfast.provenance import versions


def remove_invalid(listing: Listing, problems: Mapping[str, str], *, allowed: bool) -> None:
    """Report invalid pairs on stderr and remove them from the listing.

    Raises:
        ValueError: there are invalid pairs and ``allowed`` is False, or no valid pair is left.
    """
    for name, reason in sorted(problems.items()):
        print(printable(f"invalid pair {name}: {reason}"), file=sys.stderr)
    listing.pairs = [pair for pair in listing.pairs if pair.name not in problems]
    if not listing.pairs:
        raise ValueError("no valid pair")
    if problems and not allowed:
        raise ValueError(f"{len(problems)} invalid pairs; fix them, or skip them with --skip-invalid")


def table(results: Mapping[str, Sequence[Score]], summaries: Mapping[str, Summary], metrics: Sequence[str]) -> str:
    """One row per method with the mean of each metric; the best of a column is starred. Excluded images follow."""
    header = ["mean", *(f"{LABELS[metric]} " for metric in metrics)]
    best = {}
    for metric in metrics:
        means = [mean for summary in summaries.values() if (mean := summary.mean[metric]) is not None]
        best[metric] = (max if HIGHER_IS_BETTER[metric] else min)(means) if len(means) > 1 else None
    rows = [header]
    for name, summary in summaries.items():
        row = [name]
        for metric in metrics:
            mean = summary.mean[metric]
            cell = "-" if mean is None else f"{mean:.{DECIMALS[metric]}f}"
            row.append(cell + ("*" if mean is not None and mean == best[metric] else " "))
        rows.append(row)
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = [
        "  ".join([row[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]).rstrip()
        for row in rows
    ]
    lower = [LABELS[metric] for metric in metrics if not HIGHER_IS_BETTER[metric]]
    if lower:
        lines.append(f"{' and '.join(lower)}: lower is better")
    for name, summary in summaries.items():
        for metric, count in summary.left_out.items():
            if count:
                reason = next(score.reasons[metric] for score in results[name] if score.values[metric] is None)
                lines.append(f"{name}: {LABELS[metric]} excludes {count} of {len(results[name])} ({reason})")
    return "\n".join(lines)


def color_warnings(results: Mapping[str, Sequence[Score]], summaries: Mapping[str, Summary]) -> list[str]:
    """One warning per method other than bicubic whose mean color shift exceeds MAX_COLOR_SHIFT."""
    shifts = {name: summary.mean.get("color_shift") for name, summary in summaries.items()}
    baseline = shifts.get(BICUBIC)
    reference = "" if baseline is None else f"; bicubic: {baseline:.1f}"
    warnings = []
    for name, shift in shifts.items():
        if name != BICUBIC and shift is not None and shift > MAX_COLOR_SHIFT:
            offsets = [score.color_offset for score in results[name] if score.color_offset is not None]
            mean = ", ".join(f"{label} {fmean(offset[i] for offset in offsets):+.1f}" for i, label in enumerate("RGB"))
            warnings.append(
                f"warning: {name} shifts colors by {shift:.1f} levels of 255 on average (mean {mean}{reference})"
            )
    return warnings


def images_table(results: Mapping[str, Sequence[Score]], metrics: Sequence[str]) -> str:
    """One row per image and method."""
    lines = []
    width = max(len(score.name) for scores in results.values() for score in scores)
    for scores in zip(*results.values(), strict=True):
        for name, score in zip(results, scores, strict=True):
            cells = [
                "-".rjust(8) if (value := score.values[metric]) is None else f"{value:8.{DECIMALS[metric]}f}"
                for metric in metrics
            ]
            lines.append(f"{score.name.ljust(width)}  {'  '.join(cells)}  {name}")
    return "\n".join(lines)


def method_record(name: str, source: str, scores: Sequence[Score], summary: Summary) -> dict[str, Any]:
    """JSON record of a method."""
    images = []
    for score in scores:
        record: dict[str, Any] = {"name": score.name, **score.values}
        if score.color_offset is not None:
            record["color_offset"] = score.color_offset
        if score.reasons:
            record["reasons"] = score.reasons
        images.append(record)
    return {
        "method": name,
        "source": source,
        "images": images,
        "mean": summary.mean,
        "median": summary.median,
        "left_out": summary.left_out,
    }


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write strict JSON atomically; missing values are null."""
    text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    with atomic_file(path) as file:
        file.write(text.encode())


def evaluation_versions(device: str) -> dict[str, Any]:
    """Versions of the packages that the numbers depend on; None if not installed."""
    record: dict[str, Any] = dict(versions(device if device.startswith("cuda") else "cpu"))
    for package in ("torchvision", "lpips", "scipy", "numpy", "pillow", "spandrel"):
        try:
            record[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            record[package] = None
    return record
