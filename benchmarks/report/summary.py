"""The figures of a run by name, from its rows; a figure whose rows are missing is None, with the reason."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

TARGETS: Final = {
    "overhead_exact_l1": ("at most", 3.5),
    "overhead_exact_gan": ("at most", 3.2),
    "speedup_vs_fp32_eager": ("at least", 8.0),
    "speedup_vs_bf16_eager": ("at least", 3.0),
    "speedup_vs_compile": ("at least", 1.6),
    "peak_memory_ratio": ("at most", 1.15),
    "degradation_block_roofline_forward": ("at least", 0.70),
    "degradation_block_roofline_training": ("at least", 0.55),
    "degradation_block_vs_grouped": ("at least", 3.0),
    "blur_pool_bandwidth_forward": ("at least", 0.90),
    "blur_pool_bandwidth_backward": ("at least", 0.90),
    "rdb_frozen_vs_compile": ("at least", 1.5),
}
"""The figures' names and the targets on one H100, batch 48, HR 256, full RRDBNet, bf16."""

MEANINGS: Final = {
    "overhead_exact_l1": "fastest exact AND step over the fastest plain ESRGAN step of any variant, stage net",
    "overhead_exact_gan": "the same, stage gan",
    "speedup_vs_fp32_eager": "AND step of baseline 1 over andfast's fastest, the smaller of the two stages",
    "speedup_vs_bf16_eager": "the same, baseline 2",
    "speedup_vs_compile": "the same, baseline 3",
    "peak_memory_ratio": "andfast's fastest AND step over its fastest plain step, the larger of the two stages",
    "degradation_block_roofline_forward": "floor over time, bf16, per-image weights, F's layers as often as F has them",
    "degradation_block_roofline_training": "the same, forward and backward with all gradients",
    "degradation_block_vs_grouped": "time of cuDNN's bare grouped convolution over the block's, forward and backward",
    "blur_pool_bandwidth_forward": "bytes a second over the measured copy bandwidth, x4, the first shape of the suite",
    "blur_pool_bandwidth_backward": "the same, backward",
    "rdb_frozen_vs_compile": "time under torch.compile over the fused block's, frozen weights, forward and backward",
}

FUSED: Final = ("triton", "cuda", "cpp")
"""andfast's fast implementations; "reference" is not one."""
ANDFAST: Final = 4
"""andfast's number among the baselines of the step's suite."""

Row = dict[str, Any]


class Missing(Exception):
    """A figure's rows were not measured."""


def figures(rows: Iterable[Row]) -> tuple[dict[str, float | None], dict[str, str]]:
    """All figures by name, and for each that is None the reason.

    Args:
        rows: from :func:`benchmarks.report.pages.load`: group, name, median (seconds), passed, extra_info. Rows that
            did not pass are ignored.
    """
    used = [row for row in rows if row.get("passed", True)]
    makers: dict[str, Callable[[], float]] = {
        "overhead_exact_l1": lambda: _overhead(used, "net"),
        "overhead_exact_gan": lambda: _overhead(used, "gan"),
        "speedup_vs_fp32_eager": lambda: _speedup(used, 1),
        "speedup_vs_bf16_eager": lambda: _speedup(used, 2),
        "speedup_vs_compile": lambda: _speedup(used, 3),
        "peak_memory_ratio": lambda: _peak(used),
        "degradation_block_roofline_forward": lambda: _block_roofline(used, "forward"),
        "degradation_block_roofline_training": lambda: _block_roofline(used, "forward+backward"),
        "degradation_block_vs_grouped": lambda: _block_against_grouped(used),
        "blur_pool_bandwidth_forward": lambda: _bandwidth(used, "forward"),
        "blur_pool_bandwidth_backward": lambda: _bandwidth(used, "backward"),
        "rdb_frozen_vs_compile": lambda: _dense_block(used),
    }
    values: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    for name in TARGETS:
        try:
            values[name] = makers[name]()
        except Missing as missing:
            values[name], reasons[name] = None, str(missing)
    return values, reasons


def met(name: str, value: float) -> bool:
    """Whether a figure's value meets its target."""
    kind, target = TARGETS[name]
    return value >= target if kind == "at least" else value <= target


def _select(rows: Sequence[Row], what: str, **wanted: Any) -> list[Row]:
    found = [row for row in rows if all(row["extra_info"].get(key) == value for key, value in wanted.items())]
    if not found:
        raise Missing(f"no row of {what} was measured")
    return found


# ------------------------------------------------------------------------------------------------------------ step


