"""Which pictures are to be restored, and where each result goes: decided, and refused, before anything runs."""

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from andfast.data.images import SUFFIXES
from andfast.data.sources import find_images
from andfast.inference.writers import FORMATS, format_of

_MAGIC = "*?["


@dataclass(frozen=True)
class Job:
    """A picture to restore.

    Attributes:
        source: the file.
        target: the file to write.
        inside: the folder that the target must not leave, links included; None where the target was named itself.
    """

    source: Path
    target: Path
    inside: Path | None


def find_jobs(inputs: Sequence[str], output: str | Path, *, format_: str | None = None) -> list[Job]:
    """List the pictures of the inputs and their targets.

    Args:
        inputs: files, folders (searched through; sub-folders are kept in the output) and glob patterns, in which ``**``
            stands for any sub-folders.
        output: a folder, or, for a single file, the file to write, told by its ending.
        format_: the ending of the results, without the dot; None keeps each picture's own (.bmp becomes .png).

    Raises:
        FileNotFoundError: an input names nothing.
        ValueError: an ending cannot be written; several pictures are to become one file; the output is an input.
    """
    output = Path(output)
    if format_ is not None and format_ not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, was {format_!r}")
    single = len(inputs) == 1 and Path(inputs[0]).is_file()
    if single and output.suffix and not output.is_dir():
        if format_ is not None and format_of(f"x.{format_}") != format_of(output):
            raise ValueError(f"format must be that of the output {str(output)!r}, was {format_!r}")
        format_of(output)
        return [_checked(Job(Path(inputs[0]), output, None))]
    if not output.is_dir() and output.suffix.lower().removeprefix(".") in FORMATS:
        raise ValueError(f"output must be a folder for inputs that are not a single file, was {str(output)!r}")
    if output.exists() and not output.is_dir():
        raise ValueError(f"output must be a folder, {str(output)!r} is a file")
    jobs: dict[Path, Job] = {}
    for source, name in (pair for one in inputs for pair in _pictures(one, output)):
        job = _checked(Job(source, output / _renamed(name, format_), output))
        other = jobs.setdefault(job.target, job)
        if other is not job and not os.path.samefile(other.source, job.source):
            raise ValueError(
                f"inputs must become different files, {str(other.source)!r} and {str(job.source)!r} would both be "
                f"{str(job.target)!r}"
            )
    if not jobs:
        raise FileNotFoundError(f"input must hold pictures ({', '.join(sorted(SUFFIXES))}), {_quoted(inputs)} does not")
    return list(jobs.values())


def _pictures(text: str, output: Path) -> list[tuple[Path, PurePath]]:
    """The files of one input, and their names in the output."""
    path = Path(text)
    if path.is_file():
        return [(path, PurePath(path.name))]
    if path.is_dir():
        if output.is_dir() and os.path.samefile(path, output):
            raise ValueError(f"output must be another folder than the input, was {str(output)!r}")
        found = [(path / one.name, PurePath(one.name)) for one in find_images([path])]
    elif any(character in text for character in _MAGIC):
        root = _fixed_part(text)
        names = sorted(glob.glob(text, recursive=True))
        found = [
            (file, PurePath(os.path.relpath(file, root)))
            for file in map(Path, names)
            if file.suffix.lower() in SUFFIXES and file.is_file()
        ]
        if not found:
            raise FileNotFoundError(f"input {text!r} must match pictures, it matches none")
    else:
        raise FileNotFoundError(f"input must be a file, a folder or a glob pattern, there is no {text!r}")
    # Results of an earlier run in a folder within the input are no pictures to restore.
    inside = os.path.realpath(output) + os.sep
    return [pair for pair in found if not os.path.realpath(pair[0]).startswith(inside)]


def _fixed_part(pattern: str) -> Path:
    """The folder of a glob pattern before its first wildcard."""
    fixed = Path()
    for part in Path(pattern).parts[:-1]:
        if any(character in part for character in _MAGIC):
            break
        fixed /= part
    return fixed


def _renamed(name: PurePath, format_: str | None) -> PurePath:
    if format_ is not None:
        return name.with_suffix(f".{format_}")
    own = name.suffix.lower().removeprefix(".")
    return name if own in FORMATS else name.with_suffix(".jpg" if own in {"jpe", "jfif"} else ".png")


def _checked(job: Job) -> Job:
    if job.target.exists() and os.path.samefile(job.source, job.target):
        raise ValueError(f"output must be another file than the input, was {str(job.target)!r}")
    return job


def _quoted(inputs: Sequence[str]) -> str:
    return ", ".join(map(repr, inputs))
