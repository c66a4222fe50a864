"""ReuseOptions: each option changes results only by rounding and saves the passes that it should."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from small_steps import assert_close, crops, gradients, make
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from andfast.adversary import ReuseOptions
from andfast.config.schema import ReuseConfig, TrainConfig
from andfast.training.build import build_reuse
from andfast.training.step import RankInfo, TrainingStep

NOTHING = ReuseOptions(closed_form_first_step=False, hr_features=False, cast_weights=False, discriminator_pass=False)
SWITCHES = [field.name for field in dataclasses.fields(ReuseOptions)]


def run(
    reuse: ReuseOptions,
    gan: str = "vanilla",
    *,
    stage: str = "gan",
    dtype: torch.dtype = torch.float64,
    autocast: torch.dtype | None = None,
) -> tuple[TrainingStep, Any]:
    """Run a step with the paper's kind of discriminator; return it and its metrics.

    In float64, where differences of algorithms exceed rounding. In float32, the kinks of VGG and batch statistics of
    two images amplify rounding to 0.02 dB of LR.
    """
    size = 128 if stage == "gan" else 32
    attack = {"reuse": reuse, "autocast": autocast}
    step = make("vgg" if stage == "gan" else None, gan, size=size, steps=2, attack=attack)
    for module in (step.generator, step.discriminator, step.objective.vgg):
        if module is not None:
            module.to(dtype)
    return step, step.gradients([crops(2, size).to(dtype)], 0)


def buffers(step: TrainingStep) -> list[Tensor]:
    assert step.discriminator is not None
    return [buffer.clone() for buffer in step.discriminator.buffers()]


@functools.cache
def without_reuse(gan: str) -> tuple[TrainingStep, Any]:
    return run(NOTHING, gan)


@pytest.mark.parametrize(
    ("switch", "gan"),
    [
        ("closed_form_first_step", "vanilla"),
        ("hr_features", "vanilla"),
        *((switch, gan) for switch in ("discriminator_pass", "all") for gan in ("vanilla", "relativistic")),
    ],
)
def test_option_changes_only_rounding(switch: str, gan: str) -> None:
    on = ReuseOptions(*[True] * len(SWITCHES)) if switch == "all" else dataclasses.replace(NOTHING, **{switch: True})
    (plain, expected), (step, actual) = without_reuse(gan), run(on, gan)
    assert actual.keys() == expected.keys()
    for name in actual:
        assert actual[name].item() == pytest.approx(expected[name].item(), rel=1e-6), name
    assert_close(gradients(step.generator), gradients(plain.generator), 1e-6)
    assert_close(gradients(step.discriminator), gradients(plain.discriminator), 1e-6)
    for buffer, reference in zip(buffers(step), buffers(plain), strict=True):
        torch.testing.assert_close(buffer, reference, rtol=1e-6, atol=1e-9)
    if switch == "hr_features":  # the same bits
        assert all(torch.equal(actual[name], expected[name]) for name in actual)
    if switch == "discriminator_pass":  # it is not part of the attack
        assert torch.equal(actual["loss_clean"], expected["loss_clean"])
        assert torch.equal(actual["lr_psnr"], expected["lr_psnr"])


@pytest.mark.parametrize("switch", ["closed_form_first_step", "hr_features", "cast_weights"])
def test_option_changes_only_rounding_in_stage_net(switch: str) -> None:
    on = dataclasses.replace(NOTHING, **{switch: True})
    (plain, expected), (step, actual) = (run(reuse, stage="net") for reuse in (NOTHING, on))
    assert {name: value.item() for name, value in actual.items()} == pytest.approx(
        {name: value.item() for name, value in expected.items()}, rel=1e-6
    )
    assert_close(gradients(step.generator), gradients(plain.generator), 1e-6)


def test_cast_weights_are_bit_identical_in_bf16() -> None:
    on = dataclasses.replace(NOTHING, cast_weights=True)
    low: dict[str, Any] = {"autocast": torch.bfloat16, "dtype": torch.float32}
    (plain, expected), (step, actual) = (run(reuse, **low) for reuse in (NOTHING, on))
    assert all(torch.equal(actual[name], expected[name]) for name in actual)
    assert_close(gradients(step.generator), gradients(plain.generator), 0)
    assert all(weight.dtype == torch.float32 and weight.requires_grad for weight in step.generator.parameters())


def test_discriminator_pass_accumulates_and_scales() -> None:
    """Gradients of micro batches add up; a loss scale multiplies only gradients."""
    on = dataclasses.replace(NOTHING, discriminator_pass=True)
    results = []
    for reuse, scale in ((NOTHING, 1.0), (on, 1024.0)):
        options: dict[str, Any] = {"scale_loss": lambda loss, by=scale: loss * by}
        rank_info = RankInfo(seed=1, stage=0, accumulate=2)
        step = make("vgg", size=128, steps=1, rank_info=rank_info, attack={"reuse": reuse}, **options)
        values = step.gradients([crops(2, 128), crops(2, 128).flip(0)], 0)
        networks = (step.generator, step.discriminator)
        grads = [{name: grad / scale for name, grad in gradients(network).items()} for network in networks]
        results.append((values, grads))
    (expected, theirs), (values, ours) = results
    for name, value in values.items():
        assert value.item() == pytest.approx(expected[name].item(), rel=1e-4), name
    for actual, reference in zip(ours, theirs, strict=True):
        assert_close(actual, reference, 1e-4)


class Calls(TorchDispatchMode):
    """Counts ops by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.counts[name] = self.counts.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def counted(reuse: ReuseOptions, **options: Any) -> dict[str, int]:
    with Calls() as calls:
        run(reuse, **{"dtype": torch.float32} | options)
    return calls.counts


