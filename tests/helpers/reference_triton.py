"""Tests of what the reference environment's Triton makes of kernels, such as registers near the limit."""

from importlib.metadata import PackageNotFoundError, version

import pytest

VERSION = "3.6."


def _installed() -> str:
    try:
        return version("triton")
    except PackageNotFoundError:
        return ""


only_with_reference_triton = pytest.mark.skipif(
    not _installed().startswith(VERSION),
    reason=f"Triton must be {VERSION}x, was {_installed()}; others spill in candidates, which the tuner leaves out",
)
