"""One run of gpu-check: its clock, its stages in processes with a time limit, and the files it leaves."""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu_check import stages
from benchmarks.gpu_check.stages import Skip, Stage
from benchmarks.report import pages, summary

ROOT = Path(__file__).resolve().parents[2]

SCHEMA = 1
BUDGET = 300.0
WRITING = 8.0
"""Seconds kept for writing the report at the end."""
MIN_SECONDS = 5.0
"""Minimum seconds for a stage to start."""
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
    """One run: its clock, its files, and its results so far."""

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        self.begun = time.monotonic()
        self.options, self.scratch = options, scratch
        self.rows_file = scratch / "rows.jsonl"
        self.log_file = scratch / "log.txt"
        self.outcomes: dict[str, Outcome] = {}
        self.machine: dict[str, Any] = {}
        self.rates: dict[str, Any] | None = None
        self.output: Path | None = options.output

    def left(self) -> float:
        return float(self.options.budget) - (time.monotonic() - self.begun)

    def environment(self, limit: float) -> dict[str, str]:
        """Of a stage's process."""
        path = os.pathsep.join([str(ROOT), *self.site()])
        extra = {
            "PYTHONPATH": path,
            "PYTHONUNBUFFERED": "1",
            "ANDFAST_BENCH_ROWS": str(self.rows_file),
            # Rows stop before the stage is killed.
            "ANDFAST_BENCH_SECONDS": str(max(1.0, limit - 15)),
            "ANDFAST_BENCH_RATES": str(self.scratch / stages.RATES),
            # Programs of packages that came as wheels, ninja for one.
            "PATH": os.pathsep.join([os.environ.get("PATH", os.defpath), *(f"{folder}/bin" for folder in self.site())]),
        }
        if self.options.quick:
            extra["ANDFAST_BENCH_QUICK"] = "1"
        return os.environ | extra

    def site(self) -> list[str]:
        """Where packages from wheels/ lie, if there are any; behind the machine's own."""
        folder = self.scratch / "site"
        return [str(folder)] if folder.is_dir() else []

    def profiles(self) -> list[dict[str, Any]]:
        """Profiled steps so far."""
        file = self.scratch / stages.PROFILE
        return list(json.loads(file.read_text())["profiles"]) if file.is_file() else []

    def rows(self) -> list[dict[str, Any]]:
        """Rows measured so far, without a last line that a killed process left unfinished."""
        if not self.rows_file.is_file():
            return []
        rows = []
        for line in self.rows_file.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return rows


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


def run_all(chosen: Sequence[Stage], run: Run) -> None:
    """All stages in order, each with the time that later ones can spare."""
    for index, stage in enumerate(chosen):
        later = sum(following.reserve for following in chosen[index + 1 :])
        # Short of time, what is left is shared in the proportion of the reserves.
        spare = run.left() - WRITING
        share = spare - later if spare - later >= stage.reserve else spare * stage.reserve / (stage.reserve + later)
        limit = min(stage.limit, share)
        if run.options.stage_limit is not None:
            limit = min(limit, run.options.stage_limit)
        if spare < MIN_SECONDS:
            outcome = Outcome("skipped", 0.0, f"no time left of {run.options.budget:.0f} s")
        else:
            print(f"[{run.options.budget - run.left():4.0f} s] {stage.name}: {stage.title}", flush=True)
            outcome = execute(stage, max(limit, 1.0), run)
        run.outcomes[stage.name] = outcome
        print(f"         {outcome.status}" + (f": {outcome.reason}" if outcome.reason else ""), flush=True)
        write(run)


# ------------------------------------------------------------------------------------------------------------ output


def write(run: Run) -> Path:
    """Write the results so far and return the folder."""
    if run.output is None:
        name = run.machine.get("slug", "unknown")
        run.output = pages.RESULTS / name
    run.output.mkdir(parents=True, exist_ok=True)
    results = pages.collect(run.rows(), run.machine)
    results["rates"] = run.rates or results["rates"]
    figures = summarize(run, results)
    _replace(run.output / "results.json", json.dumps(results, indent=1) + "\n")
    _replace(run.output / "summary.json", json.dumps(figures, indent=1) + "\n")
    _replace(run.output / "report.md", pages.gpu_report(figures, results, run.profiles()))
    if run.log_file.is_file():
        shutil.copyfile(run.log_file, run.output / "log.txt")
    for name in stages.PRODUCTS:
        if (run.scratch / name).is_file():
            shutil.copyfile(run.scratch / name, run.output / name)
    return run.output


def summarize(run: Run, results: dict[str, Any]) -> dict[str, Any]:
    """The content of summary.json."""
    values, reasons = summary.figures(results["rows"])
    rates = results["rates"] or {}
    for name in reasons:
        stage = run.outcomes.get(stages.stage_of(name))
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
        "quick": bool(run.options.quick),
        "rows": len(results["rows"]),
        "rows_failed": sum(not row.get("passed", True) for row in results["rows"]),
        "seconds": time.monotonic() - run.begun,
        "stages": {name: outcome.as_dict() for name, outcome in run.outcomes.items()},
    }


def _replace(path: Path, text: str) -> None:
    """Whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
