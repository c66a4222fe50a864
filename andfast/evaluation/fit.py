"""Fit NIQE's pristine model to a folder of photographs."""

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from andfast.data.sources import find_images
from andfast.evaluation.pairs import InvalidPairError, read_image
from andfast.evaluation.scores import PROTOCOLS
from andfast.files import check_output_path, printable
from andfast.metrics.niqe import fit_niqe
from andfast.metrics.niqe_parameters import write_niqe_parameters


def fit_niqe_to_folder(folder: str | Path, path: Path, *, protocol: str = "studio") -> str:
    """Fit to the photographs of a folder, recursively, and write a .npz; returns a one-line summary.

    Unreadable files and photographs smaller than one block are skipped; the summary counts the former.

    Raises:
        FileExistsError: the .npz exists.
        FileNotFoundError: the folder does not exist.
        OSError: the .npz cannot be written.
        ValueError: too few photographs.
    """
    if path.exists():
        raise FileExistsError(f"--fit-niqe does not overwrite an existing file, was {path}")
    if path.suffix.lower() != ".npz":
        raise ValueError(f"--niqe-parameters must end in .npz with --fit-niqe, was {path}")
    check_output_path("--niqe-parameters", path)
    files = find_images([folder])
    unreadable = 0

    def photographs() -> Iterator[Tensor]:
        nonlocal unreadable
        for file in files:
            try:
                yield read_image(Path(file.path), "photograph")
            except InvalidPairError:
                unreadable += 1

    parameters = fit_niqe(photographs(), y_range=PROTOCOLS[protocol][0])
    write_niqe_parameters(parameters, path)
    skipped = f", skipped {unreadable} unreadable" if unreadable else ""
    return printable(f"NIQE fitted to {len(files) - unreadable} photographs of {folder}{skipped}: {path}")
