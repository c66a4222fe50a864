"""The strength of cheaper attacks, by strategy and by group of the ball, against what they cost.

    python -m benchmarks.strength --weights young.safetensors old.safetensors --photos DIR --output runs/strength

Strength is the gain in L1 loss from the clean LR to an attack's LR, divided by the gain of the exact attack (PGD, five
steps of 0.3), per image, on the same G, photographs, identity networks and radii. Gains are measured in fp32, whatever
the attack's precision, before LR is clamped. The result has the mean, the 10% quantile and the smallest over images and
draws, with the whole ball and with each of its groups alone, for each file of --weights (such as G at several ages).

Cost is counted and timed: operations of a whole step of stage net at the paper's size (23 blocks of 64 features, HR
256), as a multiple of a plain step's; and milliseconds per image of the attack measured here, on this device.
"""

import argparse
import hashlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from andfast.adversary import PRESETS, Attack, AttackSettings, Ball, Objective
from andfast.adversary.calibration import scaled
from andfast.adversary.strategies import PGD, FastPGD, PGDRandomStart, RandomPoint, StepSeed, Strategy
from andfast.arguments import integer
from andfast.data.images import UnusableImageError, decode
from andfast.data.sources import find_images
from andfast.files import atomic_file
from andfast.functional import blur_pool, degradation_block_reference
from andfast.nn import DegradationNetwork, RRDBNet, Theta
from andfast.nn.weights import generator_from_weights
from andfast.training.step import RankInfo, TrainingStep
from benchmarks.machine import describe, device

BATCH_PIXELS: Final = 48 * 256 * 256
"""HR pixels of a training batch: gradients have the size that they have there, so that fp16 underflows as it does."""
ALL: Final = "all"
"""The whole ball, among the names of its groups."""


class InBF16(DegradationNetwork):
    """F under bf16 autocast."""

    def forward(self, hr: Tensor, theta: Theta) -> Tensor:
        with torch.autocast(hr.device.type, torch.bfloat16):
            return super().forward(hr, theta).float()


@dataclass(frozen=True)
class Row:
    """An attack.

    Attributes:
        label: for tables.
        strategy: makes LR.
        settings: of AttackSettings, in place of the exact attack's.
        options: of Attack, likewise.
        degradation: class of F in the attack.
        tf32: F's products are of TF32 values, emulated by the reference implementation, which a CPU takes.
    """

    label: str
    strategy: Strategy = field(default_factory=PGD)
    settings: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    degradation: type[DegradationNetwork] = DegradationNetwork
    tf32: bool = False


_MIXED: Final = {"autocast": torch.bfloat16, "degradation_autocast": True}

EXACT: Final = "pgd"
ROWS: Final[dict[str, Row]] = {
    EXACT: Row("`pgd`, 5 steps of 0.3"),
    "fast": Row("`fast`", FastPGD()),
    "pgd-4": Row("4 steps of 0.3", settings={"steps": 4}),
    "pgd-3": Row("3 steps of 0.5", settings={"steps": 3, "step_size": 0.5}),
    "pgd-2": Row("2 steps of 1", settings={"steps": 2, "step_size": 1.0}),
    "pgd-1": Row("1 step of 1", settings={"steps": 1, "step_size": 1.0}),
    "random-start": Row("`pgd_random_start`, in a ball around another center", PGDRandomStart()),
    "random": Row("`random`, no ascent", RandomPoint()),
    "bf16": Row("`pgd`, G in bf16", options={"autocast": torch.bfloat16}),
    "mixed": Row("`pgd`, G, F and noise in bf16", settings={"noise_dtype": torch.bfloat16}, options=_MIXED),
    "f-bf16": Row("`pgd`, F and noise in bf16", settings={"noise_dtype": torch.bfloat16}, degradation=InBF16),
    "tf32": Row("`pgd`, F in TF32", tf32=True),
    "fp16-noise": Row("`pgd`, noise in fp16", settings={"noise_dtype": torch.float16}),
}
"""Rows by name, in the order of the table. Strategies without F's ball have no strength in it."""


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


