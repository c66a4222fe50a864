"""Fitting NIQE's pristine model to a folder of photographs."""

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from andfast.data.pack import printable
from andfast.data.sources import find_images
from andfast.evaluation.pairs import UnfitPairError, read_picture
from andfast.evaluation.scores import PROTOCOLS
from andfast.metrics.niqe import fit_niqe
from andfast.metrics.niqe_parameters import write_niqe_parameters


def fit_niqe_to_folder(folder: str | Path, path: Path, *, protocol: str = "studio") -> str:
    """Fit to the pictures of a folder, searched in depth, and write a .npz; returns what happened, in one line.

    Pictures that cannot be read, or are smaller than one block, are left out and counted.

    Raises:
        FileExistsError: the .npz is there already.
        FileNotFoundError: no such folder.
        ValueError: too few pictures.
    """
    if path.exists():
        raise FileExistsError(f"--fit-niqe writes {path}, which exists: name another file")
    if path.suffix.lower() != ".npz" or not path.parent.is_dir():
        raise ValueError(f"--fit-niqe writes a .npz in a folder that exists, was {path}")
    files = find_images([folder])
    unreadable = 0

    def pictures() -> Iterator[Tensor]:
        nonlocal unreadable
        for file in files:
            try:
                yield read_picture(Path(file.path), "photograph")
            except UnfitPairError:
                unreadable += 1

    parameters = fit_niqe(pictures(), y_range=PROTOCOLS[protocol][0])
    write_niqe_parameters(parameters, path)
    left_out = f", {unreadable} unreadable ones left out" if unreadable else ""
    return printable(f"NIQE fitted to {len(files) - unreadable} photographs of {folder}{left_out}: {path}")
