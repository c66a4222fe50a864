"""The floor of each op, of each part of a training step and of the step: bytes over bandwidth, operations over rate.

    python -m benchmarks.roofline                      this machine's GPU, measured; without a GPU, a nominal H100
    python -m benchmarks.roofline --device A100 --json
    python -m benchmarks.roofline --batch 16 --hr-size 128

Counts are computed from shapes (benchmarks/counts.py). A layer's floor is the longer of its two times, and floors add
up: nothing overlaps, and nothing is fused across layers but the residual dense block's five convolutions.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks import counts
from benchmarks.counts import Work
from benchmarks.rates import NOMINAL, Rates, measured

LAYERS = ((3, 64), (64, 64), (64, 3))
SIZES = {"bf16": 2, "fp16": 2, "tf32": 4, "fp32": 4}


def op_floors(rates: Rates, *, batch: int, hr_size: int, scale: int, precision: str) -> list[dict[str, Any]]:
    """Floors of the ops at F's and G's shapes."""
    size, rows = SIZES[precision], []

    def row(op: str, shape: str, direction: str, *works: Work) -> None:
        rows.append({"op": op, "shape": shape, "direction": direction} | _floor(rates, precision, works))

    lr = hr_size // scale
    for side in (hr_size, lr):
        for c_in, c_out in LAYERS:
            x, text = (batch, c_in, side, side), f"{batch}x{c_in}->{c_out}x{side}x{side}"
            first, last = c_in == 3 and side == hr_size, c_out == 3
            noise = None if last else c_out
            needs = ("x", "weight") if last else counts.ALL
            forward, backward = counts.degradation_block(x, c_out, size=size, noise=noise, needs=needs)
            row("degradation_block", text, "forward", counts.degradation_block(x, c_out, size=size, noise=noise)[0])
            row("degradation_block", text, "forward+backward", forward, backward)
            if first:  # F's first layer reads HR, which needs no gradient
                weight_only = tuple(name for name in needs if name != "x")
                passes = counts.degradation_block(x, c_out, size=size, noise=noise, needs=weight_only)
                row("degradation_block", text, "as in the ascent", *passes)
    for channels in (3, 64):
        passes = counts.blur_pool((batch, channels, hr_size, hr_size), scale, size=size)
        text = f"{batch}x{channels}x{hr_size}x{hr_size} /{scale}"
        row("blur_pool", text, "forward", passes[0])
        row("blur_pool", text, "backward", passes[1])
    features = (batch, 64, hr_size, hr_size)  # VGG's largest
    passes, text = counts.mean_distance(features, size=size), "x".join(map(str, features))
    row("mean_distance", text, "forward", passes[0])
    row("mean_distance", text, "forward+backward", *passes)
    block, text = counts.residual_dense_block((batch, 64, lr, lr)), f"{batch}x64x{lr}x{lr}"
    row("residual_dense_block", text, "forward", block.forward(size))
    row("residual_dense_block", text, "frozen forward+backward", block.forward(size), block.backward(size))
    row(
        "residual_dense_block",
        text,
        "trainable forward+backward",
        block.forward(size),
        block.backward(size, weights=True),
    )
    for factor, side in ((2, lr), (2, 2 * lr), (1, 4 * lr)):  # G's tail
        layer, text = counts.upsampled_convolution((batch, 64, side, side), 64, factor), f"{batch}x64x{side}x{side}"
        text += f" x{factor}"
        row("upsampled_convolution", text, "forward", layer.forward(size))
        row("upsampled_convolution", text, "frozen forward+backward", layer.forward(size), layer.backward(size))
    return rows


def step_floors(
    rates: Rates,
    stage: str,
    *,
    batch: int,
    precision: str = "bf16",
    adversarial: bool = True,
    **sizes: Any,
) -> list[dict[str, Any]]:
    """Floors of a step by part and network, in order; ``sizes`` are those of :func:`benchmarks.counts.step`."""
    entries = counts.step(stage, batch, adversarial=adversarial, size=SIZES[precision], **sizes)
    return [
        {"part": part, "network": network}
        | _floor(rates, precision, [entry.work for entry in group for _ in range(entry.times)])
        for part, network, group in counts.by_part(entries)
    ]


def step_seconds(rates: Rates, stage: str, **arguments: Any) -> float:
    """The floor of a step, of the arguments of :func:`step_floors`."""
    return sum(row["seconds"] for row in step_floors(rates, stage, **arguments))


def _floor(rates: Rates, precision: str, works: Sequence[Work]) -> dict[str, Any]:
    return {
        "gflop": sum(work.flops for work in works) / 1e9,
        "bytes": sum(work.bytes for work in works),
        "seconds": rates.seconds(*works, precision=precision),
        "bound": rates.bound(*works, precision=precision),
    }


def everything(rates: Rates, *, batch: int, hr_size: int, scale: int, precision: str) -> dict[str, Any]:
    """All floors, for --json."""
    steps = {}
    for stage in counts.STAGES:
        for kind in ("plain", "exact"):
            sizes: dict[str, Any] = {"hr_size": hr_size, "scale": scale, "adversarial": kind == "exact"}
            parts = step_floors(rates, stage, batch=batch, precision=precision, **sizes)
            steps[f"{kind} {stage}"] = {"seconds": sum(part["seconds"] for part in parts), "parts": parts}
    return {
        "rates": rates.as_dict(),
        "batch": batch,
        "hr_size": hr_size,
        "scale": scale,
        "precision": precision,
        "ops": op_floors(rates, batch=batch, hr_size=hr_size, scale=scale, precision=precision),
        "steps": steps,
    }


def text(floors: dict[str, Any]) -> str:
    """The floors as Markdown tables."""
    rates = floors["rates"]
    matrix = ", ".join(f"{name} {rate / 1e12:.4g}" for name, rate in rates["matrix"].items())
    lines = [
        f"{rates['name']} ({rates['source']}): {rates['bandwidth'] / 1e9:.4g} GB/s, TFLOP/s {matrix}",
        f"{floors['precision']}, batch {floors['batch']}, HR {floors['hr_size']}, x{floors['scale']}",
        "",
        "| op | shape | direction | GFLOP | MB | floor, ms | bound by |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in floors["ops"]:
        lines.append(f"| {row['op']} | {row['shape']} | {row['direction']} | {_numbers(row)} |")
    for name, step in floors["steps"].items():
        lines += ["", f"Step, {name}: {1e3 * step['seconds']:.4g} ms", ""]
        lines += ["| part | network | GFLOP | MB | floor, ms | bound by |", "|---|---|---|---|---|---|"]
        lines += [f"| {row['part']} | {row['network']} | {_numbers(row)} |" for row in step["parts"]]
    for stage in counts.STAGES:
        ratio = floors["steps"][f"exact {stage}"]["seconds"] / floors["steps"][f"plain {stage}"]["seconds"]
        lines += ["", f"Exact over plain step, stage {stage}, both at their floors: {ratio:.3f}"]
    return "\n".join(lines)


def _numbers(row: dict[str, Any]) -> str:
    return f"{row['gflop']:.5g} | {row['bytes'] / 1e6:.4g} | {1e3 * row['seconds']:.4g} | {row['bound']}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.roofline", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=[*NOMINAL, "this"], help="nominal rates, or this machine's, measured")
    parser.add_argument("--precision", choices=SIZES, default="bf16")
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--hr-size", type=int, default=256)
    parser.add_argument("--scale", type=int, choices=(2, 4), default=4)
    parser.add_argument("--quick", action="store_true", help="measure with small sizes, to try the program")
    parser.add_argument("--json", action="store_true", help="print JSON, not tables")
    options = parser.parse_args(arguments)
    if options.batch < 1:
        parser.error(f"--batch must be at least 1, was {options.batch}")
    if options.hr_size < 64 or options.hr_size & (options.hr_size - 1):
        parser.error(f"--hr-size must be a power of two of at least 64, was {options.hr_size}")
    cuda = torch.cuda.is_available()
    chosen = options.device or ("this" if cuda else "H100")
    rates = measured("cuda" if cuda else "cpu", quick=options.quick) if chosen == "this" else NOMINAL[chosen]
    sizes = {"batch": options.batch, "hr_size": options.hr_size, "scale": options.scale, "precision": options.precision}
    floors = everything(rates, **sizes)
    print(json.dumps(floors, indent=1) if options.json else text(floors))
    return 0


if __name__ == "__main__":
    sys.exit(main())
