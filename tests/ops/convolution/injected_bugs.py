"""One emulator of a driver with many bugs in its kernels, each of which a run can switch on."""

import ctypes
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from convolution_emulator import SOURCES, compiled


class Change(NamedTuple):
    """Text of a kernel's file and its replacement, in which BUG is true while the bug is on."""

    file: str
    before: str
    after: str


def without(file: str, statement: str) -> Change:
    """The bug of a missing statement."""
    indent = statement[: len(statement) - len(statement.lstrip())]
    return Change(file, statement, f"{indent}if (!BUG) {statement.lstrip()}")


class BuggyEmulator:
    """The library of ``driver`` with all of ``bugs``, which changes no case as long as none is on."""

    def __init__(self, folder: Path, driver: str, bugs: Iterable[list[Change]], *flags: str) -> None:
        sources = folder / "convolution"
        shutil.copytree(SOURCES, sources)
        for number, changes in enumerate(bugs, 1):
            for file, before, after in changes:
                text = (sources / file).read_text()
                assert before in text, f"{file} has no {before!r}"
                assert "BUG" in after
                text = text.replace(before, after.replace("BUG", f"(injected_bug == {number})"))
                (sources / file).write_text(text)
        (sources / "injected_bug.h").write_text('extern "C" {\nint injected_bug = 0;\n}\n')
        self.library = compiled(driver, sources, "-O1", "-include", "injected_bug.h", *flags)

    @contextmanager
    def bug(self, number: int) -> Iterator[ctypes.CDLL]:
        """The library with the bug of this number, counted from 1, or with none for 0."""
        switch = ctypes.c_int.in_dll(self.library, "injected_bug")
        switch.value = number
        try:
            yield self.library
        finally:
            switch.value = 0
