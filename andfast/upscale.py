"""Upscale images: ``python -m andfast.upscale INPUT OUTPUT --weights FILE``."""

import argparse
import sys
from collections.abc import Sequence

from andfast.console import limit_spinning, log_to_stderr
from andfast.files import check_writable, printable

DESCRIPTION = """\
Upscale images (PNG, JPEG, WebP, TIFF, BMP) with trained weights, in tiles blended without visible seams. Grey, 16 bits,
transparency, EXIF (orientation applied) and ICC profiles are kept. PNG and TIFF are streamed to disk, so the size of a
result is bounded by the disk; JPEG and WebP are encoded from memory. Files are replaced with --overwrite only, and
written atomically. An image that cannot be restored is reported and the others continue."""

EPILOG = """\
Exit code: 0 if all images were restored, 1 if some were not, 2 for invalid arguments, 130 if interrupted."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    from andfast.inference.writers import FORMATS  # noqa: PLC0415  # with its package, which imports torch

    result = argparse.ArgumentParser(prog="python -m andfast.upscale", description=DESCRIPTION, epilog=EPILOG)
    add = result.add_argument
    add("input", nargs="+", metavar="INPUT", help="file, folder (searched recursively) or glob pattern; repeatable")
    add("output", metavar="OUTPUT", help="folder, created if missing; or, for a single file, the file to write")
    add(
        "--weights",
        required=True,
        metavar="FILE",
        help="weights of the ESRGAN family (.safetensors, .pth) or, with spandrel, of others; or 'bicubic'",
    )
    add("--scale", type=int, metavar="N", help="required scale of the weights; mandatory for bicubic")
    add("--tile", type=int, default=256, metavar="N", help="side of a tile in LR pixels, 0: no tiles (default: 256)")
    add("--overlap", type=int, default=32, metavar="N", help="LR pixels shared by neighbouring tiles (default: 32)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: the first of CUDA, MPS, CPU)")
    add("--precision", default="fp32", choices=("fp32", "bf16", "fp16"), help="of the network (default: fp32)")
    add("--format", choices=tuple(FORMATS), help="format of the results (default: as the image; .bmp becomes .png)")
    add("--quality", type=int, default=95, metavar="N", help="quality of JPEG and WebP, 1 to 100 (default: 95)")
    existing = result.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace existing results")
    existing.add_argument("--skip-existing", action="store_true", help="skip images with existing results")
    add("--max-pixels", type=int, metavar="N", help="maximum size of an image (default: 178,956,970, as Pillow)")
    add("--quiet", action="store_true", help="no progress bars")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    limit_spinning()
    options = parser().parse_args(argv)
    # Imported after parsing: torch takes seconds.
    from andfast.inference.batch import upscale_files  # noqa: PLC0415
    from andfast.inference.jobs import find_jobs  # noqa: PLC0415
    from andfast.inference.models import load_restorer  # noqa: PLC0415
    from andfast.inference.reading import MAX_PIXELS  # noqa: PLC0415
    from andfast.inference.tiles import check_tile  # noqa: PLC0415

    try:
        for name, value, minimum in (("quality", options.quality, 1), ("max-pixels", options.max_pixels, 1)):
            if value is not None and value < minimum:
                raise ValueError(f"{name} must be at least {minimum}, was {value}")
        if options.quality > 100:
            raise ValueError(f"quality must be at most 100, was {options.quality}")
        check_tile(options.tile, options.overlap)
        with log_to_stderr():
            jobs = find_jobs(options.input, options.output, format_=options.format)
        for target in {job.inside / "_" if job.inside is not None else job.target for job in jobs}:
            check_writable(target)
        restorer = load_restorer(
            options.weights, device=options.device, precision=options.precision, scale=options.scale
        )
        with log_to_stderr():
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
        print("interrupted: finished results are kept, no file is incomplete", file=sys.stderr)
        return 130
    skipped = f", {len(report.skipped)} existing results skipped" if report.skipped else ""
    method = f"{restorer.architecture} x{restorer.scale} on {restorer.device}"
    print(f"{len(report.done)} of {len(jobs)} images restored by {method}{skipped}")
    if report.failed:
        print(f"error: {len(report.failed)} of {len(jobs)} images could not be restored", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
