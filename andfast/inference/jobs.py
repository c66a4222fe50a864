"""Which images to restore and where to write the results, resolved and checked before anything runs."""

import glob
import logging
import os
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path, PurePath

from andfast.data.images import SUFFIXES
from andfast.data.sources import walk_files
from andfast.files import printable
from andfast.inference.writers import FORMATS, format_of

OTHER_SUFFIXES = frozenset({".gif", ".avif", ".heic", ".heif", ".jp2", ".jxl", ".psd", ".svg", ".dng", ".exr", ".hdr"})
"""Suffixes of images that are not supported: skipped in folders with a warning."""

_MAGIC = "*?["
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """An image to restore.

    Attributes:
        source: Image file.
        target: File to write.
        inside: Folder that must contain the target, with links resolved; None if the target was named explicitly.
    """

    source: Path
    target: Path
    inside: Path | None


def find_jobs(inputs: Sequence[str], output: str | Path, *, format_: str | None = None) -> list[Job]:
    """List the images of the inputs and their targets.

    Args:
        inputs: Files, folders (searched recursively; subfolders are kept in the output) and glob patterns, in which
            ``**`` matches any subfolders.
        output: Folder, or, for a single input file, the file to write (recognised by its suffix).
        format_: Suffix of the results without the dot; None keeps the suffix of each image (.bmp becomes .png).

    Raises:
        FileNotFoundError: An input matches nothing.
        ValueError: A suffix cannot be written, two images have the same target, or the output is an input.
    """
    output = Path(output)
    if format_ is not None and format_ not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, was {format_!r}")
    single = len(inputs) == 1 and Path(inputs[0]).is_file()
    if single and output.suffix and not output.is_dir():
        if format_ is not None and format_of(f"x.{format_}") != format_of(output):
            raise ValueError(f"format must match the output {str(output)!r}, was {format_!r}")
        format_of(output)
        return [_checked(Job(Path(inputs[0]), output, None))]
    if not output.is_dir() and output.suffix.lower().removeprefix(".") in FORMATS:
        raise ValueError(f"output must be a folder unless the input is a single file, was {str(output)!r}")
    if output.exists() and not output.is_dir():
        raise ValueError(f"output must be a folder, {str(output)!r} is a file")
    jobs: dict[Path, Job] = {}
    for source, name in (pair for text in inputs for pair in _images(text, output)):
        job = _checked(Job(source, output / _renamed(name, format_), output))
        earlier = jobs.setdefault(job.target, job)
        if earlier is not job and not os.path.samefile(earlier.source, job.source):
            raise ValueError(
                f"inputs must have different targets, {str(earlier.source)!r} and {str(job.source)!r} would both be "
                f"written to {str(job.target)!r}"
            )
    if not jobs:
        raise FileNotFoundError(
            f"input must contain images ({', '.join(sorted(SUFFIXES))}), {', '.join(map(repr, inputs))} does not"
        )
    return list(jobs.values())


def _images(text: str, output: Path) -> list[tuple[Path, PurePath]]:
    """The files of one input, each with its name in the output."""
    path = Path(text)
    if path.is_file():
        return [(path, PurePath(path.name))]
    if path.is_dir():
        if output.is_dir() and os.path.samefile(path, output):
            raise ValueError(f"output must be a different folder than the input, was {str(output)!r}")
        images = [(path / name, PurePath(name)) for name in sorted(walk_files(path, SUFFIXES, unique=False))]
        _log_skipped(path / name for name in sorted(walk_files(path, OTHER_SUFFIXES, unique=False)))
    elif any(character in text for character in _MAGIC):
        root = _fixed_part(text)
        matches = [file for file in map(Path, sorted(glob.glob(text, recursive=True))) if file.is_file()]
        images = [(file, PurePath(os.path.relpath(file, root))) for file in matches if _has_suffix(file, SUFFIXES)]
        _log_skipped(file for file in matches if _has_suffix(file, OTHER_SUFFIXES))
        if not images:
            raise FileNotFoundError(f"input {text!r} must match images, it matches none")
    else:
        raise FileNotFoundError(f"input must be an existing file or folder or a glob pattern, was {text!r}")
    # Results of an earlier run in an output folder inside the input are not inputs.
    inside = os.path.realpath(output) + os.sep
    return [pair for pair in images if not os.path.realpath(pair[0]).startswith(inside)]


def _has_suffix(file: Path, suffixes: AbstractSet[str]) -> bool:
    return file.suffix.lower() in suffixes


def _log_skipped(files: Iterable[Path]) -> None:
    for file in files:
        _LOG.warning(printable(f"{file}: skipped: {file.suffix[1:].upper()} is not a supported format"))


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
    suffix = name.suffix.lower().removeprefix(".")
    return name if suffix in FORMATS else name.with_suffix(".jpg" if suffix in {"jpe", "jfif"} else ".png")


def _checked(job: Job) -> Job:
    if job.target.exists() and os.path.samefile(job.source, job.target):
        raise ValueError(f"output must be a different file than the input, was {str(job.target)!r}")
    return job
