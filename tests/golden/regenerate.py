"""The losses of 50 steps of each stage with tiny networks, which a refactoring has to reproduce.

Run ``python tests/golden/regenerate.py`` after a change that is meant to change what is computed, and say in the change
log why losses.json is another one. It prints the largest relative difference from the file before.
"""

import json
from pathlib import Path

import skimage.data
import torch
from torch import Tensor, nn

from andfast.adversary import PRESETS
from andfast.losses import GANLoss, PerceptualLoss
from andfast.nn import DegradationNetwork, RRDBNet, UNetDiscriminator
from andfast.training.average import WeightAverage
from andfast.training.build import compile_networks
from andfast.training.objective import Objective
from andfast.training.step import Adversary, Place, Sharing, TrainingStep

FILE = Path(__file__).with_name("losses.json")
STEPS = 50
BATCH = 2
SIZE = 32
LOSSES = ("loss", "loss_clean", "l1", "perceptual", "gan", "discriminator")
"""Logits, gains and decibels are differences of these, and would ask for digits that float32 does not have."""


def batch(step: int) -> Tensor:
    """Two crops of photographs that depend on nothing but the step, (2, 3, 32, 32) in [0, 1]."""
    crops = []
    for j, photo in enumerate((PHOTOGRAPHS[step % 3], PHOTOGRAPHS[(step + 1) % 3])):
        number = BATCH * step + j
        top, left = 37 * number % (photo.shape[0] - SIZE), 53 * number % (photo.shape[1] - SIZE)
        crops.append(torch.from_numpy(photo[top : top + SIZE, left : left + SIZE].copy()))
    return torch.stack(crops).permute(0, 3, 1, 2).float() / 255


PHOTOGRAPHS = (skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea())


NOTHING = Sharing(identity_pass=False, hr_features=False, cast_weights=False, discriminator_pass=False)
"""What is stored was computed the long way."""


def train(sharing: Sharing = NOTHING, *, compiler: str | None = None) -> dict[str, dict[str, list[float]]]:
    """Both stages in float32 on the CPU, ANDGAN from ANDNet's averaged weights; losses by stage and name.

    Args:
        sharing: what a step computes once.
        compiler: a torch.compile backend, through which G and D run.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums then have one order on machines of any number of cores
    try:
        return _train(sharing, compiler)
    finally:
        torch.set_num_threads(threads)


def _train(sharing: Sharing, compiler: str | None) -> dict[str, dict[str, list[float]]]:
    torch.manual_seed(0)
    generator = RRDBNet(features=8, blocks=1, growth=4)
    discriminator = UNetDiscriminator(features=4)
    vgg = PerceptualLoss({"conv1_2": 0.1}, weights="random")
    if compiler is not None:
        compile_networks(generator, discriminator, backend=compiler)
    with_gan = Objective(1.0, 1.0, 0.1, vgg, discriminator, GANLoss("vanilla"))
    return {
        "net": _stage(generator, None, Objective(1.0), 0, sharing),
        "gan": _stage(generator, discriminator, with_gan, 1, sharing),
    }


def _stage(
    generator: RRDBNet, discriminator: nn.Module | None, objective: Objective, stage: int, sharing: Sharing
) -> dict[str, list[float]]:
    average = WeightAverage(generator, 0.9)
    adversary = Adversary(PRESETS["calibrated"].ball_for(SIZE, SIZE), channels=8)
    step = TrainingStep(
        degradation=DegradationNetwork(),
        generator=generator,
        objective=objective,
        adversary=adversary,
        patch_size=SIZE,
        place=Place(seed=0, stage=stage),
        discriminator=discriminator,
        sharing=sharing,
    )
    networks = [generator] if discriminator is None else [generator, discriminator]
    optimizers = [torch.optim.Adam(one.parameters(), lr=1e-4, betas=(0.9, 0.99)) for one in networks]
    losses: dict[str, list[float]] = {}
    for number in range(STEPS):
        for optimizer in optimizers:
            optimizer.zero_grad()
        values = step.gradients([batch(number)], number)
        for optimizer in optimizers:
            optimizer.step()
        average.update(generator)
        for name, value in ((name, values[name]) for name in LOSSES if name in values):
            losses.setdefault(name, []).append(float(f"{value.item():.8g}"))
    generator.load_state_dict(average.module.state_dict())
    return losses


def differences(ours: dict[str, list[float]], other: dict[str, list[float]]) -> list[float]:
    """The largest relative difference of a stage's losses, step by step."""
    assert ours.keys() == other.keys()
    pairs = [zip(ours[name], other[name], strict=True) for name in ours]
    return [max(abs(a - b) / abs(b) for a, b in step) for step in zip(*pairs, strict=True)]


def main() -> None:
    """Write losses.json anew."""
    before = json.loads(FILE.read_text()) if FILE.exists() else None
    found = train()
    FILE.write_text(json.dumps({"torch": torch.__version__.split("+")[0], "losses": found}, indent=1) + "\n")
    print(f"wrote {FILE.name}: {STEPS} steps of each stage, with torch {torch.__version__}")
    if before is not None and len(before["losses"]["net"]["loss"]) == STEPS:
        largest = max(max(differences(found[stage], before["losses"][stage])) for stage in found)
        print(f"largest relative difference from before: {largest:.3g}")


if __name__ == "__main__":
    main()
