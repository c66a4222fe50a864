"""Files of NIQE's pristine model: the authors' ``.mat``, BasicSR's ``.npz``, and what `write_niqe_parameters` wrote."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from andfast.files import atomic_file

FEATURES: Final = 36
"""Numbers that describe a block: 18 at each of two scales."""

_NAMES: Final = (("mu_pris_param", "cov_pris_param"), ("mu_prisparam", "cov_prisparam"))  # BasicSR's, the authors'
_LARGEST_FILE = 1 << 20  # such files have some 10 kB


@dataclass(frozen=True, eq=False)
class NIQEParameters:
    """The pristine model.

    Attributes:
        mean: (36,), float64.
        covariance: (36, 36), float64, symmetric.
        source: where it is from, for beside a result.
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
    """Read a pristine model; nothing is unpickled.

    Args:
        path: ``.npz`` with mu_pris_param and cov_pris_param (BasicSR's names), or the authors' ``.mat`` with
            mu_prisparam and cov_prisparam, which takes scipy (`pip install "andfast[metrics]"`).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else.
        ModuleNotFoundError: a ``.mat`` without scipy.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"NIQE parameters must be a .npz or .mat file, there is none at {path}")
    if path.suffix.lower() not in {".npz", ".mat"}:
        raise ValueError(f"{path}: NIQE parameters must end in .npz or .mat, was {path.suffix!r}")
    if path.stat().st_size > _LARGEST_FILE:
        raise ValueError(f"{path}: NIQE parameters have some 10 kB, this file has {path.stat().st_size} bytes")
    try:
        found = _read_mat(path) if path.suffix.lower() == ".mat" else _read_npz(path)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # numpy and scipy meet damaged files with all kinds of errors
        raise ValueError(f"{path} cannot be read as NIQE parameters: {' '.join(str(error).split())}") from error
    for names in _NAMES:
        if all(name in found for name in names):
            mean, covariance = (found[name] for name in names)
            break
    else:
        raise ValueError(
            f"{path} must hold {' and '.join(_NAMES[0])} (or {' and '.join(_NAMES[1])}), "
            f"it holds {', '.join(sorted(found)) or 'nothing'}"
        )
    try:
        return NIQEParameters(np.ravel(mean).astype(np.float64), np.asarray(covariance, np.float64), path.name)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no NIQE parameters: {error}") from error


def write_niqe_parameters(parameters: NIQEParameters, path: str | Path) -> None:
    """Write a ``.npz`` with BasicSR's names, complete or not at all."""
    path = Path(path)
    if path.suffix.lower() != ".npz":
        raise ValueError(f"NIQE parameters are written as .npz, {path} ends in {path.suffix!r}")
    with atomic_file(path) as file:
        np.savez(file, mu_pris_param=parameters.mean[None], cov_pris_param=parameters.covariance)


def _read_npz(path: Path) -> Mapping[str, Any]:
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > _LARGEST_FILE:  # a bomb
        raise ValueError(f"its arrays have {size} bytes")
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _read_mat(path: Path) -> Mapping[str, Any]:
    try:
        from scipy.io import loadmat  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'reading {path} needs scipy, pip install "andfast[metrics]" ({error}); a .npz needs nothing'
        ) from error
    names = [name for pair in _NAMES for name in pair]
    return loadmat(path, variable_names=names)
