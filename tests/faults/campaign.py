"""Kill, fill, signal and damage tiny runs, resume each, and compare the results bit for bit with an undisturbed run.

``make faults`` runs all cases and prints a table; it can be stopped and started again. tests/faults/test_faults.py runs
a sample of the same cases.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
from tiny_process import CONFIG, Tiny, difference, warm_up

from andfast.provenance import commit_of

STOPS = ("SIGINT", "SIGTERM", "SIGTERM twice", "SIGHUP", "SIGUSR1", "nohup")


class Case(NamedTuple):
    """One fault: its kind and label in the table, and the method of :class:`Campaign` that tries it."""

    kind: str
    label: str
    method: str
    arguments: tuple[Any, ...] = ()

    @property
    def name(self) -> str:
        """Unique among the cases of a campaign."""
        return f"{self.kind}: {self.label}"


class Campaign:
    """The undisturbed run, its events, and the cases to compare with it.

    Attributes:
        events: the file-system events of the undisturbed run.
        expected: its result, see :meth:`Tiny.result`.
        run: its folder.
        seconds: how long it took.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = 0
        warm_up(folder / "warm-up")
        undisturbed = self.tiny()
        start = time.monotonic()
        if (status := undisturbed.complete()) != 0:
            raise RuntimeError(f"the undisturbed run ended with {status}: {undisturbed.log.read_text()}")
        self.seconds = time.monotonic() - start
        self.expected = undisturbed.result()
        self.events = undisturbed.events()
        self.run = undisturbed.run

    def tiny(self) -> Tiny:
        """A tiny run in a folder of its own."""
        self._count += 1
        return Tiny(self.folder / f"{os.getpid()}-{self._count:04d}")

    def check(self, tiny: Tiny) -> str | None:
        """Resume until the run ends by itself; how its result differs, or None."""
        status = tiny.complete()
        if status != 0:
            return f"resuming ended with {status}: {tiny.log.read_text()[-2000:]}"
        wrong = difference(tiny.result(), self.expected)
        left = [path.name for path in tiny.run.rglob(".tmp-*")]
        if wrong is None and "Traceback" not in tiny.log.read_text() and not left:
            shutil.rmtree(tiny.run.parent)
            return None
        return f"differs at {wrong}; left {left}; {tiny.log.read_text()[-2000:]}"

    def attempt(self, case: Case) -> str | None:
        """Try a case; how it ended if not as promised, or None."""
        try:
            result: str | None = getattr(self, case.method)(*case.arguments)
        except (TimeoutError, AssertionError) as error:
            return str(error)
        return result

    def killed_at(self, number: int) -> str | None:
        """A kill right before an event."""
        tiny = self.tiny()
        status = tiny.complete(at=number)
        if status != -signal.SIGKILL:
            return f"was not killed at event {number}, ended with {status}: {tiny.log.read_text()[-2000:]}"
        return self.check(tiny)

    def full_at(self, number: int, fault: str = "full") -> str | None:
        """No space at an event: an error in one line, or no error where the file is not needed; then space again."""
        tiny = self.tiny()
        status = tiny.complete(at=number, fault=fault)
        if status not in (0, 2):
            return f"ended with {status}: {tiny.log.read_text()[-2000:]}"
        return self.check(tiny)

    def killed_after(self, fraction: float) -> str | None:
        """A kill after a fraction of the time that the undisturbed run took."""
        tiny = self.tiny()
        process = tiny.start()
        time.sleep(fraction * self.seconds)
        os.kill(process, signal.SIGKILL)
        tiny.finish(process)
        return self.check(tiny)

    def stopped_by(self, name: str) -> str | None:
        """A signal after the first step; SIGHUP does nothing to a process that ignored it from the start (nohup)."""
        tiny = self.tiny()
        number = signal.SIGHUP if name == "nohup" else signal.Signals[name.partition(" ")[0]]
        process = tiny.start(ignore=number if name == "nohup" else None)
        tiny.wait_for(tiny.run / "metrics.jsonl", process, lines=1)
        for _ in range(2 if name.endswith("twice") else 1):
            os.kill(process, number)
            time.sleep(0.01)
        status, expected = tiny.finish(process), 0 if name == "nohup" else 130
        if status != expected:
            return f"{name}: ended with {status}, not {expected}: {tiny.log.read_text()[-2000:]}"
        return self.check(tiny)

    def damaged(self, name: str) -> str | None:
        """A damaged file: resuming names it, or does not need it."""
        tiny = self.tiny()
        shutil.copytree(self.run, tiny.run)
        path = tiny.run / name
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] + b"\x00{" if len(content) > 2 else b"{")
        status = tiny.complete()
        text = tiny.log.read_text()
        named = any(Path(name).name in line for line in text.splitlines() if "damaged" in line or "whole" in line)
        if status in (0, 2) and "Traceback" not in text and (named or (status == 2 and Path(name).name in text)):
            return None
        if status == 0 and difference(tiny.result(), self.expected) is None:
            return None
        return f"{name}: ended with {status}, does not name it: {text[-2000:]}"

    def twice_at_once(self) -> str | None:
        """A second process on a live run ends with an error; the run is not disturbed."""
        tiny = self.tiny()
        process = tiny.start()
        tiny.wait_for(tiny.run / "run.json", process)
        status = tiny.complete()
        if status != 2 or "is in use by process" not in tiny.log.read_text():
            return f"the second process ended with {status}: {tiny.log.read_text()[-2000:]}"
        if (status := tiny.finish(process)) != 0:
            return f"the first process ended with {status}: {tiny.log.read_text()[-2000:]}"
        return self.check(tiny)

    def damageable(self) -> list[str]:
        """Files of a finished run that a resumed one may read."""
        newest = sorted((self.run / "checkpoints").iterdir())[-1]
        return [
            *("config.yaml", "run.json", "versions.json", "metrics.jsonl", "summary.json", "images.json"),
            *(f"weights/{name}.safetensors" for name in ("andnet", "andgan", "andnet_best", "andgan_best")),
            *(str(path.relative_to(self.run)) for path in sorted(newest.iterdir())),
        ]

    def cases(self, kills: int, seed: int) -> list[Case]:
        """All cases, shuffled, so that an unfinished campaign has some of each kind.

        Kills are before each event, or before evenly spaced ones if ``kills`` is smaller, the rest at random times.
        """
        draw = random.Random(seed)
        count = len(self.events)
        sweep = min(count, kills)
        result = [
            Case("killed before an event", f"{number} {self.events[number]}", "killed_at", (number,))
            for number in sorted({index * count // sweep for index in range(sweep)})
        ]
        for _ in range(kills - sweep):
            fraction = round(draw.random(), 3)
            result.append(Case("killed at a random time", f"{fraction:.1%} of the run", "killed_after", (fraction,)))
        writes = [number for number in range(count) if self.events[number].split()[0] not in ("remove", "rmdir")]
        for number in writes[:: max(1, count // kills)]:
            result.append(Case("disk full at an event", f"{number} {self.events[number]}", "full_at", (number,)))
        for number, event in enumerate(self.events):
            if event.startswith(("mkdir checkpoints/", "mkdir weights")):
                label = f"from {number} {event}"
                result.append(Case("file size limited", label, "full_at", (number, "limit")))
        result += [Case("stopped by a signal", name, "stopped_by", (name,)) for name in STOPS]
        result += [Case("file damaged", name, "damaged", (name,)) for name in self.damageable()]
        result.append(Case("two processes at once", "", "twice_at_once"))
        draw.shuffle(result)
        return result


class Results:
    """Results by case in a file of JSON lines, which a restarted campaign continues.

    Args:
        path: the file; it is emptied if it is of other code or other options.
        key: the code and the options.
    """

    def __init__(self, path: Path, key: dict[str, Any]) -> None:
        self._path = path
        key = json.loads(json.dumps(key))  # as it is read: tuples are lists in JSON
        if not path.exists() or json.loads(path.read_text().partition("\n")[0] or "{}") != key:
            path.write_text(json.dumps(key) + "\n")

    def read(self) -> dict[str, str | None]:
        """How each case ended: None if as promised."""
        lines = [json.loads(line) for line in self._path.read_text().splitlines()[1:] if line.endswith("}")]
        return {line["case"]: line["wrong"] for line in lines}

    def add(self, case: Case, wrong: str | None) -> None:
        """Append one; safe from several processes."""
        with self._path.open("a") as file:
            file.write(json.dumps({"case": case.name, "wrong": wrong}) + "\n")


def table(cases: Sequence[Case], results: dict[str, str | None]) -> str:
    """Cases, and how many were done and failed, per kind, in Markdown."""
    lines = ["| fault | cases | done | not as promised |", "|---|---:|---:|---:|"]
    for kind in sorted({case.kind for case in cases}):
        names = [case.name for case in cases if case.kind == kind]
        done = [name for name in names if name in results]
        wrong = sum(results[name] is not None for name in done)
        lines.append(f"| {kind} | {len(names)} | {len(done)} | {wrong} |")
    return "\n".join(lines)


def work(campaign: Campaign, cases: Sequence[Case], results: Results) -> None:
    """Try cases one after the other."""
    for case in cases:
        wrong = campaign.attempt(case)
        results.add(case, wrong)
        if wrong is not None:
            print(f"NOT AS PROMISED: {case.name}: {wrong}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the campaign; 1 if a case is not as promised, 130 if interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--folder", type=Path, default=Path("runs/faults"), help="results and the runs that failed")
    options = parser.parse_args(argv)
    shutil.rmtree(options.folder / "runs", ignore_errors=True)
    (options.folder / "runs").mkdir(parents=True)
    campaign = Campaign(options.folder / "runs")
    if not campaign.events:
        raise RuntimeError(f"no file-system event was seen below {options.folder}")
    cases = campaign.cases(options.kills, options.seed)
    code = {"commit": commit_of(Path(__file__).parent), "config": CONFIG, "events": len(campaign.events)}
    results = Results(options.folder / "results.jsonl", {**code, "kills": options.kills, "seed": options.seed})
    open_cases = [case for case in cases if case.name not in results.read()]
    events = f"{len(campaign.events)} file-system events in {campaign.seconds:.1f} s"
    print(f"the undisturbed run has {events}; {len(open_cases)} of {len(cases)} cases to do", flush=True)
    workers = []
    for number in range(options.jobs):
        if (process := os.fork()) == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            work(campaign, open_cases[number :: options.jobs], results)
            os._exit(0)
        workers.append(process)
    try:
        broken = [process for process in workers if os.waitpid(process, 0)[1] != 0]
    except KeyboardInterrupt:
        print(f"{table(cases, results.read())}\nthe same command continues", flush=True)
        return 130
    ended = results.read()
    print(table(cases, ended))
    return int(bool(broken) or len(ended) < len(cases) or any(wrong is not None for wrong in ended.values()))


if __name__ == "__main__":
    raise SystemExit(main())
