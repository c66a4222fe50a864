"""Shared by all tests: hypothesis profile, random seed, skips of marked tests that this machine cannot run."""

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

# Last, so that benchmarks/ is importable but an installed andfast takes precedence over the checkout's.
sys.path.append(str(Path(__file__).resolve().parents[1]))

# Collection makes half a million objects that stay; looking for garbage among them takes a quarter of its time.
gc.disable()

# The same examples on every machine and in every run, without time limits.
hypothesis.settings.register_profile(
    "andfast",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=int(os.environ.get("ANDFAST_HYPOTHESIS_EXAMPLES", "25")),
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("andfast")

# Triton 3.9 warns unless fusion of a * b + c is configured; 1 is the default of 3.6 and 3.9.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

# Scalar code is enough here: Inductor finds a CPU's vector instructions with six compilations and processes, 18 s.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "0")

# One thread per process: for small tensors, threads waiting for each other on a busy machine cost minutes.
torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Leave what collection made out of the garbage collector's work from here on."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip tests marked gpu or network where there is none."""
    needs = {
        "gpu": (torch.cuda.is_available(), "needs a CUDA GPU"),
        "network": (
            os.environ.get("ANDFAST_NETWORK_TESTS") == "1",
            "needs a network; set ANDFAST_NETWORK_TESTS=1",
        ),
    }
    for item in items:
        for marker, (present, reason) in needs.items():
            if marker in item.keywords and not present:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test starts from the same random state."""
    torch.manual_seed(0)


@pytest.fixture
def terminal_signals() -> Iterator[None]:
    """SIGHUP and SIGINT as a terminal's processes have them; after nohup and in the background they are ignored."""
    defaults = {signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    earlier = {number: signal.signal(number, handler) for number, handler in defaults.items()}
    yield
    for number, handler in earlier.items():
        signal.signal(number, handler)
