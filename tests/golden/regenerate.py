"""The losses of 50 steps of each stage with tiny networks, which a refactoring has to reproduce.

Run ``python tests/golden/regenerate.py`` after a change that is meant to change what is computed, and say in the change
log why losses.json is another one. It prints the largest relative difference from the file before.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import skimage.data
import torch
from torch import Tensor

from andfast.adversary import PRESETS, Attack, AttackSettings, Objective, ReuseOptions
from andfast.losses import GANLoss, PerceptualLoss
from andfast.nn import DegradationNetwork, RRDBNet, UNetDiscriminator, VGGDiscriminator
from andfast.training.build import compile_networks
from andfast.training.ema import EMA
from andfast.training.step import RankInfo, TrainingStep

FILE = Path(__file__).with_name("losses.json")
STEPS = 50
BATCH = 2
SIZE = 32
BATCH_STATISTICS_SIZE = 128
LOSSES = ("loss", "loss_clean", "l1", "perceptual", "gan", "discriminator")
"""Logits, gains and decibels are differences of these, and would ask for digits that float32 does not have."""


def batch(step: int, size: int) -> Tensor:
    """Two crops of photographs that depend on nothing but the step, (2, 3, size, size) in [0, 1]."""
    crops = []
    for j, photo in enumerate((PHOTOGRAPHS[step % 3], PHOTOGRAPHS[(step + 1) % 3])):
        number = BATCH * step + j
        top, left = 37 * number % (photo.shape[0] - size), 53 * number % (photo.shape[1] - size)
        crops.append(torch.from_numpy(photo[top : top + size, left : left + size].copy()))
    return torch.stack(crops).permute(0, 3, 1, 2).float() / 255


PHOTOGRAPHS = (skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea())


NOTHING = ReuseOptions(closed_form_first_step=False, hr_features=False, cast_weights=False, discriminator_pass=False)
"""What is stored was computed the long way."""


def train_net(
    steps: int = STEPS,
    reuse: ReuseOptions = NOTHING,
    *,
    recovered: bool = False,
    chunk_size: int = 0,
    compiler: str | None = None,
) -> tuple[dict[str, list[float]], dict[str, Tensor]]:
    """The first steps of stage net in float32 on the CPU; losses by name, and G's averaged weights.

    Args:
        steps: number of steps.
        reuse: what a step computes once.
        recovered: F keeps no z and takes the slopes' gradients from its layers' results, as a training run's does.
        chunk_size: images per chunk of the attack; 0 for all.
        compiler: backend of torch.compile for G; None for eager.
    """
    with _one_thread():
        torch.manual_seed(0)
        generator = RRDBNet(features=8, blocks=1, growth=4)
        if compiler is not None:
            compile_networks(generator, None, backend=compiler)
        losses = _stage(generator, Objective(1.0), 0, reuse, chunk_size, recovered=recovered, steps=steps)
        return losses, generator.state_dict()


def train_gan(
    weights: dict[str, Tensor], steps: int = STEPS, reuse: ReuseOptions = NOTHING, *, recovered: bool = False
) -> dict[str, list[float]]:
    """The first steps of stage gan from these weights of G; losses by name."""
    with _one_thread():
        torch.manual_seed(0)
        generator, discriminator = RRDBNet(features=8, blocks=1, growth=4), UNetDiscriminator(features=4)
        vgg = PerceptualLoss({"conv1_2": 0.1}, weights="random")
        generator.load_state_dict(weights)
        objective = Objective(1.0, 1.0, 0.1, vgg, discriminator, GANLoss("vanilla"))
        return _stage(generator, objective, 1, reuse, recovered=recovered, steps=steps)


def train_against_batch_statistics(reuse: ReuseOptions = NOTHING, steps: int = STEPS) -> dict[str, list[float]]:
    """Stage gan with ESRGAN's D, for which one pass over SR can serve both losses; losses by name.

    In float64: units of D within rounding of their kink move gradients of float32 by 1e-2, by chance. D sees 128x128 at
    least, so this leaves out VGG and all but the first ascent pass.
    """
    with _one_thread():
        torch.manual_seed(0)
        generator = RRDBNet(features=4, blocks=1, growth=2).double()
        discriminator = VGGDiscriminator(BATCH_STATISTICS_SIZE, features=2).double()
        objective = Objective(1.0, gan=0.1, discriminator=discriminator, gan_loss=GANLoss("vanilla"))
        return _stage(generator, objective, 1, reuse, size=BATCH_STATISTICS_SIZE, ascent_steps=1, steps=steps)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums then have one order on machines of any number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _stage(
    generator: RRDBNet,
    objective: Objective,
    stage: int,
    reuse: ReuseOptions,
    chunk_size: int = 0,
    *,
    size: int = SIZE,
    ascent_steps: int = 5,
    recovered: bool = False,
    steps: int = STEPS,
) -> dict[str, list[float]]:
    average = EMA(generator, 0.9)
    ball = PRESETS["calibrated"].ball_for(size, size)
    settings = AttackSettings(ball, steps=ascent_steps, patch_size=size, channels=8, chunk_size=chunk_size)
    dtype = next(generator.parameters()).dtype
    degradation = DegradationNetwork(smallest_slope=ball.smallest_slope if recovered else 0)
    attack = Attack(degradation, generator, objective, settings, reuse)
    step = TrainingStep(attack, RankInfo(seed=0, stage=stage))
    networks = [network for network in (generator, objective.discriminator) if network is not None]
    optimizers = [torch.optim.Adam(network.parameters(), lr=1e-4, betas=(0.9, 0.99)) for network in networks]
    losses: dict[str, list[float]] = {}
    for number in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        values = step.gradients([batch(number, size).to(dtype)], number)
        for optimizer in optimizers:
            optimizer.step()
        average.update(generator)
        for name, value in ((name, values[name]) for name in LOSSES if name in values):
            losses.setdefault(name, []).append(float(f"{value.item():.{8 if dtype == torch.float32 else 14}g}"))
    generator.load_state_dict(average.module.state_dict())
    return losses


def differences(ours: dict[str, list[float]], theirs: dict[str, list[float]]) -> list[float]:
    """The largest relative difference of a stage's losses, step by step, as far as ours go."""
    assert ours.keys() == theirs.keys()
    pairs = [zip(ours[name], theirs[name][: len(ours[name])], strict=True) for name in ours]
    return [max(abs(a - b) / abs(b) for a, b in step) for step in zip(*pairs, strict=True)]


def main() -> None:
    """Rewrite losses.json."""
    before = json.loads(FILE.read_text()) if FILE.exists() else None
    net, weights = train_net()
    losses_by_case = {
        "net": net,
        "gan": train_gan(weights),
        "gan, batch statistics": train_against_batch_statistics(),
    }
    FILE.write_text(json.dumps({"torch": torch.__version__.split("+")[0], "losses": losses_by_case}, indent=1) + "\n")
    print(f"wrote {FILE.name}: {STEPS} steps of each stage, with torch {torch.__version__}")
    if before is not None and len(before["losses"]["net"]["loss"]) == STEPS:
        largest = max(max(differences(losses_by_case[stage], before["losses"][stage])) for stage in before["losses"])
        print(f"largest relative difference from before: {largest:.3g}")


if __name__ == "__main__":
    main()
