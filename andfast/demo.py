"""Train both stages on scikit-image's photographs, in minutes: ``andfast demo [--output DIR] [settings]``."""

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from andfast import train

CONFIG: Final = Path(__file__).with_name("config") / "demo.yaml"
OUTPUT: Final = "runs/demo"


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``andfast train`` with the demo's configuration; its options and settings are taken too.

    Returns:
        Exit code as that of ``andfast train``, and 2 without the packages of the extra ``demo``.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    if {"-h", "--help"} & set(arguments):
        print(f"usage: python -m andfast.demo [--output DIR] [options and settings of andfast.train]\n\n{__doc__}")
    else:
        missing = [name for name in ("skimage", "matplotlib") if importlib.util.find_spec(name) is None]
        if missing:
            print(f"error: the demo needs {', '.join(missing)}: pip install 'andfast[demo]'", file=sys.stderr)
            return 2
    if not any(argument.partition("=")[0] == "--output" for argument in arguments):
        arguments = ["--output", OUTPUT, *arguments]
    return train.main(["--config", str(CONFIG), *arguments])


if __name__ == "__main__":
    raise SystemExit(main())
