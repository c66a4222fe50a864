"""Show how the attack degrades a photograph: ``python -m andfast.degrade IMAGE [--weights FILE] --output DIR``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from andfast.console import limit_spinning, print_result

DESCRIPTION = """\
Degrade a photograph against a restoration network G and write DIR/gallery.png and DIR/gallery.json: the identity
network, a random perturbation, every step of the ascent, each parameter group alone, and scaled radii, each with the
PSNR of LR against the clean LR and the increase of G's loss. Without --weights, G is plain interpolation (x4).

With --target-psnr, find the radii for which the attack reaches this LR quality, averaged over identity networks, and
print them as configuration lines."""


def parser() -> argparse.ArgumentParser:
    """The command line; unknown options are settings of andfast.train."""
    result = argparse.ArgumentParser(
        prog="python -m andfast.degrade",
        description=DESCRIPTION,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Settings of andfast.train may follow, e.g. --adversary.preset strong or --degradation.channels 32.",
    )
    add = result.add_argument
    add("image", type=Path, metavar="IMAGE", help="photograph: PNG, JPEG, WebP, TIFF or BMP")
    add("--weights", type=Path, metavar="FILE", help="weights of G (.safetensors or .pth, ESRGAN family)")
    add("--output", type=Path, required=True, metavar="DIR", help="folder of the gallery; created if missing")
    add("--config", metavar="FILE", help="configuration of the adversary and F")
    add(
        "--crop",
        type=int,
        default=256,
        metavar="N",
        help="crop to N x N pixels (default: 256; 0: whole image)",
    )
    add("--at", type=int, nargs=2, metavar=("X", "Y"), help="centre of the crop (default: centre of the image)")
    add("--factors", type=float, nargs="+", default=[0.25, 0.5, 2.0, 4.0], metavar="X", help="scaled radii to show")
    add("--target-psnr", type=float, metavar="DB", help="find a common factor of the radii for this LR PSNR")
    add("--each-group", action="store_true", help="with --target-psnr: also find the radius of each group alone")
    add("--networks", type=int, default=4, metavar="N", help="with --target-psnr: identity networks (default: 4)")
    add("--seed", type=int, default=0, metavar="N", help="seed of the identity networks (default: 0)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto selects CUDA if available")
    add("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="of G (default: fp32); F runs in fp32")
    add("--overwrite", action="store_true", help="replace an existing gallery in DIR")
    add("--quiet", action="store_true", help="no progress bar")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0, 1 on an error, 2 for an invalid command line, 130 if interrupted."""
    limit_spinning()
    options, settings = parser().parse_known_args(argv)
    # Imported after parsing: torch takes seconds.
    from andfast.gallery.run import run  # noqa: PLC0415

    return print_result(lambda: run(options, settings))


if __name__ == "__main__":
    sys.exit(main())
