"""Figures of a run by name, computed from its rows; a figure whose rows are missing is None, with the reason.

This is the one place that holds the targets: one H100 or H200, batch 48, HR 256, full RRDBNet, bf16.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Literal, NamedTuple

FUSED: Final = ("triton", "cuda", "cpp")
"""andfast's fast implementations; "reference" is not one."""
ANDFAST: Final = 4
"""andfast's number among the baselines of the step suite."""
INEXACT: Final = 5
"""That of steps whose attack is cheaper and weaker."""
BLOCK_SHAPE: Final = "48x64->64x256x256"
"""The degradation block's shape that has targets in seconds."""

Row = dict[str, Any]


class Missing(Exception):
    """A figure's rows were not measured."""


class Figure(NamedTuple):
    """A figure of the summary.

    Attributes:
        bound, target: the target is met "at most" or "at least" at this value.
        meaning: one line for the report.
        value: computes the figure from rows that passed; raises Missing.
    """

    bound: Literal["at most", "at least"]
    target: float
    meaning: str
    value: Callable[[Sequence[Row]], float]


def figures(rows: Iterable[Row]) -> tuple[dict[str, float | None], dict[str, str]]:
    """All figures by name, and the reason for each that is None.

    Args:
        rows: from :func:`benchmarks.report.pages.load`: group, name, median (seconds), passed, extra_info. Rows that
            did not pass are ignored.
    """
    passed = [row for row in rows if row.get("passed", True)]
    values: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    for name, figure in FIGURES.items():
        try:
            values[name] = figure.value(passed)
        except Missing as missing:
            values[name], reasons[name] = None, str(missing)
    return values, reasons


def met(name: str, value: float) -> bool:
    """Whether a figure's value meets its target."""
    figure = FIGURES[name]
    return value >= figure.target if figure.bound == "at least" else value <= figure.target


def _select(rows: Sequence[Row], what: str, **facts: Any) -> list[Row]:
    """Rows whose extra_info has these facts."""
    selected = [row for row in rows if all(row["extra_info"].get(key) == value for key, value in facts.items())]
    if not selected:
        raise Missing(f"no row of {what} was measured")
    return selected


# ------------------------------------------------------------------------------------------------------------ step


def _steps(rows: Sequence[Row], kind: str, stage: str, baseline: int | None = None, **facts: Any) -> list[Row]:
    """Rows of benchmarks/suites/test_step.py, the fastest per image first."""
    whose = ", ".join(["", *(f"{name} {value}" for name, value in facts.items())])
    if baseline is not None:
        facts, whose = facts | {"baseline": baseline}, f", baseline {baseline}{whose}"
    facts |= {"step": kind, "stage": stage}
    return sorted(_select(rows, f"the {kind} step, stage {stage}{whose}", **facts), key=_per_image)


def _per_image(row: Row) -> float:
    return float(row["median"] / row["extra_info"]["batch"])


def _overhead(rows: Sequence[Row], stage: str, baseline: int = ANDFAST, **facts: Any) -> float:
    return _per_image(_steps(rows, "and", stage, baseline, **facts)[0]) / _per_image(_steps(rows, "plain", stage)[0])


def _identity_share(rows: Sequence[Row]) -> float:
    """Of andfast's fastest AND step, the larger of the two stages."""
    fastest = [_steps(rows, "and", stage, ANDFAST)[0] for stage in ("net", "gan")]
    shares = [row["extra_info"]["parts"]["identity"] / row["median"] for row in fastest
              if "identity" in row["extra_info"].get("parts", {})]  # fmt: skip
    if len(shares) < len(fastest):
        raise Missing("the draw of identity networks was not timed")
    return float(max(shares))


def _speedup(rows: Sequence[Row], baseline: int) -> float:
    return min(
        _per_image(_steps(rows, "and", stage, baseline)[0]) / _per_image(_steps(rows, "and", stage, ANDFAST)[0])
        for stage in ("net", "gan")
    )


def _plain_speedup(rows: Sequence[Row]) -> float:
    return min(
        _per_image(_steps(rows, "plain", stage, 2)[0]) / _per_image(_steps(rows, "plain", stage, ANDFAST)[0])
        for stage in ("net", "gan")
    )


def _host_share(rows: Sequence[Row], stage: str) -> float:
    """Of andfast's fastest AND step at each batch that was measured, the largest share."""
    steps = _steps(rows, "and", stage, ANDFAST)
    fastest: dict[int, Row] = {}
    for row in steps:
        fastest.setdefault(row["extra_info"]["batch"], row)
    shares = []
    for batch, row in fastest.items():
        host = row["extra_info"].get("host_seconds")
        if host is None:
            raise Missing(f"host time of the AND step, stage {stage}, batch {batch} was not measured")
        shares.append(host / row["median"])
    return float(max(shares))


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


def _fused(rows: Sequence[Row], what: str, **facts: Any) -> list[Row]:
    """The rows of the first of FUSED that has any."""
    for name in FUSED:
        try:
            return _select(rows, what, implementation=name, **facts)
        except Missing:
            continue
    raise Missing(f"no fused implementation of {what} was measured")


def _layers(rows: Sequence[Row], direction: str, convolution: bool = False) -> list[tuple[int, Row]]:
    """F's layers at the suite's shapes, with how many of each F has."""
    facts = {"op": "degradation_block", "direction": direction, "weights": "per image", "precision": "bf16"}
    what = f"degradation_block, {direction}, bf16"
    measured = (
        _select(rows, f"{what}, the convolution alone", implementation="convolution", **facts)
        if convolution
        else _fused(rows, what, **facts)
    )
    by_shape = {row["extra_info"]["shape"]: row for row in measured}
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
    measured = _fused(rows, f"blur_pool, {direction}, bf16", op="blur_pool", direction=direction, precision="bf16")
    row = max(measured, key=lambda row: (row["extra_info"]["bytes"], row["extra_info"]["memory_format"] == "nhwc"))
    return float(row["extra_info"]["fraction_of_roofline"])


