"""The table in kernels/degradation_block/configs.py as text, so that a benchmark can regenerate it from values."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from andfast.kernels.common.config import KernelConfig

FILE: Final = Path(__file__).resolve().parents[2] / "kernels" / "degradation_block" / "configs.py"
PROGRAMS: Final = "programs"
"""The first field with a default."""
_SECTION: Final = re.compile(r"(?<=# fmt: off\n)TABLE: .*?(?=# fmt: on\n)", re.DOTALL)

Table = Mapping[str, Mapping[tuple[str, str], KernelConfig]]


def config_text(config: KernelConfig) -> str:
    """The call that makes a configuration: what has no default and ``programs`` by position, others by name."""
    defaults: Mapping[str, Any] = KernelConfig._field_defaults
    changed = {name: value for name, value in config._asdict().items() if value != defaults.get(name)}
    by_position = [name for name in KernelConfig._fields if name not in defaults]
    if PROGRAMS in changed:
        by_position.append(PROGRAMS)
    named = [f"{name}={_literal(value)}" for name, value in changed.items() if name not in by_position]
    return f"KernelConfig({', '.join([*(str(getattr(config, name)) for name in by_position), *named])})"


def _literal(value: int | str) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def table_text(table: Table) -> str:
    """The assignment to TABLE, as it stands between the formatter's marks."""
    lines = ["TABLE: Final[dict[str, dict[tuple[str, str], KernelConfig]]] = {"]
    for architecture, entries in table.items():
        lines.append(f'    "{architecture}": {{')
        lines += [
            f'        ("{kernel}", "{kind}"): {config_text(config)},' for (kernel, kind), config in entries.items()
        ]
        lines.append("    },")
    return "\n".join([*lines, "}"]) + "\n"


def rewritten(source: str, table: Table) -> str:
    """The source of configs.py with another table.

    Raises:
        ValueError: the source has no table between ``# fmt: off`` and ``# fmt: on``.
    """
    if len(_SECTION.findall(source)) != 1:
        raise ValueError("source must hold one TABLE between '# fmt: off' and '# fmt: on'")
    return _SECTION.sub(lambda _: table_text(table), source)
