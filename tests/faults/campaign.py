"""Kill, fill, signal and damage tiny runs, resume each, and compare the results bit for bit with an undisturbed run.

``make faults`` runs it with 200 kills and prints a table; tests/faults/test_faults.py runs a sample of the same cases.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from tiny_process import Tiny, difference

STOPS = ("SIGINT", "SIGTERM", "SIGTERM twice", "SIGHUP", "SIGUSR1", "nohup")


class Campaign:
    """The undisturbed run, its events, and the cases to compare with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = 0
        undisturbed = self.tiny()
        if (status := undisturbed.complete()) != 0:
            raise RuntimeError(f"the undisturbed run ended with {status}: {undisturbed.log.read_text()}")
        self.expected = undisturbed.result()
        self.events = undisturbed.events()
        self.run = undisturbed.run

    def tiny(self) -> Tiny:
        self._count += 1
        return Tiny(self.folder / f"{self._count:04d}")

    def check(self, tiny: Tiny) -> str | None:
        """Resume until the run ends by itself; what is wrong with its result, or None."""
        status = tiny.complete()
        if status != 0:
            return f"resuming ended with {status}: {tiny.log.read_text()[-2000:]}"
        wrong = difference(tiny.result(), self.expected)
        left = [path.name for path in tiny.run.rglob(".tmp-*")]
        if wrong is None and "Traceback" not in tiny.log.read_text() and not left:
            shutil.rmtree(tiny.run.parent)
            return None
        return f"differs at {wrong}; left {left}; {tiny.log.read_text()[-2000:]}"

    def killed_at(self, number: int) -> str | None:
        """A kill right before an event."""
        tiny = self.tiny()
        status = tiny.complete(at=number)
        if status != -signal.SIGKILL:
            return f"was not killed at event {number}, ended with {status}: {tiny.log.read_text()[-2000:]}"
        return self.check(tiny)

    def full_at(self, number: int) -> str | None:
        """ENOSPC at an event: an error in one line, or none where the file is not needed; then space again."""
        tiny = self.tiny()
        status = tiny.complete(at=number, fault="full")
        if status not in (0, 2):
            return f"ended with {status}: {tiny.log.read_text()[-2000:]}"
        return self.check(tiny)

    def killed_after(self, seconds: float) -> str | None:
        """A kill at a time."""
        tiny = self.tiny()
        process = tiny.start()
        time.sleep(seconds)
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


def cases(campaign: Campaign, kills: int, seed: int) -> Iterator[tuple[str, str, Any]]:
    """(kind, label, method and argument) of all cases; the sweep takes two of three kills, random times the rest."""
    count = len(campaign.events)
    sweep = min(count, max(1, kills * 2 // 3))
    draw = random.Random(seed)
    for number in sorted({index * count // sweep for index in range(sweep)}):
        yield "killed before an event", f"{number} {campaign.events[number]}", (campaign.killed_at, number)
    for _ in range(kills - sweep):
        seconds = draw.uniform(0.0, 2.5)
        yield "killed at a random time", f"{seconds:.3f} s", (campaign.killed_after, seconds)
    for number in range(0, count, max(1, count // max(1, kills // 4))):
        yield "disk full at an event", f"{number} {campaign.events[number]}", (campaign.full_at, number)
    for name in STOPS:
        yield "stopped by a signal", name, (campaign.stopped_by, name)
    for name in campaign.damageable():
        yield "file damaged", name, (campaign.damaged, name)
    yield "two processes at once", "", (lambda _: campaign.twice_at_once(), None)


def table(figures: dict[str, list[int]]) -> str:
    """Cases and failures per kind, in Markdown."""
    lines = ["| fault | cases | not as promised |", "|---|---:|---:|"]
    return "\n".join(lines + [f"| {kind} | {count} | {wrong} |" for kind, (count, wrong) in figures.items()])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the campaign; 1 if a case is not as promised."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the runs are made; a temporary folder by default")
    options = parser.parse_args(argv)
    figures: dict[str, list[int]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        campaign = Campaign(options.folder or Path(temporary))
        print(f"the undisturbed run has {len(campaign.events)} file-system events", flush=True)
        order = list(cases(campaign, options.kills, options.seed))
        random.Random(options.seed).shuffle(order)  # so that an interrupted campaign has some of each kind
        for kind, label, (method, argument) in order:
            wrong = method(argument)
            figure = figures.setdefault(kind, [0, 0])
            figure[0] += 1
            if wrong is not None:
                figure[1] += 1
                print(f"NOT AS PROMISED: {kind}, {label}: {wrong}", flush=True)
            if sum(count for count, _ in figures.values()) % 5 == 0:
                print(table(figures), flush=True)
    print(table(figures))
    return int(any(wrong for _, wrong in figures.values()))


if __name__ == "__main__":
    raise SystemExit(main())
