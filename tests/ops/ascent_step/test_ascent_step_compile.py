"""Launches of the ascent step are variants that are compiled ahead of time."""

import pytest
import torch
from recorded_launches import Launch, hashes_of_reference, recorded

from andfast.adversary import PRESETS, sample_identity
from andfast.kernels.ascent_step import convolutions, kernels, maps
from andfast.kernels.ascent_step.variants import Variant, variants


def variant_of(launch: Launch, channels: int = 64) -> Variant:
    arguments, signature = launch.arguments, launch.source.signature
    if launch.kernel == "coefficients":
        options = {"joint": arguments["JOINT"], "groups": arguments["GROUPS"]}
        return Variant(
            "9.0",
            launch.kernel,
            **options,
            factors=bool(arguments["FACTORS"]),
            in_tensor=bool(arguments["IN_TENSOR"]),
        )
    if launch.kernel == "map_means":
        tensors, at_center = arguments["TENSORS"], bool(arguments["AT_CENTER"])
        return Variant("9.0", launch.kernel, tensors=tensors, at_center=at_center, channels=channels)
    value, gradient = (signature[name][0][1:] for name in ("values", "gradients"))
    layout = "ones" if signature["sizes"][0] == "constexpr" else "aligned"
    at_center, expanded = bool(arguments["AT_CENTER"]), bool(arguments.get("EXPANDED", False))
    variant = Variant("9.0", launch.kernel, (value, gradient), arguments["TENSORS"], at_center, expanded, layout)
    if launch.kernel.startswith("map"):
        return variant._replace(channels=arguments["channels"], channels_last=bool(arguments["CHANNELS_LAST"]))
    if launch.kernel.startswith("convolution"):
        return variant._replace(symmetric=bool(arguments["SYMMETRIC"]))
    return variant


def launches(dtype: torch.dtype) -> list[Launch]:
    """Launches of a first and a second step over theta of F on sm_90."""
    identity = sample_identity(2, hr_size=32, channels=64, noise_dtype=dtype)
    theta = [[torch.zeros(value.shape, dtype=value.dtype) for value in group] for group in identity]
    with recorded(kernels, ("sums", "coefficients", "update")) as recorded_launches:
        for values in (identity, theta):
            kernels.ascent_step(values, theta, identity, (1.0, 1.0, 1.0), 0.3, False)
    assert len(recorded_launches) == 14
    return recorded_launches


def launches_with_parts(channels: int, *, uniform: bool) -> list[Launch]:
    """The same in the ball of preset symmetric, with channels_last noises."""
    identity = sample_identity(2, hr_size=32, channels=channels)
    theta = [
        [torch.zeros(value.shape, dtype=value.dtype).contiguous(memory_format=torch.channels_last) for value in group]
        if name == "noises"
        else [torch.zeros(value.shape, dtype=value.dtype) for value in group]
        for name, group in identity._asdict().items()
    ]
    factors = torch.ones(2) if uniform else None
    ball = PRESETS["symmetric"].ball_for(32, 32, channels)
    with (
        recorded(kernels, ("sums", "coefficients", "update")) as whole,
        recorded(maps, ("map_sums", "map_means", "map_update")) as of_maps,
        recorded(convolutions, ("convolution_sums", "convolution_update")) as of_convolutions,
    ):
        for values in (identity, theta):
            kernels.ascent_step(values, theta, identity, ball.radii, 0.3, False, ball.parts, factors)
    assert (len(whole), len(of_maps), len(of_convolutions)) == (6, 6, 4)
    return [*whole, *of_maps, *of_convolutions]


@hashes_of_reference
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_launches_are_compiled_ahead(dtype: torch.dtype) -> None:
    for launch in launches(dtype):
        variant = variant_of(launch)
        assert variant in variants("9.0")
        assert launch.source.hash() == variant.source().hash(), variant.name()


@hashes_of_reference
@pytest.mark.parametrize(("channels", "uniform"), [(64, True), (64, False), (16, True)])
def test_launches_with_parts_are_compiled_ahead(channels: int, uniform: bool) -> None:
    for launch in launches_with_parts(channels, uniform=uniform):
        variant = variant_of(launch, channels)
        assert variant in variants("9.0"), variant
        assert launch.source.hash() == variant.source().hash(), variant.name()
