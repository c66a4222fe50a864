"""Everything that a machine with a GPU can tell, in one call below nine minutes and without a network.

    make gpu-check                                     or: python benchmarks/gpu_check.py --output FOLDER
    python benchmarks/gpu_check.py --stages tests,step
    python benchmarks/gpu_check.py --allow-cpu --quick   tries the program itself; its numbers mean nothing

Stages run one after the other, each in a process of its own with a time limit; one that fails, hangs or is killed does
not keep the next ones from running. What was measured is written after every stage, so that an interrupted run leaves
it too. The output folder, ``benchmarks/results/<gpu>/`` unless told otherwise, gets summary.json (the figures by name,
or null and the reason), results.json (every row), report.md, roofline.png, log.txt, and what the tuning found.

The exit code is 1 if a stage failed or ran out of time, 0 else; a stage that was skipped is named with its reason.
Nothing is installed: packages that are missing are taken from wheels in ``wheels/``, if it is there, into a temporary
folder. benchmarks/README.md says more.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # when run as a file

from benchmarks import gpu_check_stages, report, summary  # noqa: E402
from benchmarks.gpu_check_stages import Skip, Stage  # noqa: E402

SCHEMA = 1
BUDGET = 540.0
WRITING = 8.0
"""Seconds kept for writing the report at the end."""
LEAST = 5.0
"""A stage is not begun with less time than this."""
TAIL = 25
"""Lines of a failed stage's output that are shown."""


class Outcome(NamedTuple):
    """How a stage ended: "passed", "failed", "timed out" or "skipped"."""

    status: str
    seconds: float
    reason: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return self._asdict()


class Run:
    """One run: its clock, its files, and what has been found so far."""

    def __init__(self, given: argparse.Namespace, scratch: Path) -> None:
        self.begun = time.monotonic()
        self.given, self.scratch = given, scratch
        self.rows_file = scratch / "rows.jsonl"
        self.log_file = scratch / "log.txt"
        self.outcomes: dict[str, Outcome] = {}
        self.machine: dict[str, Any] = {}
        self.rates: dict[str, Any] | None = None
        self.output: Path | None = given.output

    def left(self) -> float:
        return float(self.given.budget) - (time.monotonic() - self.begun)

    def environment(self, limit: float) -> dict[str, str]:
        """Of a stage's process."""
        path = os.pathsep.join([str(ROOT), *self.site()])
        extra = {
            "PYTHONPATH": path,
            "PYTHONUNBUFFERED": "1",
            "ANDFAST_BENCH_ROWS": str(self.rows_file),
            # Rows stop before the stage is killed.
            "ANDFAST_BENCH_SECONDS": str(max(1.0, limit - 15)),
            "ANDFAST_BENCH_RATES": str(self.scratch / gpu_check_stages.RATES),
            # Programs of packages that came as wheels, ninja for one.
            "PATH": os.pathsep.join([os.environ.get("PATH", os.defpath), *(f"{one}/bin" for one in self.site())]),
        }
        if self.given.quick:
            extra["ANDFAST_BENCH_QUICK"] = "1"
        return os.environ | extra

    def site(self) -> list[str]:
        """Where packages from wheels/ lie, if there are any; behind the machine's own."""
        folder = self.scratch / "site"
        return [str(folder)] if folder.is_dir() else []

    def rows(self) -> list[dict[str, Any]]:
        """What was measured so far; a line that a killed process left unfinished is dropped."""
        if not self.rows_file.is_file():
            return []
        found = []
        for line in self.rows_file.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return found


# ------------------------------------------------------------------------------------------------------------ stages


def execute(stage: Stage, limit: float, run: Run) -> Outcome:
    """Run a stage's command with a limit; its output goes to the log, and its end to the terminal if it fails."""
    begun = time.monotonic()
    log = run.scratch / f"{stage.name}.log"
    timed_out = False
    with open(log, "w", encoding="utf-8") as file:
        try:
            command = stage.command(run, limit)
            file.write(f"$ {' '.join(command)}\n")
            file.flush()
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=run.environment(limit) | stage.environment(run),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except Skip as reason:
            return Outcome("skipped", time.monotonic() - begun, str(reason))
        except OSError as error:
            return Outcome("failed", time.monotonic() - begun, f"cannot be started: {error}")
        try:
            code = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            timed_out, code = True, -signal.SIGKILL
        finally:
            _end(process)
    seconds = time.monotonic() - begun
    said = log.read_text(encoding="utf-8", errors="replace")
    with open(run.log_file, "a", encoding="utf-8") as file:
        file.write(f"==== {stage.name}, {seconds:.0f} s ====\n{said}\n")
    try:
        status, reason = stage.verdict(run, code, said)
    except Exception as error:  # what a stage leaves behind must not end the run
        status, reason = "failed", f"its output cannot be read: {error!r}"
    if timed_out:
        status, reason = "timed out", f"killed after {limit:.0f} s"
    if status in ("failed", "timed out"):
        print("\n".join(f"    | {line}" for line in said.splitlines()[-TAIL:]), flush=True)
    return Outcome(status, seconds, reason)


