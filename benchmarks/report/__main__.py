"""Tables and figures of measured results: JSON in, Markdown and a picture out.

    python -m benchmarks.report runs/benchmarks.json --markdown runs/benchmarks.md --figure runs/benchmarks.png
    python -m benchmarks.report --docs                   docs/results.md and README's table, from benchmarks/results/

The JSON is pytest-benchmark's, or the results.json of ``make gpu-check``. The figure shows every kernel on the roofline
and, where rows of the training step report their parts, a bar per step, stacked by part.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report.pages import (
    DOCS,
    README,
    docs_page,
    load,
    machine_text,
    speed_section,
    tables,
    with_speed_section,
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.splitlines()[0])
    parser.add_argument("json", nargs="?", type=Path, help="pytest-benchmark's JSON, or a results.json")
    parser.add_argument("--markdown", type=Path, help="where the tables go; printed if not given")
    parser.add_argument("--figure", type=Path, help="where the picture goes (.png, .svg, .pdf)")
    parser.add_argument(
        "--docs",
        action="store_true",
        help="write docs/results.md and README.md's table",
    )
    options = parser.parse_args(arguments)
    if options.docs == (options.json is not None):
        parser.error("either a JSON file or --docs must be given")
    if options.docs:
        DOCS.write_text(docs_page(), encoding="utf-8")
        readme = README.read_text(encoding="utf-8")
        README.write_text(with_speed_section(readme, speed_section()), encoding="utf-8")
        return 0
    try:
        results = load(options.json)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    page = f"# Benchmarks\n\n{machine_text(results)}\n\n{tables(results)}\n"
    if options.markdown:
        options.markdown.write_text(page, encoding="utf-8")
    else:
        print(page, end="")
    if options.figure:
        from benchmarks.report.figure import draw  # noqa: PLC0415  # matplotlib is of the extra "demo"

        draw(results, options.figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
