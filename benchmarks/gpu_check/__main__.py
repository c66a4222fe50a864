"""Everything that a machine with a GPU can tell, in one call below nine minutes and without a network.

    make gpu-check                                     or: python -m benchmarks.gpu_check --output FOLDER
    python -m benchmarks.gpu_check --stages tests,step
    python -m benchmarks.gpu_check --allow-cpu --quick   tries the program itself; its numbers mean nothing

Stages run one after the other, each in a process of its own with a time limit; one that fails, hangs or is killed does
not keep the next ones from running. What was measured is written after every stage, so that an interrupted run leaves
it too. The output folder, ``benchmarks/results/<gpu>/`` unless told otherwise, gets summary.json (the figures by name,
or null and the reason), results.json (every row), report.md, roofline.png, log.txt, and what the tuning found.

The exit code is 1 if a stage failed or ran out of time, 0 else; a stage that was skipped is named with its reason.
Nothing is installed: packages that are missing are taken from wheels in ``wheels/``, if it is there, into a temporary
folder. benchmarks/README.md says more.
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
    names = [stage.name for stage in stages.STAGES]
    parser = argparse.ArgumentParser(prog="gpu_check", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="folder of the results; default: benchmarks/results/<gpu>")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds in all (%(default)g)")
    parser.add_argument("--stages", help=f"some of the stages only, by comma: {', '.join(names)}")
    parser.add_argument("--stage-limit", type=float, help="seconds a stage at most, below its own limit")
    parser.add_argument("--apply-tuning", action="store_true", help="tune first, and benchmark with what was found")
    parser.add_argument("--allow-cpu", action="store_true", help="run without a GPU, to try the program")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the program")
    given = parser.parse_args(arguments)
    for name in ("budget", "stage_limit"):
        if (value := getattr(given, name)) is not None and not 0 < value < float("inf"):
            parser.error(f"--{name.replace('_', '-')} must be a positive number of seconds, was {value}")
    given.chosen = names if given.stages is None else [one.strip() for one in given.stages.split(",")]
    if unknown := [one for one in given.chosen if one not in names]:
        parser.error(f"--stages must be among {', '.join(names)}, was {', '.join(unknown)}")
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    given = parse(arguments)
    with tempfile.TemporaryDirectory(prefix="andfast-gpu-check-") as folder:
        run = Run(given, Path(folder))
        chosen = stages.ordered(given.apply_tuning)
        first, *others = [one for one in chosen if one.name in given.chosen or one.name == "environment"]
        # The machine names the folder, and the later stages ask for it.
        if not prepare(first, run):
            return 1
        try:
            run_all(others, run)
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
    found = json.loads((place / "summary.json").read_text())
    print()
    for name in summary.FIGURES:
        value = found[name]
        print(f"{name:38s} {value:.3g}" if value is not None else f"{name:38s} - {found['reasons'][name]}")
    bad = [name for name, one in run.outcomes.items() if one.status in ("failed", "timed out")]
    skipped = [name for name, one in run.outcomes.items() if one.status == "skipped"]
    if skipped:
        print(f"skipped: {', '.join(skipped)}")
    print(f"{time.monotonic() - run.begun:.0f} s; results in {place}")
    if bad:
        print(f"error: {', '.join(bad)} did not pass", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
