"""The variants of the step suite whose steps are captured, with a backend that reruns the function."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rerun import Rerun

from andfast.config.files import build, read_settings
from andfast.config.schema import Stage
from andfast.training.build import AUTOCAST, build_attack_settings, build_reuse, build_strategy, captures_step
from benchmarks.suites.step_variants import FULL, PARITY_SEED, SHIPPED, TINY, Step, Variant

CONFIGS = Path(__file__).parents[2] / "configs"


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


def test_compiled_captured_variant_has_the_losses_of_the_eager_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANDFAST_BENCH_COMPILE", "aot_eager")
    size = replace(TINY, steps=1)
    variant = Variant("compiled", 4, compiled=True, graph=True)
    captured = Step(variant, size, "net", "cpu", seed=PARITY_SEED, backend=Rerun())
    assert captured.compiled
    eager = Step(Variant("eager", 4), size, "net", "cpu", seed=PARITY_SEED)
    values = captured.gradients("and")
    torch.compiler.reset()
    for name, value in eager.gradients("and").items():
        assert values[name].item() == pytest.approx(value.item(), rel=1e-5), name


@pytest.mark.parametrize("stage", ["net", "gan"])
def test_shipped_variant_computes_what_the_configuration_does(stage: Stage) -> None:
    config = build({**read_settings(CONFIGS / f"and{stage}_x4.yaml"), "output": "x"})
    step = Step(SHIPPED, FULL, stage, "meta").ours
    attack, sizes = step.attack, config.generator
    assert attack.settings == build_attack_settings(config, stage)
    assert attack.reuse == build_reuse(config)
    assert attack.autocast == AUTOCAST[config.precision]
    assert attack.degradation_autocast == (config.degradation.precision == "mixed")
    assert type(step.strategy) is type(build_strategy(config.adversary))
    assert (FULL.features, FULL.blocks, FULL.growth) == (sizes.features, sizes.blocks, sizes.growth)
    assert (FULL.batch, FULL.hr) == (config.batch_size, config.data.patch_size)
    assert captures_step(config, "cuda") == SHIPPED.graph
    assert config.compile == SHIPPED.compiled
    assert config.channels_last
    if stage == "gan":
        assert (config.discriminator.kind, config.discriminator.features) == ("vgg", FULL.discriminator)
        assert config.loss.perceptual_layers == FULL.layers
