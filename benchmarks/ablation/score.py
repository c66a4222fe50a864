"""The two tests of the ablation: real pairs, and damage that no row was trained on.

The second test has two sources of HR crops: photographs like those trained on, held out; and HR of the real pairs that
are reported on, which is softer, so that damage, not missing detail, makes up most of the error.
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import torch
from torch import Tensor

from andfast.evaluation.layouts import Listing, PairFiles, find_pairs
from andfast.evaluation.methods import BICUBIC, RestorerMethod
from andfast.evaluation.pairs import read_pair
from andfast.evaluation.report import write_json
from andfast.evaluation.run import check_pairs, score_pairs
from andfast.evaluation.scores import Scorer
from andfast.inference.models import Restorer, load_restorer
from andfast.metrics import psnr_y
from andfast.metrics.lpips import LPIPS, weights_file
from andfast.metrics.niqe import NIQE
from andfast.nn.network_interpolation import interpolate
from andfast.nn.weights import read_weights, save_weights
from andfast.training.run_folder import read_json
from benchmarks.ablation.damage import CLEAN, DAMAGES, damaged
from benchmarks.ablation.photographs import center_crops

METRICS: Final = ("psnr", "ssim", "psnr_rgb", "color_shift")
MIN_PAIRS: Final = 3
SOURCES: Final = {"camera": "HR of the reported pairs", "photographs": "held-out photographs"}
"""Sources of the HR crops to damage: name and description."""
CHOSEN_SHARE: Final = 3
"""The first third of the pairs by name is for choosing and calibrating; results are reported on the rest."""
MAX_SHIFT: Final = 1.0
"""HR pixels; pairs that are shifted by more are not pairs."""
_BATCH: Final = 8
_MARGIN: Final = 8
"""LR pixels of padding around damaged crops; more changes SR by less than 0.01 levels of 255."""


@dataclass(frozen=True)
class Tests:
    """Images and metrics of both tests.

    Attributes:
        listing: the real pairs.
        scorer: their metrics.
        hr: HR crops by source, (N, 3, H, W) uint8.
        lr: by source and condition, LR of these crops, (N, 3, h, w) uint8.
        device: that restorers run on.
        digest: changes with the images, the conditions and the protocol.
    """

    listing: Listing
    scorer: Scorer
    hr: Mapping[str, Tensor]
    lr: Mapping[str, Mapping[str, Tensor]]
    device: str
    digest: str

    @property
    def chosen(self) -> list[str]:
        """Names of the pairs for choosing and calibrating."""
        return [files.name for files in _split(self.listing)[0]]

    @property
    def reported(self) -> list[str]:
        """Names of the other pairs."""
        return [files.name for files in _split(self.listing)[1]]


def open_tests(
    pairs: Path, crops: Tensor, *, crop_size: int, scale: int, niqe_parameters: Path | None, device: str
) -> tuple[Tests, list[str]]:
    """Check the pairs and prepare both tests.

    Args:
        pairs: folder of registered LR/HR pairs, in a layout of ``andfast.evaluate``.
        crops: of the held-out photographs, (N, 3, H, W) uint8.
        crop_size: side of the crops of the pairs' HR; less if the smallest is smaller.
        scale: HR size over LR size.
        niqe_parameters: NIQE's pristine model; None leaves NIQE out.
        device: that restorers run on.

    Returns:
        The tests, and the metrics that are left out with the reason.

    Raises:
        FileNotFoundError, ValueError: there are too few pairs, or pairs that do not fit; the message names them.
    """
    listing = find_pairs(pairs, scale=scale)
    check = check_pairs(listing, [], max_shift=MAX_SHIFT, progress=False)
    if problems := listing.problems | check.problems:
        shown = "; ".join(f"{name}: {reason}" for name, reason in sorted(problems.items())[:3])
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(f"--pairs must fit, {len(problems)} in {pairs} do not: {shown}{more}")
    if len(listing.pairs) < MIN_PAIRS:
        raise ValueError(f"--pairs must hold at least {MIN_PAIRS} pairs, {pairs} holds {len(listing.pairs)}")
    metrics, notes = list(METRICS), []
    niqe = lpips = None
    if niqe_parameters is None:
        notes.append("NIQE is left out: --niqe-parameters names no pristine model")
    else:
        niqe = NIQE(niqe_parameters)
        metrics.append("niqe")
    try:
        if weights_file("alex")[1].is_file():
            lpips = LPIPS("alex")
            metrics.append("lpips")
        else:
            notes.append("LPIPS is left out: its weights are not in torch.hub's cache")
    except ModuleNotFoundError as error:
        notes.append(f"LPIPS is left out: {error}")
    # Borders of the scale are cut: no network sees what lies beyond an image.
    scorer = Scorer(metrics, crop_border=scale, lpips=lpips, niqe=niqe)
    camera = center_crops([read_pair(files, scale).hr for files in _split(listing)[1]], crop_size, scale)
    hr = dict(zip(SOURCES, (camera, crops), strict=True))
    lr = {source: {name: damaged(name, images, scale) for name in DAMAGES} for source, images in hr.items()}
    return Tests(listing, scorer, hr, lr, device, _digest(listing.pairs, scorer, hr, lr)), notes


def score(weights: Path | None, tests: Tests) -> dict[str, Any]:
    """Score weights, or bicubic interpolation if None, on both tests.

    Returns:
        "pairs": metrics by pair; and the entries of :func:`score_damage`.
    """
    restorer = _restorer(weights, tests)
    method = RestorerMethod("method", str(weights), restorer)
    scores = score_pairs(tests.listing, [method], tests.scorer, progress=False)["method"]
    return {"pairs": {entry.name: entry.values for entry in scores}, **score_damage(restorer, tests)}


def score_damage(restorer: Restorer, tests: Tests) -> dict[str, Any]:
    """Score a restorer on the second test alone.

    Returns:
        By source, "damage": mean PSNR-Y by condition; "clean" and "unseen": that on clean LR, and the mean over all
        other conditions.
    """
    restorer.margin = min(restorer.margin, _MARGIN)
    damage = {
        source: {
            name: psnr_y(restore(restorer, lr), tests.hr[source], crop_border=restorer.scale).mean().item()
            for name, lr in conditions.items()
        }
        for source, conditions in tests.lr.items()
    }
    unseen = {
        source: fmean(value for name, value in values.items() if name != CLEAN) for source, values in damage.items()
    }
    return {"damage": damage, "clean": {source: values[CLEAN] for source, values in damage.items()}, "unseen": unseen}


def score_interpolated(weights: Path, start: Path, shares: Sequence[float], tests: Tests) -> list[dict[str, Any]]:
    """Score weights mixed with those they started from, on the second test.

    Args:
        weights: of a row.
        start: that it was trained on from.
        shares: of the row's weights, from 0 to 1.
        tests: whose second is used.

    Returns:
        For each share its "share", and "clean" and "unseen" as of :func:`score_damage`.
    """
    records = []
    first, second = read_weights(start), read_weights(weights)
    with tempfile.TemporaryDirectory() as folder:
        for share in shares:
            path = Path(folder) / "mixed.safetensors"
            save_weights(path, interpolate(first, second, share))
            scores = score_damage(_restorer(path, tests), tests)
            records.append({"share": share, "clean": scores["clean"], "unseen": scores["unseen"]})
    return records


def score_checkpoints(folders: Sequence[Path], tests: Tests) -> list[dict[str, Any]]:
    """The curve of a training: step, and "clean" and "unseen" by source, of each checkpoint's EMA."""
    curve = []
    for folder in folders:
        result = score_damage(_restorer(folder / "generator_ema.safetensors", tests), tests)
        curve.append(curve_point(int(folder.name.rpartition("-")[2]), result))
    return curve


