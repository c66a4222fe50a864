"""Contact sheets of crops: real pairs where the rows differ most, and every kind of damage."""

from collections.abc import Mapping
from pathlib import Path

import torch

from andfast.drawing import sample_sheet
from andfast.evaluation.methods import BICUBIC, RestorerMethod
from andfast.evaluation.run import score_pairs
from andfast.evaluation.scores import Scorer
from andfast.evaluation.sheet import Sheet
from andfast.inference.models import Restorer, load_restorer
from andfast.metrics import psnr_y
from benchmarks.ablation.score import Tests, restore

CROP = 128
"""Side of the crops in HR pixels."""
_ROWS = 6
SOURCE = "camera"
"""Source of the damaged crops that are shown."""


def write_sheets(folder: Path, weights: Mapping[str, Path], tests: Tests, heading: str) -> None:
    """Write pairs.png and damage.png.

    Args:
        folder: existing folder.
        weights: of each row, by name.
        tests: the images.
        heading: a line above both sheets.
    """
    scale = tests.listing.scale
    restorers = {BICUBIC: load_restorer(BICUBIC, device=tests.device, scale=scale)}
    restorers |= {name: load_restorer(path, device=tests.device, scale=scale) for name, path in weights.items()}
    sheet = Sheet(rows=_ROWS, scale=scale)
    methods = [RestorerMethod(name, name, restorer) for name, restorer in restorers.items()]
    score_pairs(tests.listing, methods, Scorer(["psnr"], crop_border=scale), sheet=sheet, progress=False)
    sheet.write(folder / "pairs.png", f"{heading}. Real pairs where the rows differ most; PSNR-Y of the whole image")
    _damage_sheet(folder / "damage.png", restorers, tests, f"{heading}. Unseen damage; PSNR-Y of the whole crop")


def _damage_sheet(path: Path, restorers: Mapping[str, Restorer], tests: Tests, heading: str) -> None:
    """One row per condition, each of another image."""
    scale = tests.listing.scale
    originals = tests.hr[SOURCE]
    side = min(CROP, *originals.shape[2:]) // scale * scale
    top, left = ((length - side) // 2 // scale * scale for length in originals.shape[2:])
    rows, captions = [], []
    for number, (name, lr) in enumerate(tests.lr[SOURCE].items()):
        index = number % len(originals)
        hr = originals[index]
        outputs = [restore(restorer, lr[index : index + 1])[0] for restorer in restorers.values()]
        small = lr[index][:, top // scale : (top + side) // scale, left // scale : (left + side) // scale]
        crops = [image[:, top : top + side, left : left + side] for image in (hr, *outputs)]
        rows.append([crops[0], small, *crops[1:]])
        psnr = torch.stack([psnr_y(output, hr, crop_border=scale)[0] for output in outputs])
        captions.append(["", name, *(f"{value:.2f} dB" for value in psnr.tolist())])
    sample_sheet(rows, path, titles=["HR", "LR", *restorers], captions=captions, heading=heading)
