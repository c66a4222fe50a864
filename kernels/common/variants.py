"""Kernel variants whose configuration comes from an op's table ``TABLE[architecture][kernel, precision]``."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final, TypeVar

from .compilation import image_kernel_options
from .config import PRECISIONS, KernelConfig

Table = Mapping[str, Mapping[tuple[str, str], KernelConfig]]

DTYPES: Final = {"half": ("bf16", "fp16"), "tf32": ("fp32",), "tf32x3": ("fp32",)}
"""Dtypes of x by precision."""


@dataclass(frozen=True)
class TableVariant:
    """One kernel with a configuration of the table; subclasses add block sizes, ``name`` and ``source``."""

    table: ClassVar[Table]

    architecture: str
    kernel: str
    precision: str
    dtype: str
    layout: str = field(default="aligned", kw_only=True)
    """"aligned", "odd" or "general", see :func:`~.compilation.image_kernel_source`."""

    @property
    def config(self) -> KernelConfig:
        return self.table[self.architecture][self.kernel, self.precision]

    @property
    def dot_precision(self) -> str:
        """Input precision of fp32 products; ignored for half types."""
        return "tf32" if self.precision == "half" else self.precision

    def options(self) -> dict[str, int]:
        return image_kernel_options(self.config, self.layout)

    def register_ceiling(self) -> int:
        return self.options()["maxnreg"]


V = TypeVar("V", bound=TableVariant)


def table_variants(
    table: Table, architecture: str, kernels: Sequence[str], variants: Callable[[str, str, str], Iterable[V]]
) -> list[V]:
    """All variants for an architecture, given those of a kernel and precision; none if the table lacks it."""
    if architecture not in table:
        return []
    return [
        variant
        for kernel, precision in itertools.product(kernels, PRECISIONS)
        for variant in variants(architecture, kernel, precision)
    ]
