"""What is handed over: which pairs do not fit, a table for the terminal, and JSON."""

import json
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from andfast.data.pack import printable
from andfast.evaluation.layouts import Listing
from andfast.evaluation.scores import DECIMALS, HIGHER_IS_BETTER, Score, Summary
from andfast.files import atomic_file
from andfast.training.logging import versions


def leave_out(listing: Listing, problems: Mapping[str, str], *, allowed: bool) -> None:
    """Name every pair that does not fit on stderr, and take it off the listing.

    Raises:
        ValueError: there is one, and that is not allowed; or no other pair is left.
    """
    for name, reason in sorted(problems.items()):
        print(printable(f"does not fit: {name}: {reason}"), file=sys.stderr)
    listing.pairs = [pair for pair in listing.pairs if pair.name not in problems]
    if not listing.pairs:
        raise ValueError("no pair fits")
    if problems and not allowed:
        raise ValueError(f"{len(problems)} pairs do not fit; correct them, or leave them out with --skip-unfit")


def table(results: Mapping[str, Sequence[Score]], summaries: Mapping[str, Summary], metrics: Sequence[str]) -> str:
    """One row a method: its mean of every metric, the best of a column starred, and the pictures left out."""
    header = ["mean", *(f"{metric.upper()} " for metric in metrics)]
    best = {}
    for metric in metrics:
        means = [mean for one in summaries.values() if (mean := one.mean[metric]) is not None]
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
    lower = [metric.upper() for metric in metrics if not HIGHER_IS_BETTER[metric]]
    if lower:
        lines.append(f"{' and '.join(lower)}: lower is better")
    for name, summary in summaries.items():
        for metric, count in summary.left_out.items():
            if count:
                reason = next(score.reasons[metric] for score in results[name] if score.values[metric] is None)
                lines.append(f"{name}: {metric.upper()} leaves out {count} of {len(results[name])} ({reason})")
    return "\n".join(lines)


def images_table(results: Mapping[str, Sequence[Score]], metrics: Sequence[str]) -> str:
    """One row a picture and method."""
    lines = []
    width = max(len(score.name) for scores in results.values() for score in scores)
    for scores in zip(*results.values(), strict=True):
        for name, score in zip(results, scores, strict=True):
            cells = [
                "-".rjust(8) if (v := score.values[metric]) is None else f"{v:8.{DECIMALS[metric]}f}"
                for metric in metrics
            ]
            lines.append(f"{score.name.ljust(width)}  {'  '.join(cells)}  {name}")
    return "\n".join(lines)


def method_record(name: str, source: str, scores: Sequence[Score], summary: Summary) -> dict[str, Any]:
    """A method's part of the JSON."""
    images = []
    for score in scores:
        record: dict[str, Any] = {"name": score.name, **score.values}
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
    """Write strict JSON (what has no value is null), complete or not at all."""
    text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    with atomic_file(path) as file:
        file.write(text.encode())


def evaluation_versions(device: str) -> dict[str, Any]:
    """Versions of what the numbers depend on; None for what is not installed."""
    found: dict[str, Any] = dict(versions(device if device.startswith("cuda") else "cpu"))
    for package in ("torchvision", "lpips", "scipy", "numpy", "pillow", "spandrel"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found
