"""The cost of a training step: operations, and gradients that it must not compute."""

from typing import Any

import pytest
import torch
from small_steps import RecordedPhases, crops, make
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from andfast.adversary import PRESETS, Attack, AttackSettings, Objective, ReuseOptions
from andfast.losses import GANLoss, PerceptualLoss
from andfast.nn import DegradationNetwork, RRDBNet, VGGDiscriminator, frozen
from andfast.training.step import RankInfo, TrainingStep


class WeightGradients(TorchDispatchMode):
    """Counts backward ops that compute weight gradients, per phase."""

    def __init__(self, phases: RecordedPhases) -> None:
        super().__init__()
        self.phases = phases
        self.counts: dict[tuple[str | None, str], int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        computes_weight_gradients = {
            "convolution_backward": lambda: any(args[10][1:]),
            "native_batch_norm_backward": lambda: any(args[9][1:]),
            "residual_dense_block_backward": lambda: any((*args[6], *args[7])),
            "upsampled_convolution_backward": lambda: any(args[6][1:]),
            "degradation_block_backward": lambda: args[8][1],
            "mm": lambda: True,
        }
        if name in computes_weight_gradients and computes_weight_gradients[name]():
            key = self.phases.now, name
            self.counts[key] = self.counts.get(key, 0) + 1
        return func(*args, **(kwargs or {}))


def test_ascent_computes_no_weight_gradients() -> None:
    """No backward op of the ascent computes any; D and G get theirs only in their own phases."""
    phases = RecordedPhases()
    steps = 2
    step = make("vgg", "relativistic", size=128, steps=steps, timer=phases)
    with WeightGradients(phases) as seen:
        step.gradients([crops(2, 128)], 0)
    of = {phase: {name: n for (p, name), n in seen.counts.items() if p == phase} for phase in phases.names}
    # D's two linear layers each multiply once per pass for the gradient to their input, never for weight gradients.
    # The first step takes F's gradients in closed form.
    assert of["ascent"] == {"degradation_block_backward": 11 * (steps - 1), "mm": 2 * steps}
    dense = 3
    assert of["generator"] == {"residual_dense_block_backward": dense, "upsampled_convolution_backward": 6, "mm": 2}
    assert step.discriminator is not None
    convolutions = sum(isinstance(module, nn.Conv2d) for module in step.discriminator.modules())
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in step.discriminator.modules())
    assert of["discriminator"] == {
        "convolution_backward": 2 * convolutions,
        "native_batch_norm_backward": 2 * norms,
        # Two per linear layer and batch of images: to the input and to the weight.
        "mm": 2 * 4,
    }


def full_size(stage: str, reuse: ReuseOptions) -> tuple[TrainingStep, Tensor]:
    """A step with the paper's networks, on the meta device."""
    with torch.device("meta"):
        generator = RRDBNet(4)
        discriminator = VGGDiscriminator(256) if stage == "gan" else None
        hr = torch.empty(1, 3, 256, 256)
    objective = Objective(1.0)
    if stage == "gan":
        vgg = PerceptualLoss({"conv5_4": 1.0}, weights="random").to("meta")
        objective = Objective(1.0, 1.0, 0.1, vgg, discriminator, GANLoss("vanilla"))
    attack = Attack(DegradationNetwork(), generator, objective, AttackSettings(PRESETS["calibrated"].ball), reuse)
    return TrainingStep(attack, RankInfo(0, 0)), hr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "count", "plain_count", "ratio"), [("net", 1122.8, 220.3, 5.10), ("gan", 1614.1, 367.8, 4.39)]
)
def test_operations_of_a_step(stage: str, count: float, plain_count: float, ratio: float) -> None:
    """GMAC per image of the step without reuse, of ESRGAN's step, and their ratio; and the GMAC that reuse saves."""
    counts = []
    for reused in (False, True):
        step, hr = full_size(stage, ReuseOptions(closed_form_first_step=reused, discriminator_pass=reused))
        with FlopCounterMode(display=False) as counter:
            step.gradients([hr], 0)
        counts.append(counter.get_total_flops() / 2e9)
    ours, less = counts
    # Saved: a forward pass of F with its gradients to input and weights; in stage gan also a forward pass of D.
    assert ours - less == pytest.approx(31.64 + 9.12 * (stage == "gan"), rel=0.02)
    # ESRGAN's step written out: LR is an input, D is frozen while G learns.
    with FlopCounterMode(display=False) as counter:
        sr = step.generator(hr[:, :, ::4, ::4])
        with frozen(step.discriminator):
            step.objective.total(step.objective.terms(sr, step.objective.targets(hr))).backward()
        if step.discriminator is not None:
            real, fake = step.discriminator(hr), step.discriminator(sr.detach())
            GANLoss("vanilla").discriminator(real, fake).backward()
    plain = counter.get_total_flops() / 2e9
    assert ours == pytest.approx(count, rel=0.01)
    assert plain == pytest.approx(plain_count, rel=0.01)
    assert ours / plain == pytest.approx(ratio, rel=0.02)
