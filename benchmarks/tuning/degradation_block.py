"""Which configurations of the degradation block's Triton kernels are fastest: the table in kernels/, measured.

    python -m benchmarks.tuning.degradation_block                       on a GPU: all candidates, as long as it takes
    python -m benchmarks.tuning.degradation_block --seconds 90 --reduced --json tuning.json --table configs.py
    python -m benchmarks.tuning.degradation_block --apply               and write the winners to kernels/
    python -m benchmarks.tuning.degradation_block --compile-only --architecture 9.0   no GPU: registers, shared memory

Candidates differ from the table's entry in tile, reduction step, warps, stages, registers and programs. The closest
come first, so a time budget explores around the present choice. All are compiled first, in parallel; those that spill
or exceed shared memory are dropped. On the GPU each is compared with float64, then timed at the shapes of F, weighted
by the number of layers that have the shape. A winner must be faster by MARGIN and must compile without spills in every
form that the launchers use.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from andfast.kernels.common.config import PRECISIONS, KernelConfig, newest_architecture
from andfast.kernels.degradation_block.configs import TABLE
from benchmarks.tuning import config_table
from benchmarks.tuning.candidates import (
    KERNELS,
    Candidate,
    candidates,
    compiled,
    everywhere,
    in_parallel,
    in_turns,
    layers,
)

ROOT = Path(__file__).resolve().parents[2]

MARGIN: Final = 0.02
"""By what fraction a candidate must beat the table's entry."""
TOLERANCE: Final = {"half": 1e-2, "tf32": 2e-3, "tf32x3": 1e-5}

# ------------------------------------------------------------------------------------------------------------ timing


