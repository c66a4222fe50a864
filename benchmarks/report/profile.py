"""Kernels of a profiled step by group, as JSON and as a Markdown table.

A profile is ``{"variant", "step", "stage", "batch", "device_seconds", "host_seconds", "launches", "groups"}``, a group
``{"group", "launches", "seconds"}``. ``host_seconds`` is the time until the host had enqueued everything, None where it
was not measured.
"""

import re
from collections.abc import Iterable
from typing import Any, Final

GROUPS: Final[tuple[tuple[str, str], ...]] = (
    ("convolution core (csrc)", r"andfast::convolution"),
    ("dense blocks and tail (Triton)", r"^_convolution_kernel|^_upsampled_"),
    ("dense blocks: gradients to weights (Triton)", r"^_dense_block_grad_weight_kernel"),
    ("degradation block: gradients to weights", r"^_grad_weight_(rows_)?kernel"),
    ("degradation block: gradients to x", r"^_grad_input_(rows_)?kernel"),
    ("degradation block: forward", r"^_forward_(rows_)?kernel"),
    ("closed-form first step", r"^_(layers|correlation)_kernel"),
    ("ascent step", r"^_(map_|convolution_)?(sums|means|coefficients|update)_kernel"),
    ("blur pooling", r"blur_pool|andfast::pool"),
    ("distances (losses)", r"^_distance_"),
    ("cuDNN convolutions", r"cudnn|cutlass|xmma|implicit_gemm|wgrad|dgrad|fprop|sm\d+_|nchwToNhwc|nhwcToNchw"),
    ("matrix products", r"gemm|cublas|ampere_|hopper_"),
    ("optimizers and EMA", r"multi_tensor|FusedAdam|_foreach|lerp"),
    ("concatenations", r"CatArray|cat_"),
    ("reductions", r"reduce_kernel|Reduce|welford"),
    ("copies and casts", r"copy_kernel|Memcpy|direct_copy|LoadWithCast"),
    ("pooling and normalization", r"max_pool|batch_norm|bn_"),
    ("pointwise", r"elementwise|vectorized|triton_poi|fill|Memset"),
)
"""Group names and the regular expressions that a kernel's name is searched with, first match wins."""
OTHER: Final = "other"

Kernel = tuple[str, int, float]
"""Name, launches, microseconds in all."""


def group_of(kernel: str) -> str:
    """The group of a kernel name."""
    return next((name for name, pattern in GROUPS if re.search(pattern, kernel)), OTHER)


def grouped(kernels: Iterable[Kernel]) -> list[dict[str, Any]]:
    """Launches and seconds by group, the longest first."""
    groups: dict[str, dict[str, Any]] = {}
    for name, launches, microseconds in kernels:
        group = group_of(name)
        entry = groups.setdefault(group, {"group": group, "launches": 0, "seconds": 0.0})
        entry["launches"] += launches
        entry["seconds"] += microseconds / 1e6
    return sorted(groups.values(), key=lambda entry: -entry["seconds"])


def markdown(profiles: Iterable[dict[str, Any]]) -> str:
    """One table per profile."""
    blocks = []
    for profile in profiles:
        host = profile.get("host_seconds")
        title = f"{profile['variant']}, {profile['step']} step, stage {profile['stage']}, batch {profile['batch']}"
        times = f"Device busy {1e3 * profile['device_seconds']:.4g} ms, {profile['launches']:,} launches"
        times += "." if host is None else f", enqueued by the host in {1e3 * host:.4g} ms."
        lines = ["| kernels | launches | ms | share |", "|---|---|---|---|"]
        lines += [
            f"| {entry['group']} | {entry['launches']:,} | {1e3 * entry['seconds']:.4g} | "
            f"{entry['seconds'] / max(profile['device_seconds'], 1e-12):.0%} |"
            for entry in profile["groups"]
        ]
        blocks.append(f"### {title}\n\n{times}\n\n" + "\n".join(lines))
    return "\n\n".join(blocks) or "No step was profiled."
