"""What reduced precision costs the adversary's strength: noise maps in a half type, F or G in bf16, G's blocks in fp8.

    python -m benchmarks.strength --weights runs/demo/weights/andnet_best.safetensors

Strength is the loss gain that the ascent reaches over the clean loss, divided by the gain that the same ascent reaches
in float32: on the same G, photographs and identity networks, an image at a time. The gains themselves are always taken
in float32. Printed are the mean and the worst case, and three controls that show what the measure can see: float32 as
another order of summation might round it (random noise of 1e-6 of the radius added at every pass), one pass of five
left out, and G's dense blocks left out of the ascent. On a device without fp8 units the blocks are emulated.

Gradients are as small as those of the mean loss of 48 images of 256x256, so that float16 underflows here as there.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from andfast.adversary import PRESETS, ascend, sample_identity
from andfast.data.images import decode
from andfast.data.sources import find_images
from andfast.nn import DegradationNetwork, RRDBNet, Theta, frozen
from andfast.nn.fp8_body import Fp8Body
from andfast.nn.weights import generator_from_weights

FP16_SCALE = 2.0**16
PHOTOGRAPHS = [
    f"{name}.*"
    for name in ["astronaut", "chelsea", "coffee", "hubble_deep_field", "motorcycle_left", "retina", "rocket"]
]
REAL_VALUES = 48 * 256 * 256
ROWS: dict[str, dict[str, object]] = {
    "bf16": {"noise_dtype": torch.bfloat16},
    "fp16": {"noise_dtype": torch.float16},
    "fp16, loss x 65536": {"noise_dtype": torch.float16, "loss_scale": FP16_SCALE},
    "F in bf16": {"precision": torch.bfloat16},
    "F and noise in bf16": {"noise_dtype": torch.bfloat16, "precision": torch.bfloat16},
    "G in bf16": {"generator_precision": torch.bfloat16},
    "G's dense blocks in bf16": {"body": "bf16"},
    "G's dense blocks in fp8": {"body": "fp8"},
    "G in bf16, its dense blocks in fp8": {"generator_precision": torch.bfloat16, "body": "fp8"},
    "control: without G's dense blocks": {"body": "none"},
    "control: fp32, jitter": {"jitter": 1e-6},
    "control: fp32, 4 of 5 passes": {"steps": 4},
}


def photographs(folders: list[str], include: list[str], patch: int, device: str) -> Tensor:
    """The middle of every picture that is large enough, (N, 3, patch, patch) in [0, 1]."""
    crops = []
    for file in find_images(folders, include=include):
        pixels = torch.from_numpy(decode(file.path).copy())
        if min(pixels.shape[:2]) >= patch:
            top, left = ((side - patch) // 2 for side in pixels.shape[:2])
            crops.append(pixels[top : top + patch, left : left + patch].permute(2, 0, 1).float() / 255)
    if not crops:
        raise ValueError(f"--photos must hold pictures of {patch} x {patch} or more, {folders} held none")
    return torch.stack(crops).to(device)


def gains(
    hr: Tensor,
    generator: RRDBNet,
    args: argparse.Namespace,
    seed: int,
    noise_dtype: torch.dtype = torch.float32,
    steps: int | None = None,
    loss_scale: float = 1.0,
    jitter: float = 0.0,
    precision: torch.dtype = torch.float32,
    generator_precision: torch.dtype = torch.float32,
    body: str = "same",
) -> Tensor:
    """How much the L1 loss of every image rises from its identity network to what the ascent finds, (N,) in float64."""
    network, preset = DegradationNetwork(generator.scale), PRESETS[args.preset]
    ball = preset.ball_for(args.patch, args.patch)
    noise = torch.Generator(hr.device).manual_seed(1000 + seed)

    def losses(theta: Theta, restore: Callable[[Tensor], Tensor], precision: torch.dtype = torch.float32) -> Tensor:
        if jitter:
            size = jitter * ball.noise / sum(one[0].numel() for one in theta.noises) ** 0.5
            draw: Callable[[Tensor], Tensor] = lambda one: torch.empty_like(one).normal_(0, size, generator=noise)  # noqa: E731
            theta = theta._replace(noises=tuple(one + draw(one) for one in theta.noises))
        with torch.autocast(hr.device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
            lr = network(hr, theta)
        return (restore(lr.float()).float() - hr).abs().mean((1, 2, 3))

    def restore(lr: Tensor) -> Tensor:
        """G as the ascent sees it."""
        with torch.autocast(hr.device.type, torch.bfloat16, enabled=generator_precision == torch.bfloat16):
            return generator(lr, instead)

    def body_in_bf16(features: Tensor) -> Tensor:
        with torch.autocast(hr.device.type, torch.bfloat16):
            return generator.body(features).float()

    identity = sample_identity(
        len(hr),
        hr_size=args.patch,
        scale=generator.scale,
        channels=args.channels,
        generator=torch.Generator(hr.device).manual_seed(seed),
        noise_dtype=noise_dtype,
    )
    options = {"ball": ball, "step_size": preset.step_size, "steps": steps or args.steps}
    loss_scale *= args.patch**2 / REAL_VALUES
    with frozen(generator):
        bodies = {"same": None, "bf16": body_in_bf16, "fp8": Fp8Body(generator), "none": lambda features: features}
        instead = bodies[body]
        found = ascend(
            partial(losses, restore=restore, precision=precision), identity, **options, loss_scale=loss_scale
        )
    with torch.no_grad():
        return (losses(found.theta, generator).double() - losses(identity, generator).double()).cpu()


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
    yardstick = torch.cat([gains(hr, generator, args, seed) for seed in range(args.draws)])
    print(f"loss gain in fp32: mean {yardstick.mean():.5f}, least {yardstick.min():.5f}")
    print("| ascent | mean strength | standard error | worst image | ratio of mean gains |")
    print("|---|---|---|---|---|")
    for name in args.rows:
        row = ROWS[name]
        begun = time.perf_counter()
        found = torch.cat([gains(hr, generator, args, seed, **row) for seed in range(args.draws)])  # type: ignore[arg-type]
        ratio = found / yardstick
        error = ratio.std() / len(ratio) ** 0.5
        mean = found.mean() / yardstick.mean()
        print(f"| {name} | {ratio.mean():.5f} | {error:.5f} | {ratio.min():.5f} | {mean:.5f} |", flush=True)
        print(f"{name}: {time.perf_counter() - begun:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
