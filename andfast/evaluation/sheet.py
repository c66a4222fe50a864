"""Contact sheet of crops, taken from the images and regions where the methods differ most."""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from andfast.drawing import sample_sheet
from andfast.evaluation.methods import BICUBIC
from andfast.evaluation.pairs import Pair
from andfast.evaluation.scores import DECIMALS, LABELS, Score
from andfast.metrics import luma

CROP = 128
"""Maximum side of a crop in HR pixels; crops are multiples of the scale."""


@dataclass(frozen=True, eq=False)
class _Row:
    images: list[Tensor]
    captions: list[str]


class Sheet:
    """Collects crops while images are scored, keeping the ``rows`` with the largest differences in memory.

    With two or more methods, bicubic is excluded from the difference.

    Args:
        rows: maximum number of images, one crop each.
        scale: HR size over LR size.
    """

    def __init__(self, *, rows: int, scale: int) -> None:
        self.rows = rows
        self.scale = scale
        self.titles: list[str] = []
        self._best: list[tuple[float, int, _Row]] = []  # min-heap by difference
        self._count = 0

    def add(self, pair: Pair, images: Mapping[str, Tensor], scores: Mapping[str, Score]) -> None:
        """Add a pair's SR images by method, (3, H, W) uint8."""
        self.titles = ["HR", "LR", *images]
        methods = [name for name in images if name != BICUBIC]
        compared = methods if len(methods) > 1 else list(images)
        difference, top, left, tall, wide = self._largest_difference([images[name] for name in compared])
        self._count += 1
        if len(self._best) == self.rows and difference <= self._best[0][0]:
            return
        s = self.scale

        def crop(image: Tensor) -> Tensor:
            return image[:, top : top + tall, left : left + wide].clone()

        lr = pair.lr[:, top // s : (top + tall) // s, left // s : (left + wide) // s].clone()
        name = next(iter(scores.values())).name
        row = _Row(
            [crop(pair.hr), lr, *(crop(image) for image in images.values())],
            [name, f"{left},{top}", *(_caption(scores[method]) for method in images)],
        )
        push = heapq.heappushpop if len(self._best) == self.rows else heapq.heappush
        push(self._best, (difference, -self._count, row))

    def write(self, path: Path, heading: str) -> None:
        """Write the PNG atomically, largest difference first."""
        rows = [row for _, _, row in sorted(self._best, key=lambda entry: entry[:2], reverse=True)]
        sample_sheet(
            [row.images for row in rows],
            path,
            titles=self.titles,
            captions=[row.captions for row in rows],
            heading=heading,
        )

    def _largest_difference(self, images: list[Tensor]) -> tuple[float, int, int, int, int]:
        """Window with the largest mean variance of Y across images: (variance, top, left, height, width)."""
        height, width = images[0].shape[1:]
        s = self.scale
        tall, wide = (min(CROP, side) // s * s for side in (height, width))
        y = torch.stack([luma(image[None])[0, 0] for image in images])
        variance = y.var(dim=0, correction=0)[None, None]
        # Average per LR pixel first, as crops consist of whole LR pixels; then along rows and columns.
        cells = F.avg_pool2d(F.avg_pool2d(variance, s), (tall // s, 1), stride=1)
        windows = F.avg_pool2d(cells, (1, wide // s), stride=1)[0, 0]
        best = int(windows.argmax())
        row, column = divmod(best, windows.shape[1])
        return windows.flatten()[best].item(), row * s, column * s, tall, wide


def _caption(score: Score) -> str:
    """The first metric and LPIPS, or the first two metrics."""
    metrics = [metric for metric, value in score.values.items() if value is not None]
    shown = [metrics[0], "lpips"] if "lpips" in metrics[1:] else metrics[:2]
    parts = []
    for metric in shown:
        text = f"{score.values[metric]:.{DECIMALS[metric]}f}"
        parts.append(f"{text} dB" if metric == "psnr" else f"{LABELS[metric]} {text}")
    return "  ".join(parts)
