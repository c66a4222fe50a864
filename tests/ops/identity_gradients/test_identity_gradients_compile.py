"""The identity gradients' kernels compile for sm_80 and sm_90, without a GPU, without a spill; see kernel_resources.

The table holds what a first ascent pass launches (five layers of 64 channels, images in fp32 and bf16, noises in three
dtypes, both memory formats, all forms), and sizes that are no multiples of 16.
``python tests/test_kernels_compile_identity_gradients.py`` writes ``kernels/identity_gradients_resources.json`` anew.
"""

import re
from typing import Any, NamedTuple

import kernel_resources
import pytest
import torch
import triton
from kernel_resources import Resources
from recorded_launches import Launch, hashes_of_reference, recorded
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from andfast.kernels.identity_gradients.launch import identity_gradients

FORMS = ("no noise", "one map", "each channel")

pytestmark = pytest.mark.usefixtures("fresh_triton_cache")


class Variant(NamedTuple):
    """One compiled kernel.

    Attributes:
        kernel: layers or correlation.
        images: dtypes of x and g.
        noise: dtype of the noises' gradients; form: of FORMS.
        last: channels_last; aligned: rows of noises are multiples of 16.
        block: channels of a program; slope: whether slopes' gradients are summed.
    """

    architecture: str
    kernel: str
    images: tuple[str, str] = ("fp32", "fp32")
    noise: str = "fp32"
    form: str = "each channel"
    last: bool = True
    aligned: bool = True
    block: int = 64
    slope: bool = True

    def name(self) -> str:
        x, g = self.images
        start = f"{self.architecture} {self.kernel} x {x} g {g}"
        if self.kernel == "correlation":
            return start
        noise = self.form if self.form == FORMS[0] else f"{self.noise} {self.form}"
        layout = ("channels_last" if self.last else "contiguous") + (" aligned" if self.aligned else " odd")
        return f"{start}, {noise}, {'slopes' if self.slope else 'no slopes'}, {layout}, {self.block} channels"


def variants(architecture: str) -> list[Variant]:
    base = Variant(architecture, "layers")
    images = [("fp32", "fp32"), ("bf16", "bf16"), ("fp32", "bf16"), ("fp32", "fp16")]
    found = [base._replace(noise=noise, last=last) for noise in ("fp32", "bf16", "fp16") for last in (True, False)]
    found += [base._replace(images=two, noise=noise) for two in images[1:] for noise in ("fp32", two[1])]
    for block in (16, 64):
        found += [base._replace(aligned=False, last=last, block=block) for last in (True, False)]
    found += [base._replace(aligned=False, noise="bf16", last=last) for last in (True, False)]
    found += [base._replace(slope=False), base._replace(slope=False, last=False), base._replace(block=16)]
    for form in FORMS[:2]:
        found += [base._replace(form=form, block=block) for block in (16, 64)]
    found += [
        base._replace(form=FORMS[1], aligned=False),
        base._replace(form=FORMS[1], slope=False),
    ]
    found += [Variant(architecture, "correlation", two) for two in images]
    return list(dict.fromkeys(found))


def source(variant: Variant) -> ASTSource:
    """A variant with the signature that a launch gets."""
    from andfast.kernels.identity_gradients import kernels as module  # noqa: PLC0415

    config = module.CONFIG
    x, g = ("*" + dtype for dtype in variant.images)
    types: dict[str, Any] = {"x_ptr": x, "g_ptr": g, "sums_ptr": "*fp32"}
    if variant.kernel == "correlation":
        constants = {"SEGMENT": config.segment, "BLOCK": module.TAPS_BLOCK}
        return kernel_resources.source(module._correlation_kernel, types, constants, list(types))
    form = FORMS.index(variant.form)
    noises = ("*" + variant.noise,) * 5 if form else ("*fp32",)
    size = 2 if variant.form == FORMS[2] and variant.noise != "fp32" else 4
    block_c, block_p = module.tile_of(variant.block, size, config)
    types |= {"before_ptr": "*fp32", "after_ptr": "*fp32", "noises": noises}
    constants = {
        "LAYERS": 5,
        "NOISE": form,
        "SLOPE": int(variant.slope),
        "LAST": int(variant.last),
        "ALIGNED": int(variant.aligned),
        "BLOCK_C": block_c,
        "BLOCK_P": block_p,
    }
    return kernel_resources.source(module._layers_kernel, types, constants, list(types))  # torch allocates aligned


