"""See whether training would run here: ``python -m andfast.doctor [--config FILE] [settings]``."""

import argparse
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from andfast.files import atomic_file

DESCRIPTION = """\
Show versions, devices, the implementation that each op will have, a self-test of the ops, and the weights that would be
needed. With --config, or any setting of andfast.train (--batch_size 8 --data.train FOLDER ...), check the photographs,
the memory and the disk against it too. The exit code is 0 if training would run, and 1, with the reasons, if not."""

_COLOURS = {"ok": "\033[32m", "note": "\033[33m", "problem": "\033[31m", "": ""}


def parser() -> argparse.ArgumentParser:
    """The command line; what it does not know is a setting."""
    result = argparse.ArgumentParser(
        prog="python -m andfast.doctor",
        description=DESCRIPTION,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Every setting of andfast.train may follow, as --group.name value.",
    )
    result.add_argument("--config", metavar="FILE", help="the configuration of the training that is meant")
    result.add_argument("--json", type=Path, metavar="FILE", help="write everything found to this file, too")
    result.add_argument("--no-self-test", action="store_true", help="leave out the ops' self-test (10 s on a GPU)")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 if training would run, 1 if not, 2 for what cannot be used."""
    options, settings = parser().parse_known_args(argv)
    if options.json is not None and not options.json.absolute().parent.is_dir():
        print(f"error: --json must be a file in a folder that exists, was {options.json}", file=sys.stderr)
        return 2
    import torch  # noqa: PLC0415  (these take seconds, which --help need not)

    from andfast.config.machine import resolve_device  # noqa: PLC0415
    from andfast.diagnosis import machine, prospects  # noqa: PLC0415

    found = machine.Diagnosis()
    arguments = [*(["--config", options.config] if options.config else []), *settings]
    config = prospects.configuration(found, arguments) if arguments else None
    device = resolve_device(config.device if config is not None else "auto")
    machine.versions(found)
    machine.devices(found)
    machine.extension(found)
    machine.ops(found, sorted({"cpu", device}))
    if not options.no_self_test:
        half = torch.float16 if config is not None and config.precision == "fp16" else torch.bfloat16
        machine.tests(found, device, (torch.float32, half))
    machine.weights(found)
    if config is not None:
        prospects.examine(found, config, options.config or "the default configuration")
    colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    print("\n".join(_shown(*line, colours=colours) for line in found.lines))
    _conclude(found, bool(arguments))
    if options.json is not None:
        try:
            _write(options.json, {"ready": not found.problems, "problems": found.problems, **found.data})
        except OSError as error:
            print(f"error: --json {options.json} cannot be written: {error.strerror}", file=sys.stderr)
            return 2
    return 1 if found.problems else 0


def _shown(section: str, mark: str, text: str, *, colours: bool) -> str:
    sign = {"note": "! ", "problem": "x "}.get(mark, "")
    width = min(max(shutil.get_terminal_size((120, 40)).columns, 60), 160) - 15
    lines = textwrap.wrap(sign + text, width, subsequent_indent=" " * len(sign), break_long_words=False)
    begin, end = (_COLOURS[mark], "\033[0m") if colours and mark else ("", "")
    titles = [section, *[""] * (len(lines) - 1)]
    return "\n".join(f"{title:<14}{begin}{line}{end}" for title, line in zip(titles, lines, strict=True))


def _conclude(found: Any, checked: bool) -> None:
    what = "Training with this configuration" if checked else "Training (no --config was given to check)"
    print(f"\n{what} would {'not run:' if found.problems else 'run.'}")
    for problem in found.problems:
        print(f"  - {problem}")


def _write(path: Path, contents: dict[str, Any]) -> None:
    with atomic_file(path) as file:
        file.write((json.dumps(contents, indent=2, allow_nan=False) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main())
