"""The command ``andfast COMMAND ...``, or ``python -m andfast COMMAND ...``."""

import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import Final

from andfast import __version__
from andfast.console import limit_spinning

COMMANDS: Final = {
    "train": "train AND on a folder of images, one stage or both",
    "demo": "train both stages on the photographs of scikit-image, in minutes",
    "prepare": "pack folders of images for training",
    "evaluate": "PSNR, SSIM, LPIPS and NIQE on LR/HR pairs; compare weights",
    "upscale": "restore an image, a folder or a glob",
    "calibrate": "measure real LR/HR pairs; find radii as far for a G",
    "degrade": "show the adversary's degradation of an image",
    "export": "write weights for other tools: BasicSR, safetensors, ONNX, torch.export",
    "doctor": "check whether training would run on this machine",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code, 2 for an unknown command."""
    name, *rest = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
    if name in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS))
        print("usage: andfast COMMAND ...      (andfast COMMAND --help for details)\n")
        print("\n".join(f"  {command:<{width}}  {summary}" for command, summary in COMMANDS.items()))
        return 0
    if name == "--version":
        print(f"andfast {__version__}")
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(COMMANDS)}"
        print(f"error: {name!r} is not an andfast command; {hint}", file=sys.stderr)
        return 2
    limit_spinning()
    code: int = importlib.import_module(f"andfast.{name}").main(rest)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
