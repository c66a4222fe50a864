"""Measure how real LR differs from pooled HR: ``python -m andfast.calibrate --pairs DIR [--weights FILE]``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from andfast.arguments import integer, positive
from andfast.console import limit_spinning, print_result
from andfast.evaluation.layouts import LAYOUTS

DESCRIPTION = """\
Measure on registered LR/HR pairs of a camera how far real LR is from the clean pooling of HR, part by part: gain and
offset per channel, a point-symmetric kernel, the rest between channels, and noise, with quantiles over pairs.

With --weights, find the radius of each part of the ball for which the attack on that G takes LR as far as the median
pair, and print them as configuration lines. With --output, write DIR/calibration.json and DIR/calibration.png."""

EPILOG = (
    "layouts:\n"
    + "\n".join(f"  {layout.name:11s}{layout.summary}" for layout in LAYOUTS.values())
    + "\n\nSettings of andfast.train may follow --weights, e.g. --degradation.channels 32 or --data.patch_size 128."
)


def parser() -> argparse.ArgumentParser:
    """The command line; unknown options are settings of andfast.train."""
    result = argparse.ArgumentParser(
        prog="python -m andfast.calibrate",
        description=DESCRIPTION,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EPILOG,
    )
    add = result.add_argument
    add("--pairs", type=Path, required=True, metavar="DIR", help="folder of pairs, searched recursively")
    add("--layout", default="auto", choices=["auto", *LAYOUTS], help="naming scheme of the pairs (default: detected)")
    add("--scale", type=integer(1), metavar="N", help="HR size over LR size (default: the weights', else the layout's)")
    add(
        "--max-shift",
        type=positive,
        default=1.0,
        metavar="PIXELS",
        help="pairs shifted by this many HR pixels or more are left out; inf allows any (default: %(default)g)",
    )
    add("--modcrop", action="store_true", help="crop HR to a multiple of the scale where its size does not divide")
    add("--skip-invalid", action="store_true", help="skip pairs that do not fit or cannot be read instead of stopping")
    add("--weights", type=Path, metavar="FILE", help="weights of G (.safetensors or .pth, ESRGAN family)")
    add("--config", metavar="FILE", help="configuration of the adversary and F (default: preset symmetric)")
    add("--images", type=integer(1), default=4, metavar="N", help="pairs whose HR is attacked (default: %(default)s)")
    add("--crop", type=integer(16), default=128, metavar="N", help="attack crops of N x N (default: %(default)s)")
    add("--output", type=Path, metavar="DIR", help="folder of the JSON and the picture; created if missing")
    add("--overwrite", action="store_true", help="replace an existing calibration in DIR")
    add("--seed", type=integer(0), default=0, metavar="N", help="seed of the identity networks (default: 0)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto selects CUDA if available")
    add("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="of G (default: fp32); F runs in fp32")
    add("--quiet", action="store_true", help="no progress bar")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0, 1 on an error, 2 for an invalid command line, 130 if interrupted."""
    limit_spinning()
    options, settings = parser().parse_known_args(argv)
    # Imported after parsing: torch takes seconds.
    from andfast.calibration.run import run  # noqa: PLC0415

    return print_result(lambda: run(options, settings))


if __name__ == "__main__":
    sys.exit(main())
