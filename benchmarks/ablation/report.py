"""Results of the ablation: JSON, Markdown tables and curves. Needs no torch, so that pages are built without it."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Final

PAIR_METRICS: Final = {
    "psnr": ("PSNR-Y", 2),
    "psnr_rgb": ("PSNR RGB", 2),
    "color_shift": ("color shift", 2),
    "ssim": ("SSIM-Y", 4),
    "niqe": ("NIQE", 2),
    "lpips": ("LPIPS", 4),
}
"""Metrics on real pairs: column title and decimals, in the order of the columns."""

Value = Callable[[Mapping[str, Any]], float | None]
"""Reads a number from a method's scores for one seed; None if there is none."""
Column = tuple[str, Value, int]
"""Title, value, decimals."""
Method = Mapping[str, Any]
"""{"label", "seeds": {seed: scores}}; bicubic, which has no seed, has one entry "all"."""


def write(path: Path, results: Mapping[str, Any]) -> None:
    """Write the results as strict JSON, atomically."""
    from andfast.files import atomic_file  # noqa: PLC0415

    with atomic_file(path) as file:
        file.write((json.dumps(results, indent=1, allow_nan=False) + "\n").encode())


def read(path: Path) -> dict[str, Any]:
    """Read results.

    Raises:
        ValueError: the file is not one of the ablation's.
    """
    results = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(results, dict) or "methods" not in results or "conditions" not in results:
        raise ValueError(f"{path} must be the JSON of python -m benchmarks.ablation")
    return results


def markdown(results: Mapping[str, Any]) -> str:
    """Both tests as Markdown tables, with the protocol."""
    pairs, methods = results["pairs"], results["methods"]
    seeds = ", ".join(map(str, results["seeds"]))
    machine = results["machine"]
    packages = machine.get("packages", {})
    reported, everything = len(pairs["reported"]), len(pairs["reported"]) + len(pairs["chosen"])
    lines = [
        f"Size {results['size']}: {results['steps']:,} steps per row from the same start"
        f" ({_start_text(results)}), seeds {seeds}; mean ± standard deviation over seeds. {machine.get('name')}, torch "
        f"{packages.get('torch')}, commit {str(machine.get('commit'))[:7]}.",
        f"Unseen damage is the mean PSNR-Y in dB over {len(results['conditions']) - 1} conditions, on HR of the "
        f"{reported} reported pairs and on {len(results['held_out'])} held-out photographs; clean is without damage. "
        "LR PSNR is the mean of the LR that a row was trained on against clean LR.",
        damage_summary(methods, results["sources"]),
        f"Real pairs: the {reported} of {everything} that nothing was chosen on, and all {everything}. Color shift is "
        f"in levels of 255; lower is better, as for NIQE and LPIPS. {results['protocol']}.",
        pairs_table(methods),
    ]
    if (interpolated := interpolation_table(results)) is not None:
        lines += [
            "Weights between the start (0) and the row (1): PSNR-Y in dB, clean / unseen damage, mean over the seeds "
            "that have them:",
            interpolated,
        ]
    for source, description in results["sources"].items():
        lines += [f"PSNR-Y in dB by damage, {description}:", damage_table(methods, results["conditions"], source)]
    failed = [
        f"- {method['label']}, seed {seed}: {entry['failed']}"
        for method in methods.values()
        for seed, entry in method["seeds"].items()
        if entry.get("failed")
    ]
    if failed:
        lines.append(
            "Trainings that ended early, scored with the weights from before that step:\n\n" + "\n".join(failed)
        )
    lines += [f"{note}." for note in results.get("notes", [])]
    return "\n\n".join(lines)


def damage_summary(methods: Mapping[str, Method], sources: Mapping[str, str]) -> str:
    """One row per method: unseen damage and clean LR by source, LR quality and time per step in training."""
    columns: list[Column] = []
    for source, description in sources.items():
        columns.append((f"unseen damage, {description}", _source_value("unseen", source), 2))
        columns.append((f"clean, {description}", _source_value("clean", source), 2))
    columns.append(("ms per step", lambda entry: entry.get("milliseconds_per_step"), 0))
    columns.append(("LR PSNR", lambda entry: entry.get("lr_psnr"), 1))
    return _method_table(methods, columns)


def pairs_table(methods: Mapping[str, Method]) -> str:
    """One row per method: metrics on the reported pairs and on all."""
    columns = [
        (f"{part}: {title}", _pair_value(part, metric), decimals)
        for part in ("reported", "all")
        for metric, (title, decimals) in PAIR_METRICS.items()
    ]
    return _method_table(methods, columns)


def interpolation_table(results: Mapping[str, Any]) -> str | None:
    """One row per method and source, one column per share; None where no weights were interpolated."""
    header, rows = [], []
    for method in results["methods"].values():
        lines = [_line(results, seed, entry) for seed, entry in method["seeds"].items() if "interpolated" in entry]
        if not lines:
            continue
        header = ["", "", *(f"{point.get('share', 1):g}" for point in lines[0][1:])]
        for source, description in results["sources"].items():
            cells = [
                " / ".join(f"{fmean(point[key][source] for point in group):.2f}" for key in ("clean", "unseen"))
                for group in list(zip(*lines, strict=True))[1:]
            ]
            rows.append([method["label"], description, *cells])
    return _table(header, rows) if rows else None


