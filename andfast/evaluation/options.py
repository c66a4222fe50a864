"""The command line of ``python -m andfast.evaluate``."""

import argparse
from pathlib import Path

from andfast.arguments import positive, whole
from andfast.evaluation.layouts import LAYOUTS
from andfast.evaluation.scores import METRICS, PROTOCOLS
from andfast.inference.models import PRECISIONS

DESCRIPTION = """\
Judge super-resolution on pairs of LR and HR pictures: PSNR, SSIM, LPIPS and NIQE of a network's results, or of
pictures that any other method made, beside bicubic interpolation.

  python -m andfast.evaluate --data DRealSR --weights andnet.safetensors
  python -m andfast.evaluate --data RealSR --outputs results/ --metrics psnr ssim lpips niqe \\
      --niqe-parameters niqe.npz --json scores.json --sheet sheet.png
  python -m andfast.evaluate --data pairs --compare andgan.safetensors RealESRGAN_x4plus.pth results/ --sheet sheet.png
  python -m andfast.evaluate --fit-niqe photographs/ --niqe-parameters niqe.npz"""

EPILOG = (
    "layouts:\n"
    + "\n".join(f"  {layout.name:11s}{layout.summary}" for layout in LAYOUTS.values())
    + """

protocols: PSNR and SSIM are taken on Y of BT.601. "studio" is the SR field's, MATLAB's rgb2ycbcr: Y spans 16 to 235
while the peak stays at 255, so its PSNR is 20 log10(255 / 219) = 1.32 dB above "full", where Y spans 0 to 255. Compare
numbers of one protocol only. "-rounded" rounds Y to whole numbers, as MATLAB does with uint8 pictures. SR is always
clamped and rounded to 8 bits first, as a saved picture would be.

exit codes: 0 done, 1 an error or pairs that do not fit, 2 a wrong command line, 130 interrupted."""
)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m andfast.evaluate",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    data = result.add_argument_group("pairs")
    data.add_argument("--data", type=Path, metavar="DIR", help="the folder of pairs, searched in depth")
    data.add_argument(
        "--layout", default="auto", choices=["auto", *LAYOUTS], help="how DIR names its pairs (default: recognised)"
    )
    data.add_argument(
        "--scale",
        type=whole(1),
        metavar="N",
        help="HR size over LR size (default: that of the weights, else 4; 2 for imagepairs)",
    )
    data.add_argument(
        "--max-shift",
        type=positive,
        default=1.0,
        metavar="PIXELS",
        help="LR and HR shifted by this many HR pixels or more do not fit; inf allows any (default: %(default)g)",
    )
    data.add_argument("--skip-unfit", action="store_true", help="leave out pairs that do not fit, and go on")

    methods = result.add_argument_group("methods (bicubic is always there)")
    methods.add_argument(
        "--weights",
        metavar="FILE",
        help="a network: .safetensors or .pth of the ESRGAN family, or of any architecture that spandrel knows",
    )
    methods.add_argument("--outputs", metavar="DIR", help="pictures that a method made, named after the pairs")
    methods.add_argument("--compare", nargs="+", default=[], metavar="A", help="several of either, side by side")
    methods.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)")
    methods.add_argument("--precision", default="fp32", choices=PRECISIONS, help="of networks (default: %(default)s)")
    methods.add_argument(
        "--tile",
        type=whole(0),
        default=0,
        metavar="N",
        help="restore in tiles of N LR pixels (default: whole pictures)",
    )
    methods.add_argument(
        "--overlap", type=whole(0), default=32, metavar="N", help="LR pixels that tiles share (default: %(default)s)"
    )

    metrics = result.add_argument_group("metrics")
    metrics.add_argument(
        "--metrics",
        nargs="+",
        default=["psnr", "ssim"],
        choices=METRICS,
        metavar="METRIC",
        help=f"of {', '.join(METRICS)} (default: psnr ssim, which need no files)",
    )
    metrics.add_argument(
        "--protocol", default="studio", choices=PROTOCOLS, help="how Y is taken, see below (default: %(default)s)"
    )
    metrics.add_argument(
        "--crop-border",
        type=whole(0),
        default=0,
        metavar="N",
        help="HR pixels that all metrics leave out on every side (default: %(default)s; many papers cut the scale)",
    )
    metrics.add_argument(
        "--lpips-net", default="alex", choices=["alex", "vgg", "squeeze"], help="LPIPS network (default: %(default)s)"
    )
    metrics.add_argument(
        "--lpips-weights",
        metavar="FILE",
        help="its ImageNet weights from torchvision (default: PyTorch's cache, downloaded into it if need be)",
    )
    metrics.add_argument(
        "--niqe-parameters", type=Path, metavar="FILE", help="NIQE's pristine model: the authors' .mat, or .npz"
    )
    metrics.add_argument(
        "--fit-niqe", metavar="FOLDER", help="fit that model to sharp photographs and write it to --niqe-parameters"
    )

    report = result.add_argument_group("results")
    report.add_argument("--json", type=Path, metavar="FILE", help="write every number, the protocol and the versions")
    report.add_argument("--sheet", type=Path, metavar="FILE", help="write a PNG of crops where the methods differ most")
    report.add_argument(
        "--sheet-rows", type=whole(1), default=6, metavar="N", help="pictures on the sheet (default: %(default)s)"
    )
    report.add_argument("--images", action="store_true", help="print every picture's numbers too")
    report.add_argument("--quiet", action="store_true", help="no progress bars")
    return result


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parsed and checked arguments; a wrong command line ends the program with code 2."""
    command = parser()
    options = command.parse_args(arguments)
    options.sources = [source for source in (options.weights, options.outputs, *options.compare) if source is not None]
    if options.fit_niqe is not None:
        if options.niqe_parameters is None:
            command.error("--fit-niqe needs --niqe-parameters FILE.npz, which it writes")
        if options.data is None:
            return options
    if options.data is None:
        command.error("--data DIR is needed (or --fit-niqe)")
    if not options.sources:
        command.error("name what to judge: --weights, --outputs or --compare (--weights bicubic is the baseline alone)")
    if options.outputs is not None and not Path(options.outputs).is_dir():
        command.error(f"--outputs must be a folder of pictures, there is none at {options.outputs}")
    if options.sheet is not None and options.sheet.suffix.lower() != ".png":
        command.error(f"--sheet writes a .png, was {options.sheet}")
    if "niqe" in options.metrics and options.niqe_parameters is None:
        command.error("niqe needs --niqe-parameters FILE (the authors' .mat, BasicSR's .npz, or fitted by --fit-niqe)")
    return options
