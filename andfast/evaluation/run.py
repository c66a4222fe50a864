"""One evaluation from start to end: check every pair, then judge every method on every pair."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from tqdm import tqdm

from andfast.evaluation.layouts import Listing, PairFiles
from andfast.evaluation.methods import BICUBIC, Method, Outputs
from andfast.evaluation.pairs import UnfitPairError, check_shift, read_pair
from andfast.evaluation.report import evaluation_versions, method_record
from andfast.evaluation.scores import Judge, Score, Summary, summarise
from andfast.evaluation.sheet import Sheet


@dataclass
class Evaluation:
    """The results.

    Attributes:
        listing: the pairs that were judged, and how they were found.
        judge: with its protocol.
        methods: in the order of the report, bicubic first.
        left_out: pairs that did not fit, by name, with the reason.
        reduced: how many LR pictures had HR's size and were reduced.
        results: each method's scores, in the order of the pairs.
    """

    listing: Listing
    judge: Judge
    methods: Sequence[Method]
    left_out: dict[str, str] = field(default_factory=dict)
    reduced: int = 0
    results: dict[str, list[Score]] = field(default_factory=dict)

    @property
    def summaries(self) -> dict[str, Summary]:
        """Means and medians by method."""
        return {name: summarise(scores, self.judge.metrics) for name, scores in self.results.items()}

    def record(self, data: str, device: str) -> dict[str, Any]:
        """The JSON: the judged method's results (the first one compared; bicubic if there is no other), then all."""
        summaries = self.summaries
        methods = [method_record(m.name, m.source, self.results[m.name], summaries[m.name]) for m in self.methods]
        judged = next((one for one in methods if one["method"] != BICUBIC), methods[0])
        lr = "as stored"
        if self.reduced:
            lr = f"{self.reduced} of HR's size, reduced by the scale: antialiased bicubic, a = -0.5, rounded to 8 bits"
        return {
            "data": data,
            "layout": self.listing.layout.name,
            "scale": self.listing.scale,
            "pairs": len(self.listing.pairs),
            "left_out_pairs": self.left_out,
            "protocol": {**self.judge.describe(), "lr": lr},
            **judged,
            "methods": methods,
            "versions": evaluation_versions(device),
        }


def check_pairs(
    listing: Listing, methods: Sequence[Method], *, max_shift: float, progress: bool
) -> tuple[dict[str, str], int]:
    """Read everything once: which pairs do not fit, {name: reason}, and how many LR pictures have HR's size."""
    problems: dict[str, str] = {}
    reduced = 0
    for files in tqdm(listing.pairs, desc="checking", unit="pair", disable=not progress, leave=False):
        try:
            pair = read_pair(files, listing.scale)
            check_shift(pair, listing.scale, max_shift)
            for method in methods:
                if isinstance(method, Outputs) and files.name in method.files:
                    method.picture(files, pair)
        except UnfitPairError as error:
            problems[files.name] = str(error)
        else:
            reduced += pair.reduced
    return problems, reduced


def judge_pairs(
    pairs: Sequence[PairFiles],
    scale: int,
    methods: Sequence[Method],
    judge: Judge,
    *,
    sheet: Sheet | None = None,
    progress: bool = True,
) -> dict[str, list[Score]]:
    """Every method's score of every pair, one pair in memory at a time.

    Raises:
        UnfitPairError: a picture is no longer what `check_pairs` saw.
        ValueError: a restorer gave values that are not finite.
    """
    results: dict[str, list[Score]] = {method.name: [] for method in methods}
    with tqdm(total=len(pairs) * len(methods), unit="picture", disable=not progress, leave=False) as bar:
        for files in pairs:
            pair = read_pair(files, scale)
            pictures: dict[str, Tensor] = {}
            scores: Mapping[str, Score] = {}
            for method in methods:
                bar.set_description(f"{files.name} {method.name}", refresh=False)
                sr = method.picture(files, pair)
                score = judge.score(files.name, sr, pair.hr)
                results[method.name].append(score)
                pictures[method.name] = sr
                scores = {**scores, method.name: score}
                bar.update()
            if sheet is not None:
                sheet.add(pair, pictures, scores)
    return results