def damage_table(methods: Mapping[str, Method], conditions: Mapping[str, str], source: str) -> str:
    """One row per condition, one column per method."""
    rows = [
        [description, *(_cell(method, _damage_value(source, name), 2) for method in methods.values())]
        for name, description in conditions.items()
    ]
    return _table(["", *(method["label"] for method in methods.values())], rows)


def curves(results: Mapping[str, Any], path: Path) -> None:
    """Draw PSNR-Y on clean LR and on unseen damage over the steps, mean over seeds, as PNG.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    sources = results["sources"]
    figure = _figure(4 * len(sources))
    axes = figure.subplots(len(sources), 2, squeeze=False, sharex=True)
    for (source, description), row in zip(sources.items(), axes, strict=True):
        for axis, key, title in zip(row, ("clean", "unseen"), ("clean LR", "unseen damage, mean"), strict=True):
            for method in results["methods"].values():
                lines = [entry["curve"] for entry in method["seeds"].values() if len(entry["curve"]) > 1]
                if not lines:
                    continue
                points = list(zip(*lines, strict=False))  # as far as all seeds have them
                means = [fmean(point[key][source] for point in group) for group in points]
                steps = [group[0]["step"] for group in points]
                axis.plot(steps, means, marker="o", markersize=3.5, linewidth=1.6, label=method["label"])
            _finish(axis, f"{title}: {description}")
        row[0].set_ylabel("PSNR-Y (dB)")
    for axis in axes[-1]:
        axis.set_xlabel("training step of the row")
    _save(figure, axes[0, 0], path)


def trade_off(results: Mapping[str, Any], path: Path) -> None:
    """Draw unseen damage over clean LR, PSNR-Y in dB, along the interpolation from the start to each row, as PNG.

    Rows without interpolated weights are left out; means are over the seeds that have them.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    sources = results["sources"]
    figure = _figure(5)
    axes = figure.subplots(1, len(sources), squeeze=False)
    for axis, (source, description) in zip(axes[0], sources.items(), strict=True):
        for method in results["methods"].values():
            lines = [_line(results, seed, entry) for seed, entry in method["seeds"].items() if "interpolated" in entry]
            if not lines:
                continue
            x, y = (
                [fmean(point[key][source] for point in group) for group in zip(*lines, strict=True)]
                for key in ("clean", "unseen")
            )
            axis.plot(x, y, marker="o", markersize=3.5, linewidth=1.6, label=method["label"])
        _finish(axis, description)
        axis.set_xlabel("clean LR, PSNR-Y (dB)")
    axes[0, 0].set_ylabel("unseen damage, PSNR-Y (dB)")
    _save(figure, axes[0, 0], path)


def _line(results: Mapping[str, Any], seed: str, entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Scores of the start, of the interpolated weights, and of the row."""
    return [results["methods"]["start"]["seeds"][seed], *entry["interpolated"], entry]


def _figure(height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  # of the extra "demo"
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(12, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _finish(axis: Any, title: str) -> None:
    axis.set_title(title, fontsize=10)
    axis.grid(True, color="#dddddd", linewidth=0.7)
    axis.spines[["top", "right"]].set_visible(False)


def _save(figure: Any, axis: Any, path: Path) -> None:
    """Write a figure with the legend of one of its axes."""
    from andfast.files import atomic_file  # noqa: PLC0415

    handles = axis.get_legend_handles_labels()
    if handles[1]:
        figure.legend(*handles, loc="outside right center", frameon=False, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    with atomic_file(path) as file:
        file.write(buffer.getvalue())


def _start_text(results: Mapping[str, Any]) -> str:
    return f"{results['start_steps']:,} steps" if results["start_steps"] is not None else "weights from a file"


def _source_value(key: str, source: str) -> Value:
    return lambda entry: entry.get(key, {}).get(source)


def _pair_value(part: str, metric: str) -> Value:
    return lambda entry: entry["pairs"].get(part, {}).get(metric)


def _damage_value(source: str, name: str) -> Value:
    return lambda entry: entry["damage"].get(source, {}).get(name)


def _method_table(methods: Mapping[str, Method], columns: Sequence[Column]) -> str:
    """One row per method; columns that no method has are left out. Numbers of seeds are shown where they differ."""
    trained = {name: len(method["seeds"]) for name, method in methods.items() if "all" not in method["seeds"]}
    uneven = len(set(trained.values())) > 1
    defined = [column for column in columns if any(_values(method, column[1]) for method in methods.values())]
    rows = [
        [
            method["label"],
            *([str(trained.get(name, ""))] if uneven else []),
            *(_cell(method, value, decimals) for _, value, decimals in defined),
        ]
        for name, method in methods.items()
    ]
    return _table(["", *(["seeds"] if uneven else []), *(title for title, _, _ in defined)], rows)


def _values(method: Method, value: Value) -> list[float]:
    return [number for entry in method["seeds"].values() if (number := value(entry)) is not None]


def _cell(method: Method, value: Value, decimals: int) -> str:
    values = _values(method, value)
    if not values:
        return ""
    spread = f" ± {stdev(values):.{decimals}f}" if len(values) > 1 else ""
    return f"{fmean(values):.{decimals}f}{spread}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
