"""Run an evaluation: validate all pairs, then score every method on every pair."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from andfast.evaluation.layouts import Listing
from andfast.evaluation.methods import BICUBIC, Method, OutputFolder
from andfast.evaluation.pairs import InvalidPairError, check_shift, read_pair
from andfast.evaluation.report import evaluation_versions, method_record
from andfast.evaluation.scores import Score, Scorer, Summary, summarize
from andfast.evaluation.sheet import Sheet
from andfast.progress import Progress


@dataclass
class PairCheck:
    """Result of `check_pairs`.

    Attributes:
        problems: {name: reason} of invalid pairs.
        downscaled: number of LR images stored at HR size, which are downscaled.
        cropped: number of HR images that are cropped to a multiple of the scale.
    """

    problems: dict[str, str] = field(default_factory=dict)
    downscaled: int = 0
    cropped: int = 0


@dataclass
class Evaluation:
    """Results of an evaluation.

    Attributes:
        listing: the evaluated pairs, their layout and scale.
        scorer: holds metrics and protocol.
        methods: in report order, bicubic first.
        skipped: {name: reason} of invalid pairs.
        check: the pairs' validation.
        results: scores by method, in the order of the pairs.
    """

    listing: Listing
    scorer: Scorer
    methods: Sequence[Method]
    skipped: dict[str, str] = field(default_factory=dict)
    check: PairCheck = field(default_factory=PairCheck)
    results: dict[str, list[Score]] = field(default_factory=dict)

    @property
    def summaries(self) -> dict[str, Summary]:
        """Means and medians by method."""
        return {name: summarize(scores, self.scorer.metrics) for name, scores in self.results.items()}

    def record(self, data: str, device: str) -> dict[str, Any]:
        """JSON record: the first method other than bicubic at the top level, then all methods."""
        summaries = self.summaries
        methods = [method_record(m.name, m.source, self.results[m.name], summaries[m.name]) for m in self.methods]
        first = next((method for method in methods if method["method"] != BICUBIC), methods[0])
        lr = hr = "as stored"
        if self.check.downscaled:
            lr = f"{self.check.downscaled} at HR size, downscaled: antialiased bicubic, a = -0.5, rounded to 8 bits"
        if self.check.cropped:
            hr = f"{self.check.cropped} cropped to a multiple of the scale at the bottom and right"
        return {
            "data": data,
            "layout": self.listing.layout.name,
            "scale": self.listing.scale,
            "pairs": len(self.listing.pairs),
            "left_out_pairs": self.skipped,
            "protocol": {**self.scorer.describe(), "lr": lr, "hr": hr},
            **first,
            "methods": methods,
            "versions": evaluation_versions(device),
        }


def check_pairs(
    listing: Listing, methods: Sequence[Method], *, max_shift: float, modcrop: bool = False, progress: bool
) -> PairCheck:
    """Read and validate every image once; for ``modcrop`` see `read_pair`."""
    check = PairCheck()
    with Progress("checking", len(listing.pairs), unit="pair", enabled=progress) as bar:
        for files in listing.pairs:
            try:
                pair = read_pair(files, listing.scale, modcrop=modcrop)
                check_shift(pair, listing.scale, max_shift)
                for method in methods:
                    if isinstance(method, OutputFolder) and files.name in method.files:
                        method.sr(files, pair)
            except InvalidPairError as error:
                check.problems[files.name] = str(error)
            else:
                check.downscaled += pair.downscaled
                check.cropped += pair.cropped
            bar.advance()
    return check


def score_pairs(
    listing: Listing,
    methods: Sequence[Method],
    scorer: Scorer,
    *,
    modcrop: bool = False,
    sheet: Sheet | None = None,
    progress: bool = True,
) -> dict[str, list[Score]]:
    """Score every method on every pair, with one pair in memory at a time.

    Raises:
        InvalidPairError: a file has changed since `check_pairs`.
        ValueError: a restorer's output is not finite.
    """
    results: dict[str, list[Score]] = {method.name: [] for method in methods}
    with Progress("scoring", len(listing.pairs) * len(methods), unit="image", enabled=progress) as bar:
        for files in listing.pairs:
            pair = read_pair(files, listing.scale, modcrop=modcrop)
            images: dict[str, Tensor] = {}
            scores: dict[str, Score] = {}
            for method in methods:
                bar.show(f"{files.name} {method.name}")
                images[method.name] = method.sr(files, pair)
                scores[method.name] = scorer.score(files.name, images[method.name], pair.hr)
                results[method.name].append(scores[method.name])
                bar.advance()
            if sheet is not None:
                sheet.add(pair, images, scores)
    return results
