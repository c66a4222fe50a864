"""A sheet of crops, from the pictures and places where the methods differ most."""

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
from andfast.evaluation.scores import DECIMALS, Score
from andfast.metrics import luma

CROP = 128
"""Side of a crop in HR pixels, less what is over a multiple of the scale."""


@dataclass(frozen=True, eq=False)
class _Row:
    pictures: list[Tensor]
    captions: list[str]


class Sheet:
    """Collects the crops while pictures are judged; holds no more than its rows.

    Where two methods or more are compared, bicubic has no say in where they differ.

    Args:
        rows: how many pictures it shows, one crop each.
        scale: HR size over LR size.
    """

    def __init__(self, *, rows: int, scale: int) -> None:
        self.rows = rows
        self.scale = scale
        self.titles: list[str] = []
        self._best: list[tuple[float, int, _Row]] = []  # a heap: the least difference first
        self._seen = 0

    def add(self, pair: Pair, pictures: Mapping[str, Tensor], scores: Mapping[str, Score]) -> None:
        """Offer one pair's pictures, by method, (3, H, W) uint8."""
        self.titles = ["HR", "LR", *pictures]
        judged = [name for name in pictures if name != BICUBIC]
        compared = judged if len(judged) > 1 else list(pictures)
        difference, top, left, tall, wide = self._largest_difference([pictures[name] for name in compared])
        self._seen += 1
        if len(self._best) == self.rows and difference <= self._best[0][0]:
            return
        s = self.scale

        def cut(image: Tensor) -> Tensor:
            return image[:, top : top + tall, left : left + wide].clone()

        lr = pair.lr[:, top // s : (top + tall) // s, left // s : (left + wide) // s].clone()
        name = next(iter(scores.values())).name
        row = _Row(
            [cut(pair.hr), lr, *(cut(picture) for picture in pictures.values())],
            [name, f"{left},{top}", *(_caption(scores[method]) for method in pictures)],
        )
        push = heapq.heappushpop if len(self._best) == self.rows else heapq.heappush
        push(self._best, (difference, -self._seen, row))

    def write(self, path: Path, heading: str) -> None:
        """Write the PNG, the largest difference first; complete or not at all."""
        rows = [row for _, _, row in sorted(self._best, key=lambda one: one[:2], reverse=True)]
        sample_sheet(
            [row.pictures for row in rows],
            path,
            titles=self.titles,
            captions=[row.captions for row in rows],
            heading=heading,
        )

    def _largest_difference(self, pictures: list[Tensor]) -> tuple[float, int, int, int, int]:
        """The mean variance of Y between pictures in the window where it is largest, and that window."""
        height, width = pictures[0].shape[1:]
        s = self.scale
        tall, wide = (min(CROP, side) // s * s for side in (height, width))
        y = torch.stack([luma(picture[None])[0, 0] for picture in pictures])
        variance = y.var(dim=0, correction=0)[None, None]
        # First over cells of one LR pixel: a crop begins and ends with whole ones. Then rows, then columns.
        cells = F.avg_pool2d(F.avg_pool2d(variance, s), (tall // s, 1), stride=1)
        windows = F.avg_pool2d(cells, (1, wide // s), stride=1)[0, 0]
        best = int(windows.argmax())
        row, column = divmod(best, windows.shape[1])
        return windows.flatten()[best].item(), row * s, column * s, tall, wide


def _caption(score: Score) -> str:
    parts = []
    for metric, value in score.values.items():
        if value is not None:
            text = f"{value:.{DECIMALS[metric]}f}"
            parts.append(f"{text} dB" if metric == "psnr" else f"{metric.upper()} {text}")
    return "  ".join(parts[:1] + parts[2:3] if "lpips" in score.values else parts[:2])
