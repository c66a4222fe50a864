"""Build, test and measure on a GPU in one call of at most five minutes, without a network.

    make gpu-check                                     or: python -m benchmarks.gpu_check --output FOLDER
    make gpu-check GPU_CHECK_ARGS="--part tests"       one part alone: tests, step, profile, ops, tune or sanitizer
    python -m benchmarks.gpu_check --allow-cpu --quick   tries the program itself; its numbers mean nothing

Stages run one after the other, each in its own process with a time limit; a stage that fails, hangs or is killed does
not keep later ones from running. Results are written after every stage, so an interrupted run leaves them too. The
output folder, ``benchmarks/results/<gpu>/`` by default, gets summary.json (the figures by name, or null and the
reason), results.json (every row), profile.json, report.md, roofline.png, log.txt, and the tuned configurations.

The exit code is 1 if a stage failed or timed out, else 0; skipped stages are listed with the reason. Nothing is
installed: missing packages are taken from wheels in ``wheels/``, if that folder exists, into a temporary folder.
benchmarks/README.md says more.
"""

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu_check import stages
from benchmarks.gpu_check.runner import BUDGET, Run, prepare, run_all, write
from benchmarks.report import pages, summary


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu_check", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="folder of the results; default: benchmarks/results/<gpu>")
    parser.add_argument("--budget", type=float, default=BUDGET, help="total seconds (%(default)g)")
    parser.add_argument(
        "--part",
        default=",".join(stages.DEFAULT_PARTS),
        help=f"parts to run, separated by commas, of {', '.join(stages.PARTS)} (%(default)s)",
    )
    parser.add_argument("--stage-limit", type=float, help="maximum seconds per stage, below its own limit")
    parser.add_argument("--apply-tuning", action="store_true", help="run part tune first and use its result")
    parser.add_argument("--allow-cpu", action="store_true", help="run without a GPU, to try the program")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the program")
    options = parser.parse_args(arguments)
    for name in ("budget", "stage_limit"):
        if (value := getattr(options, name)) is not None and not 0 < value < float("inf"):
            parser.error(f"--{name.replace('_', '-')} must be a positive number of seconds, was {value}")
    options.parts = [part.strip() for part in options.part.split(",")]
    if unknown := [part for part in options.parts if part not in stages.PARTS]:
        parser.error(f"--part must be among {', '.join(stages.PARTS)}, was {', '.join(unknown)}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    with tempfile.TemporaryDirectory(prefix="andfast-gpu-check-") as folder:
        run = Run(options, Path(folder))
        first, *remaining = stages.of_parts(options.parts, options.apply_tuning)
        # The machine names the folder, and the later stages ask for it.
        if not prepare(first, run):
            return 1
        try:
            run_all(remaining, run)
        except KeyboardInterrupt:
            print("error: interrupted", file=sys.stderr)
            return 130
        finally:
            place = write(run)
        _figure(run, place)
        return _last_words(run, place)


def _figure(run: Run, place: Path) -> None:
    try:
        from benchmarks.report.figure import draw  # noqa: PLC0415

        draw(pages.load(place / "results.json"), place / "roofline.png")
    except ImportError as error:
        print(f"no roofline.png: {error}")


def _last_words(run: Run, place: Path) -> int:
    figures = json.loads((place / "summary.json").read_text())
    print()
    for name in summary.FIGURES:
        value = figures[name]
        print(f"{name:38s} {value:.3g}" if value is not None else f"{name:38s} - {figures['reasons'][name]}")
    bad = [name for name, outcome in run.outcomes.items() if outcome.status in ("failed", "timed out")]
    skipped = [name for name, outcome in run.outcomes.items() if outcome.status == "skipped"]
    if skipped:
        print(f"skipped: {', '.join(skipped)}")
    print(f"{time.monotonic() - run.begun:.0f} s; results in {place}")
    if bad:
        print(f"error: {', '.join(bad)} did not pass", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