class Bench:
    """The kernels at F's shapes on the GPU: inputs, references, times."""

    def __init__(self, batch: int, hr_size: int, device: str = "cuda") -> None:
        self.batch, self.sides, self.device = batch, {"hr": hr_size, "lr": hr_size // 4}, device
        self._inputs: dict[tuple[Any, ...], dict[str, Any]] = {}

    def inputs(self, precision: str, layer: tuple[int, int, str], images: int, side: int) -> dict[str, Any]:
        """Arguments of the launchers at one shape; made once."""
        key = (precision, layer[:2], images, side)
        if key not in self._inputs:
            from andfast.kernels.degradation_block import forward as degradation_block_forward  # noqa: PLC0415

            dtype = torch.bfloat16 if precision == "half" else torch.float32
            c_in, c_out, _ = layer
            generator = torch.Generator(self.device).manual_seed(0)

            def draw(*shape: int) -> torch.Tensor:
                return torch.randn(shape, device=self.device, generator=generator)

            maps = {"dtype": dtype, "memory_format": torch.channels_last}
            weight = (draw(images, c_out, c_in, 3, 3) / (9 * c_in) ** 0.5).to(dtype)
            x, noise, grad = (draw(images, c, side, side).to(**maps) for c in (c_in, c_out, c_out))
            inputs = {"x": x, "weight": weight, "slope": 1 + 0.1 * draw(images), "noise": noise, "grad": grad}
            common = {"replicate": True, "tf32": precision == "tf32"}
            # As in training: the slope's gradient comes from the result.
            inputs["result"], inputs["saved"] = degradation_block_forward.forward(
                x, weight, inputs["slope"], noise, save=1, memory_format=torch.channels_last, **common
            )
            self._inputs[key] = inputs | {"common": common}
        return self._inputs[key]

    def call(self, candidate: Candidate, inputs: dict[str, Any]) -> Callable[[], Any]:
        """The kernel's launch with the candidate's configuration."""
        from importlib import import_module  # noqa: PLC0415

        launch = getattr(import_module(f"andfast.kernels.degradation_block.{candidate.kernel}"), candidate.kernel)
        values = [inputs[name] for name in ("x", "weight", "slope")]
        options = inputs["common"] | {"config": candidate.config}
        if candidate.kernel == "forward":
            return lambda: launch(*values, inputs["noise"], save=1, memory_format=torch.channels_last, **options)
        back = [inputs["grad"], *values, inputs["saved"]]
        if candidate.kernel == "grad_input":
            return lambda: launch(*back, noise_map=None, memory_format=torch.channels_last, **options)
        options |= {name: inputs[name] for name in ("result", "noise")}
        return lambda: launch(*back, want_weight=True, want_slope=True, **options)

    def error(self, candidate: Candidate, side: int = 37) -> float:
        """The largest relative error against float64, over the channels of F, on two images of side by side."""
        from andfast.functional.degradation_block_reference import degradation_block_reference  # noqa: PLC0415

        errors = []
        for layer in layers(candidate.kernel):
            inputs = self.inputs(candidate.precision, layer, 2, side)
            results = self.call(candidate, inputs)()
            leaves = [inputs[name].double().requires_grad_() for name in ("x", "weight", "slope", "noise")]
            out = degradation_block_reference(*leaves)
            if candidate.kernel == "forward":
                pairs = [(results[0], out.detach())]
            else:
                grads = torch.autograd.grad(out, leaves, inputs["grad"].double())
                pairs = [(results[0], grads[0])]
                if candidate.kernel == "grad_weight":
                    pairs = [(results[0], grads[1]), (results[1].sum(1), grads[2])]
            errors += [((a.double() - b).norm() / b.norm()).item() for a, b in pairs]
        return max(errors)

    def seconds(self, candidate: Candidate) -> dict[str, float]:
        """Device seconds of each layer, the median of three rounds."""
        from benchmarks.measure import DeviceQueue  # noqa: PLC0415

        seconds = {}
        for layer in layers(candidate.kernel):
            inputs = self.inputs(candidate.precision, layer, self.batch, self.sides[layer[2]])
            call = self.call(candidate, inputs)
            queue = DeviceQueue(lambda _, call=call: call(), [(None,)])
            calls = queue.calibrate(0.003)
            seconds[layer_text(layer)] = statistics.median(queue.seconds(calls) for _ in range(3))
        return seconds


def layer_text(layer: tuple[int, int, str]) -> str:
    return f"{layer[0]}->{layer[1]} {layer[2]}"


def weighted(kernel: str, seconds: dict[str, float]) -> float:
    """Of all layers of F."""
    return sum(times * seconds[layer_text(layer)] for layer, times in layers(kernel).items())


def measure(bench: Bench, candidate: Candidate) -> dict[str, Any]:
    """The candidate's error and times; one that is wrong, or cannot be launched, is not timed."""
    try:
        error = bench.error(candidate)
        if not error <= TOLERANCE[candidate.precision]:
            return {"status": f"wrong: relative error {error:.2e}", "error": error}
        seconds = bench.seconds(candidate)
    except Exception as failure:  # a launch can fail in many ways; the next candidate can do better
        return {"status": f"failed: {str(failure).strip().splitlines()[0] if str(failure).strip() else failure!r}"}
    return {"status": "timed", "error": error, "seconds": seconds, "weighted": weighted(candidate.kernel, seconds)}


def alive() -> bool:
    """Whether the device still answers; after an illegal access it does not, for the rest of the process."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


# ----------------------------------------------------------------------------------------------------------- results


def ranked(rows: Sequence[dict[str, Any]], kernel: str, precision: str) -> list[dict[str, Any]]:
    """The timed rows of a kernel, the fastest first; only those that beat the table's entry by MARGIN."""
    timed = [row for row in rows if (row["kernel"], row["precision"]) == (kernel, precision) and "weighted" in row]
    now = [row["weighted"] for row in timed if row["distance"] == 0]
    if not now:
        return []  # nothing to compare with
    return sorted((row for row in timed if row["weighted"] < now[0] * (1 - MARGIN)), key=lambda row: row["weighted"])


def as_row(candidate: Candidate, resources: dict[str, Any] | None, why: str | None) -> dict[str, Any]:
    named = {"architecture": candidate.architecture, "kernel": candidate.kernel, "precision": candidate.precision}
    config = {"config": candidate.config._asdict(), "distance": candidate.distance}
    return named | config | {"resources": resources, "status": why or "compiled"}


def tuned(
    rows: Sequence[dict[str, Any]],
    architecture: str,
    fits: Callable[[Sequence[Candidate]], dict[Candidate, str | None]],
) -> dict[str, dict[tuple[str, str], KernelConfig]]:
    """The table with each kernel's fastest configuration that compiles in every form; ``fits`` finds that out."""
    table = {name: dict(entries) for name, entries in TABLE.items()}
    open_rows = {key: ranked(rows, *key) for key in table[architecture]}
    while chosen := {key: ranking.pop(0) for key, ranking in open_rows.items() if ranking}:
        tried = {
            key: Candidate(architecture, *key, KernelConfig(**row["config"]), row["distance"])
            for key, row in chosen.items()
        }
        reasons = fits(list(tried.values()))
        for key, candidate in tried.items():
            why = reasons.get(candidate, "not compiled in time")
            chosen[key]["everywhere"] = why or "compiles"
            if why is None:
                table[architecture][key] = candidate.config
                open_rows[key] = []
    return table


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.tuning.degradation_block", description="Tune the table.")
    parser.add_argument("--compile-only", action="store_true", help="list what candidates take; needs no GPU")
    parser.add_argument("--architecture", choices=TABLE, help="default: the GPU's")
    parser.add_argument("--kernel", choices=KERNELS, action="append", help="one or more; default: all")
    parser.add_argument("--precision", choices=PRECISIONS, action="append", help="default: all, half with --reduced")
    parser.add_argument("--reduced", action="store_true", help="candidates that differ in one field only")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="time budget; default: none")
    parser.add_argument("--limit", type=int, help="candidates at most of each kernel and precision")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="that compile (%(default)s)")
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--hr-size", type=int, default=256)
    parser.add_argument("--json", type=Path, help="where all timings go")
    parser.add_argument("--table", type=Path, help="where configs.py goes with the winners")
    parser.add_argument("--apply", action="store_true", help="write the winners to kernels/")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options, begun = parse(arguments), time.monotonic()
    if not options.compile_only and not torch.cuda.is_available():
        print("error: no CUDA device; --compile-only needs none", file=sys.stderr)
        return 1
    here = newest_architecture(torch.cuda.get_device_capability(), TABLE) if torch.cuda.is_available() else max(TABLE)
    architecture = options.architecture or here
    if not options.compile_only and architecture != here:
        print(f"error: --architecture must be that of the GPU, {here}, was {architecture}", file=sys.stderr)
        return 1
    precisions = options.precision or (["half"] if options.reduced else PRECISIONS)
    groups = [
        candidates(architecture, kernel, precision, reduced=options.reduced)[: options.limit]
        for precision, kernel in itertools.product(precisions, options.kernel or KERNELS)
    ]
    chosen = in_turns(groups)
    print(f"{len(chosen)} candidates for {architecture}", flush=True)
    deadline = begun + (options.seconds if options.compile_only else 0.4 * options.seconds)
    rows: dict[Candidate, dict[str, Any]] = {}
    for candidate, resources, why in in_parallel(compiled, chosen, deadline, options.processes):
        rows[candidate] = as_row(candidate, resources, why)
        if options.compile_only:
            print(f"{candidate.text()}: {why or resources}", flush=True)
    if not options.compile_only:
        bench = Bench(options.batch, options.hr_size)
        for candidate in (inputs for inputs in chosen if rows.get(inputs, {}).get("resources")):
            if time.monotonic() > begun + 0.8 * options.seconds:
                break
            rows[candidate] |= measure(bench, candidate)
            print(f"{candidate.text()}: {_said(rows[candidate])}", flush=True)
            if not alive():
                print("error: that candidate broke the device; what was timed before it is kept", file=sys.stderr)
                break
    left_out = len(chosen) - sum(row["status"] != "compiled" for row in rows.values())
    ordered = [rows[inputs] for inputs in chosen if inputs in rows]
    table: config_table.Table = TABLE
    if not options.compile_only:

        def fits(tried: Sequence[Candidate]) -> dict[Candidate, str | None]:
            return dict(in_parallel(everywhere, tried, begun + options.seconds, options.processes))

        table = tuned(ordered, architecture, fits)
        for key, config in table[architecture].items():
            if config != TABLE[architecture][key]:
                print(f"faster: {' '.join(key)} {config_table.config_text(config)}")
        print(f"{left_out} candidates were not measured" if left_out else "all candidates were measured")
    if options.json:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        head = {"device": device, "architecture": architecture, "batch": options.batch, "hr_size": options.hr_size}
        options.json.write_text(json.dumps(head | {"rows": ordered}, indent=1) + "\n")
    source = config_table.rewritten(config_table.FILE.read_text(), table)
    if options.table:
        options.table.write_text(source)
    if options.apply:
        config_table.FILE.write_text(source)
    return 0


def _said(row: dict[str, Any]) -> str:
    return f"{1e3 * row['weighted']:.3f} ms" if "weighted" in row else str(row["status"])


if __name__ == "__main__":
    sys.exit(main())
