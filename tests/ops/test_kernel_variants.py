"""Triton kernels of all ops compile for every architecture without spills, within shared memory and register ceilings.

Each op's ``representatives`` are the variants that use the most resources. Registers depend on the compiler's version;
ceilings are what the launch configurations' occupancy is planned for.
"""

import pytest

from andfast.kernels.common.compilation import Resources, compile_variant, excess, resources
from andfast.kernels.variants import OPS, all_variants

CASES = [(op, architecture) for op in OPS for architecture in ("8.0", "9.0")]


@pytest.mark.slow
@pytest.mark.parametrize(("op", "architecture"), CASES)
def test_compiles_within_limits(op: str, architecture: str) -> None:
    problems = {}
    for variant in OPS[op].representatives(architecture):
        used = resources(compile_variant(variant))
        problem = excess(used, architecture, variant.register_ceiling())
        if problem is not None:
            problems[variant.name()] = problem
    assert not problems


@pytest.mark.parametrize(("op", "architecture"), CASES)
def test_variants_have_unique_names_and_include_representatives(op: str, architecture: str) -> None:
    variants, representatives = OPS[op].variants(architecture), OPS[op].representatives(architecture)
    assert len({variant.name() for variant in variants}) == len(set(variants)) == len(variants)
    assert representatives
    assert set(representatives) <= set(variants)


def test_all_variants_are_of_the_architecture() -> None:
    assert {variant.architecture for variant in all_variants("9.0")} == {"9.0"}


@pytest.mark.parametrize(
    ("used", "ceiling", "message"),
    [
        (Resources(registers=80, spilled=8, shared=0), 255, "spills 8 bytes per thread"),
        (
            Resources(registers=80, spilled=0, shared=2**18),
            255,
            "needs 262144 bytes of shared memory, more than 232448",
        ),
        (Resources(registers=80, spilled=0, shared=0), 64, "needs 80 registers per thread, more than 64"),
        (Resources(registers=80, spilled=0, shared=2**14), 80, None),
    ],
)
def test_excess(used: Resources, ceiling: int, message: str | None) -> None:
    assert excess(used, "9.0", ceiling) == message