def _end(process: subprocess.Popen[bytes]) -> None:
    """The process and its children, compilers included."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def prepare(stage: Stage, run: Run) -> bool:
    """Run the first stage, without which there is nothing to measure and nowhere to write."""
    outcome = run.outcomes[stage.name] = execute(stage, min(stage.limit, run.left()), run)
    if outcome.status != "passed":
        print(f"error: {stage.name}: {outcome.reason}", file=sys.stderr)
        return False
    print(f"{stage.name}: {outcome.reason}", flush=True)
    return True


def run_all(stages: Sequence[Stage], run: Run) -> None:
    """All stages in order, each with the time that later ones can spare."""
    for index, stage in enumerate(stages):
        later = sum(one.reserve for one in stages[index + 1 :])
        # Short of time, what is left is shared in the proportion of the reserves.
        spare = run.left() - WRITING
        share = spare - later if spare - later >= stage.reserve else spare * stage.reserve / (stage.reserve + later)
        limit = min(stage.limit, share)
        if run.given.stage_limit is not None:
            limit = min(limit, run.given.stage_limit)
        if spare < LEAST:
            outcome = Outcome("skipped", 0.0, f"no time left of {run.given.budget:.0f} s")
        else:
            print(f"[{run.given.budget - run.left():4.0f} s] {stage.name}: {stage.title}", flush=True)
            outcome = execute(stage, max(limit, 1.0), run)
        run.outcomes[stage.name] = outcome
        print(f"         {outcome.status}" + (f": {outcome.reason}" if outcome.reason else ""), flush=True)
        write(run)


# ------------------------------------------------------------------------------------------------------------ output


def write(run: Run) -> Path:
    """Write what is known so far; returns the folder."""
    if run.output is None:
        name = run.machine.get("slug", "unknown")
        run.output = report.RESULTS / name
    run.output.mkdir(parents=True, exist_ok=True)
    results = report.collect(run.rows(), run.machine)
    results["rates"] = run.rates or results["rates"]
    found = summarise(run, results)
    _replace(run.output / "results.json", json.dumps(results, indent=1) + "\n")
    _replace(run.output / "summary.json", json.dumps(found, indent=1) + "\n")
    _replace(run.output / "report.md", report.gpu_report(found, results))
    if run.log_file.is_file():
        shutil.copyfile(run.log_file, run.output / "log.txt")
    for name in gpu_check_stages.PRODUCTS:
        if (run.scratch / name).is_file():
            shutil.copyfile(run.scratch / name, run.output / name)
    return run.output


def summarise(run: Run, results: dict[str, Any]) -> dict[str, Any]:
    """The content of summary.json."""
    values, reasons = summary.figures(results["rows"])
    rates = results["rates"] or {}
    for name in reasons:
        stage = run.outcomes.get(gpu_check_stages.stage_of(name))
        if stage is not None and stage.status != "passed":
            reasons[name] += f" (its stage: {stage.status}" + (f", {stage.reason})" if stage.reason else ")")
    return {
        "schema": SCHEMA,
        **values,
        "reasons": reasons,
        "gpu": run.machine.get("name"),
        "commit": run.machine.get("commit", "unknown"),
        "versions": {"python": run.machine.get("python"), "cuda": run.machine.get("cuda")}
        | {"driver": run.machine.get("driver")}
        | run.machine.get("packages", {}),
        "copy_bandwidth": rates.get("bandwidth"),
        "matrix_rate": rates.get("matrix", {}),
        "rates_source": rates.get("source"),
        "quick": bool(run.given.quick),
        "rows": len(results["rows"]),
        "rows_failed": sum(not row.get("passed", True) for row in results["rows"]),
        "seconds": time.monotonic() - run.begun,
        "stages": {name: one.as_dict() for name, one in run.outcomes.items()},
    }


def _replace(path: Path, text: str) -> None:
    """Whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


# ------------------------------------------------------------------------------------------------------ command line


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = [stage.name for stage in gpu_check_stages.STAGES]
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
        stages = gpu_check_stages.ordered(given.apply_tuning)
        first, *others = [one for one in stages if one.name in given.chosen or one.name == "environment"]
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
        from benchmarks.figure import draw  # noqa: PLC0415

        draw(report.load(place / "results.json"), place / "roofline.png")
    except ImportError as error:
        print(f"no roofline.png: {error}")


def _last_words(run: Run, place: Path) -> int:
    found = json.loads((place / "summary.json").read_text())
    print()
    for name in summary.TARGETS:
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
