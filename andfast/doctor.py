"""Check whether training would run on this machine: ``python -m andfast.doctor [--config FILE] [settings]``."""

import argparse
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from andfast.files import atomic_file, check_output_path

DESCRIPTION = """\
Report versions, devices, the implementation of each op, a self-test of the ops, and weight files. With --config, or any
setting of andfast.train (--batch_size 8 --data.train FOLDER ...), check that configuration's photographs, memory and
disk space too. Exits with 0 if training would run, with 1 and the reasons if not."""

_COLORS = {"ok": "\033[32m", "note": "\033[33m", "problem": "\033[31m", "": ""}


def parser() -> argparse.ArgumentParser:
    """Build the argument parser; unknown arguments are settings."""
    result = argparse.ArgumentParser(
        prog="python -m andfast.doctor",
        description=DESCRIPTION,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="All settings of andfast.train are accepted, as --group.name value.",
    )
    result.add_argument("--config", metavar="FILE", help="training configuration to check")
    result.add_argument("--json", type=Path, metavar="FILE", help="also write the findings to this file")
    result.add_argument("--no-self-test", action="store_true", help="skip the self-test of the ops (10 s on a GPU)")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns 0 if training would run, 1 if not, 2 on a command line error."""
    options, settings = parser().parse_known_args(argv)
    if options.json is not None:
        try:
            check_output_path("--json", options.json)
        except OSError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    import torch  # noqa: PLC0415 - imports take seconds, which --help can skip

    from andfast.config.machine import resolve_device  # noqa: PLC0415
    from andfast.diagnosis import machine, prospects  # noqa: PLC0415

    report = machine.Diagnosis()
    arguments = [*(["--config", options.config] if options.config else []), *settings]
    config = prospects.configuration(report, arguments) if arguments else None
    device = resolve_device(config.device if config is not None else "auto")
    machine.versions(report)
    machine.devices(report)
    machine.extension(report)
    machine.ops(report, sorted({"cpu", device}))
    if not options.no_self_test:
        half = torch.float16 if config is not None and config.precision == "fp16" else torch.bfloat16
        machine.tests(report, device, (torch.float32, half))
    machine.weights(report)
    if config is not None:
        prospects.examine(report, config, options.config or "the default configuration")
    colors = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    print("\n".join(_format(*line, colors=colors) for line in report.lines))
    _print_verdict(report, bool(arguments))
    if options.json is not None:
        try:
            _write_json(options.json, {"ready": not report.problems, "problems": report.problems, **report.data})
        except OSError as error:
            print(f"error: --json {options.json} cannot be written: {error.strerror}", file=sys.stderr)
            return 2
    return 1 if report.problems else 0


def _format(section: str, mark: str, text: str, *, colors: bool) -> str:
    sign = {"note": "! ", "problem": "x "}.get(mark, "")
    width = min(max(shutil.get_terminal_size((120, 40)).columns, 60), 160) - 15
    lines = textwrap.wrap(sign + text, width, subsequent_indent=" " * len(sign), break_long_words=False)
    begin, end = (_COLORS[mark], "\033[0m") if colors and mark else ("", "")
    titles = [section, *[""] * (len(lines) - 1)]
    return "\n".join(f"{title:<14}{begin}{line}{end}" for title, line in zip(titles, lines, strict=True))


def _print_verdict(report: Any, checked: bool) -> None:
    subject = "Training with this configuration" if checked else "Training (without --config)"
    print(f"\n{subject} would {'not run:' if report.problems else 'run.'}")
    for problem in report.problems:
        print(f"  - {problem}")


def _write_json(path: Path, contents: dict[str, Any]) -> None:
    with atomic_file(path) as file:
        file.write((json.dumps(contents, indent=2, allow_nan=False) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main())
