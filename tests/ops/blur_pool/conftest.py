"""The ``impl`` fixture of blur_pool's tests."""

import contextlib

import pytest
import torch
from blur_pool_cases import IMPLS


@pytest.fixture(params=[*IMPLS, pytest.param("cuda", marks=pytest.mark.gpu)])
def impl(request):
    """Name of an implementation; its device is the default device of the test."""
    with torch.device("cuda") if request.param == "cuda" else contextlib.nullcontext():
        yield request.param
