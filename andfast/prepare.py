"""Pack folders of pictures for training: ``python -m andfast.prepare FOLDER [FOLDER ...] --output PACK``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from andfast.arguments import whole
from andfast.data.pack import pack_images
from andfast.files import printable

DESCRIPTION = """\
Decode pictures (PNG, JPEG, WebP, TIFF, BMP) once into a pack of plain pixels, which training reads. Run it
again after the folders have changed: only new and changed files are decoded, files that are gone vanish from
the pack. Files that cannot be used are listed and left out."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(prog="python -m andfast.prepare", description=DESCRIPTION)
    result.add_argument(
        "sources",
        nargs="+",
        metavar="FOLDER",
        help="a folder (searched through), a file, or package:NAME/sub/folder",
    )
    result.add_argument(
        "--output", type=Path, required=True, metavar="PACK", help="the folder of the pack; made if need be"
    )
    result.add_argument(
        "--min-size",
        type=whole(1),
        default=256,
        metavar="N",
        help="leave out pictures less high or wide than N pixels (default: %(default)s, the presets' patch)",
    )
    result.add_argument(
        "--include",
        action="append",
        default=[],
        metavar="GLOB",
        help="only files whose name or path in the folder matches, as in '*.png' or 'trees/*'; repeatable",
    )
    result.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="GLOB",
        help="leave these files out; repeatable",
    )
    result.add_argument(
        "--workers",
        type=whole(0),
        metavar="N",
        help="decoding processes; 0 decodes in this one (default: one a core)",
    )
    result.add_argument("--quiet", action="store_true", help="no progress bar")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0, 1 on an error, 130 when interrupted."""
    options = parser().parse_args(arguments)
    try:
        report = pack_images(
            options.sources,
            options.output,
            min_size=options.min_size,
            include=options.include,
            exclude=options.exclude,
            workers=options.workers,
            progress=not options.quiet,
        )
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted: {printable(str(options.output))} is as it was", file=sys.stderr)
        return 130
    print(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