def curve_point(step: int, scores: Mapping[str, Any]) -> dict[str, Any]:
    """A point of a curve from the scores after a step."""
    return {"step": step, "clean": scores["clean"], "unseen": scores["unseen"]}


def restore(restorer: Restorer, lr: Tensor) -> Tensor:
    """SR as a saved 8-bit image: (N, 3, H, W) uint8 on the CPU.

    Raises:
        ValueError: the output is infinite or NaN.
    """
    batches = []
    for batch in lr.split(_BATCH):
        sr = restorer.restore(batch.float() / 255)
        if not sr.isfinite().all():
            raise ValueError(f"{restorer.name}: output must be finite, was NaN or infinite")
        batches.append((sr.clamp(0, 1) * 255).round().to(torch.uint8).cpu())
    return torch.cat(batches)


def cached_score(path: Path, weights: Path | None, folders: Sequence[Path], tests: Tests) -> dict[str, Any]:
    """Scores and curve from a file, if it has those of these weights under these tests; else compute and write them."""
    key = {"tests": tests.digest, "weights": None if weights is None else _file_digest(weights)}
    if path.is_file():
        earlier = read_json(path)
        if earlier.get("key") == key:
            return earlier
    scores = score(weights, tests)
    curve = score_checkpoints(folders[:-1], tests)
    if folders:  # the last one has the weights
        curve.append(curve_point(int(folders[-1].name.rpartition("-")[2]), scores))
    record = {"key": key, **scores, "curve": curve}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)
    return record


