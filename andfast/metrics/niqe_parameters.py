"""Files of NIQE's pristine model: the authors' ``.mat`` and BasicSR's ``.npz``."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from andfast.files import atomic_file

FEATURES: Final = 36
"""Features per block: 18 at each of two scales."""

_NAMES: Final = (("mu_pris_param", "cov_pris_param"), ("mu_prisparam", "cov_prisparam"))  # BasicSR's, the authors'
_MAX_BYTES = 1 << 20  # real files have about 10 kB


@dataclass(frozen=True, eq=False)
class NIQEParameters:
    """The pristine model.

    Attributes:
        mean: (36,), float64.
        covariance: (36, 36), float64, symmetric.
        source: origin, reported with results.
    """

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    source: str

    def __post_init__(self) -> None:
        for name, value, shape in (("mean", self.mean, (FEATURES,)), ("covariance", self.covariance, (FEATURES,) * 2)):
            if value.shape != shape or value.dtype != np.float64:
                raise ValueError(f"{name} must be float64 of shape {shape}, was {value.dtype} of {value.shape}")
            if not np.isfinite(value).all():
                raise ValueError(f"{name} must be finite")
        if not np.allclose(self.covariance, self.covariance.T):
            raise ValueError("covariance must be symmetric")


def read_niqe_parameters(path: str | Path) -> NIQEParameters:
    """Read a pristine model, without unpickling.

    Args:
        path: ``.npz`` with mu_pris_param and cov_pris_param (BasicSR's names), or the authors' ``.mat`` with
            mu_prisparam and cov_prisparam, which requires scipy (`pip install "andfast[metrics]"`).

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file does not contain a pristine model.
        ModuleNotFoundError: a ``.mat`` without scipy.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"NIQE parameters must be a .npz or .mat file, {path} does not exist")
    if path.suffix.lower() not in {".npz", ".mat"}:
        raise ValueError(f"{path}: NIQE parameters must end in .npz or .mat, was {path.suffix!r}")
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"{path}: NIQE parameters must be at most {_MAX_BYTES} bytes, was {path.stat().st_size}")
    try:
        arrays = _read_mat(path) if path.suffix.lower() == ".mat" else _read_npz(path)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # numpy and scipy raise nearly anything on damaged files
        raise ValueError(f"{path} cannot be read as NIQE parameters: {' '.join(str(error).split())}") from error
    for names in _NAMES:
        if all(name in arrays for name in names):
            mean, covariance = (arrays[name] for name in names)
            break
    else:
        raise ValueError(
            f"{path} must contain {' and '.join(_NAMES[0])} (or {' and '.join(_NAMES[1])}), "
            f"was {', '.join(sorted(arrays)) or 'empty'}"
        )
    try:
        return NIQEParameters(np.ravel(mean).astype(np.float64), np.asarray(covariance, np.float64), path.name)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: invalid NIQE parameters: {error}") from error


def write_niqe_parameters(parameters: NIQEParameters, path: str | Path) -> None:
    """Write a ``.npz`` with BasicSR's names, atomically."""
    path = Path(path)
    if path.suffix.lower() != ".npz":
        raise ValueError(f"{path}: NIQE parameters are written as .npz, was {path.suffix!r}")
    with atomic_file(path) as file:
        np.savez(file, mu_pris_param=parameters.mean[None], cov_pris_param=parameters.covariance)


def _read_npz(path: Path) -> Mapping[str, Any]:
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > _MAX_BYTES:  # decompression bomb
        raise ValueError(f"its arrays must be at most {_MAX_BYTES} bytes, was {size}")
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _read_mat(path: Path) -> Mapping[str, Any]:
    try:
        from scipy.io import loadmat  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'reading {path} requires scipy, pip install "andfast[metrics]" ({error}); a .npz does not'
        ) from error
    names = [name for pair in _NAMES for name in pair]
    return loadmat(path, variable_names=names)