def _dense_block(rows: Sequence[Row]) -> float:
    what = "residual_dense_block, frozen forward+backward, bf16"
    facts = {"op": "residual_dense_block", "direction": "frozen forward+backward", "precision": "bf16"}
    compiled = _select(rows, f"{what}, compiled", implementation="compiled", **facts)
    return float(min(row["median"] for row in compiled) / min(row["median"] for row in _fused(rows, what, **facts)))


def _block_seconds(rows: Sequence[Row], direction: str) -> float:
    """The layer with 64 channels in and out at HR size."""
    facts = {"op": "degradation_block", "direction": direction, "weights": "per image", "precision": "bf16"}
    what = f"degradation_block, {direction}, bf16, {BLOCK_SHAPE}"
    return float(min(row["median"] for row in _fused(rows, what, shape=BLOCK_SHAPE, **facts)))


def _dense_block_seconds(rows: Sequence[Row]) -> float:
    facts = {"op": "residual_dense_block", "direction": "frozen forward+backward", "precision": "bf16"}
    return float(min(row["median"] for row in _fused(rows, "residual_dense_block, frozen, bf16", **facts)))


FIGURES: Final[dict[str, Figure]] = {
    "overhead_exact_l1": Figure(
        "at most", 3.5, "fastest exact AND step over the fastest plain ESRGAN step of any variant, stage net",
        lambda rows: _overhead(rows, "net"),
    ),
    "overhead_exact_gan": Figure("at most", 3.2, "the same, stage gan", lambda rows: _overhead(rows, "gan")),
    "overhead_shipped_l1": Figure(
        "at most", 3.5, "AND step of the shipped configuration over the same plain step, stage net",
        lambda rows: _overhead(rows, "net", shipped=True),
    ),
    "overhead_shipped_gan": Figure(
        "at most", 3.2, "the same, stage gan", lambda rows: _overhead(rows, "gan", shipped=True)
    ),
    "overhead_fast": Figure(
        "at most", 1.8, "AND step of strategy fast over the same plain step, the larger of the two stages",
        lambda rows: max(_overhead(rows, stage, INEXACT, strategy="fast") for stage in ("net", "gan")),
    ),
    "speedup_vs_fp32_eager": Figure(
        "at least", 10.0, "AND step of baseline 1 over andfast's fastest, the smaller of the two stages",
        lambda rows: _speedup(rows, 1),
    ),
    "speedup_vs_bf16_eager": Figure("at least", 5.0, "the same, baseline 2", lambda rows: _speedup(rows, 2)),
    "speedup_vs_compile": Figure("at least", 2.0, "the same, baseline 3", lambda rows: _speedup(rows, 3)),
    "plain_speedup_vs_bf16_eager": Figure(
        "at least", 2.0, "plain ESRGAN step of baseline 2 over andfast's fastest, the smaller of the two stages",
        _plain_speedup,
    ),
    "host_share_net": Figure(
        "at most", 0.1, "host time over the whole time of andfast's fastest AND step, the larger of the batches, net",
        lambda rows: _host_share(rows, "net"),
    ),
    "host_share_gan": Figure("at most", 0.1, "the same, stage gan", lambda rows: _host_share(rows, "gan")),
    "identity_share": Figure(
        "at most", 0.04, "identity networks drawn, over andfast's fastest AND step, the larger of the two stages",
        _identity_share,
    ),
    "peak_memory_ratio": Figure(
        "at most", 1.15, "andfast's fastest AND step over its fastest plain step, the larger of the two stages", _peak
    ),
    "degradation_block_forward_seconds": Figure(
        "at most", 0.45e-3, "48 x 64 -> 64 x 256 x 256, bf16, per-image weights",
        lambda rows: _block_seconds(rows, "forward"),
    ),
    "degradation_block_training_seconds": Figure(
        "at most", 1.8e-3, "the same, forward and backward with all gradients",
        lambda rows: _block_seconds(rows, "forward+backward"),
    ),
    "degradation_block_roofline_forward": Figure(
        "at least", 0.70, "floor over time, bf16, per-image weights, F's layers as often as F has them",
        lambda rows: _block_roofline(rows, "forward"),
    ),
    "degradation_block_roofline_training": Figure(
        "at least", 0.50, "the same, forward and backward with all gradients",
        lambda rows: _block_roofline(rows, "forward+backward"),
    ),
    "degradation_block_vs_grouped": Figure(
        "at least", 2.0, "time of cuDNN's bare grouped convolution over the block's, forward and backward",
        _block_against_grouped,
    ),
    "blur_pool_bandwidth_forward": Figure(
        "at least", 0.90, "bytes per second over the measured copy bandwidth, x4, the first shape of the suite",
        lambda rows: _bandwidth(rows, "forward"),
    ),
    "blur_pool_bandwidth_backward": Figure(
        "at least", 0.90, "the same, backward", lambda rows: _bandwidth(rows, "backward")
    ),
    "rdb_frozen_seconds": Figure(
        "at most", 0.45e-3, "dense block with frozen weights, forward and backward, 48 x 64 x 64 x 64",
        _dense_block_seconds,
    ),
    "rdb_frozen_vs_compile": Figure(
        "at least", 1.5, "time under torch.compile over the fused block's, frozen weights, forward and backward",
        _dense_block,
    ),
}  # fmt: skip
"""The figures by name, in the order of the report."""
