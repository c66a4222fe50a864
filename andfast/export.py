"""Export weights for other programs: ``python -m andfast.export --weights FILE --format onnx --output FILE``."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from andfast.console import log_to_stderr
from andfast.files import check_writable

DESCRIPTION = """\
Write the weights of a restoration network (RRDBNet: andfast's, ESRGAN's, Real-ESRGAN's, BSRGAN's) in another format.
The file is read back and compared with the network on a photograph; it is kept only if the outputs agree.

  basicsr       .pth with params_ema, for BasicSR, Real-ESRGAN and programs that read their files
  safetensors   .safetensors, the format that andfast writes
  onnx          .onnx, opset 18, any batch, height and width; requires pip install "andfast[export]"
  torch-export  .pt2, a torch.export program, any batch; height and width from 2 (3 for x2, 5 for x1)

With --interpolate and --share, the weights are first mixed with those of a network trained on from them (ESRGAN's
network interpolation): between a classical network and one trained with the adversary, the share chooses between
quality on clean LR and robustness.

  andfast export --weights clean.safetensors --interpolate robust.safetensors --share 0.7 --format safetensors \
    --output mixed.safetensors"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m andfast.export",
        description=DESCRIPTION,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("--weights", type=Path, required=True, metavar="FILE", help="weights of G (.safetensors, .pth)")
    add("--format", required=True, choices=("basicsr", "safetensors", "onnx", "torch-export"), help="format to write")
    add("--output", type=Path, required=True, metavar="FILE", help="file to write")
    add("--interpolate", type=Path, metavar="FILE", help="weights to mix in, of the same architecture")
    add("--share", type=float, metavar="A", help="share of --interpolate's weights, from 0 to 1")
    add("--image", type=Path, metavar="FILE", help="image to compare on (default: scikit-image's, or a synthetic one)")
    add("--overwrite", action="store_true", help="replace an existing file")
    add("--quiet", action="store_true", help="print errors only")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0, 1 on an error, 2 for an invalid command line, 130 if interrupted."""
    options = parser().parse_args(argv)
    if (options.interpolate is None) != (options.share is None):
        parser().error("--interpolate and --share require each other")
    # Imported after parsing: torch takes seconds.
    from andfast.config.errors import one_line  # noqa: PLC0415
    from andfast.inference.export import ExportError, check_image, export  # noqa: PLC0415
    from andfast.nn.network_interpolation import interpolate  # noqa: PLC0415
    from andfast.nn.weights import generator_from_weights, read_metadata, read_weights  # noqa: PLC0415

    try:
        if options.output.exists() and not options.overwrite:
            raise FileExistsError(f"{options.output} already exists; --overwrite replaces it")
        if not options.output.absolute().parent.is_dir():
            raise FileNotFoundError(f"--output must be in an existing folder, was {options.output}")
        check_writable(options.output)
        generator = generator_from_weights(options.weights)
        metadata = read_metadata(options.weights) if options.weights.suffix == ".safetensors" else {}
        if options.interpolate is not None:
            mixed = interpolate(read_weights(options.weights), read_weights(options.interpolate), options.share)
            generator = generator_from_weights(mixed)
            metadata |= {"interpolated_with": options.interpolate.name, "share": str(options.share)}
        image, name = check_image(options.image)
        with log_to_stderr(logging.WARNING if options.quiet else logging.INFO):
            checked = export(generator, options.output, options.format, image, metadata=metadata)
    except ExportError as error:
        print(f"error: {options.weights} as {options.format}: {one_line(str(error))}", file=sys.stderr)
        return 1
    except (ValueError, OSError, RuntimeError, ModuleNotFoundError) as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted: {options.output} is unchanged", file=sys.stderr)
        return 130
    if not options.quiet:
        print(f"{options.output}, compared on {name}:", *(f"  {line}" for line in checked), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
