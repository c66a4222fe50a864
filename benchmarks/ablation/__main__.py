"""Train every row of the ablation from the same start, and test each on real pairs and on unseen damage.

    python -m benchmarks.ablation --photos DIR --pairs DIR --output runs/ablation

A fifth of the photographs is held out for the second test. Stop it at any time with Ctrl-C or SIGTERM; the same command
continues. Rows that are done are skipped, and a changed setting is an error. The output folder then holds results.json,
results.md, curves.png, pairs.png, damage.png and the runs of all rows. With --report nothing is trained: the report is
of the rows that are done. Processes with different --seeds may share an output folder; --report then joins them.
"""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from andfast.arguments import integer
from benchmarks.ablation.rows import ROWS, SIZES

PROGRAM = "python -m benchmarks.ablation"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 on an error."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="rows:\n"
        + "\n".join(f"  {name:24s}{row.label}" for name, row in ROWS.items())
        + "\n\nexit codes: 0 success, 1 error, 2 command line error, 130 stopped by a signal.",
    )
    parser.add_argument("--photos", type=Path, required=True, metavar="DIR", help="photographs, searched recursively")
    parser.add_argument("--pairs", type=Path, required=True, metavar="DIR", help="real pairs, as andfast.evaluate's")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the ablation")
    parser.add_argument("--size", choices=SIZES, default="cpu", help="networks and steps (default: %(default)s)")
    parser.add_argument("--seeds", type=integer(0), nargs="+", default=[0], metavar="N", help="(default: 0)")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS, metavar="ROW", help="(default: all)")
    parser.add_argument("--steps", type=integer(1), metavar="N", help="of each row (default: the size's)")
    parser.add_argument("--start-steps", type=integer(1), metavar="N", help="of the start (default: the size's)")
    parser.add_argument("--start-weights", type=Path, metavar="FILE", help="start from these weights instead")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="[ROW:]NAME=VALUE",
        help="settings of a row or of all, such as and:adversary.radius_kernel=0.2 or net.lr=1e-4",
    )  # fmt: skip
    parser.add_argument(
        "--interpolate", nargs="+", type=_share, default=[], metavar="SHARE",
        help="test each row's weights mixed with the start's as well, by these shares of the row, such as 0.5 0.7",
    )  # fmt: skip
    parser.add_argument("--niqe-parameters", type=Path, metavar="FILE", help="NIQE's pristine model (default: no NIQE)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="(default: %(default)s)")
    parser.add_argument("--report", action="store_true", help="train nothing, report the rows that are done")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write results.json here as well")
    options = parser.parse_args(arguments)
    options.set = _overrides(parser, options.set)
    options.seeds = list(dict.fromkeys(options.seeds))
    options.interpolate = sorted(set(options.interpolate))
    options.rows = [name for name in ROWS if name in options.rows]
    return options


def _share(text: str) -> float:
    share = float(text)
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, was {text}")
    return share


_share.__name__ = "number"  # in argparse's message when float() raises


def _overrides(parser: argparse.ArgumentParser, texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Settings by row, "" for all rows."""
    overrides: dict[str, dict[str, Any]] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        row, _, setting = name.rpartition(":")
        if not separator or not setting:
            parser.error(f"--set must be NAME=VALUE or ROW:NAME=VALUE, was {text}")
        if row and row not in ROWS:
            parser.error(f"--set must name a row of {', '.join(ROWS)}, was {text}")
        try:
            overrides.setdefault(row, {})[setting] = yaml.safe_load(value)
        except yaml.YAMLError:
            parser.error(f"--set must have a YAML value, was {text}")
    return overrides


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parse(arguments)
    # Spinning threads make a CPU run ten times slower on shared cores. OpenMP reads this once, when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Imported after parsing: torch takes seconds.
    from andfast.console import log_to  # noqa: PLC0415
    from andfast.training.checkpoint import CheckpointError  # noqa: PLC0415
    from andfast.training.loop import Stopped  # noqa: PLC0415
    from andfast.training.run_lock import RunLockedError  # noqa: PLC0415
    from benchmarks.ablation.campaign import run  # noqa: PLC0415

    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with log_to("stdout", logging.WARNING):
            run(options)
    except (Stopped, KeyboardInterrupt):
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    except (OSError, ValueError, CheckpointError, RunLockedError) as error:
        print(f"{PROGRAM}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0


def _interrupt(_number: int, _frame: Any) -> NoReturn:
    """Between trainings, which handle signals themselves, SIGTERM is as good as Ctrl-C: scoring writes atomically."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
