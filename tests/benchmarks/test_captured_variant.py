"""The variants of the step suite whose steps are captured, with a backend that reruns the function."""

from dataclasses import replace

import pytest
from rerun import Rerun

from benchmarks.suites.step_variants import PARITY_SEED, TINY, Step, Variant


@pytest.mark.parametrize("kind", ["plain", "and"])
@pytest.mark.parametrize("stage", ["net", "gan"])
def test_captured_variant_has_the_losses_of_the_eager_one(stage: str, kind: str) -> None:
    size = replace(TINY, steps=1)
    variant = Variant("captured", 4, graph=True)
    captured = Step(variant, size, stage, "cpu", seed=PARITY_SEED, backend=Rerun())
    eager = Step(replace(variant, graph=False), size, stage, "cpu", seed=PARITY_SEED)
    values = captured.gradients(kind)
    for name, value in eager.gradients(kind).items():
        assert values[name].item() == pytest.approx(value.item(), rel=1e-5), name
    captured.whole(kind)
    assert captured.done == 2
