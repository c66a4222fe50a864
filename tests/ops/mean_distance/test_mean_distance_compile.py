"""Launches of the mean distance are variants compiled ahead of time, with 16-byte loads and stores."""

import re

import pytest
import torch
from recorded_launches import hashes_of_reference, recorded

from andfast.kernels.common.compilation import compile_variant
from andfast.kernels.mean_distance import kernels
from andfast.kernels.mean_distance.variants import Variant


@hashes_of_reference
@pytest.mark.parametrize("kind", ["l1", "l2"])
@pytest.mark.parametrize("shape", [(2, 64, 4, 6), (48, 3, 32, 32)])
def test_launches_are_compiled_ahead(shape: tuple[int, ...], kind: str) -> None:
    names = {"distance_sums", "distance_mean", "distance_gradient"}
    x, target = torch.zeros(shape, dtype=torch.bfloat16), torch.ones(shape, dtype=torch.bfloat16)
    with recorded(kernels, names) as launches:
        kernels.backward(kernels.forward(x, target, kind == "l2"), x, target, kind == "l2")
    for launch in launches:
        variant = Variant("9.0", launch.kernel.removeprefix("distance_"), kind, ("bf16", "bf16"))
        assert launch.source.hash() == variant.source().hash(), launch.kernel
    assert {launch.kernel for launch in launches} == names


@pytest.mark.parametrize("kernel", ["sums", "gradient"])
def test_values_are_accessed_16_bytes_at_a_time(kernel: str) -> None:
    ptx = compile_variant(Variant("9.0", kernel, "l1", ("bf16", "bf16"))).asm["ptx"]
    wide = re.findall(r"(ld|st)\.global\.v4\.b32", ptx)
    assert sorted(wide) == ["ld", "ld", *(["st"] if kernel == "gradient" else [])]
    assert len(re.findall(r"(?:ld|st)\.global", ptx)) == 3 + (kernel == "gradient")  # plus one scalar