def test_options_save_ops() -> None:
    """Op counts of a step with two ascent steps, two layers of VGG and ten convolutions of D."""
    plain = counted(NOTHING)

    def saved(name: str, **switch: bool) -> int:
        return plain[name] - counted(dataclasses.replace(NOTHING, **switch)).get(name, 0)

    assert saved("degradation_block", closed_form_first_step=True) == 11
    assert saved("degradation_block_backward", closed_form_first_step=True) == 11
    assert saved("convolution", hr_features=True) == 2 * 2
    discriminator = make("vgg", size=128).discriminator
    assert discriminator is not None
    convolutions = sum(isinstance(module, torch.nn.Conv2d) for module in discriminator.modules())
    assert saved("convolution", discriminator_pass=True) == convolutions


def test_cast_weights_saves_casts() -> None:
    low = {"stage": "net", "autocast": torch.bfloat16, "dtype": torch.float32}
    plain, shared = counted(NOTHING, **low), counted(dataclasses.replace(NOTHING, cast_weights=True), **low)
    weights = len(list(make().generator.parameters()))
    assert plain["_to_copy"] - shared["_to_copy"] == 2 * weights  # two passes; the remaining cast is a foreach op


def config(**reuse: Any) -> TrainConfig:
    return TrainConfig(output=Path("x"), reuse=ReuseConfig(**reuse))


def test_discriminator_pass_is_on_where_exact() -> None:
    assert build_reuse(config()) == ReuseOptions(True, True, True, discriminator_pass=True)
    unet = config()
    unet.discriminator.kind = "unet"
    assert not build_reuse(unet).discriminator_pass
    compiled = config()
    compiled.compile = True
    assert not build_reuse(compiled).discriminator_pass
    unet.reuse.discriminator_pass = True
    assert build_reuse(unet).discriminator_pass
    assert not build_reuse(config(discriminator_pass=False)).discriminator_pass


def test_discriminator_pass_changes_power_iterations_of_a_unet() -> None:
    """Hence it is off for a U-Net: G's loss sees D one power iteration later. D's loss and buffers are the same."""
    size, results = 32, []
    for shared in (False, True):
        reuse = dataclasses.replace(NOTHING, discriminator_pass=shared)
        step = make("unet", size=size, steps=1, attack={"reuse": reuse})
        assert step.discriminator is not None
        with torch.no_grad():  # power iterations have converged at initialization, but not once weights have changed
            for weight in step.discriminator.parameters():
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)), alpha=0.1)
        values = step.gradients([crops(2, size)], 0)
        results.append((step, values))
    (plain, expected), (step, values) = results
    assert_close(gradients(step.discriminator), gradients(plain.discriminator), 1e-4)
    assert all(torch.equal(a, b) for a, b in zip(buffers(step), buffers(plain), strict=True))
    assert values["l1"].item() == expected["l1"].item()
    assert values["gan"].item() != pytest.approx(expected["gan"].item(), rel=1e-6)
