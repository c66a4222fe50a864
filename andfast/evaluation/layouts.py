"""Which files of a folder are pairs: the layouts of the field's benchmarks, recognised by themselves or named.

A layout is a rule that says of one file whether it is HR, LR or neither, and which key it shares with its twin.
Names count in either case. File endings do not count, nor do files under a folder ``Train`` (``Train_x4`` ...), which
are the benchmark's training part.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final, Literal, NamedTuple

from andfast.data.pack import printable
from andfast.data.sources import find_images

Role = Literal["hr", "lr", "other"]
"""What a file is: "other" is the LR, or both, of another scale."""


class Place(NamedTuple):
    """What a layout says of one file."""

    role: Role
    key: str


@dataclass(frozen=True)
class Layout:
    """A benchmark's way of naming pairs.

    Attributes:
        name: for ``--layout`` and reports.
        summary: one line, with an example.
        default_scale: the scale where neither the user nor the weights name one.
        place: (relative path without ending, scale) to what the file is, or None for neither.
    """

    name: str
    summary: str
    default_scale: int
    place: Callable[[PurePosixPath, int], Place | None]


@dataclass(frozen=True)
class PairFiles:
    """Two files that belong together; ``name`` is what they share, a file name or a path, made printable."""

    name: str
    hr: Path
    lr: Path


@dataclass
class Listing:
    """What was found in a folder.

    Attributes:
        layout, scale: by which it was read.
        pairs: by name.
        problems: "name: reason" of files that have no single twin.
        ignored: how many pictures the layout has no use for (training parts, other scales, other names).
    """

    layout: Layout
    scale: int
    pairs: list[PairFiles] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    ignored: int = 0


def _folders(path: PurePosixPath, scale: int) -> Place | None:
    """HR/a and LR/a; LR/x4/a too."""
    for number, part in enumerate(path.parts[:-1]):
        if part.lower() in {"hr", "lr"}:
            rest = list(path.parts[:number] + path.parts[number + 1 :])
            if number < len(rest) - 1 and (other := re.fullmatch(r"x(\d+)", rest[number].lower())):
                if int(other[1]) != scale:
                    return Place("other", "/".join(rest))
                del rest[number]
            return Place("hr" if part.lower() == "hr" else "lr", "/".join(rest))
    return None


def _realsr(path: PurePosixPath, scale: int) -> Place | None:
    """Canon/Test/4/Canon_001_HR and Canon_001_LR4, in one folder or under HR/ and LR/."""
    match = re.fullmatch(r"(.+)_(?:(hr)|lr(\d))", path.name, re.IGNORECASE)
    if not match:
        return None
    key = "/".join([part for part in path.parts[:-1] if part.lower() not in {"hr", "lr"}] + [match[1]])
    if match[2]:
        return Place("hr", key)
    return Place("lr" if int(match[3]) == scale else "other", key)


def _drealsr(path: PurePosixPath, scale: int) -> Place | None:
    """Test_x4/test_HR/DSC_1_x4 and Test_x4/test_LR/DSC_1_x1; the ending of either may be x1, or the scale, or none."""
    roles = {"test_hr": "hr", "test_lr": "lr"}
    role = next((roles[part.lower()] for part in path.parts[:-1] if part.lower() in roles), None)
    if role is None:
        return None
    folders = [part for part in path.parts[:-1] if part.lower() not in roles]
    key = "/".join([*folders, re.sub(r"_x\d$", "", path.name, flags=re.IGNORECASE)])
    scales = [int(match[1]) for part in folders if (match := re.fullmatch(r".*x(\d)", part, re.IGNORECASE))]
    if scales and scales[-1] != scale:
        return Place("other", key)
    return Place("hr" if role == "hr" else "lr", key)


def _super(path: PurePosixPath, scale: int) -> Place | None:
    """scene/motion/Bin1/0001 (HR) and scene/motion/Bin4/0001; Bin4QP10, compressed, counts as another scale."""
    for number, part in enumerate(path.parts[:-1]):
        if match := re.fullmatch(r"bin(\d)(.*)", part, re.IGNORECASE):
            stem = re.sub(rf"bin{match[1]}", "bin", path.name, flags=re.IGNORECASE)
            key = "/".join([*path.parts[:number], *path.parts[number + 1 : -1], stem])
            if match[2] or match[1] not in {"1", str(scale)}:
                return Place("other", key)
            return Place("hr" if match[1] == "1" else "lr", key)
    return None


def _imagepairs(path: PurePosixPath, scale: int) -> Place | None:
    """0001_gt (HR) and 0001; or 0001_HR and 0001_LR."""
    match = re.fullmatch(r"(\d+)(?:_(gt|hr|lr))?", path.name, re.IGNORECASE)
    if not match:
        return None
    folders = [part for part in path.parts[:-1] if part.lower() not in {"gt", "hr", "lr"}]
    return Place("hr" if (match[2] or "").lower() in {"gt", "hr"} else "lr", "/".join([*folders, match[1]]))


LAYOUTS: Final[dict[str, Layout]] = {
    layout.name: layout
    for layout in (
        Layout("drealsr", "test_HR/NAME_x4.png and test_LR/NAME_x1.png", 4, _drealsr),
        Layout("super", "SCENE/MOTION/Bin1/NAME.png (HR) and SCENE/MOTION/Bin4/NAME.png", 4, _super),
        Layout("realsr", "Canon/Test/4/NAME_HR.png and NAME_LR4.png; LR of HR's size or reduced", 4, _realsr),
        Layout("folders", "HR/NAME.png and LR/NAME.png (or LR/x4/NAME.png)", 4, _folders),
        Layout("imagepairs", "NUMBER_gt.png (HR) and NUMBER.png, or NUMBER_HR.png and NUMBER_LR.png", 2, _imagepairs),
    )
}
"""By name, in the order in which they are tried: the first one that finds a pair is taken."""


def find_pairs(folder: str | Path, *, layout: str = "auto", scale: int | None = None) -> Listing:
    """List the pairs of a folder, searched in depth.

    Args:
        folder: what holds the pairs.
        layout: a name in LAYOUTS, or "auto" for the first that finds a pair.
        scale: HR size over LR size; None takes the layout's default.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no such layout, or no pair.
    """
    folder = Path(folder)
    if layout != "auto" and layout not in LAYOUTS:
        raise ValueError(f"layout must be auto, {', '.join(LAYOUTS)}, was {layout!r}")
    if not folder.is_dir():
        raise FileNotFoundError(f"data must be a folder of pairs, there is none at {folder}")
    files = [PurePosixPath(file.name) for file in find_images([folder])]
    tried = LAYOUTS.values() if layout == "auto" else [LAYOUTS[layout]]
    for one in tried:
        listing = _listing(one, one.default_scale if scale is None else scale, folder, files)
        if listing.pairs:
            return listing
    shown = ", ".join(str(file) for file in files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    ways = "; ".join(f"{one.name}: {one.summary}" for one in tried)
    wanted = "" if scale is None else f" of scale {scale}"
    raise ValueError(
        f"{folder} holds no pairs{wanted} ({ways}; not below a folder Train). It holds {shown or 'no pictures'}"
    )


def _listing(layout: Layout, scale: int, folder: Path, files: list[PurePosixPath]) -> Listing:
    found: dict[Role, defaultdict[str, list[PurePosixPath]]] = {
        "hr": defaultdict(list),
        "lr": defaultdict(list),
        "other": defaultdict(list),
    }
    listing = Listing(layout, scale)
    for file in files:
        training = any(re.fullmatch(r"train(ing)?([_x\d].*)?", part, re.IGNORECASE) for part in file.parts[:-1])
        place = None if training else layout.place(file.with_suffix(""), scale)
        if place is None:
            listing.ignored += 1
        else:
            found[place.role][place.key].append(file)
    names = Counter(key.rpartition("/")[2] for key in found["hr"])
    for key in sorted(found["hr"].keys() | found["lr"].keys()):
        hr, lr = found["hr"][key], found["lr"][key]
        short = key.rpartition("/")[2]
        name = printable(short if names[short] == 1 else key)
        if len(hr) == 1 and len(lr) == 1:
            listing.pairs.append(PairFiles(name, folder / hr[0], folder / lr[0]))
        elif len(hr) > 1 or len(lr) > 1:
            role, several = ("HR", hr) if len(hr) > 1 else ("LR", lr)
            listing.problems[name] = f"several {role} pictures: {', '.join(map(str, several))}"
        elif not lr and found["other"][key]:
            listing.ignored += 1  # of another scale only
        elif lr:
            listing.problems[name] = f"no HR picture beside {lr[0]}"
        else:
            listing.problems[name] = f"no LR picture (x{scale}) beside {hr[0]}"
    listing.ignored += sum(len(several) for several in found["other"].values())
    return listing
