"""Launches, bytes and peak memory of a training step by phase, counted on fake tensors.

    python -m benchmarks.step_launches                    the paper's size: batch 48, HR 256, 23 blocks, bf16
    python -m benchmarks.step_launches --batch 8 --json

Needs no GPU: andfast's ops, including the dense block, count as their Triton implementations. A launch is an operation
that PyTorch dispatches, except views and allocations. Each of andfast's ops counts as one launch (docs/kernels lists
their kernels), an ascent step as its kernels, a chain of dense blocks as its blocks. "GB moved" are bytes of tensors
that operations read and write, without repeats of expanded tensors; the inside of an op is not counted, so for
andfast's ops this is the fused floor plus what backward keeps. "casts" are conversions between dtypes. "peak GB" is the
memory alive at once, without weights, optimizers, and allocations inside ops.
"""

import argparse
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from andfast.adversary import ReuseOptions
from andfast.diagnosis.memory import LiveBytes, fake_weights
from andfast.functional import dispatch
from andfast.kernels.ascent_step import batches as ascent_batches
from andfast.kernels.ascent_step import kernels as ascent_kernels
from andfast.kernels.ascent_step.batches import Batch
from benchmarks.suites.step_variants import FULL, VARIANTS, Size, Step

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
CHAINS = ("frozen_dense_blocks", "frozen_dense_blocks_backward")
ROW = {"launches": 0, "casts": 0, "andfast": 0, "bytes": 0, "peak": 0}
NOTHING = ReuseOptions(closed_form_first_step=False, hr_features=False, cast_weights=False, discriminator_pass=False)


class Phases:
    """A step's timer that knows the current phase, and passes it on to the count of memory."""

    def __init__(self) -> None:
        self.now = ""
        self.live = LiveBytes()

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        before, self.now = self.now, name
        with self.live.span(name):
            yield
        self.now = before


@contextmanager
def as_on_a_gpu(count_step: Callable[[list[Batch]], None]) -> Iterator[None]:
    """Ops that have a Triton implementation take it; an ascent step's kernels, which no op hides, are only counted."""

    def resolve(op: str, *_arguments: object) -> str:
        return "triton" if "triton" in dispatch._TABLE[op] else "reference"

    def same_memory(value: Tensor, center: Tensor) -> bool:
        return value.untyped_storage()._cdata == center.untyped_storage()._cdata

    with ExitStack() as stack:
        stack.enter_context(patch.object(dispatch, "resolve", resolve))
        stack.enter_context(patch.object(ascent_kernels, "step", lambda batches, *_others: count_step(batches)))
        stack.enter_context(patch.object(ascent_batches, "same_memory", same_memory))
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings(
            "ignore", "Accessing the data pointer of FakeTensor"
        )  # only to see whether it is aligned
        yield


class Launches(TorchDispatchMode):
    """Adds up launches and bytes by phase."""

    def __init__(self, phases: Phases) -> None:
        super().__init__()
        self.phases = phases
        self.rows: dict[str, dict[str, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        aliases = [returned.alias_info for returned in func._schema.returns]
        view = any(alias is not None and not alias.is_write for alias in aliases)
        if view or name in NO_LAUNCH or func.namespace in ("prim", "profiler"):
            return out
        row = self.rows.setdefault(self.phases.now, dict(ROW))
        row["launches"] += 1
        row["casts"] += name in ("_to_copy", "_foreach_copy_")
        row["andfast"] += func.namespace == "andfast"
        read = sum(_bytes(leaf) for leaf in tree_iter((args, kwargs)) if isinstance(leaf, Tensor))
        row["bytes"] += read + sum(_bytes(leaf) for leaf in tree_iter(out) if isinstance(leaf, Tensor))
        if name in CHAINS:
            x, blocks, per_group = args[0], args[4], args[5]
            sums = blocks // per_group if per_group else 0  # of the outer residuals
            row["launches"] += blocks - 1 + sums
            row["andfast"] += blocks - 1
            row["bytes"] += (2 * (blocks - 1) + 3 * sums) * _bytes(x)  # what one block writes and the next reads
        return out

    def ascent_step(self, batches: list[Batch]) -> None:
        """Count the kernels of one ascent step: two passes over theta, and a small kernel in between."""
        row = self.rows.setdefault(self.phases.now, dict(ROW))
        parts = [part for batch in batches for part in batch.split()]
        row["launches"] += 2 * len(parts) + 1
        row["andfast"] += 2 * len(parts) + 1
        for part in parts:
            read = [*part.gradients, *([] if part.at_center else part.values), *([] if part.expanded else part.centers)]
            row["bytes"] += 2 * sum(map(_bytes, read)) + sum(map(_bytes, part.outs))


def _bytes(x: Tensor) -> int:
    """Bytes of a tensor's elements in memory; repeats of expanded dimensions count once."""
    elements = 1
    for length, stride in zip(x.shape, x.stride(), strict=True):
        elements *= 1 if stride == 0 else length
    return elements * x.element_size() if x.numel() else 0


def count(variant: str, kind: str, stage: str, size: Size = FULL, reuse: ReuseOptions | None = None) -> dict[str, Any]:
    """Launches, casts, andfast's ops and bytes of a step by phase; ``variant`` is a name of VARIANTS."""
    phases = Phases()
    chosen = next(candidate for candidate in VARIANTS if candidate.name == variant)
    with torch.device("meta"):
        step = Step(replace(chosen, compiled=False, graph=False), size, stage, "meta", timer=phases, reuse=reuse)
    owner = step.naive or step.ours
    vgg = owner.vgg if step.naive is not None else owner.objective.vgg
    with FakeTensorMode(allow_non_fake_inputs=True):
        for network in (owner.generator, owner.discriminator, vgg):
            if network is not None:
                fake_weights(network, torch.device("cpu"))
        step.hr = torch.empty_strided(step.hr.shape, step.hr.stride(), device="cpu")
        launches = Launches(phases)
        with as_on_a_gpu(launches.ascent_step), phases.live, launches:
            step.gradients(kind)
    for name, row in launches.rows.items():
        row["peak"] = phases.live.peaks.get(name, 0)
    return launches.rows


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=FULL.batch)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    size = replace(FULL, batch=arguments.batch)
    rows = []
    for stage in ("net", "gan"):
        for name, variant, kind, reuse in (
            ("naive", "naive bf16", "and", None),
            ("best plain PyTorch, uncompiled", "best plain PyTorch", "and", None),
            ("andfast, nothing reused", "andfast bf16", "and", NOTHING),
            ("andfast", "andfast bf16", "and", None),
            ("andfast, F in fp32", "andfast bf16, F in fp32", "and", None),
            ("andfast, plain ESRGAN step", "andfast bf16", "plain", None),
        ):
            for phase, row in count(variant, kind, stage, size, reuse).items():
                rows.append({"stage": stage, "step": name, "phase": phase, **row})
    if arguments.json:
        print(json.dumps({"batch": arguments.batch, "torch": torch.__version__, "rows": rows}, indent=1))
        return
    print("| stage | step | phase | launches | of them casts | andfast's ops | GB moved | peak GB |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        cells = [row["stage"], row["step"], row["phase"], row["launches"], row["casts"], row["andfast"]]
        print("|", " | ".join(map(str, cells)), f"| {row['bytes'] / 1e9:.1f} | {row['peak'] / 1e9:.1f} |")


if __name__ == "__main__":
    main()
