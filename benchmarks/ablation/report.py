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
        f"Unseen damage is the mean PSNR-Y over {len(results['conditions']) - 1} conditions of "
        f"{len(results['held_out'])} held-out photographs; real pairs are the {reported} of {everything} that nothing "
        f"was chosen on, and all. Color shift in levels of 255; lower is better, as for NIQE and LPIPS. "
        f"{results['protocol']}.",
        summary_table(methods),
        "PSNR-Y in dB by damage:",
        damage_table(methods, results["conditions"]),
    ]
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


def summary_table(methods: Mapping[str, Method]) -> str:
    """One row per method: unseen damage, clean LR, real pairs, time per step."""
    columns: list[tuple[str, Callable[[Mapping[str, Any]], float | None], int]] = [
        ("unseen damage", lambda entry: entry.get("unseen"), 2),
        ("clean LR", lambda entry: entry.get("clean"), 2),
    ]
    for part in ("reported", "all"):
        for metric, (title, decimals) in PAIR_METRICS.items():
            columns.append((f"{part} pairs: {title}", _pair_value(part, metric), decimals))
    columns.append(("ms per step", lambda entry: entry.get("milliseconds_per_step"), 0))
    defined = [column for column in columns if any(_mean(method, column[1]) is not None for method in methods.values())]
    header = ["", *(title for title, _, _ in defined)]
    rows = [[m["label"], *(_cell(m, value, decimals) for _, value, decimals in defined)] for m in methods.values()]
    return _table(header, rows)


def damage_table(methods: Mapping[str, Method], conditions: Mapping[str, str]) -> str:
    """One row per condition, one column per method."""
    rows = [
        [description, *(_cell(method, _damage_value(name), 2) for method in methods.values())]
        for name, description in conditions.items()
    ]
    return _table(["", *(method["label"] for method in methods.values())], rows)


def curves(results: Mapping[str, Any], path: Path) -> None:
    """Draw PSNR-Y on clean LR and on unseen damage over the steps, mean over seeds, as PNG.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  # of the extra "demo"
    from matplotlib.figure import Figure  # noqa: PLC0415

    from andfast.files import atomic_file  # noqa: PLC0415

    figure = Figure(figsize=(12, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2)
    for column, (axis, title) in enumerate(zip(axes, ("clean LR", "unseen damage, mean"), strict=True), start=1):
        for method in results["methods"].values():
            lines = [entry["curve"] for entry in method["seeds"].values() if len(entry.get("curve", ())) > 1]
            if not lines:
                continue
            shortest = min(map(len, lines))
            steps = [point[0] for point in lines[0][:shortest]]
            means = [fmean(line[index][column] for line in lines) for index in range(shortest)]
            axis.plot(steps, means, marker="o", markersize=3.5, linewidth=1.6, label=method["label"])
        axis.set_title(title)
        axis.set_xlabel("training step of the row")
        axis.grid(True, color="#dddddd", linewidth=0.7)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("PSNR-Y (dB)")
    if axes[0].get_legend_handles_labels()[1]:
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    with atomic_file(path) as file:
        file.write(buffer.getvalue())


def _start_text(results: Mapping[str, Any]) -> str:
    return f"{results['start_steps']:,} steps" if results["start_steps"] is not None else "weights from a file"


def _pair_value(part: str, metric: str) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda entry: entry["pairs"].get(part, {}).get(metric)


def _damage_value(name: str) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda entry: entry["damage"].get(name)


def _values(method: Method, value: Callable[[Mapping[str, Any]], float | None]) -> list[float]:
    return [number for entry in method["seeds"].values() if (number := value(entry)) is not None]


def _mean(method: Method, value: Callable[[Mapping[str, Any]], float | None]) -> float | None:
    values = _values(method, value)
    return fmean(values) if values else None


def _cell(method: Method, value: Callable[[Mapping[str, Any]], float | None], decimals: int) -> str:
    values = _values(method, value)
    if not values:
        return ""
    spread = f" ± {stdev(values):.{decimals}f}" if len(values) > 1 else ""
    return f"{fmean(values):.{decimals}f}{spread}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
