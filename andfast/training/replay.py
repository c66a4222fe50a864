"""Repeat a failed step from its dump: ``python -m andfast.training.replay FILE``.

Prints the losses of the step and its largest gradient, and exits with status 1 if one is infinite or NaN again.
"""

import argparse
import tempfile
from pathlib import Path

import torch

from andfast.config.files import load
from andfast.config.machine import resolve_device
from andfast.training.build import build_generator
from andfast.training.distributed import ProcessGroup
from andfast.training.failure import largest_gradient, load_failure
from andfast.training.state import StageState
from andfast.training.step import first_nonfinite


def replay(path: Path, device: str = "auto") -> dict[str, float]:
    """Repeat the forward and backward pass of a dumped step; return its losses.

    Raises:
        FileNotFoundError, ValueError: ``path`` is not a dump, or the device is not available.
    """
    failure = load_failure(path)
    contents = failure["state"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(contents["config"], encoding="utf-8")
        config = load(file)
    config.init_weights = None  # the dump has the weights
    torch_device = torch.device(resolve_device(device))
    state = StageState(
        config,
        failure["stage"],
        build_generator(config),
        ProcessGroup(0, 1, torch_device),
        shard=(contents["rank"], contents["world_size"]),
    )
    for name, network in state.trained().items():
        network.load_state_dict(contents["weights"][name])
    if state.radii is not None:
        state.radii.load(contents["radii"])
    state.done = failure["step"] - 1
    values = state.gradients([batch.to(torch_device) for batch in contents["batches"]])
    if not state.scaler.is_enabled():
        values["gradients"] = largest_gradient(state.trained().values())
    return {name: float(value) for name, value in values.items()}


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m andfast.training.replay", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="dump in the failures folder of a run")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    arguments = parser.parse_args()
    try:
        values = replay(arguments.file, arguments.device)
    except (OSError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    for name, value in values.items():
        print(f"{name:<16} {value:.8g}")
    return 1 if first_nonfinite(values) is not None else 0


if __name__ == "__main__":
    raise SystemExit(main())
