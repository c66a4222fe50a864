"""Dataset layouts: find the LR/HR pairs of a folder, by a named layout or the first one that matches.

A layout is a rule that classifies one file as HR, LR or neither and returns the key it shares with its counterpart.
Matching is case-insensitive and ignores file extensions. Files under a folder named ``Train`` (``Train_x4``,
``DIV2K_train_HR`` ...) belong to the benchmark's training split and are ignored.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final, Literal, NamedTuple

from andfast.data.sources import find_images
from andfast.files import printable

Role = Literal["hr", "lr", "other"]
"""Role of a file in its pair; "other" is an LR (or HR and LR) file of another scale."""


class Match(NamedTuple):
    """How a layout classifies one file; files of one pair share the key."""

    role: Role
    key: str


@dataclass(frozen=True)
class Layout:
    """Naming scheme of a benchmark.

    Attributes:
        name: value of ``--layout``, also used in reports.
        summary: one line with an example.
        default_scale: scale to assume if neither the user nor the weights set one.
        match: (relative path without extension, scale) -> Match, or None if the file is not part of the dataset.
    """

    name: str
    summary: str
    default_scale: int
    match: Callable[[PurePosixPath, int], Match | None]


@dataclass(frozen=True)
class PairFiles:
    """The two files of a pair. ``name`` is the file name or relative path they share, in printable form."""

    name: str
    hr: Path
    lr: Path


@dataclass
class Listing:
    """Pairs of a folder.

    Attributes:
        layout, scale: layout and scale the folder was read with.
        pairs: sorted by name.
        problems: {name: reason} for files without exactly one counterpart.
        ignored: number of images the layout does not use (training splits, other scales, other names).
    """

    layout: Layout
    scale: int
    pairs: list[PairFiles] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    ignored: int = 0


def _folders(path: PurePosixPath, scale: int) -> Match | None:
    """HR/a and LR/a, or LR/x4/a."""
    for index, part in enumerate(path.parts[:-1]):
        if part.lower() in {"hr", "lr"}:
            rest = list(path.parts[:index] + path.parts[index + 1 :])
            if index < len(rest) - 1 and (subfolder := re.fullmatch(r"x(\d+)", rest[index].lower())):
                if int(subfolder[1]) != scale:
                    return Match("other", "/".join(rest))
                del rest[index]
            return Match("hr" if part.lower() == "hr" else "lr", "/".join(rest))
    return None


def _realsr(path: PurePosixPath, scale: int) -> Match | None:
    """Canon/Test/4/Canon_001_HR and Canon_001_LR4, in one folder or under HR/ and LR/."""
    match = re.fullmatch(r"(.+)_(?:(hr)|lr(\d))", path.name, re.IGNORECASE)
    if not match:
        return None
    key = "/".join([part for part in path.parts[:-1] if part.lower() not in {"hr", "lr"}] + [match[1]])
    if match[2]:
        return Match("hr", key)
    return Match("lr" if int(match[3]) == scale else "other", key)


def _drealsr(path: PurePosixPath, scale: int) -> Match | None:
    """Test_x4/test_HR/DSC_1_x4 and Test_x4/test_LR/DSC_1_x1; either suffix may be x1, the scale or absent."""
    roles: dict[str, Role] = {"test_hr": "hr", "test_lr": "lr"}
    role = next((roles[part.lower()] for part in path.parts[:-1] if part.lower() in roles), None)
    if role is None:
        return None
    folders = [part for part in path.parts[:-1] if part.lower() not in roles]
    key = "/".join([*folders, re.sub(r"_x\d$", "", path.name, flags=re.IGNORECASE)])
    scales = [int(match[1]) for part in folders if (match := re.fullmatch(r".*x(\d)", part, re.IGNORECASE))]
    if scales and scales[-1] != scale:
        return Match("other", key)
    return Match(role, key)


def _super(path: PurePosixPath, scale: int) -> Match | None:
    """scene/motion/Bin1/0001 (HR) and scene/motion/Bin4/0001; compressed versions such as Bin4QP10 are ignored."""
    for index, part in enumerate(path.parts[:-1]):
        if match := re.fullmatch(r"bin(\d)(.*)", part, re.IGNORECASE):
            stem = re.sub(rf"bin{match[1]}", "bin", path.name, flags=re.IGNORECASE)
            key = "/".join([*path.parts[:index], *path.parts[index + 1 : -1], stem])
            if match[2] or match[1] not in {"1", str(scale)}:
                return Match("other", key)
            return Match("hr" if match[1] == "1" else "lr", key)
    return None


def _div2k(path: PurePosixPath, scale: int) -> Match | None:
    """DIV2K_valid_HR/0801 and DIV2K_valid_LR_bicubic/X4/0801x4; EDSR's Set5/HR/baby and Set5/LR_bicubic/X4/babyx4."""
    for index, part in enumerate(path.parts[:-1]):
        if not (match := re.fullmatch(r"(?:(.+)_)?(?:(hr)|lr_bicubic)", part, re.IGNORECASE)):
            continue
        folders = [*path.parts[:index], match[1] or ""]
        below = list(path.parts[index + 1 : -1])
        if match[2]:
            return Match("hr", "/".join(filter(None, [*folders, *below, path.name])))
        scales = {int(number[1]) for folder in below if (number := re.fullmatch(r"x(\d)", folder, re.IGNORECASE))}
        below = [folder for folder in below if not re.fullmatch(r"x\d", folder, re.IGNORECASE)]
        stem = path.name
        suffix = re.fullmatch(r"(.+)x(\d)", stem, re.IGNORECASE)
        if suffix and (not scales or int(suffix[2]) in scales):
            stem = suffix[1]
            scales.add(int(suffix[2]))
        return Match("lr" if scales <= {scale} else "other", "/".join(filter(None, [*folders, *below, stem])))
    return None


