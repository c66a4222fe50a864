"""The ascent step's kernels compile for sm_80 and sm_90, without a GPU, without a spill; see kernel_resources.

Dtypes mix freely, so the table holds what an ascent through F launches (11 weights, 10 noises, 10 slopes), a gradient
of another dtype, and the most tensors that a launch takes. ``python tests/test_kernels_compile_ascent_step.py`` writes
``kernels/ascent_step_resources.json`` anew.
"""

from pathlib import Path
from typing import Any, NamedTuple

import kernel_resources
import pytest
from kernel_resources import Resources

RESOURCES = kernel_resources.KERNELS / "ascent_step_resources.json"


class Variant(NamedTuple):
    """One compiled kernel.

    Attributes:
        kernel: sums, coefficients or update.
        dtypes: of values (and centers and outputs), and of gradients.
        at_center, expanded: as of a Batch; joint: of the coefficients.
        layout: "aligned", "odd" (sizes of any number), "ones" (one value an image: slopes).
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
    from andfast.kernels import ascent_step as module  # noqa: PLC0415

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
    divisible = [name for name in types if name.endswith("_ptr")]
    if variant.layout == "ones":
        constants["sizes"] = (1,) * variant.tensors
    if variant.layout == "aligned":
        divisible += [*pointers, "sizes"]
    source = kernel_resources.source(function, types, constants, divisible)
    return kernel_resources.resources(source, variant.architecture, num_warps=config.warps)


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", kernel_resources.SHARED_LIMIT)
def test_compiles_and_fits(architecture: str) -> None:
    for variant in variants(architecture):
        kernel_resources.check(variant, resources(variant), RESOURCES)


def test_the_table_holds_every_variant_and_no_other() -> None:
    everything = [variant for architecture in kernel_resources.SHARED_LIMIT for variant in variants(architecture)]
    kernel_resources.check_table(everything, RESOURCES)


if __name__ == "__main__":
    everything = [variant for architecture in kernel_resources.SHARED_LIMIT for variant in variants(architecture)]
    kernel_resources.write(everything, resources, RESOURCES)
