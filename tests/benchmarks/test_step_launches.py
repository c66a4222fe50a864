"""The counts of a step: what benchmarks/step_launches.py finds without a GPU."""

import itertools
from dataclasses import replace
from typing import Any

import pytest

from benchmarks import step_launches
from benchmarks.suites import step_variants

SIZE = replace(step_variants.FULL, batch=48, blocks=2)


def test_reused_work_is_launched_once() -> None:
    reused, alone = (
        step_launches.count("andfast bf16", "and", "net", SIZE, reuse) for reuse in (None, step_launches.NOTHING)
    )
    assert reused["ascent"]["launches"] < alone["ascent"]["launches"]
    assert reused["ascent"]["casts"] < alone["ascent"]["casts"] / 2
    assert reused["generator"]["launches"] == alone["generator"]["launches"]


@pytest.mark.parametrize("stage", ["net", "gan"])
def test_naive_launches_and_moves_more(stage: str) -> None:
    ours, naive = (step_launches.count(name, "and", stage, SIZE)["ascent"] for name in ("andfast bf16", "naive bf16"))
    for what in ("launches", "bytes", "peak"):
        assert ours[what] < naive[what] / 2, what


def test_an_ascent_step_is_counted_as_its_kernels() -> None:
    """Five steps in two groups of images, seven launches each."""
    counted: list[Any] = []
    original = step_launches.Launches.ascent_step

    class Watched(step_launches.Launches):  # type: ignore[misc, name-defined]
        def ascent_step(self, batches: list[Any]) -> None:
            before = self.rows.get(self.phases.now, step_launches.ROW)["launches"]
            original(self, batches)
            counted.append(self.rows[self.phases.now]["launches"] - before)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_launches, "Launches", Watched)
        step_launches.count("andfast bf16", "and", "net", SIZE)
    assert counted == [7] * 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "variant"), list(itertools.product(["net", "gan"], ["andfast bf16", "andfast bf16, F in fp32"]))
)
def test_an_exact_step_takes_hardly_more_memory_than_a_plain_one(variant: str, stage: str) -> None:
    """The design's bound, 1.15, at the paper's size; counted, allocator and workspaces left out."""
    size = replace(step_variants.FULL, steps=3)  # the peak is that of five, but for 16 bytes
    full = {kind: step_launches.count(variant, kind, stage, size).values() for kind in ("plain", "and")}
    plain, exact = (max(part["peak"] for part in parts) for parts in (full["plain"], full["and"]))
    assert exact <= 1.15 * plain