def _steps(rows: Sequence[Row], kind: str, stage: str, baseline: int | None = None) -> list[Row]:
    """Rows of benchmarks/suites/test_step.py, the fastest an image first."""
    wanted: dict[str, Any] = {"step": kind, "stage": stage} | ({} if baseline is None else {"baseline": baseline})
    whose = "" if baseline is None else f", baseline {baseline}"
    found = _select(rows, f"the {kind} step, stage {stage}{whose}", **wanted)
    return sorted(found, key=_an_image)


def _an_image(row: Row) -> float:
    return float(row["median"] / row["extra_info"]["batch"])


def _overhead(rows: Sequence[Row], stage: str) -> float:
    return _an_image(_steps(rows, "and", stage, ANDFAST)[0]) / _an_image(_steps(rows, "plain", stage)[0])


def _speedup(rows: Sequence[Row], baseline: int) -> float:
    return min(
        _an_image(_steps(rows, "and", stage, baseline)[0]) / _an_image(_steps(rows, "and", stage, ANDFAST)[0])
        for stage in ("net", "gan")
    )


def _peak(rows: Sequence[Row]) -> float:
    ratios = []
    for stage in ("net", "gan"):
        ours, plain = (_steps(rows, kind, stage, ANDFAST)[0]["extra_info"] for kind in ("and", "plain"))
        if ours["batch"] != plain["batch"]:
            raise Missing(f"the two steps ran at batches {ours['batch']} and {plain['batch']}, stage {stage}")
        if not ours.get("peak_memory") or not plain.get("peak_memory"):
            raise Missing("peak memory is measured on a GPU only")
        ratios.append(ours["peak_memory"] / plain["peak_memory"])
    return max(ratios)


# ------------------------------------------------------------------------------------------------------------- ops


def _fused(rows: Sequence[Row], what: str, **wanted: Any) -> list[Row]:
    """The rows of the first of FUSED that has any."""
    for name in FUSED:
        try:
            return _select(rows, what, implementation=name, **wanted)
        except Missing:
            continue
    raise Missing(f"no fused implementation of {what} was measured")


def _layers(rows: Sequence[Row], direction: str, convolution: bool = False) -> list[tuple[int, Row]]:
    """F's layers at the suite's shapes, with how many of each F has."""
    wanted = {"op": "degradation_block", "direction": direction, "weights": "per image", "precision": "bf16"}
    what = f"degradation_block, {direction}, bf16"
    found = (
        _select(rows, f"{what}, the convolution alone", implementation="convolution", **wanted)
        if convolution
        else _fused(rows, what, **wanted)
    )
    by_shape = {row["extra_info"]["shape"]: row for row in found}
    sides = sorted({int(shape.rpartition("x")[2]) for shape in by_shape})
    batch = next(iter(by_shape)).partition("x")[0]
    layers = []
    for times, side, channels in ((1, -1, "3->64"), (4, -1, "64->64"), (5, 0, "64->64"), (1, 0, "64->3")):
        shape = f"{batch}x{channels}x{sides[side]}x{sides[side]}"
        if shape not in by_shape:
            raise Missing(f"no row of {what}, {shape} was measured")
        layers.append((times, by_shape[shape]))
    return layers


def _seconds(layers: Sequence[tuple[int, Row]]) -> float:
    return float(sum(times * row["median"] for times, row in layers))


def _block_roofline(rows: Sequence[Row], direction: str) -> float:
    layers = _layers(rows, direction)
    return float(sum(times * row["extra_info"]["roofline_seconds"] for times, row in layers)) / _seconds(layers)


def _block_against_grouped(rows: Sequence[Row]) -> float:
    direction = "forward+backward"
    return _seconds(_layers(rows, direction, convolution=True)) / _seconds(_layers(rows, direction))


def _bandwidth(rows: Sequence[Row], direction: str) -> float:
    """Of the row with the most bytes, in channels_last."""
    found = _fused(rows, f"blur_pool, {direction}, bf16", op="blur_pool", direction=direction, precision="bf16")
    row = max(found, key=lambda one: (one["extra_info"]["bytes"], one["extra_info"]["memory_format"] == "nhwc"))
    return float(row["extra_info"]["fraction_of_roofline"])


def _dense_block(rows: Sequence[Row]) -> float:
    what = "residual_dense_block, frozen forward+backward, bf16"
    wanted = {"op": "residual_dense_block", "direction": "frozen forward+backward", "precision": "bf16"}
    compiled = _select(rows, f"{what}, compiled", implementation="compiled", **wanted)
    return float(min(row["median"] for row in compiled) / min(row["median"] for row in _fused(rows, what, **wanted)))
