"""Bring the first measurements on a GPU, which an ad hoc script took, into the form of ``make gpu-check``.

    python -m benchmarks.report.import_measurements STEPS.json OPS.json --output benchmarks/results/nvidia-h200

STEPS.json lists whole steps: name, stage, kind, batch, milliseconds per round, parts, peak memory and the kernels of
one profiled step. OPS.json is a results.json with rows of the op suites only. Fields that were not measured become
null, and figures that need them stay null with the reason.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import pages, profile, summary

VARIANTS = {
    "naive bf16": ("naive bf16", 2),
    "auto": ("andfast bf16", summary.ANDFAST),
    "triton G": ("andfast bf16, G in Triton", summary.ANDFAST),
    "auto graph": ("andfast bf16, CUDA graph", summary.ANDFAST),
}
"""Names in STEPS.json: the report's name of the variant, and its number among the baselines."""
RENAMED = {
    "_forward_kernel": "_upsampled_forward_kernel",
    "_grad_input_kernel": "_upsampled_grad_input_kernel",
    "_grad_weight_kernel": "_dense_block_grad_weight_kernel",
    "_sums_kernel": "_distance_sums_kernel",
}
"""Kernels of G and of the losses that had the names of F's and of the ascent step's."""
DISTANCES = {name: f"_distance{name}" for name in ("_mean_kernel", "_gradient_kernel")}
NETWORKS = {"hr": 256, "blocks": 23, "features": 64}
"""All steps ran at the paper's size."""


def step_row(step: dict[str, Any]) -> dict[str, Any]:
    """A row of the step suite."""
    variant, baseline = VARIANTS[step["name"]]
    seconds = [milliseconds / 1e3 for milliseconds in step["ms"]]
    median = statistics.median(seconds)
    kind = "plain ESRGAN" if step["kind"] == "plain" else "AND"
    return {
        "group": f"{kind} step, stage {step['stage']}, cuda",
        "name": f"test_step[{variant}-{step['stage']}-{step['kind']}]",
        "min": min(seconds),
        "median": median,
        "mean": statistics.fmean(seconds),
        "stddev": statistics.stdev(seconds) if len(seconds) > 1 else None,
        "rounds": len(seconds),
        "passed": True,
        "extra_info": {
            "variant": variant,
            "baseline": baseline,
            "step": step["kind"],
            "stage": step["stage"],
            "batch": step["batch"],
            **NETWORKS,
            "compiled": False,
            "batch_note": None,
            "milliseconds": 1e3 * median,
            "images_per_second": step["batch"] / median,
            "overhead": None,
            "flops": None,
            "peak_memory": step["peak_GB"] * 1e9,
            "parts": {name: milliseconds / 1e3 for name, milliseconds in step["parts_ms"].items()},
            "host_seconds": statistics.median(step["host_ms"]) / 1e3,
            "loss_error": None,
        },
    }


def step_profile(step: dict[str, Any]) -> dict[str, Any] | None:
    """The kernels of a profiled step by group; None where the step was not profiled."""
    if "profile" not in step:
        return None
    recorded, listed = step["profile"], [tuple(kernel) for kernel in step["profile"]["top"]]
    rest = recorded["total_us"] - sum(microseconds for _, _, microseconds in listed)
    launches = recorded["launches"] - sum(count for _, count, _ in listed)
    names = DISTANCES | (RENAMED if step["kind"] == "plain" else {})  # a plain step has neither F nor an ascent
    kernels = [(names.get(name, name), count, microseconds) for name, count, microseconds in listed]
    groups = profile.grouped([*kernels, ("not listed", launches, rest)])
    if step["kind"] == "and" and step["name"] == "triton G":  # times of equal names were added up
        for group in groups:
            group["group"] = group["group"].replace("degradation block:", "degradation block and G in Triton:")
    return {
        "variant": VARIANTS[step["name"]][0],
        "step": step["kind"],
        "stage": step["stage"],
        "batch": step["batch"],
        "device_seconds": recorded["total_us"] / 1e6,
        "host_seconds": statistics.median(step["host_ms"]) / 1e3,
        "launches": recorded["launches"],
        "groups": groups,
    }


def convert(steps: list[dict[str, Any]], ops: dict[str, Any], folder: Path) -> None:
    """Write results.json, profile.json, summary.json and report.md to ``folder``."""
    rows = [step_row(step) for step in steps]
    plain = {(row["extra_info"]["variant"], row["extra_info"]["stage"]): row["median"] for row in rows
             if row["extra_info"]["step"] == "plain"}  # fmt: skip
    for row in rows:
        extra = row["extra_info"]
        base = plain.get((extra["variant"].replace(", CUDA graph", ""), extra["stage"]))
        if extra["step"] == "and" and base is not None:
            extra["overhead"] = row["median"] / base
    results = {"machine": ops["machine"], "rates": ops["rates"], "rows": [*rows, *ops["rows"]]}
    profiles = [entry for step in steps if (entry := step_profile(step)) is not None]
    values, reasons = summary.figures(results["rows"])
    machine, rates = ops["machine"], ops["rates"]
    summary_json = {
        "schema": 1,
        **values,
        "reasons": reasons,
        "gpu": machine["name"],
        "commit": machine["commit"],
        "versions": {"python": machine["python"], "cuda": machine["cuda"], "driver": machine["driver"]}
        | machine["packages"],
        "copy_bandwidth": rates["bandwidth"],
        "matrix_rate": rates["matrix"],
        "rates_source": rates["source"],
        "quick": False,
        "rows": len(results["rows"]),
        "rows_failed": sum(not row["passed"] for row in results["rows"]),
        "seconds": None,
        "stages": {},
    }
    folder.mkdir(parents=True, exist_ok=True)
    contents = {"results": results, "profile": {"profiles": profiles}, "summary": summary_json}
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    page = pages.gpu_report(summary_json, results, profiles)
    (folder / "report.md").write_text(page, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report.import_measurements", description=__doc__.splitlines()[0]
    )
    parser.add_argument("steps", type=Path)
    parser.add_argument("ops", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    convert(json.loads(options.steps.read_text()), json.loads(options.ops.read_text()), options.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
