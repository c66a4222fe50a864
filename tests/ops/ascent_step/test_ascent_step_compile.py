"""Launches of the ascent step are variants that are compiled ahead of time."""

import pytest
import torch
from recorded_launches import Launch, hashes_of_reference, recorded

from andfast.adversary import sample_identity
from andfast.kernels.ascent_step import kernels
from andfast.kernels.ascent_step.variants import Variant, variants


def variant_of(launch: Launch) -> Variant:
    arguments, signature = launch.arguments, launch.source.signature
    if launch.kernel == "coefficients":
        return Variant("9.0", launch.kernel, joint=arguments["JOINT"])
    value, gradient = (signature[name][0][1:] for name in ("values", "gradients"))
    layout = "ones" if signature["sizes"][0] == "constexpr" else "aligned"
    at_center, expanded = bool(arguments["AT_CENTER"]), bool(arguments["EXPANDED"])
    return Variant("9.0", launch.kernel, (value, gradient), arguments["TENSORS"], at_center, expanded, layout)


def launches(dtype: torch.dtype) -> list[Launch]:
    """Launches of a first and a second step over theta of F on sm_90."""
    identity = sample_identity(2, hr_size=32, channels=64, noise_dtype=dtype)
    theta = [[torch.zeros(value.shape, dtype=value.dtype) for value in group] for group in identity]
    with recorded(kernels, ("sums", "coefficients", "update")) as recorded_launches:
        for values in (identity, theta):
            kernels.ascent_step(values, theta, identity, (1.0, 1.0, 1.0), 0.3, False)
    assert len(recorded_launches) == 14
    return recorded_launches


@hashes_of_reference
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_launches_are_compiled_ahead(dtype: torch.dtype) -> None:
    for launch in launches(dtype):
        variant = variant_of(launch)
        assert variant in variants("9.0")
        assert launch.source.hash() == variant.source().hash(), variant.name()
