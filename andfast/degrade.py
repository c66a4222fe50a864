"""See what the adversary does to a photograph: ``python -m andfast.degrade IMAGE [--weights FILE] --output DIR``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

DESCRIPTION = """\
Degrade one photograph against a restoration network G and write DIR/gallery.png and DIR/gallery.json: the identity
network, a random perturbation, every step of the ascent, each group of parameters alone, and other radii, with the PSNR
of LR against the clean LR and the gain of G's loss under each. Without --weights G is plain interpolation (x4).

With --target-psnr, find the radii under which the adversary takes LR to this quality, on average over identity
networks, and print the lines to put into a configuration."""


def parser() -> argparse.ArgumentParser:
    """The command line; what it does not know is a setting."""
    result = argparse.ArgumentParser(
        prog="python -m andfast.degrade",
        description=DESCRIPTION,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Settings of andfast.train may follow, as --adversary.preset strong or --degradation.channels 32.",
    )
    add = result.add_argument
    add("image", type=Path, metavar="IMAGE", help="a photograph: PNG, JPEG, WebP, TIFF or BMP")
    add("--weights", type=Path, metavar="FILE", help="weights of G (.safetensors or .pth, ESRGAN family)")
    add("--output", type=Path, required=True, metavar="DIR", help="folder of the gallery; made if need be")
    add("--config", metavar="FILE", help="configuration whose adversary and F are taken")
    add(
        "--crop",
        type=int,
        default=256,
        metavar="N",
        help="use N x N of its pixels (default: 256; 0: all)",
    )
    add("--at", type=int, nargs=2, metavar=("X", "Y"), help="the middle of these pixels (default: the picture's)")
    add("--factors", type=float, nargs="+", default=[0.25, 0.5, 2.0, 4.0], metavar="X", help="other radii to show")
    add("--target-psnr", type=float, metavar="DB", help="find a common factor on the radii for this LR PSNR")
    add("--each-group", action="store_true", help="with --target-psnr: find each group's radius alone, too")
    add("--networks", type=int, default=4, metavar="N", help="identity networks to average over there (default: 4)")
    add("--seed", type=int, default=0, metavar="N", help="of the identity networks (default: 0)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto takes CUDA where there is a GPU")
    add("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="of G (default: fp32); F runs in fp32")
    add("--overwrite", action="store_true", help="replace an earlier gallery in DIR")
    add("--quiet", action="store_true", help="no progress bar")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0, 1 on an error, 2 for a wrong command line, 130 when interrupted."""
    options, settings = parser().parse_known_args(argv)
    # After the command line is known to be good: these take seconds.
    from andfast.config.yaml_files import one_line  # noqa: PLC0415
    from andfast.gallery.run import run  # noqa: PLC0415

    try:
        print(run(options, settings))
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