def resources(variant: Variant) -> Resources:
    from andfast.kernels.identity_gradients import kernels as module  # noqa: PLC0415

    return kernel_resources.resources(source(variant), variant.architecture, num_warps=module.CONFIG.warps)


RESOURCES = kernel_resources.Table(
    "identity_gradients",
    {one: variants(one) for one in kernel_resources.ARCHITECTURES},
    resources,
)


def variant_of(launch: Launch) -> Variant:
    """What the table calls a launch."""
    bound, signature = launch.arguments, launch.source.signature
    variant = Variant("9.0", launch.kernel, (signature["x_ptr"][1:], signature["g_ptr"][1:]))
    if launch.kernel == "correlation":
        return variant
    of = {"last": bound["LAST"], "aligned": bound["ALIGNED"], "slope": bound["SLOPE"]}
    return variant._replace(
        noise=signature["noises"][0][1:],
        form=FORMS[bound["NOISE"]],
        block=bound["BLOCK_C"],
        **{name: bool(one) for name, one in of.items()},
    )


def launches(noise: torch.dtype, form: str) -> list[Launch]:
    """What the layers before and behind the pooling launch on sm_90, as Triton specialises the arguments."""
    from andfast.kernels.identity_gradients import kernels as module  # noqa: PLC0415

    with recorded(module, ("layers", "correlation")) as made:
        for side in (32, 8):
            x = torch.zeros(2, 3, side, side).contiguous(memory_format=torch.channels_last)
            matrices = torch.zeros(5, 2, 3, 64)
            shape = (2, 1 if form == "one map" else 64, side, side)
            maps = [torch.empty(shape, dtype=noise).contiguous(memory_format=torch.channels_last) for _ in range(5)]
            identity_gradients(x, x, matrices, matrices, maps, [True] * 5, True, "replicate")
    assert len(made) == 4
    return made


@hashes_of_reference
@pytest.mark.parametrize(
    ("noise", "form"), [(torch.float32, "each channel"), (torch.bfloat16, "each channel"), (torch.float32, "one map")]
)
def test_what_a_first_pass_launches_is_in_the_table(noise: torch.dtype, form: str) -> None:
    """It is the very kernel that is compiled here, so that a launch finds it in Triton's cache."""
    found = {variant_of(launch): launch.source for launch in launches(noise, form)}
    assert {variant.kernel for variant in found} == {"layers", "correlation"}
    for variant, launched in found.items():
        assert variant in variants("9.0")
        assert launched.hash() == source(variant).hash()


@pytest.mark.slow
@pytest.mark.parametrize("group", RESOURCES.groups)
def test_compiles_and_fits(group: str) -> None:
    RESOURCES.compile_and_check(group)


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["fp32", "bf16"])
def test_noises_are_written_16_bytes_at_a_time(noise: str) -> None:
    """And for each of those a thread reads three values of g and three of x, and waits for no other."""
    compiled_from = source(Variant("9.0", "layers", noise=noise))
    ptx = triton.compile(compiled_from, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4}).asm["ptx"]
    assert len(re.findall(r"st\.global\.v4\.b32", ptx)) == 1
    assert len(re.findall(r"ld\.global\.b32", ptx)) == 6


def test_the_table_holds_every_variant_and_no_other() -> None:
    RESOURCES.check_rows()


if __name__ == "__main__":
    RESOURCES.write()
