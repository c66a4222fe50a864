"""All commands under one name: ``andfast COMMAND ...``, or ``python -m andfast COMMAND ...``."""

import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import Final

from andfast import __version__

COMMANDS: Final = {
    "train": "train AND on photographs, one stage or both",
    "prepare": "pack folders of photographs for training",
    "evaluate": "PSNR, SSIM, LPIPS and NIQE on LR/HR pairs; compare weights",
    "upscale": "restore a picture, a folder or a glob",
    "degrade": "see what the adversary does to a photograph",
    "export": "write weights for other tools: BasicSR, safetensors, ONNX, torch.export",
    "doctor": "what this machine has, and whether training would run",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code, 2 for a name that is no command's."""
    name, *rest = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
    if name in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS))
        print("usage: andfast COMMAND ...      (andfast COMMAND --help tells more)\n")
        print("\n".join(f"  {command:<{width}}  {what}" for command, what in COMMANDS.items()))
        return 0
    if name == "--version":
        print(f"andfast {__version__}")
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(COMMANDS)}"
        print(f"error: {name!r} is no command of andfast; {hint}", file=sys.stderr)
        return 2
    code: int = importlib.import_module(f"andfast.{name}").main(rest)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