def cached_interpolation(
    path: Path, weights: Path, start: Path, shares: Sequence[float], tests: Tests, *, compute: bool = True
) -> list[dict[str, Any]] | None:
    """:func:`score_interpolated` from a file, if it has all shares under these weights and tests.

    Else it is computed and written, or with ``compute=False`` None.
    """
    key = {"tests": tests.digest, "weights": _file_digest(weights), "start": _file_digest(start)}
    earlier = read_json(path) if path.is_file() else {}
    known = {entry["share"]: entry for entry in earlier["records"]} if earlier.get("key") == key else {}
    missing = [share for share in shares if share not in known]
    if missing and not compute:
        return None
    if missing:
        known |= {entry["share"]: entry for entry in score_interpolated(weights, start, missing, tests)}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"key": key, "records": [known[share] for share in sorted(known)]})
    return [known[share] for share in shares]


def pair_means(values: Mapping[str, Mapping[str, float | None]], names: Sequence[str]) -> dict[str, float | None]:
    """Mean of each metric over the named pairs for which it is defined; None where it is for none."""
    metrics = next(iter(values.values()))
    means: dict[str, float | None] = {}
    for metric in metrics:
        column = [value for name in names if (value := values[name][metric]) is not None]
        means[metric] = fmean(column) if column else None
    return means


def _restorer(weights: Path | None, tests: Tests) -> Restorer:
    source = BICUBIC if weights is None else weights
    return load_restorer(source, device=tests.device, scale=tests.listing.scale)


def _split(listing: Listing) -> tuple[list[PairFiles], list[PairFiles]]:
    """The pairs for choosing and calibrating, and those that are reported on."""
    count = len(listing.pairs) // CHOSEN_SHARE
    return listing.pairs[:count], listing.pairs[count:]


def _digest(
    pairs: Sequence[PairFiles], scorer: Scorer, hr: Mapping[str, Tensor], lr: Mapping[str, Mapping[str, Tensor]]
) -> str:
    files = {files.name: [_file_digest(files.hr), _file_digest(files.lr)] for files in pairs}
    images = {source: {"hr": hr[source], **conditions} for source, conditions in lr.items()}
    digests = {
        source: {name: hashlib.sha256(image.numpy().tobytes()).hexdigest() for name, image in group.items()}
        for source, group in images.items()
    }
    text = json.dumps([files, digests, scorer.describe(), scorer.metrics, _MARGIN])
    return hashlib.sha256(text.encode()).hexdigest()


def _file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
