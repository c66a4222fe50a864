"""The identity gradients' Triton implementation: which layers share a launch.

Triton is imported by the first call, so that andfast can be imported where there is none.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def identity_gradients(
    x: Tensor,
    grad: Tensor,
    before: Tensor,
    after: Tensor,
    noises: Sequence[Tensor | None],
    slopes: Sequence[bool],
    correlation: bool,
    padding: str,
) -> tuple[Tensor | None, Tensor]:
    """Fill the gradients to the noises; return the correlation, and the slopes' gradients (slopes wanted, N, C)."""
    from andfast.kernels.identity_gradients import kernels  # noqa: PLC0415

    before, after = before.float().contiguous(), after.float().contiguous()
    launches: dict[tuple[int, bool], list[int]] = {}  # what one compiled kernel can do together
    for layer, (noise, slope) in enumerate(zip(noises, slopes, strict=True)):
        if noise is not None or slope:
            launches.setdefault((0 if noise is None else noise.shape[1], slope), []).append(layer)
    rows: dict[int, Tensor] = {}
    sums = before.new_empty((0, before.shape[1], before.shape[3]))
    for (_, slope), some in launches.items():
        maps = [noise for layer in some if (noise := noises[layer]) is not None]
        made = kernels.layers(x, grad, _rows(before, some), _rows(after, some), maps, slope)
        if slope:
            sums = made
            rows.update(zip(some, made, strict=True))
    if len(rows) > len(sums):  # of several launches
        sums = torch.stack([rows[layer] for layer in sorted(rows)])
    return kernels.correlation(x, grad, replicate=padding == "replicate") if correlation else None, sums


def _rows(stacked: Tensor, some: list[int]) -> Tensor:
    """Those layers of a stack: all of them as they are; an index from the host would make it wait for the device."""
    return stacked if len(some) == len(stacked) else torch.stack([stacked[layer] for layer in some])