def photographs(folders: Sequence[str], patch: int, images: int | None = None) -> Tensor:
    """Center crops of the photographs that are large enough and readable, (N, 3, patch, patch) in [0, 1].

    Args:
        folders: searched recursively.
        patch: side of the crops.
        images: at most so many, evenly spaced in the order of names; None for all.

    Raises:
        ValueError: there are none.
        FileNotFoundError: a folder does not exist.
    """
    crops = []
    for file in find_images(folders):
        try:
            pixels = torch.from_numpy(decode(file.path, min_size=patch).copy())
        except UnusableImageError:
            continue
        top, left = ((side - patch) // 2 for side in pixels.shape[:2])
        crops.append(pixels[top : top + patch, left : left + patch].permute(2, 0, 1).float() / 255)
    if not crops:
        raise ValueError(f"--photos must hold pictures of {patch} x {patch} or more, {', '.join(folders)} held none")
    count = len(crops) if images is None else min(images, len(crops))
    return torch.stack([crops[number * len(crops) // count] for number in range(count)])


@dataclass(frozen=True)
class Setup:
    """What all rows share.

    Attributes:
        generator: G, in eval mode, on the device of ``hr``.
        hr: (N, 3, H, W).
        settings: of the exact attack; the ball is for the size of ``hr``.
        draws: identity networks per photograph.
        batch: photographs attacked together.
    """

    generator: RRDBNet
    hr: Tensor
    settings: AttackSettings
    draws: int
    batch: int

    def losses(self, lr: Tensor, hr: Tensor) -> Tensor:
        """L1 loss per image, float64 on the CPU."""
        return (self.generator(lr) - hr).abs().mean((1, 2, 3)).double().cpu()

    def gains(self, row: Row, ball: Ball) -> tuple[Tensor, float]:
        """Gain per image and draw, (draws * N,), and the median time of the attack per image in milliseconds."""
        gains, times = [], []
        settings = replace(self.settings, ball=ball, **row.settings)
        exact, attacked = (
            network(self.generator.scale, smallest_slope=ball.smallest_slope)
            for network in (DegradationNetwork, row.degradation)
        )
        for draw in range(self.draws):
            for number, hr in enumerate(self.hr.split(self.batch)):
                # A sum over images, scaled to the mean over a training batch.
                objective = Objective(l1=hr.shape[0] * hr.shape[2] * hr.shape[3] / BATCH_PIXELS)
                attack = Attack(attacked, self.generator, objective, settings, **row.options)
                start = row.strategy.draw(attack, hr, StepSeed((draw, 0, number)))
                if hr.is_cuda and not times:
                    row.strategy.search(attack, hr, start)  # compiles kernels
                begun = _now(hr)
                with tf32_products() if row.tf32 else nullcontext():
                    theta: Theta = row.strategy.search(attack, hr, start)[1].theta
                times.append((_now(hr) - begun) * 1e3 / hr.shape[0])
                with torch.no_grad():
                    degraded = exact(hr, _in_fp32(theta))
                    gains.append(self.losses(degraded, hr) - self.losses(blur_pool(hr, self.generator.scale), hr))
        return torch.cat(gains), statistics.median(times)


def _in_fp32(theta: Theta) -> Theta:
    return theta.rebuild(tensor.float() for tensor in theta.tensors())


def _now(x: Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def strength(gains: Tensor, exact: Tensor) -> dict[str, Any]:
    """Statistics of a row over images and draws; those on which the exact attack gains nothing are left out."""
    usable = exact > 0
    if not usable.any():
        return {"left_out": len(exact)}
    ratio = gains[usable] / exact[usable]
    return {
        "mean": ratio.mean().item(),
        "standard_error": ratio.std(correction=0).item() / len(ratio) ** 0.5,
        "quantile_10": ratio.quantile(0.1).item(),
        "min": ratio.min().item(),
        "of_mean_gains": (gains.mean() / exact.mean()).item(),
        "left_out": int((~usable).sum()),
    }


def operations(row: Row | None, *, features: int = 64, blocks: int = 23, hr: int = 256) -> float:
    """Multiply-accumulates per image of a whole step of stage net, in G; of the plain step for None.

    Counted from the code on tensors without contents; by default at the paper's size.
    """
    with torch.device("meta"):
        generator, batch = RRDBNet(4, features=features, blocks=blocks), torch.empty(1, 3, hr, hr)
    settings = AttackSettings(PRESETS["symmetric"].ball_for(hr, hr), patch_size=hr, **(row.settings if row else {}))
    step = TrainingStep(
        Attack(DegradationNetwork(), generator, Objective(1.0), settings),
        RankInfo(0, 0),
        strategy=row.strategy if row else PGD(),
    )
    with FlopCounterMode(display=False) as counter:
        if row is None:
            step.train(batch, blur_pool(batch, 4), step.attack.targets(batch))
        else:
            step.gradients([batch], 0)
    return counter.get_total_flops() / 2e9


def measure(setup: Setup, rows: Sequence[str], groups: Sequence[str]) -> list[dict[str, Any]]:
    """Strength and time of each row in each group of the ball."""
    results = []
    for group in groups:
        ball = setup.settings.ball
        ball = ball if group == ALL else scaled(ball, 1.0, [group])
        exact, exact_time = setup.gains(ROWS[EXACT], ball)
        for name in rows:
            gains, milliseconds = (exact, exact_time) if name == EXACT else setup.gains(ROWS[name], ball)
            entry = {"row": name, "label": ROWS[name].label, "group": group, "ms_per_image": milliseconds}
            results.append(entry | strength(gains, exact) | {"gains": gains.tolist()})
            print(f"{group}: {name}: mean {results[-1].get('mean', float('nan')):.3f}", file=sys.stderr, flush=True)
    return results


def markdown(results: Mapping[str, Any]) -> str:
    """One table per weights file."""
    settings, machine = results["settings"], results["machine"]
    groups, on = settings["groups"], f"{machine['name']} ({machine['device']})"
    lines = [
        f"Gain in L1 loss over that of `pgd`: mean / 10% quantile / smallest over {results['images']} photographs x "
        f"{settings['draws']} draws, {settings['patch']}x{settings['patch']}, F of {settings['channels']} channels, "
        f"preset `{settings['preset']}`, radii per image {PRESETS[settings['preset']].image_radius}. Operations: step "
        f"of stage `net` over a plain one, counted at full size. ms: the attack per image, on {on}. "
        f"Commit {str(machine['commit'])[:7]}.",
    ]
    for network in results["networks"]:
        size = f"{network['blocks']} blocks, {network['features']} features"
        lines.append(f"**{network['file']}** ({size}), loss on clean LR {network['clean_loss']:.4f}:")
        table = [
            "| attack | operations | ms | " + " | ".join(groups) + " |",
            "|---" * (3 + len(groups)) + "|",
        ]
        for name in settings["rows"]:
            entries = {entry["group"]: entry for entry in network["strength"] if entry["row"] == name}
            first = entries[groups[0]]
            cells = [_cell(entries[group]) for group in groups]
            cost = f"{results['operations'][name]:.2f} | {first['ms_per_image']:.1f}"
            table.append(f"| {first['label']} | {cost} | " + " | ".join(cells) + " |")
        lines.append("\n".join(table))
    return "\n\n".join(lines) + "\n"


def _cell(entry: Mapping[str, Any]) -> str:
    if "mean" not in entry:
        return "`pgd` gains nothing"
    return " / ".join(f"{entry[name]:.3f}" for name in ("mean", "quantile_10", "min"))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 on an error."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.strength",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="rows:\n" + "\n".join(f"  {name:14s}{row.label}" for name, row in ROWS.items()),
    )
    parser.add_argument(
        "--weights", type=Path, nargs="+", required=True, metavar="FILE", help="G, of the ESRGAN family"
    )
    parser.add_argument(
        "--photos", nargs="+", default=["package:skimage/data"], metavar="DIR",
        help="photographs, searched recursively; their central crops are attacked (default: scikit-image's)",
    )  # fmt: skip
    parser.add_argument("--images", type=integer(1), metavar="N", help="at most so many photographs (default: all)")
    parser.add_argument(
        "--draws", type=integer(1), default=2, metavar="N", help="identity networks for each (default: 2)"
    )
    parser.add_argument("--patch", type=integer(1), default=96, metavar="N", help="side of HR in pixels (default: 96)")
    parser.add_argument("--channels", type=integer(3), default=16, metavar="N", help="of F (default: 16)")
    parser.add_argument("--preset", default="symmetric", choices=sorted(PRESETS), help="the ball (default: symmetric)")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS, metavar="ROW", help="(default: all)")
    parser.add_argument(
        "--groups", nargs="+", metavar="GROUP",
        help="names of groups of the ball, each alone, and 'all' for the whole ball (default: all, then each)",
    )  # fmt: skip
    parser.add_argument("--batch", type=integer(1), default=8, metavar="N", help="attacked together (default: 8)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="(default: auto)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write strength.json and strength.md here")
    options = parser.parse_args(arguments)
    ball = PRESETS[options.preset].ball_for(options.patch, options.patch, options.channels)
    known = [ALL, *(name for name, radius in zip(ball.names, ball.radii, strict=True) if radius > 0)]
    options.groups = list(dict.fromkeys(options.groups or known))
    if unknown := [name for name in options.groups if name not in known]:
        parser.error(
            f"--groups must be among {', '.join(known)} with preset {options.preset}, were {', '.join(unknown)}"
        )
    options.rows = [name for name in ROWS if name in options.rows]
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device must be auto or cpu here, was cuda: PyTorch sees no CUDA device")
    return options


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All results.

    Raises:
        ValueError, OSError: photographs or weights do not fit.
    """
    where = device() if options.device == "auto" else options.device
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    preset, side = PRESETS[options.preset], options.patch
    settings = AttackSettings(
        preset.ball_for(side, side, options.channels),
        step_size=preset.step_size,
        image_radius=preset.image_radius,
        patch_size=side,
        channels=options.channels,
    )
    hr = photographs(options.photos, side, options.images).to(where)
    networks = []
    for path in options.weights:
        generator = generator_from_weights(path).to(where).eval()
        if generator.scale == 1 or side % (4 if generator.scale == 2 else generator.scale):
            raise ValueError(f"--weights and --patch must fit: {path} has scale {generator.scale}, --patch was {side}")
        setup = Setup(generator, hr, settings, options.draws, options.batch)
        with torch.no_grad():
            clean = torch.cat(
                [setup.losses(blur_pool(part, generator.scale), part) for part in hr.split(options.batch)]
            )
        networks.append(
            {
                "file": path.name,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "features": generator.features,
                "blocks": generator.blocks,
                "clean_loss": clean.mean().item(),
                "strength": measure(setup, options.rows, options.groups),
            }
        )
    plain = operations(None)
    return {
        "machine": describe() | {"device": where},
        "settings": {
            name: getattr(options, name) for name in ("preset", "channels", "patch", "draws", "rows", "groups")
        },
        "images": len(hr),
        "operations": {name: operations(ROWS[name]) / plain for name in options.rows},
        "networks": networks,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parse(arguments)
    try:
        results = run(options)
    except (ValueError, OSError) as error:
        print(f"python -m benchmarks.strength: error: {error}", file=sys.stderr)
        return 2
    text = markdown(results)
    print(text, end="")
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        contents = {"strength.json": json.dumps(results, indent=1, allow_nan=False) + "\n", "strength.md": text}
        for name, content in contents.items():
            with atomic_file(options.output / name) as file:
                file.write(content.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
