"""What a step costs the host: Python and PyTorch's dispatch, with no kernel of andfast's launched. Needs no GPU.

    python -m benchmarks.step_host          the ascent of stage net, 23 blocks, in one group of images and in two;
                                            then whole steps, eager and captured, with the eager step's phases

A captured step is timed with replays that do nothing: what is left is what the host does for each step.

A launch that the host is slower to issue than the GPU is to run leaves the GPU idle. The networks have the paper's
depth and are a few channels wide, on a CPU, so that PyTorch's own ops take about as long as their dispatch; andfast's
ops run all that they run on a GPU up to the launch of their Triton kernels, which are counted instead: each costs
the host some ten microseconds more. So the milliseconds are a floor for a GPU machine with this CPU and without graphs.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from triton.runtime.jit import JITFunction

from andfast.functional import dispatch
from andfast.training.profiling import StepTimer
from benchmarks.machine import cpu_name
from benchmarks.suites.step_variants import FULL, Size, Step, Variant

ROUNDS = 9
NARROW = Size(2, 16, 16, FULL.blocks, 8, 8, 4, {"conv1_1": 0.1})
"""As deep as the paper's, and otherwise as small as its kernels take."""


def resolve(op: str, *_arguments: object) -> str:
    """The implementation that an op has on a GPU, the dense block's and the tail's in Triton as well."""
    return "cpp" if op == "blur_pool" else "triton"


@contextmanager
def no_kernels(launch: Callable[..., None]) -> Iterator[None]:
    """Run the code paths of a GPU on the CPU, with ``launch`` in place of every launch of a Triton kernel."""
    with patch.object(dispatch, "resolve", resolve), patch.object(JITFunction, "run", launch):
        yield


def ascent(chunk_size: int, size: Size = NARROW, rounds: int = ROUNDS) -> tuple[float, int]:
    """Median seconds and Triton launches of the host's part of an ascent of stage net, under bf16."""
    step = Step(Variant("andfast", 4, bf16=True, degradation_fp32=True), size, "net", "cpu").ours
    step.generator.to(memory_format=torch.channels_last)
    attack = replace(step.attack, settings=replace(step.attack.settings, chunk_size=chunk_size))
    hr = torch.rand(size.batch, 3, size.hr, size.hr).contiguous(memory_format=torch.channels_last)
    launches = 0

    def launch(*_arguments: Any, **_options: Any) -> None:
        nonlocal launches
        launches += 1

    seconds = []
    with no_kernels(launch):
        for _ in range(rounds + 1):  # the first one warms up
            launches, begun = 0, time.perf_counter()
            for chunk in attack.settings.chunks(size.batch):
                identity = attack.sample(hr, step.rank_info.generator(hr.device, 0), chunk=chunk)
                attack.search(hr[chunk.start : chunk.stop], identity)
            seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds[1:]), launches


class Null:
    """A capture backend whose replays do nothing."""

    def capture(self, function: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
        return (lambda: None), function()


def whole_step(captured: bool, rounds: int = ROUNDS, size: Size = NARROW) -> tuple[float, dict[str, float]]:
    """Median seconds of the host's part of a step of stage net with its update, and of an eager step's phases."""
    timer = StepTimer(torch.device("cpu"))
    variant = Variant("andfast", 4, bf16=True, degradation_fp32=True, graph=captured)
    step = Step(variant, size, "net", "cpu", timer=timer, backend=Null())
    step.check = False
    # Fused, as on a GPU.
    step.optimizers = [torch.optim.Adam(network.parameters(), 1e-4, fused=True) for network in step.networks]
    seconds, phases = [], []
    with no_kernels(lambda *_, **__: None):
        for _ in range(rounds + 1):
            timer.take(1)
            begun = time.perf_counter()
            step.whole("and")
            seconds.append(time.perf_counter() - begun)
            phases.append(timer.take(1))
    medians = {name: statistics.median(phase[name] for phase in phases[1:]) for name in phases[-1]}
    return statistics.median(seconds[1:]), medians


def main() -> None:
    """Print a table."""
    torch.set_num_threads(1)
    print(f"{cpu_name()}, one thread, torch {torch.__version__}, median of {ROUNDS}\n")
    print("| groups of images | host, ms | Triton launches left out |\n|---|---|---|")
    for chunk_size, groups in ((0, 1), (1, 2)):
        seconds, launches = ascent(chunk_size)
        print(f"| {groups} | {1e3 * seconds:.0f} | {launches} |")
    print("\n| whole step | host, ms | phases, ms |\n|---|---|---|")
    for captured in (False, True):
        seconds, phases = whole_step(captured)
        parts = ", ".join(f"{name} {1e3 * spent:.1f}" for name, spent in phases.items())
        print(f"| {'captured' if captured else 'eager'} | {1e3 * seconds:.1f} | {parts} |")


if __name__ == "__main__":
    main()
