"""Launches of the identity gradients are variants compiled ahead of time, with 16-byte stores."""

import re

import pytest
import torch
from recorded_launches import Launch, hashes_of_reference, recorded

from andfast.kernels.common.compilation import compile_variant
from andfast.kernels.identity_gradients import kernels
from andfast.kernels.identity_gradients.variants import FORMS, Variant, variants


def variant_of(launch: Launch) -> Variant:
    arguments, signature = launch.arguments, launch.source.signature
    variant = Variant("9.0", launch.kernel, (signature["x_ptr"][1:], signature["g_ptr"][1:]))
    if launch.kernel == "correlation":
        return variant
    return variant._replace(
        noise=signature["noises"][0][1:],
        form=FORMS[arguments["NOISE"]],
        last=bool(arguments["LAST"]),
        aligned=bool(arguments["ALIGNED"]),
        block=arguments["BLOCK_C"],
        slope=bool(arguments["SLOPE"]),
    )


def launches(noise: torch.dtype, form: str) -> list[Launch]:
    """Launches for the layers before and after the pooling on sm_90."""
    with recorded(kernels, ("layers", "correlation")) as recorded_launches:
        for side in (32, 8):
            x = torch.zeros(2, 3, side, side).contiguous(memory_format=torch.channels_last)
            matrices = torch.zeros(5, 2, 3, 64)
            shape = (2, 1 if form == "one map" else 64, side, side)
            maps = [torch.empty(shape, dtype=noise).contiguous(memory_format=torch.channels_last) for _ in range(5)]
            kernels.identity_gradients(x, x, matrices, matrices, maps, [True] * 5, True, "replicate")
    assert len(recorded_launches) == 4
    return recorded_launches


@hashes_of_reference
@pytest.mark.parametrize(
    ("noise", "form"), [(torch.float32, "each channel"), (torch.bfloat16, "each channel"), (torch.float32, "one map")]
)
def test_launches_are_compiled_ahead(noise: torch.dtype, form: str) -> None:
    sources = {variant_of(launch): launch.source for launch in launches(noise, form)}
    assert {variant.kernel for variant in sources} == {"layers", "correlation"}
    for variant, source in sources.items():
        assert variant in variants("9.0")
        assert source.hash() == variant.source().hash(), variant.name()


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["fp32", "bf16"])
def test_noise_gradients_are_stored_16_bytes_at_a_time(noise: str) -> None:
    """A thread reads three values of g and three of x per store, with no exchange between threads."""
    ptx = compile_variant(Variant("9.0", "layers", noise=noise)).asm["ptx"]
    assert len(re.findall(r"st\.global\.v4\.b32", ptx)) == 1
    assert len(re.findall(r"ld\.global\.b32", ptx)) == 6
