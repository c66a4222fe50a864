"""The mean distance's kernels compile for sm_80 and sm_90, without a GPU, without a spill; see kernel_resources.

The table holds what the losses launch, equal dtypes and half features against float32 ones, for tensors whose number of
values is a multiple of 16 and for others. ``python tests/test_kernels_compile_mean_distance.py`` writes
``kernels/mean_distance_resources.json`` anew.
"""

import re
from typing import Any, NamedTuple

import kernel_resources
import pytest
import torch
import triton
from kernel_resources import Resources
from recorded_launches import hashes_of_reference, recorded
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

DTYPES = (("fp32", "fp32"), ("bf16", "bf16"), ("fp16", "fp16"), ("bf16", "fp32"), ("fp16", "fp32"), ("fp32", "bf16"))

pytestmark = pytest.mark.usefixtures("fresh_triton_cache")


class Variant(NamedTuple):
    """One compiled kernel: sums, gradient or mean; dtypes of x and of target; odd: n is no multiple of 16."""

    architecture: str
    kernel: str
    kind: str = "l1"
    dtypes: tuple[str, str] = ("fp32", "fp32")
    odd: bool = False

    def name(self) -> str:
        if self.kernel == "mean":
            return f"{self.architecture} mean"
        x, target = self.dtypes
        dtypes = x if x == target else f"{x}, target {target}"
        return f"{self.architecture} {self.kernel} {self.kind} {dtypes} {'odd' if self.odd else 'aligned'}"


def variants(architecture: str) -> list[Variant]:
    cut = [
        Variant(architecture, kernel, kind, dtypes, odd)
        for kernel in ("sums", "gradient")
        for kind in ("l1", "l2")
        for dtypes in DTYPES
        for odd in (False, True)
    ]
    return [*cut, Variant(architecture, "mean")]


def source(variant: Variant) -> ASTSource:
    """One variant with the signature that a launch gets."""
    from andfast.kernels.mean_distance import kernels as module  # noqa: PLC0415

    function = getattr(module, f"_{variant.kernel}_kernel")
    if variant.kernel == "mean":
        types = {"partials_ptr": "*fp32", "mean_ptr": "*fp32"}
        return kernel_resources.source(function, types, {"BLOCK": module.PARTIALS_BLOCK}, list(types))
    x, target = ("*" + dtype for dtype in variant.dtypes)
    types = {"x_ptr": x, "target_ptr": target}
    types |= {"partials_ptr": "*fp32"} if variant.kernel == "sums" else {"grad_ptr": "*fp32", "grad_x_ptr": x}
    constants: dict[str, Any] = {
        "SQUARE": int(variant.kind == "l2"),
        "BLOCK": module.CONFIG.block,
        "BLOCKS": module.CONFIG.blocks,
    }
    return kernel_resources.source(function, types, constants, [*types, *([] if variant.odd else ["n"])])


def resources(variant: Variant) -> Resources:
    from andfast.kernels.mean_distance import kernels as module  # noqa: PLC0415

    warps = 4 if variant.kernel == "mean" else module.CONFIG.warps
    return kernel_resources.resources(source(variant), variant.architecture, num_warps=warps)


RESOURCES = kernel_resources.Table(
    "mean_distance",
    {one: variants(one) for one in kernel_resources.ARCHITECTURES},
    resources,
)


@hashes_of_reference
@pytest.mark.parametrize("kind", ["l1", "l2"])
@pytest.mark.parametrize("shape", [(2, 64, 4, 6), (48, 3, 32, 32)])
def test_what_the_losses_launch_is_in_the_table(shape: tuple[int, ...], kind: str) -> None:
    """As Triton specialises the arguments of a launch, to the hash that its cache looks for."""
    from andfast.kernels.mean_distance import kernels as module  # noqa: PLC0415
    from andfast.kernels.mean_distance import launch as launcher  # noqa: PLC0415

    kernels = {"sums", "mean", "gradient"}
    x, target = torch.zeros(shape, dtype=torch.bfloat16), torch.ones(shape, dtype=torch.bfloat16)
    with recorded(module, kernels) as made:
        launcher.backward(launcher.forward(x, target, kind == "l2"), x, target, kind == "l2")
    for one in made:
        assert one.source.hash() == source(Variant("9.0", one.kernel, kind, ("bf16", "bf16"))).hash(), one.kernel
    assert {one.kernel for one in made} == kernels


@pytest.mark.slow
@pytest.mark.parametrize("group", RESOURCES.groups)
def test_compiles_and_fits(group: str) -> None:
    RESOURCES.compile_and_check(group)


def test_the_table_holds_every_variant_and_no_other() -> None:
    RESOURCES.check_rows()


@pytest.mark.parametrize("kernel", ["sums", "gradient"])
def test_features_are_moved_sixteen_bytes_at_a_time(kernel: str) -> None:
    variant = Variant("9.0", kernel, "l1", ("bf16", "bf16"))
    code = triton.compile(source(variant), target=GPUTarget("cuda", 90, 32), options={"num_warps": 4}).asm["ptx"]
    wide = re.findall(r"(ld|st)\.global\.v4\.b32", code)
    assert sorted(wide) == ["ld", "ld", *(["st"] if kernel == "gradient" else [])]
    assert len(re.findall(r"(?:ld|st)\.global", code)) == 3 + (kernel == "gradient")  # one number beside them


if __name__ == "__main__":
    RESOURCES.write()
