"""What all benchmarks share: where they are imported from, a time budget, and the GPU in the JSON's machine_info.

``ANDFAST_BENCH_SECONDS`` is a budget for a whole run: when it is spent, the rows that are left are skipped, so that the
rows that were measured reach the JSON, which pytest-benchmark writes at the end.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
# At the end: where andfast is installed, the installed one is what is measured.
sys.path.append(str(ROOT))

BUDGET = os.environ.get("ANDFAST_BENCH_SECONDS")
_begun = time.monotonic()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if BUDGET and time.monotonic() - _begun > float(BUDGET):
        pytest.skip(f"the time budget of {BUDGET} s (ANDFAST_BENCH_SECONDS) is spent")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    from benchmarks.machine import describe  # noqa: PLC0415

    machine_info["andfast"] = describe()
