"""Parts of a measured step next to their floors, from counts and the rates of the same run."""

from typing import Any

from benchmarks import roofline
from benchmarks.rates import Rates

PAPER_FEATURES = 64
"""Counts are those of the paper's networks; a step of smaller ones has no floors here."""
ANDFAST = 4


def gaps(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Of andfast's fastest row of each step and stage: its parts, measured and floor seconds, None where not counted.

    Args:
        results: of :func:`benchmarks.report.pages.load`.
    """
    rates = results.get("rates")
    rows = [row for row in results["rows"] if row.get("passed", True) and _comparable(row["extra_info"])]
    if rates is None or not rows:
        return []
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: row["median"] / row["extra_info"]["batch"]):
        best.setdefault((row["extra_info"]["step"], row["extra_info"]["stage"]), row)
    entries = []
    for (step, stage), row in best.items():
        extra = row["extra_info"]
        floors: dict[str, float] = {}
        for part in roofline.step_floors(
            Rates(**rates), stage, batch=extra["batch"], adversarial=step == "and",
            hr_size=extra["hr"], features=extra["features"], blocks=extra["blocks"],
        ):  # fmt: skip
            floors[part["part"]] = floors.get(part["part"], 0.0) + part["seconds"]
        total = sum(floors.values())
        # The first measurements have these two phases in one.
        floors["restoration"] = floors.get("degradation", 0.0) + floors["generator"]
        named = {"variant": extra["variant"], "step": step, "stage": stage}
        entries += [
            named | {"part": part, "seconds": seconds, "floor": floors.get(part)}
            for part, seconds in extra["parts"].items()
        ]
        entries.append(named | {"part": "all", "seconds": row["median"], "floor": total})
    return entries


def _comparable(extra: dict[str, Any]) -> bool:
    """Whether it is a row of the step, andfast's, in bf16 and of the networks that are counted."""
    ours = extra.get("baseline") == ANDFAST and bool(extra.get("parts")) and "bf16" in extra.get("variant", "")
    return ours and extra.get("features") == PAPER_FEATURES
