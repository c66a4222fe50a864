"""The ascent step's kernels compile for sm_80 and sm_90, without a GPU, without a spill; see kernel_resources.

Dtypes mix freely, so the table holds what an ascent through F launches (11 weights, 10 noises, 10 slopes), a gradient
of another dtype, and the most tensors that a launch takes. ``python tests/test_kernels_compile_ascent_step.py`` writes
``kernels/ascent_step_resources.json`` anew.
"""

from typing import Any, NamedTuple

import kernel_resources
import pytest
import torch
from kernel_resources import Resources
from recorded_launches import Launch, recorded

from andfast.adversary import sample_identity
from andfast.kernels.ascent_step.launch import ascent_step

pytestmark = pytest.mark.usefixtures("fresh_triton_cache")


class Variant(NamedTuple):
    """One compiled kernel.

    Attributes:
        kernel: sums, coefficients or update.
        dtypes: of values (and centers and outputs), and of gradients.
        at_center, expanded: as of a Batch; joint: of the coefficients.
        layout: "aligned", "odd" (an image's values are no multiple of 16), "ones" (one value an image: slopes).
    """

    architecture: str
    kernel: str
    dtypes: tuple[str, str] = ("fp32", "fp32")
    tensors: int = 10
    at_center: bool = False
    expanded: bool = False
    layout: str = "aligned"
    joint: bool = False

    def name(self) -> str:
        if self.kernel == "coefficients":
            return f"{self.architecture} coefficients {'joint' if self.joint else 'three balls'}"
        center = ("expanded" if self.expanded else "full") + " centers" + (", first step" if self.at_center else "")
        value, gradient = self.dtypes
        dtypes = value if value == gradient else f"{value}, gradients {gradient}"
        return f"{self.architecture} {self.kernel} {self.tensors} {dtypes} {self.layout}, {center}"


def variants(architecture: str) -> list[Variant]:
    noises = [
        Variant(architecture, "", (dtype, dtype), 10, first, True)
        for dtype in ("fp32", "bf16", "fp16")
        for first in (True, False)
    ]
    weights = [Variant(architecture, "", tensors=11, at_center=first) for first in (True, False)]
    slopes = [Variant(architecture, "", at_center=first, layout="ones") for first in (True, False)]
    others = [
        Variant(architecture, "", ("fp32", "bf16"), expanded=True),
        Variant(architecture, "", tensors=10, layout="odd"),
        Variant(architecture, "", ("bf16", "bf16"), 10, layout="odd"),
        Variant(architecture, "", tensors=32),
        Variant(architecture, "", ("bf16", "fp32"), 32),
    ]
    found = [one._replace(kernel=kernel) for kernel in ("sums", "update") for one in noises + weights + slopes + others]
    return found + [Variant(architecture, "coefficients", joint=joint) for joint in (False, True)]


def resources(variant: Variant) -> Resources:
    """Compile one variant with the signature that a launch gets."""
    from andfast.kernels.ascent_step import kernels as module  # noqa: PLC0415

    config = module.CONFIG
    function = getattr(module, f"_{variant.kernel}_kernel")
    if variant.kernel == "coefficients":
        source = kernel_resources.source(
            function,
            {"partials_ptr": "*fp32", "coefficients_ptr": "*fp32", "radii": ("fp32",) * 3, "step_size": "fp32"},
            {"GROUPS": 3, "JOINT": variant.joint, "BLOCK": module.PARTIALS_BLOCK},
            ["partials_ptr", "coefficients_ptr"],
        )
        return kernel_resources.resources(source, variant.architecture, num_warps=4)
    value, gradient = ("*" + dtype for dtype in variant.dtypes)
    types: dict[str, Any] = {
        "values": (value,) * variant.tensors,
        "gradients": (gradient,) * variant.tensors,
        "centers": (value,) * variant.tensors,
        "sizes": ("i32",) * variant.tensors,
    }
    pointers = ["values", "gradients", "centers"]
    if variant.kernel == "update":
        types |= {"outs": (value,) * variant.tensors, "coefficients_ptr": "*fp32"}
        pointers += ["outs"]
    else:
        types["partials_ptr"] = "*fp32"
    constants: dict[str, Any] = {
        "TENSORS": variant.tensors,
        "AT_CENTER": int(variant.at_center),
        "EXPANDED": int(variant.expanded),
        "BLOCK": config.block,
        "BLOCKS": config.blocks,
    }
    divisible = [name for name in types if name.endswith("_ptr")] + pointers  # torch allocates so
    if variant.layout == "ones":
        constants["sizes"] = (1,) * variant.tensors
    if variant.layout == "aligned":
        divisible.append("sizes")
    source = kernel_resources.source(function, types, constants, divisible)
    return kernel_resources.resources(source, variant.architecture, num_warps=config.warps)


RESOURCES = kernel_resources.Table(
    "ascent_step", {one: variants(one) for one in kernel_resources.ARCHITECTURES}, resources
)


def variant_of(launch: Launch) -> Variant:
    """What the table calls a launch."""
    bound, signature = launch.arguments, launch.source.signature
    if launch.kernel == "coefficients":
        return Variant("9.0", launch.kernel, joint=bound["JOINT"])
    dtypes = tuple(signature[name][0][1:] for name in ("values", "gradients"))
    layout = "ones" if signature["sizes"][0] == "constexpr" else "aligned"
    at_center, expanded = bool(bound["AT_CENTER"]), bool(bound["EXPANDED"])
    return Variant("9.0", launch.kernel, dtypes, bound["TENSORS"], at_center, expanded, layout)


def launches(dtype: torch.dtype) -> list[Launch]:
    """What a first and a second step over theta of F launch on sm_90, as Triton specialises the arguments."""
    from andfast.kernels.ascent_step import kernels as module  # noqa: PLC0415

    identity = sample_identity(2, hr_size=32, channels=64, noise_dtype=dtype)
    theta = [[torch.zeros(one.shape, dtype=one.dtype) for one in group] for group in identity]
    with recorded(module, ("sums", "coefficients", "update")) as made:
        for values in (identity, theta):
            ascent_step(values, theta, identity, (1.0, 1.0, 1.0), 0.3, False)
    assert len(made) == 14
    return made


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_an_ascent_launches_is_in_the_table(dtype: torch.dtype) -> None:
    for variant, source in {variant_of(launch): launch.source for launch in launches(dtype)}.items():
        RESOURCES.check(variant, kernel_resources.resources(source, "9.0", num_warps=4))


@pytest.mark.slow
@pytest.mark.parametrize("group", RESOURCES.groups)
def test_compiles_and_fits(group: str) -> None:
    RESOURCES.compile_and_check(group)


def test_the_table_holds_every_variant_and_no_other() -> None:
    RESOURCES.check_rows()


if __name__ == "__main__":
    RESOURCES.write()
