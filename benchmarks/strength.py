"""The strength of cheaper attacks: fewer passes, passes through a part of G, and reduced precision of F, G and noise.

    python -m benchmarks.strength --weights runs/demo/weights/andnet_best.safetensors

Strength is the gain in L1 loss that an attack reaches over the identity networks, divided by the gain of the fp32
attack, per image, on the same G, photographs and identity networks. Gains are always measured in fp32. The table has
the mean, the 10% quantile and the minimum, and three controls that show what differences mean: fp32 summed in another
order (noise of 1e-6 of the radius added in each pass), one of five steps left out, and G's dense blocks left out of the
attack.

Gradients are scaled to those of the mean loss over 48 images of 256x256, so that fp16 underflows as it does there.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from andfast.adversary import PRESETS, Attack, AttackSettings, Objective, ReuseOptions, seeded_generator
from andfast.adversary.attack import FP16_LOSS_SCALE
from andfast.adversary.strategies import FastPGD
from andfast.data.images import decode
from andfast.data.sources import find_images
from andfast.functional import degradation_block_reference
from andfast.nn import DegradationNetwork, RRDBNet, Theta
from andfast.nn.weights import generator_from_weights

PHOTOGRAPHS = [
    f"{name}.*"
    for name in ["astronaut", "chelsea", "coffee", "hubble_deep_field", "motorcycle_left", "retina", "rocket"]
]
BATCH_PIXELS = 48 * 256 * 256


@dataclass(frozen=True)
class Row:
    """A row of the table: how an attack differs from the fp32 one.

    Attributes:
        noise_dtype: dtype of the noise maps.
        loss_scale: factor on the loss; the attack's own scale for fp16 comes on top.
        degradation, generator: dtypes of F and G under autocast.
        tf32: F's products of TF32 values, emulated on a CPU.
        body: G's dense blocks: "same" as G, "bf16" or "none".
        jitter: noise added to the noise maps in each pass, as a fraction of their radius.
        skipped: ascent steps left out.
        settings: of AttackSettings, in place of the fp32 attack's.
    """

    noise_dtype: torch.dtype = torch.float32
    loss_scale: float = 1.0
    degradation: torch.dtype = torch.float32
    generator: torch.dtype = torch.float32
    tf32: bool = False
    body: str = "same"
    jitter: float = 0.0
    skipped: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)


FAST = FastPGD()

ROWS = {
    "3 steps of 0.5": Row(settings={"steps": 3, "step_size": 0.5}),
    "2 steps of 1": Row(settings={"steps": 2, "step_size": 1.0}),
    "1 step of 1": Row(settings={"steps": 1, "step_size": 1.0}),
    "2 steps of 1, the first through a quarter of G": Row(settings={"steps": 2, "step_size": 1.0, "early_stride": 4}),
    "3 steps of 0.5, the first two through a quarter of G": Row(
        settings={"steps": 3, "step_size": 0.5, "early_stride": 4}
    ),
    "strategy fast": Row(
        settings={"steps": FAST.steps, "step_size": FAST.step_size, "early_stride": FAST.stride},
    ),
    "bf16": Row(noise_dtype=torch.bfloat16),
    "fp16": Row(noise_dtype=torch.float16, loss_scale=1 / FP16_LOSS_SCALE),
    "fp16, loss x 65536": Row(noise_dtype=torch.float16),
    "F in TF32": Row(tf32=True),
    "F in bf16": Row(degradation=torch.bfloat16),
    "F and noise in bf16": Row(noise_dtype=torch.bfloat16, degradation=torch.bfloat16),
    "G in bf16": Row(generator=torch.bfloat16),
    "G's dense blocks in bf16": Row(body="bf16"),
    "control: without G's dense blocks": Row(body="none"),
    "control: fp32, jitter": Row(jitter=1e-6),
    "control: fp32, one step less": Row(skipped=1),
}


class Degradation(DegradationNetwork):
    """F with a dtype of its own, and noise on its noise maps.

    Args:
        scale: of F.
        dtype: under autocast.
        jitter: L2 norm of the noise per network.
        seed: of the noise.
    """

    def __init__(self, scale: int, dtype: torch.dtype, jitter: float, seed: int) -> None:
        super().__init__(scale)
        self.dtype, self.jitter, self.seed = dtype, jitter, seed
        self.noise: torch.Generator | None = None

    def forward(self, hr: Tensor, theta: Theta) -> Tensor:
        if self.jitter:
            self.noise = self.noise or seeded_generator(hr.device, self.seed)
            std = self.jitter / sum(noise[0].numel() for noise in theta.noises) ** 0.5
            draws = [torch.empty_like(noise).normal_(0, std, generator=self.noise) for noise in theta.noises]
            theta = theta._replace(noises=tuple(map(torch.add, theta.noises, draws)))
        with torch.autocast(hr.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            return super().forward(hr, theta).float()


class ReplacedBody(nn.Module):
    """G whose dense blocks run in bf16 or are left out."""

    def __init__(self, generator: RRDBNet, body: str) -> None:
        super().__init__()
        self.generator, self.body = generator, body

    def forward(self, lr: Tensor) -> Tensor:
        return self.generator(lr, self._in_bf16 if self.body == "bf16" else nn.Identity())

    def _in_bf16(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, torch.bfloat16):
            return self.generator.body(features).float()


@contextmanager
def tf32_products() -> Iterator[None]:
    """F's convolutions, and their gradients, of operands cut to TF32's 10 bits of mantissa, with sums in fp32."""

    def cut(value: Any) -> Any:
        wide = isinstance(value, Tensor) and value.dtype == torch.float32
        return (value.view(torch.int32) & ~0x1FFF).view(torch.float32) if wide else value

    def of_cut(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments: function(*map(cut, arguments))

    names = ("_convolve", "_convolve_backward")
    functions = {name: of_cut(getattr(degradation_block_reference, name)) for name in names}
    with patch.multiple(degradation_block_reference, **functions):
        yield


def photographs(folders: list[str], include: list[str], patch: int, device: str) -> Tensor:
    """Center crops of all photographs that are large enough, (N, 3, patch, patch) in [0, 1]."""
    crops = []
    for file in find_images(folders, include=include):
        pixels = torch.from_numpy(decode(file.path).copy())
        if min(pixels.shape[:2]) >= patch:
            top, left = ((side - patch) // 2 for side in pixels.shape[:2])
            crops.append(pixels[top : top + patch, left : left + patch].permute(2, 0, 1).float() / 255)
    if not crops:
        raise ValueError(f"--photos must hold pictures of {patch} x {patch} or more, {folders} held none")
    return torch.stack(crops).to(device)


def gains(hr: Tensor, generator: RRDBNet, args: argparse.Namespace, seed: int, row: Row = Row()) -> Tensor:
    """Gain in L1 loss per image from its identity network to the attack's result, (N,) in float64 on the CPU."""
    preset = PRESETS[args.preset]
    ball = preset.ball_for(args.patch, args.patch)
    fp32 = Attack(
        DegradationNetwork(generator.scale),
        generator,
        # A sum over images, scaled to the mean of a training batch.
        Objective(l1=row.loss_scale * len(hr) * args.patch**2 / BATCH_PIXELS),
        replace(
            AttackSettings(
                ball,
                steps=args.steps - row.skipped,
                step_size=preset.step_size,
                patch_size=args.patch,
                channels=args.channels,
                noise_dtype=row.noise_dtype,
            ),
            **row.settings,
        ),
        ReuseOptions(closed_form_first_step=False),  # F itself in all steps
    )
    attack = replace(
        fp32,
        degradation=Degradation(generator.scale, row.degradation, row.jitter * ball.noise, seed),
        generator=generator if row.body == "same" else ReplacedBody(generator, row.body),
        autocast=None if row.generator == torch.float32 else row.generator,
    )

    def losses(theta: Theta) -> Tensor:
        return (generator(fp32.degradation(hr, theta)) - hr).abs().mean((1, 2, 3)).double()

    identity = attack.sample(hr, torch.Generator(hr.device).manual_seed(seed))
    with tf32_products() if row.tf32 else nullcontext():
        _, ascent = attack.search(hr, identity)
    with torch.no_grad():
        return (losses(ascent.theta) - losses(identity)).cpu()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="G, of the ESRGAN family")
    parser.add_argument("--photos", nargs="+", default=["package:skimage/data"], help="folders of photographs")
    parser.add_argument("--include", nargs="*", default=PHOTOGRAPHS, help="file patterns; none: all")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS), metavar="ROW", help="of the table")
    parser.add_argument("--preset", default="calibrated", choices=sorted(PRESETS))
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--draws", type=int, default=4, help="identity networks for each photograph")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    generator = generator_from_weights(args.weights).to(args.device).eval()
    hr = photographs(args.photos, args.include, args.patch, args.device)
    print(f"{len(hr)} photographs x {args.draws} draws, {vars(args)}, torch {torch.__version__}", file=sys.stderr)
    reference = torch.cat([gains(hr, generator, args, seed) for seed in range(args.draws)])
    print(f"loss gain in fp32: mean {reference.mean():.5f}, min {reference.min():.5f}")
    print("| attack | mean strength | standard error | 10% quantile | worst image | ratio of mean gains |")
    print("|---|---|---|---|---|---|")
    for name in args.rows:
        start = time.perf_counter()
        gain = torch.cat([gains(hr, generator, args, seed, ROWS[name]) for seed in range(args.draws)])
        strength = gain / reference
        error = strength.std() / len(strength) ** 0.5
        ratio = gain.mean() / reference.mean()
        low = f"{strength.quantile(0.1):.5f} | {strength.min():.5f}"
        print(f"| {name} | {strength.mean():.5f} | {error:.5f} | {low} | {ratio:.5f} |", flush=True)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
