"""Shared by all benchmarks: the import path, a time budget, and the GPU in the JSON's machine_info.

``ANDFAST_BENCH_SECONDS`` is the budget of a run: when it is spent, remaining rows are skipped, so that measured rows
reach the JSON, which pytest-benchmark writes at the end. ``ANDFAST_BENCH_ROWS`` names a file to which each row is
appended as soon as it is measured, one JSON object per line, so measured rows survive a kill.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
# Last, so that an installed andfast takes precedence over the checkout.
sys.path.append(str(ROOT))

ANDFAST = 4
"""andfast's number among the baselines of the step."""
BUDGET = os.environ.get("ANDFAST_BENCH_SECONDS")
ROWS = os.environ.get("ANDFAST_BENCH_ROWS")
_begun = time.monotonic()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if BUDGET and time.monotonic() - _begun > float(BUDGET):
        pytest.skip(f"the time budget of {BUDGET} s (ANDFAST_BENCH_SECONDS) is spent")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    row = getattr(item, "funcargs", {}).get("benchmark")
    if ROWS and call.when == "call" and row is not None and row.stats is not None and row.stats.stats.data:
        values = {name: row.stats[name] for name in ("min", "median", "mean", "stddev", "rounds")}
        line = {"group": row.group, "name": row.name, **values, "passed": report.passed, "extra_info": row.extra_info}
        with open(ROWS, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    return report


def pytest_configure(config: pytest.Config) -> None:
    # Warnings are errors in the tests, but must not cost a row.
    config.addinivalue_line("filterwarnings", "default")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip rows that need a GPU if there is none; with a budget, steps that compile for minutes run last."""
    if BUDGET:
        items.sort(key=_patience)
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


def _patience(item: pytest.Item) -> tuple[bool, bool, bool, int]:
    """Order of a step's variants under a budget: bf16 uncompiled, naive fp32, compiled, andfast fp32; andfast first."""
    callspec = getattr(item, "callspec", None)
    variant = callspec.params.get("variant") if callspec is not None else None
    baseline, half = getattr(variant, "baseline", 0), bool(getattr(variant, "bf16", False))
    return baseline == ANDFAST and not half, bool(getattr(variant, "compiled", False)), not half, -baseline


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    from benchmarks.machine import describe  # noqa: PLC0415

    machine_info["andfast"] = describe()


@pytest.fixture
def precision_switch() -> Generator[Callable[[str], None], None, None]:
    """Sets TF32 for convolutions and products per row; cuDNN benchmarks its algorithms."""
    kinds = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)
    before = [kind.fp32_precision for kind in kinds], torch.backends.cudnn.benchmark

    def use(value: str) -> None:
        for kind in kinds:
            kind.fp32_precision = value

    torch.backends.cudnn.benchmark = True
    use("ieee")
    yield use
    for kind, value in zip(kinds, before[0], strict=True):
        kind.fp32_precision = value
    torch.backends.cudnn.benchmark = before[1]
