"""What all tests share: the hypothesis profile, and which marked tests run on this machine."""

import os

import hypothesis
import pytest
import torch

# The same examples on every machine and in every run; time is no property of the code under test.
hypothesis.settings.register_profile(
    "andfast",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=int(os.environ.get("ANDFAST_HYPOTHESIS_EXAMPLES", "25")),
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("andfast")


def pytest_configure(config: pytest.Config) -> None:
    """Share the cores between the workers of pytest-xdist, instead of every worker taking all of them."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs a GPU or a network where there is none."""
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
    """Every test starts from the same random state, whichever ran before it."""
    torch.manual_seed(0)
