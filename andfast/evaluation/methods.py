"""What is judged: restorers (weights, bicubic), and folders of pictures that any other method made."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

import torch
from torch import Tensor

from andfast.data.pack import printable
from andfast.data.sources import find_images
from andfast.evaluation.layouts import Listing, PairFiles
from andfast.evaluation.pairs import Pair, UnfitPairError, read_picture
from andfast.inference.models import Restorer, load_restorer
from andfast.inference.tiles import check_tile, restore_tiled

BICUBIC = "bicubic"


class Method(Protocol):
    """Something that has an SR picture for a pair."""

    name: str
    source: str

    def picture(self, files: PairFiles, pair: Pair) -> Tensor:
        """(3, H, W), uint8, as a file of it would hold."""
        ...


@dataclass(eq=False)
class Restored:
    """A restorer's own pictures, clamped to [0, 1] and rounded to 8 bits.

    Attributes:
        tile, overlap: LR pixels, see `restore_tiled`; tile 0 restores whole pictures.
    """

    name: str
    source: str
    restorer: Restorer
    tile: int = 0
    overlap: int = 32

    def picture(self, files: PairFiles, pair: Pair) -> Tensor:
        lr = pair.lr[None].float() / 255
        if self.tile:
            sr = restore_tiled(self.restorer, lr, tile=self.tile, overlap=self.overlap)
        else:
            sr = self.restorer.restore(lr)
        if not sr.isfinite().all():
            raise ValueError(f"{self.name} gave values that are not finite for {files.name}")
        return (sr[0].float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()


@dataclass(eq=False)
class Outputs:
    """Pictures in a folder, found once by `outputs_of`."""

    name: str
    source: str
    files: dict[str, Path]

    def picture(self, files: PairFiles, pair: Pair) -> Tensor:
        path = self.files[files.name]
        sr = read_picture(path, self.name)
        if sr.shape != pair.hr.shape and not _cut_fits(sr, pair):
            raise UnfitPairError(
                f"picture {path.name} of {self.name} must be of HR's size, {pair.hr.shape[2]}x{pair.hr.shape[1]}, "
                f"was {sr.shape[2]}x{sr.shape[1]}"
            )
        return sr[:, : pair.hr.shape[1], : pair.hr.shape[2]].contiguous()


def _cut_fits(sr: Tensor, pair: Pair) -> bool:
    """Whether SR has the few rows and columns that HR of a reduced pair lost."""
    spare = [a - b for a, b in zip(sr.shape[1:], pair.hr.shape[1:], strict=True)]
    return pair.reduced and all(0 <= side < pair.hr.shape[1] // pair.lr.shape[1] for side in spare)


def outputs_of(folder: Path, pairs: Sequence[PairFiles], *, name: str) -> tuple[Outputs, dict[str, str]]:
    """The picture of each pair in a folder, searched in depth, and why some have none.

    A picture belongs to a pair if its path is the pair's name (or that of its LR or HR file); failing that, if its
    file name alone is; failing that, if its file name begins with that name, not followed by a letter or digit, as
    in NAME_out.png. Of several names that a file begins with, the longest counts.

    Returns:
        The method, and {pair's name: reason}.
    """
    found = [PurePosixPath(file.name) for file in find_images([folder])]
    if not found:
        raise ValueError(f"outputs must be a folder of pictures, {folder} holds none")
    names = {pair.name: {pair.name, pair.hr.stem, pair.lr.stem} for pair in pairs}
    owners: defaultdict[str, set[str]] = defaultdict(set)
    for pair in pairs:
        for one in names[pair.name]:
            owners[one.rpartition("/")[2]].add(pair.name)
    begun: defaultdict[str, list[PurePosixPath]] = defaultdict(list)
    for file in found:
        ends = [end for end in range(len(file.stem), 0, -1) if not file.stem[end : end + 1].isalnum()]
        longest = next((start for end in ends if (start := file.stem[:end]) in owners), "")
        for owner in owners.get(longest, ()):
            begun[owner].append(file)

    files: dict[str, Path] = {}
    problems: dict[str, str] = {}
    for pair in pairs:
        candidates = begun[pair.name]
        for exact in (
            [file for file in candidates if file.with_suffix("").as_posix() in names[pair.name]],
            [file for file in candidates if file.stem in names[pair.name]],
        ):
            if exact:
                candidates = exact
                break
        if len(candidates) == 1:
            files[pair.name] = folder / candidates[0]
        elif candidates:
            problems[pair.name] = f"{name} has several pictures: {', '.join(map(str, candidates[:3]))}"
        else:
            problems[pair.name] = f"{name} has no picture in {folder}"
    return Outputs(name, str(folder), files), problems


def load_weights(sources: Sequence[str], *, device: str, precision: str) -> dict[str, Restorer]:
    """The restorers of those sources that are files of weights, by source.

    Raises:
        FileNotFoundError: a source that is neither a file, a folder nor "bicubic".
        ValueError: a file that holds no usable weights.
    """
    found = {}
    for source in sources:
        if source != BICUBIC and not Path(source).is_dir():
            found[source] = load_restorer(source, device=device, precision=precision)
    return found


def make_methods(
    sources: Sequence[str],
    restorers: Mapping[str, Restorer],
    listing: Listing,
    *,
    device: str,
    tile: int = 0,
    overlap: int = 32,
) -> tuple[list[Method], dict[str, str]]:
    """The methods of sources, bicubic first, each under a name of its own.

    Args:
        sources: files of weights (those in `restorers`), folders of pictures, or "bicubic".
        restorers: what `load_weights` found.
        listing: the pairs that are judged, and their scale.
        device, tile, overlap: see `load_restorer` and `restore_tiled`.

    Returns:
        The methods, and why some pairs have no picture: {pair's name: reason}.

    Raises:
        ValueError: weights for another scale, tiles that overlap too much, or a folder without pictures.
    """
    problems: dict[str, str] = {}
    methods: list[Method] = []
    names: set[str] = set()
    for source in [BICUBIC, *(source for source in sources if source != BICUBIC)]:
        path = Path(source)
        if source == BICUBIC:
            restorer = load_restorer(BICUBIC, device=device, scale=listing.scale)
            methods.append(Restored(_unique(BICUBIC, path, names), BICUBIC, restorer))
        elif source in restorers:
            restorer = restorers[source]
            if restorer.scale != listing.scale:
                raise ValueError(f"{source}: weights must be for scale {listing.scale}, are for {restorer.scale}")
            check_tile(tile, overlap, restorer.multiple)
            methods.append(Restored(_unique(path.stem, path, names), source, restorer, tile, overlap))
        else:
            outputs, missing = outputs_of(path, listing.pairs, name=_unique(path.resolve().name, path, names))
            methods.append(outputs)
            problems = missing | problems
    return methods, problems


def _unique(name: str, path: Path, taken: set[str]) -> str:
    """The name, with as much of its path before it as tells it from those taken."""
    parents = [part for part in path.absolute().parent.parts if part not in {"/", "weights"}]
    while name in taken and parents:
        name = f"{parents.pop()}/{name}"
    number = 2
    unique = name
    while unique in taken:
        unique, number = f"{name} ({number})", number + 1
    taken.add(unique)
    return printable(unique)
