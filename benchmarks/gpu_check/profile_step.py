"""Profile whole training steps: kernels by group, host against device time, launches.

    python -m benchmarks.gpu_check.profile_step --json profile.json --seconds 60

For each variant and stage: warm-up, the time until the host has enqueued a step and the time until the device is done,
then one step under torch.profiler. Results are written after each step. On a CPU (for trying the program) the profile
lists operators instead of kernels.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

from benchmarks.report.profile import Kernel, grouped, markdown
from benchmarks.suites.step_variants import FULL, SHIPPED, TINY, VARIANTS, Step

NAMES = (SHIPPED.name, "andfast bf16", "naive bf16")
"""Variants in the order of their weight, as time may run out."""
WARM_UP, ROUNDS = 2, 3


def kernels_of(events: Iterable[Any], device: str) -> list[Kernel]:
    """Name, launches and device microseconds per kernel from a profile's averages."""
    kernels = []
    for event in events:
        microseconds = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
        on_device = event.device_type == torch.autograd.DeviceType.CUDA
        if microseconds > 0 and (device == "cpu" or on_device):
            kernels.append((event.key, event.count, float(microseconds)))
    return kernels


def profile_step(step: Any, kind: str, device: str) -> dict[str, Any]:
    """Host and device time of a step, and its kernels by group."""

    def synchronize() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    for _ in range(WARM_UP):
        step.whole(kind)
    hosts, totals = [], []
    for _ in range(ROUNDS):
        synchronize()
        begun = time.perf_counter()
        step.whole(kind)
        hosts.append(time.perf_counter() - begun)
        synchronize()
        totals.append(time.perf_counter() - begun)
    activities = [ProfilerActivity.CUDA] if device == "cuda" else [ProfilerActivity.CPU]
    with torch_profile(activities=activities, acc_events=True) as recorded:
        step.whole(kind)
        synchronize()
    kernels = kernels_of(recorded.key_averages(), device)
    return {
        "variant": step.variant.name,
        "step": kind,
        "stage": step.stage,
        "batch": step.size.batch,
        "seconds": statistics.median(totals),
        "host_seconds": statistics.median(hosts),
        "device_seconds": sum(microseconds for _, _, microseconds in kernels) / 1e6,
        "launches": sum(count for _, count, _ in kernels),
        "groups": grouped(kernels),
        "kernels": sorted(kernels, key=lambda kernel: -kernel[2])[:40],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check.profile_step", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=600.0, help="no step is started after this time")
    parser.add_argument("--quick", action="store_true", help="tiny networks")
    options = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = FULL if device == "cuda" and not options.quick else TINY
    torch.backends.cudnn.benchmark = True  # as in training
    begun, profiles = time.monotonic(), []
    for stage in ("net", "gan"):
        for name in NAMES:
            variant = next(variant for variant in VARIANTS if variant.name == name)
            if variant.graph and device == "cpu":
                continue
            for kind in ("and",) if variant.graph else ("and", "plain"):
                if time.monotonic() - begun > options.seconds:
                    print("no time left")
                    return 0
                step = Step(variant, size, stage, device)
                profiles.append(profile_step(step, kind, device))
                del step
                options.json.write_text(json.dumps({"profiles": profiles}, indent=1) + "\n", encoding="utf-8")
                print(markdown(profiles[-1:]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
