"""Upscale pictures: ``python -m andfast.upscale INPUT OUTPUT --weights FILE``."""

import argparse
import sys
from collections.abc import Sequence

from andfast.files import printable
from andfast.inference.writers import FORMATS

DESCRIPTION = """\
Upscale pictures (PNG, JPEG, WebP, TIFF, BMP) with trained weights, in tiles that are blended so that no seam shows.
Grey, 16 bits, transparency, EXIF (orientation applied) and colour profiles are kept. PNG and TIFF are written as they
are made, so that their size is bounded by the disk; JPEG and WebP are made in memory. Nothing is overwritten unless
asked, and a picture is written whole or not at all. One that cannot be restored is reported and the rest goes on."""

EPILOG = """\
Exit code: 0 when every picture was restored, 1 when some were not, 2 for arguments that cannot be used, 130 when
interrupted."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(prog="python -m andfast.upscale", description=DESCRIPTION, epilog=EPILOG)
    add = result.add_argument
    add("input", nargs="+", metavar="INPUT", help="a file, a folder (searched through) or a glob pattern; repeatable")
    add("output", metavar="OUTPUT", help="a folder, made if need be; or, for a single file, the file to write")
    add(
        "--weights",
        required=True,
        metavar="FILE",
        help="weights of the ESRGAN family (.safetensors, .pth) or, with spandrel, of others; or 'bicubic'",
    )
    add("--scale", type=int, metavar="N", help="the scale that the weights must have; needed by bicubic")
    add("--tile", type=int, default=256, metavar="N", help="LR pixels of a tile's side, 0: no tiles (default: 256)")
    add("--overlap", type=int, default=32, metavar="N", help="LR pixels that neighbours share (default: 32)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: the first of CUDA, MPS, CPU)")
    add("--precision", default="fp32", choices=("fp32", "bf16", "fp16"), help="of the network (default: fp32)")
    add("--format", choices=tuple(FORMATS), help="the results' format (default: each picture's own; .bmp becomes .png)")
    add("--quality", type=int, default=95, metavar="N", help="of JPEG and WebP, 1 to 100 (default: 95)")
    existing = result.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace results that exist already")
    existing.add_argument("--skip-existing", action="store_true", help="pass over pictures whose results exist already")
    add("--max-pixels", type=int, metavar="N", help="refuse larger pictures (default: 178,956,970, as Pillow)")
    add("--quiet", action="store_true", help="no progress bars")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = parser().parse_args(argv)
    # After the command line is known to be sound: torch takes seconds.
    from andfast.inference.batch import upscale_files  # noqa: PLC0415
    from andfast.inference.jobs import find_jobs  # noqa: PLC0415
    from andfast.inference.models import load_restorer  # noqa: PLC0415
    from andfast.inference.pictures import MAX_PIXELS  # noqa: PLC0415
    from andfast.inference.tiles import check_tile  # noqa: PLC0415

    try:
        for name, value, least in (("quality", options.quality, 1), ("max-pixels", options.max_pixels, 1)):
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, was {value}")
        if options.quality > 100:
            raise ValueError(f"quality must be at most 100, was {options.quality}")
        check_tile(options.tile, options.overlap)
        jobs = find_jobs(options.input, options.output, format_=options.format)
        restorer = load_restorer(
            options.weights, device=options.device, precision=options.precision, scale=options.scale
        )
        report = upscale_files(
            jobs,
            restorer,
            tile=options.tile,
            overlap=options.overlap,
            quality=options.quality,
            overwrite=options.overwrite,
            skip_existing=options.skip_existing,
            max_pixels=options.max_pixels or MAX_PIXELS,
            progress=not options.quiet,
        )
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: what was finished is kept, nothing is half written", file=sys.stderr)
        return 130
    passed = f", {len(report.passed)} were there already" if report.passed else ""
    by = f"{restorer.architecture} x{restorer.scale} on {restorer.device}"
    print(f"{len(report.done)} of {len(jobs)} pictures restored by {by}{passed}")
    if report.failed:
        print(f"error: {len(report.failed)} of {len(jobs)} pictures could not be restored", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
