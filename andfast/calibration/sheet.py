"""One pair's parts as a picture."""

from pathlib import Path
from typing import Final

from torch import Tensor

from andfast.calibration.fit import PairFit
from andfast.calibration.measure import psnr
from andfast.drawing import sample_sheet

AMPLIFICATION: Final = 8
"""Factor on residuals in the picture."""


def parts_sheet(path: Path, name: str, hr: Tensor, fit: PairFit) -> None:
    """Draw HR, real LR, registered clean LR, the same after gain and offset, after the kernel, and the residual.

    Args:
        path: the PNG, written atomically.
        name: of the pair.
        hr: (3, H, W), uint8.
        fit: of the pair.
    """
    residual = 0.5 + AMPLIFICATION * (fit.lr - fit.fitted) / 255
    images = [hr, *(image / 255 for image in (fit.lr, fit.registered, fit.affine, fit.fitted)), residual]
    captions = [
        name,
        "as photographed",
        *(f"{psnr(fit.distance(image)):.1f} dB" for image in (fit.registered, fit.affine, fit.fitted)),
        f"{fit.distance(fit.fitted):.1f} levels rms",
    ]
    titles = ["HR", "real LR", "clean LR", "after gain, offset", "after kernel", f"residual x {AMPLIFICATION}"]
    sample_sheet(
        [images],
        path,
        titles=titles,
        captions=[captions],
        heading="Real LR from HR, part by part (PSNR against real LR)",
    )
