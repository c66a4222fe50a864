"""Weights as a file for other programs: ``python -m andfast.export --weights FILE --format onnx --output FILE``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

DESCRIPTION = """\
Write the weights of a restoration network (RRDBNet: andfast's, ESRGAN's, Real-ESRGAN's, BSRGAN's) in another format.
The file is read back and compared with the network on a photograph, and appears only if both restore it alike.

  basicsr       .pth with params_ema, for BasicSR, Real-ESRGAN and whatever reads their files
  safetensors   .safetensors, what andfast itself writes
  onnx          .onnx, opset 18, batch, height and width free; needs pip install "andfast[export]"
  torch-export  .pt2, a torch.export program, batch, height and width free"""


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
    add("--format", required=True, choices=("basicsr", "safetensors", "onnx", "torch-export"), help="what to write")
    add("--output", type=Path, required=True, metavar="FILE", help="the file to write")
    add("--image", type=Path, metavar="FILE", help="photograph to compare on (default: scikit-image's, or a drawn one)")
    add("--overwrite", action="store_true", help="replace a file that is there")
    add("--quiet", action="store_true", help="say nothing but errors")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0, 1 on an error, 2 for a wrong command line, 130 when interrupted."""
    options = parser().parse_args(argv)

    def say(text: str) -> None:
        if not options.quiet:
            print(text, file=sys.stderr, flush=True)

    # After the command line is known to be good: these take seconds.
    from andfast.config.yaml_files import one_line  # noqa: PLC0415
    from andfast.inference.export import ExportError, check_picture, export  # noqa: PLC0415
    from andfast.nn.weights import generator_from_weights, read_metadata  # noqa: PLC0415

    try:
        if options.output.exists() and not options.overwrite:
            raise FileExistsError(f"{options.output} is there already; --overwrite replaces it")
        if not options.output.absolute().parent.is_dir():
            raise FileNotFoundError(f"--output must be in a folder that exists, was {options.output}")
        generator = generator_from_weights(options.weights)
        metadata = read_metadata(options.weights) if options.weights.suffix == ".safetensors" else {}
        picture, name = check_picture(options.image)
        checked = export(generator, options.output, options.format, picture, metadata=metadata, say=say)
    except ExportError as error:
        print(f"error: {options.weights} as {options.format}: {one_line(str(error))}", file=sys.stderr)
        return 1
    except (ValueError, OSError, RuntimeError, ModuleNotFoundError) as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted: {options.output} is as it was", file=sys.stderr)
        return 130
    if not options.quiet:
        print(f"{options.output}, compared on {name}:", *(f"  {line}" for line in checked), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
