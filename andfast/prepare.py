"""Pack folders of images for training: ``python -m andfast.prepare FOLDER [FOLDER ...] --output PACK``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from andfast.arguments import integer
from andfast.console import log_to_stderr
from andfast.data.pack import pack_images
from andfast.files import printable

DESCRIPTION = """\
Decode images (PNG, JPEG, WebP, TIFF, BMP) once into a pack of raw pixels, which training reads. Run it again after the
folders have changed: only new and changed files are decoded, and files that are not in the given folders (any more)
leave the pack, unless --add is given. Unusable files are listed and skipped."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(prog="python -m andfast.prepare", description=DESCRIPTION)
    result.add_argument(
        "sources",
        nargs="+",
        metavar="FOLDER",
        help="folder (searched recursively), file, or package:NAME/sub/folder",
    )
    result.add_argument(
        "--output", type=Path, required=True, metavar="PACK", help="folder of the pack; created if missing"
    )
    result.add_argument(
        "--min-size",
        type=integer(1),
        default=256,
        metavar="N",
        help="skip images less than N pixels high or wide (default: %(default)s, the patch size of the presets)",
    )
    result.add_argument(
        "--include",
        action="append",
        default=[],
        metavar="GLOB",
        help="only files whose name or relative path matches, e.g. '*.png' or 'trees/*'; repeatable",
    )
    result.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="GLOB",
        help="skip matching files; repeatable",
    )
    result.add_argument(
        "--workers",
        type=integer(0),
        metavar="N",
        help="number of decoding processes; 0 decodes in the main process (default: one per core)",
    )
    result.add_argument(
        "--add",
        action="store_true",
        help="keep images of the pack that are not in these sources (default: remove them)",
    )
    result.add_argument("--quiet", action="store_true", help="no progress bar")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0, 1 on an error, 130 if interrupted."""
    options = parser().parse_args(arguments)
    try:
        with log_to_stderr():
            report = pack_images(
                options.sources,
                options.output,
                min_size=options.min_size,
                include=options.include,
                exclude=options.exclude,
                workers=options.workers,
                progress=not options.quiet,
                add=options.add,
            )
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted: {printable(str(options.output))} is unchanged", file=sys.stderr)
        return 130
    print(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
