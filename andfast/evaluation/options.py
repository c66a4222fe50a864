"""The command line of ``python -m andfast.evaluate``."""

import argparse
from pathlib import Path

from andfast.arguments import integer, positive
from andfast.evaluation.layouts import LAYOUTS
from andfast.evaluation.scores import METRICS, PROTOCOLS
from andfast.inference.models import PRECISIONS

DESCRIPTION = """\
Evaluate super-resolution on LR/HR pairs: PSNR, SSIM, color shift, LPIPS and NIQE of a network, or of images produced by
any other method, compared with bicubic interpolation.

  python -m andfast.evaluate --data DRealSR --weights andnet.safetensors
  python -m andfast.evaluate --data RealSR --outputs results/ --metrics psnr ssim lpips niqe \\
      --niqe-parameters niqe.npz --json scores.json --sheet sheet.png
  python -m andfast.evaluate --data pairs --compare andgan.safetensors RealESRGAN_x4plus.pth results/ --sheet sheet.png
  python -m andfast.evaluate --fit-niqe photographs/ --niqe-parameters niqe.npz"""

EPILOG = (
    "layouts:\n"
    + "\n".join(f"  {layout.name:11s}{layout.summary}" for layout in LAYOUTS.values())
    + """

protocols: PSNR and SSIM are computed on BT.601 Y. "studio" is the SR convention, MATLAB's rgb2ycbcr: Y spans 16 to 235
with a peak of 255, so its PSNR is 20 log10(255 / 219) = 1.32 dB above "full", where Y spans 0 to 255. Do not compare
numbers across protocols. "-rounded" rounds Y to integers, as MATLAB does for uint8 images. SR is always clamped and
rounded to 8 bits first, like a saved image. psnr_rgb is computed on R, G and B; color_shift (SHIFT) is the largest mean
offset of a channel in levels of 255, with a warning above 2.

exit codes: 0 success, 1 error or invalid pairs, 2 command line error, 130 interrupted."""
)


def parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    result = argparse.ArgumentParser(
        prog="python -m andfast.evaluate",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    data = result.add_argument_group("pairs")
    data.add_argument("--data", type=Path, metavar="DIR", help="dataset folder, searched recursively")
    data.add_argument(
        "--layout", default="auto", choices=["auto", *LAYOUTS], help="naming scheme of the pairs (default: detected)"
    )
    data.add_argument(
        "--scale",
        type=integer(1),
        metavar="N",
        help="HR size over LR size (default: the weights' scale, else 4; 2 for imagepairs)",
    )
    data.add_argument(
        "--max-shift",
        type=positive,
        default=1.0,
        metavar="PIXELS",
        help="pairs shifted by this many HR pixels or more are invalid; inf allows any (default: %(default)g)",
    )
    data.add_argument(
        "--modcrop",
        action="store_true",
        help="crop HR to a multiple of the scale where its size does not divide, at the bottom and right",
    )
    data.add_argument("--skip-invalid", action="store_true", help="skip invalid pairs instead of stopping")

    methods = result.add_argument_group("methods (bicubic is always included)")
    methods.add_argument(
        "--weights",
        metavar="FILE",
        help="network weights, .safetensors or .pth: ESRGAN family, or any architecture supported by spandrel",
    )
    methods.add_argument("--outputs", metavar="DIR", help="images produced by a method, named after the pairs")
    methods.add_argument("--compare", nargs="+", default=[], metavar="A", help="several weights or folders")
    methods.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)")
    methods.add_argument(
        "--precision", default="fp32", choices=PRECISIONS, help="network precision (default: %(default)s)"
    )
    methods.add_argument(
        "--tile",
        type=integer(0),
        default=0,
        metavar="N",
        help="restore in tiles of N LR pixels (default: whole images)",
    )
    methods.add_argument(
        "--overlap", type=integer(0), default=32, metavar="N", help="tile overlap in LR pixels (default: %(default)s)"
    )

    metrics = result.add_argument_group("metrics")
    metrics.add_argument(
        "--metrics",
        nargs="+",
        default=["psnr", "ssim", "psnr_rgb", "color_shift"],
        choices=METRICS,
        metavar="METRIC",
        help=f"any of {', '.join(METRICS)} (default: psnr ssim psnr_rgb color_shift)",
    )
    metrics.add_argument(
        "--protocol", default="studio", choices=PROTOCOLS, help="Y conversion, see below (default: %(default)s)"
    )
    metrics.add_argument(
        "--crop-border",
        type=integer(0),
        default=0,
        metavar="N",
        help="HR pixels excluded on each side in all metrics (default: %(default)s; many papers use the scale)",
    )
    metrics.add_argument(
        "--lpips-net", default="alex", choices=["alex", "vgg", "squeeze"], help="LPIPS network (default: %(default)s)"
    )
    metrics.add_argument(
        "--lpips-weights",
        metavar="FILE",
        help="torchvision's ImageNet weights of that network (default: torch.hub's cache, downloaded if missing)",
    )
    metrics.add_argument(
        "--niqe-parameters", type=Path, metavar="FILE", help="NIQE's pristine model: the authors' .mat, or a .npz"
    )
    metrics.add_argument(
        "--fit-niqe", metavar="FOLDER", help="fit the pristine model to sharp photographs, write --niqe-parameters"
    )

    report = result.add_argument_group("results")
    report.add_argument("--json", type=Path, metavar="FILE", help="write all numbers, the protocol and versions")
    report.add_argument("--sheet", type=Path, metavar="FILE", help="write a PNG of crops where the methods differ most")
    report.add_argument(
        "--sheet-rows", type=integer(1), default=6, metavar="N", help="images on the sheet (default: %(default)s)"
    )
    report.add_argument("--images", action="store_true", help="print the numbers of each image")
    report.add_argument("--quiet", action="store_true", help="disable progress bars")
    return result


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse and validate the arguments; exits with code 2 on error."""
    command = parser()
    options = command.parse_args(arguments)
    options.sources = [source for source in (options.weights, options.outputs, *options.compare) if source is not None]
    if options.fit_niqe is not None:
        if options.niqe_parameters is None:
            command.error("--fit-niqe requires --niqe-parameters FILE.npz, its output")
        if options.data is None:
            return options
    if options.data is None:
        command.error("--data DIR is required (or --fit-niqe)")
    if not options.sources:
        command.error("one of --weights, --outputs, --compare is required (--weights bicubic: the baseline alone)")
    if options.outputs is not None and not Path(options.outputs).is_dir():
        command.error(f"--outputs must be an existing folder of images, was {options.outputs}")
    if options.sheet is not None and options.sheet.suffix.lower() != ".png":
        command.error(f"--sheet must end in .png, was {options.sheet}")
    if "niqe" in options.metrics and options.niqe_parameters is None:
        command.error("niqe requires --niqe-parameters FILE (the authors' .mat, BasicSR's .npz, or --fit-niqe's)")
    return options
