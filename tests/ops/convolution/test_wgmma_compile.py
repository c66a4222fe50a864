"""Compiled sm_90a convolution kernels: registers, spills, instructions. No GPU is needed."""

from collections import Counter

import pytest
from built_kernels import built_for, instructions

# kernel: number of variants (dtypes and forms), registers at launch, products per chunk
KERNELS = {"wgmma_rows": (4, 168, {24}), "wgmma_taps": (6, 96, {18, 8})}


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_do_not_spill(kernel):
    variants, registers, _ = KERNELS[kernel]
    kernels = [usage for (arch, name), usage in built_for("sm_90a").items() if arch == "sm_90a" and kernel in name]
    assert len(kernels) == variants
    assert {(usage.registers, usage.stack, usage.local) for usage in kernels} == {(registers, 0, 0)}


@pytest.mark.parametrize("kernel", KERNELS)
def test_products_are_not_serialized(kernel):
    built_for("sm_90a")
    variants, _, products = KERNELS[kernel]
    bodies = [body for name, body in instructions("sm_90a").items() if kernel in name]
    assert len(bodies) == variants
    for body in bodies:
        counts = Counter(name.split(".")[0] for name in body)
        # The products of a chunk are issued together: one fence before them, and no wait between them.
        positions = [index for index, name in enumerate(body) if name.startswith("HGMMA")]
        assert len(positions) in products
        assert body.count("WARPGROUP.ARRIVE") == 1
        assert not any(name.startswith("WARPGROUP.DEPBAR") for name in body[positions[0] : positions[-1]])
        # 16-byte accesses, except for bytes of signs and words of the bias.
        assert {name for name in body if name.startswith("STG")} == {"STG.E.128", "STG.E.U8"}
        assert {name for name in body if name.startswith("LDG")} == {"LDG.E.128", "LDG.E.U8", "LDG.E"}
        assert counts["LDL"] == counts["STL"] == 0
