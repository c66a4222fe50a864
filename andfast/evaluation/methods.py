"""Evaluated methods: restorers (weights, bicubic) and folders of images produced by any other method."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

import torch
from torch import Tensor

from andfast.data.sources import find_images
from andfast.evaluation.layouts import Listing, PairFiles
from andfast.evaluation.pairs import InvalidPairError, Pair, read_image
from andfast.files import printable
from andfast.inference.models import Restorer, load_restorer
from andfast.inference.tiles import check_tile, restore_tiled

BICUBIC = "bicubic"


class Method(Protocol):
    """Anything that provides an SR image per pair."""

    name: str
    source: str

    def sr(self, files: PairFiles, pair: Pair) -> Tensor:
        """(3, H, W), uint8, of HR's size."""
        ...


@dataclass(eq=False)
class RestorerMethod:
    """SR images computed by a restorer, clamped to [0, 1] and rounded to 8 bits.

    Attributes:
        tile, overlap: in LR pixels, see `restore_tiled`; tile 0 restores whole images.
    """

    name: str
    source: str
    restorer: Restorer
    tile: int = 0
    overlap: int = 32

    def sr(self, files: PairFiles, pair: Pair) -> Tensor:
        lr = pair.lr[None].float() / 255
        if self.tile:
            sr = restore_tiled(self.restorer, lr, tile=self.tile, overlap=self.overlap)
        else:
            sr = self.restorer.restore(lr)
        if not sr.isfinite().all():
            raise ValueError(f"{self.name}: output must be finite, was NaN or infinite for {files.name}")
        return (sr[0].float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()


@dataclass(eq=False)
class OutputFolder:
    """SR images read from a folder, matched to the pairs by `match_outputs`."""

    name: str
    source: str
    files: dict[str, Path]

    def sr(self, files: PairFiles, pair: Pair) -> Tensor:
        path = self.files[files.name]
        sr = read_image(path, self.name)
        if sr.shape != pair.hr.shape and not _fits_after_crop(sr, pair):
            raise InvalidPairError(
                f"{self.name} image {path.name} must have HR's size, {pair.hr.shape[2]}x{pair.hr.shape[1]}, "
                f"was {sr.shape[2]}x{sr.shape[1]}"
            )
        return sr[:, : pair.hr.shape[1], : pair.hr.shape[2]].contiguous()


def _fits_after_crop(sr: Tensor, pair: Pair) -> bool:
    """Whether SR only has the extra rows and columns that HR was cropped by."""
    extra = [a - b for a, b in zip(sr.shape[1:], pair.hr.shape[1:], strict=True)]
    return (pair.downscaled or pair.cropped) and all(0 <= side < pair.hr.shape[1] // pair.lr.shape[1] for side in extra)


def match_outputs(folder: Path, pairs: Sequence[PairFiles], *, name: str) -> tuple[OutputFolder, dict[str, str]]:
    """Match the images of a folder, searched recursively, to pairs.

    An image belongs to a pair if its path equals the pair's name (or that of its LR or HR file); otherwise if its file
    name does; otherwise if its file name starts with that name followed by a non-alphanumeric character, as in
    NAME_out.png. The longest matching name wins.

    Returns:
        The method, and {pair's name: reason} for pairs without exactly one image.

    Raises:
        ValueError: the folder contains no image.
    """
    images = [PurePosixPath(file.name) for file in find_images([folder], unique=False)]
    if not images:
        raise ValueError(f"outputs must be a folder with images, {folder} contains none")
    aliases = {pair.name: {pair.name, pair.hr.stem, pair.lr.stem} for pair in pairs}
    owners: defaultdict[str, set[str]] = defaultdict(set)
    for pair in pairs:
        for alias in aliases[pair.name]:
            owners[alias.rpartition("/")[2]].add(pair.name)
    by_prefix: defaultdict[str, list[PurePosixPath]] = defaultdict(list)
    for file in images:
        ends = [end for end in range(len(file.stem), 0, -1) if not file.stem[end : end + 1].isalnum()]
        prefix = next((prefix for end in ends if (prefix := file.stem[:end]) in owners), "")
        for owner in owners.get(prefix, ()):
            by_prefix[owner].append(file)

    files: dict[str, Path] = {}
    problems: dict[str, str] = {}
    for pair in pairs:
        candidates = by_prefix[pair.name]
        for exact in (
            [file for file in candidates if file.with_suffix("").as_posix() in aliases[pair.name]],
            [file for file in candidates if file.stem in aliases[pair.name]],
        ):
            if exact:
                candidates = exact
                break
        if len(candidates) == 1:
            files[pair.name] = folder / candidates[0]
        elif candidates:
            problems[pair.name] = f"{name} has multiple images: {', '.join(map(str, candidates[:3]))}"
        else:
            problems[pair.name] = f"{name} has no image in {folder}"
    return OutputFolder(name, str(folder), files), problems


def load_restorers(sources: Sequence[str], *, device: str, precision: str) -> dict[str, Restorer]:
    """Load the sources that are weight files: {source: restorer}.

    Raises:
        FileNotFoundError: a source is neither a file, a folder nor "bicubic".
        ValueError: a file contains no usable weights.
    """
    return {
        source: load_restorer(source, device=device, precision=precision)
        for source in sources
        if source != BICUBIC and not Path(source).is_dir()
    }


def build_methods(
    sources: Sequence[str],
    restorers: Mapping[str, Restorer],
    listing: Listing,
    *,
    device: str,
    tile: int = 0,
    overlap: int = 32,
) -> tuple[list[Method], dict[str, str]]:
    """Build the method of each source, bicubic first, with unique names.

    Args:
        sources: weight files (keys of ``restorers``), folders of images, or "bicubic".
        restorers: result of `load_restorers`.
        listing: the pairs to evaluate and their scale.
        device, tile, overlap: see `load_restorer` and `restore_tiled`.

    Returns:
        The methods, and {pair's name: reason} for pairs that a folder has no image for.

    Raises:
        ValueError: weights for another scale, an overlap too large for the tile, or a folder without images.
    """
    problems: dict[str, str] = {}
    methods: list[Method] = []
    names: set[str] = set()
    for source in [BICUBIC, *(source for source in sources if source != BICUBIC)]:
        path = Path(source)
        if source == BICUBIC:
            restorer = load_restorer(BICUBIC, device=device, scale=listing.scale)
            methods.append(RestorerMethod(_unique_name(BICUBIC, path, names), BICUBIC, restorer))
        elif source in restorers:
            restorer = restorers[source]
            if restorer.scale != listing.scale:
                raise ValueError(f"{source}: weights must be for scale {listing.scale}, was {restorer.scale}")
            check_tile(tile, overlap, restorer.multiple)
            methods.append(RestorerMethod(_unique_name(path.stem, path, names), source, restorer, tile, overlap))
        else:
            name = _unique_name(path.resolve().name, path, names)
            outputs, missing = match_outputs(path, listing.pairs, name=name)
            methods.append(outputs)
            problems = missing | problems
    return methods, problems


def _unique_name(name: str, path: Path, taken: set[str]) -> str:
    """The name, prefixed by as many parent folders as make it unique."""
    parents = [part for part in path.absolute().parent.parts if part not in {"/", "weights"}]
    while name in taken and parents:
        name = f"{parents.pop()}/{name}"
    number = 2
    unique = name
    while unique in taken:
        unique, number = f"{name} ({number})", number + 1
    taken.add(unique)
    return printable(unique)
