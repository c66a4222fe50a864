"""Launches and bytes of a training step by part, counted from the code on tensors without contents; needs no GPU.

    python -m benchmarks.step_launches                    the paper's size: batch 48, HR 256, 23 blocks, bf16
    python -m benchmarks.step_launches --batch 8 --json

A launch is an operation that PyTorch dispatches and that is no view and no allocation. andfast's ops count as one each,
whatever they launch (docs/kernels.md says what). Bytes are those of the tensors that an operation reads and writes,
what an expanded tensor repeats left out; inside of an op nothing is seen, so for andfast's ops they are the fused
floor plus what is kept for the backward pass. "casts" are conversions between dtypes. Optimizers are left out.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

sys.path.extend([str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)])  # when run as a file

from step_variants import FULL, VARIANTS, Size, Step

from andfast.diagnosis.memory import _fake
from andfast.training.step import Sharing

NO_LAUNCH = (
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "detach",
    "alias",
    "lift_fresh",
    "_unsafe_view",
    "promote_types",
)
NOTHING = Sharing(identity_pass=False, hr_features=False, cast_weights=False, discriminator_pass=False)


class Parts:
    """In place of a stopwatch: knows the sub-step that runs."""

    def __init__(self) -> None:
        self.now = "-"

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        before, self.now = self.now, name
        yield
        self.now = before


class Launches(TorchDispatchMode):
    """Adds up launches and bytes by part."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.parts = parts
        self.found: dict[str, dict[str, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        returns = [one.alias_info for one in func._schema.returns]
        view = any(one is not None and not one.is_write for one in returns)
        if view or name in NO_LAUNCH or func.namespace == "prim":
            return out
        row = self.found.setdefault(self.parts.now, {"launches": 0, "casts": 0, "andfast": 0, "bytes": 0})
        row["launches"] += 1
        row["casts"] += name in ("_to_copy", "_foreach_copy_")
        row["andfast"] += func.namespace == "andfast"
        read = sum(_bytes(one) for one in tree_iter((args, kwargs)) if isinstance(one, Tensor))
        row["bytes"] += read + sum(_bytes(one) for one in tree_iter(out) if isinstance(one, Tensor))
        return out


def _bytes(x: Tensor) -> int:
    """Bytes in memory that a tensor's elements take, repeats counted once."""
    elements = 1
    for length, stride in zip(x.shape, x.stride(), strict=True):
        elements *= 1 if stride == 0 else length
    return elements * x.element_size() if x.numel() else 0


def count(variant: str, kind: str, stage: str, size: Size = FULL, sharing: Sharing | None = None) -> dict[str, Any]:
    """Launches, casts, andfast's ops and bytes of a step by part; ``variant`` is a name of VARIANTS."""
    parts = Parts()
    chosen = next(one for one in VARIANTS if one.name == variant)
    with torch.device("meta"):
        step = Step(replace(chosen, compiled=False, graph=False), size, stage, "meta", stopwatch=parts)
    if sharing is not None:
        step.ours.sharing = sharing
    owner = step.naive or step.ours
    vgg = owner.vgg if step.naive is not None else owner.objective.vgg
    with FakeTensorMode(allow_non_fake_inputs=True):
        for network in (owner.generator, owner.discriminator, vgg):
            if network is not None:
                _fake(network, torch.device("cpu"))
        step.hr = torch.empty_strided(step.hr.shape, step.hr.stride(), device="cpu")
        with Launches(parts) as launches:
            step.gradients(kind)
    return launches.found


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=FULL.batch)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    size = replace(FULL, batch=given.batch)
    rows = []
    for stage in ("net", "gan"):
        for name, variant, kind, sharing in (
            ("naive", "naive bf16", "and", None),
            ("best plain PyTorch, uncompiled", "best plain PyTorch", "and", None),
            ("andfast, nothing shared", "andfast bf16", "and", NOTHING),
            ("andfast", "andfast bf16", "and", None),
            ("andfast, plain ESRGAN step", "andfast bf16", "plain", None),
        ):
            for part, row in count(variant, kind, stage, size, sharing).items():
                rows.append({"stage": stage, "step": name, "part": part, **row})
    if given.json:
        print(json.dumps({"batch": given.batch, "torch": torch.__version__, "rows": rows}, indent=1))
        return
    print("| stage | step | part | launches | of them casts | andfast's ops | GB |\n|---|---|---|---|---|---|---|")
    for row in rows:
        numbers = f"{row['launches']} | {row['casts']} | {row['andfast']} | {row['bytes'] / 1e9:.1f}"
        print(f"| {row['stage']} | {row['step']} | {row['part']} | {numbers} |")


if __name__ == "__main__":
    main()