def _basicsr(path: PurePosixPath, scale: int) -> Match | None:
    """Set5/GTmod12/baby and Set5/LRbicx4/baby."""
    for index, part in enumerate(path.parts[:-1]):
        if match := re.fullmatch(r"gt(?:mod\d+)?|lrbicx(\d)", part, re.IGNORECASE):
            key = "/".join(path.parts[:index] + path.parts[index + 1 :])
            if match[1] is None:
                return Match("hr", key)
            return Match("lr" if int(match[1]) == scale else "other", key)
    return None


def _imagepairs(path: PurePosixPath, scale: int) -> Match | None:
    """0001_gt (HR) and 0001; or 0001_HR and 0001_LR."""
    match = re.fullmatch(r"(\d+)(?:_(gt|hr|lr))?", path.name, re.IGNORECASE)
    if not match:
        return None
    folders = [part for part in path.parts[:-1] if part.lower() not in {"gt", "hr", "lr"}]
    return Match("hr" if (match[2] or "").lower() in {"gt", "hr"} else "lr", "/".join([*folders, match[1]]))


LAYOUTS: Final[dict[str, Layout]] = {
    layout.name: layout
    for layout in (
        Layout("drealsr", "test_HR/NAME_x4.png and test_LR/NAME_x1.png", 4, _drealsr),
        Layout("super", "SCENE/MOTION/Bin1/NAME.png (HR) and SCENE/MOTION/Bin4/NAME.png", 4, _super),
        Layout("realsr", "Canon/Test/4/NAME_HR.png and NAME_LR4.png; LR at HR size or downscaled", 4, _realsr),
        Layout("folders", "HR/NAME.png and LR/NAME.png (or LR/x4/NAME.png)", 4, _folders),
        Layout(
            "div2k",
            "DIV2K_valid_HR/0801.png and DIV2K_valid_LR_bicubic/X4/0801x4.png; EDSR's HR/NAME.png and "
            "LR_bicubic/X4/NAMEx4.png",
            4,
            _div2k,
        ),
        Layout("basicsr", "GTmod12/NAME.png (HR) and LRbicx4/NAME.png", 4, _basicsr),
        Layout("imagepairs", "NUMBER_gt.png (HR) and NUMBER.png, or NUMBER_HR.png and NUMBER_LR.png", 2, _imagepairs),
    )
}
"""Layouts by name, in detection order: the first one that yields a pair is used."""


def find_pairs(folder: str | Path, *, layout: str = "auto", scale: int | None = None) -> Listing:
    """List the pairs of a folder, recursively.

    Args:
        folder: dataset root.
        layout: a name in LAYOUTS, or "auto" for the first layout that yields a pair.
        scale: HR size over LR size; None uses the layout's default.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: unknown layout, or no pair.
    """
    folder = Path(folder)
    if layout != "auto" and layout not in LAYOUTS:
        raise ValueError(f"layout must be one of auto, {', '.join(LAYOUTS)}, was {layout!r}")
    if not folder.is_dir():
        raise FileNotFoundError(f"data must be an existing folder of pairs, was {folder}")
    files = [PurePosixPath(file.name) for file in find_images([folder], unique=False)]
    candidates = list(LAYOUTS.values()) if layout == "auto" else [LAYOUTS[layout]]
    for candidate in candidates:
        listing = _list_pairs(candidate, candidate.default_scale if scale is None else scale, folder, files)
        if listing.pairs:
            return listing
    contents = ", ".join(map(str, files[:3])) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    summaries = "; ".join(f"{candidate.name}: {candidate.summary}" for candidate in candidates)
    of_scale = "" if scale is None else f" of scale {scale}"
    raise ValueError(
        f"{folder}: no pairs{of_scale} found ({summaries}; folders named Train are ignored). "
        f"It contains {contents or 'no images'}"
    )


def _list_pairs(layout: Layout, scale: int, folder: Path, files: list[PurePosixPath]) -> Listing:
    groups: dict[Role, defaultdict[str, list[PurePosixPath]]] = {
        "hr": defaultdict(list),
        "lr": defaultdict(list),
        "other": defaultdict(list),
    }
    listing = Listing(layout, scale)
    for file in files:
        training = any(re.fullmatch(r"(.+_)?train(ing)?([_x\d].*)?", part, re.IGNORECASE) for part in file.parts[:-1])
        match = None if training else layout.match(file.with_suffix(""), scale)
        if match is None:
            listing.ignored += 1
        else:
            groups[match.role][match.key].append(file)
    basenames = Counter(key.rpartition("/")[2] for key in groups["hr"])
    for key in sorted(groups["hr"].keys() | groups["lr"].keys()):
        hr, lr = groups["hr"][key], groups["lr"][key]
        basename = key.rpartition("/")[2]
        name = printable(basename if basenames[basename] == 1 else key)
        if len(hr) == 1 and len(lr) == 1:
            listing.pairs.append(PairFiles(name, folder / hr[0], folder / lr[0]))
        elif len(hr) > 1 or len(lr) > 1:
            role, duplicates = ("HR", hr) if len(hr) > 1 else ("LR", lr)
            listing.problems[name] = f"multiple {role} images: {', '.join(map(str, duplicates))}"
        elif not lr and groups["other"][key]:
            listing.ignored += 1  # HR whose only LR files are of another scale
        elif lr:
            listing.problems[name] = f"no HR image for {lr[0]}"
        else:
            listing.problems[name] = f"no LR image (x{scale}) for {hr[0]}"
    listing.ignored += sum(len(duplicates) for duplicates in groups["other"].values())
    return listing
