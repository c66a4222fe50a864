"""YAML of configuration files: safe and strict reading, and writing that jsonargparse reads back unchanged."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from andfast.config.errors import ConfigError, one_line

_MAX_NODES: Final = 100_000


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping, without foreign tags and repeated keys.

    Raises:
        ConfigError: the file cannot be read, or is not such a mapping; the message names the file and the line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"--config must be a YAML file, {str(path)!r} does not exist") from None
    except IsADirectoryError:
        raise ConfigError(f"--config must be a YAML file, {str(path)!r} is a folder") from None
    except OSError as error:
        raise ConfigError(f"--config {str(path)!r} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not YAML, the file is not UTF-8 text (byte {error.start})") from error
    return parse_yaml(text, path)


def parse_yaml(text: str, path: str | Path) -> dict[str, Any]:
    """As :func:`read_yaml`, from the text of a file; ``path`` names it in errors."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None:
            _check(node, path, {})
        settings = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{where}: not valid YAML: {one_line(error.problem or error.context)}") from error
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        # Deep nesting, or a value that its tag cannot represent: an impossible date, a set made from a list.
        raise ConfigError(f"{path}: not valid YAML: {one_line(str(error))}") from error
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: must hold settings, 'name: value' lines, was a {type(settings).__name__}")
    return settings


def write_yaml(tree: Mapping[str, Any]) -> str:
    """Serialize plain values as YAML, in their order."""
    text: str = yaml.dump(dict(tree), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
    return text


def means_null(text: str) -> bool:
    """Whether jsonargparse would turn a text into null: it parses texts of optional settings as YAML once more."""
    try:
        return yaml.safe_load(text) is None
    except (yaml.YAMLError, ValueError):
        return False


def _check(node: Any, path: str | Path, counted: dict[int, int]) -> int:
    """Check for repeated keys, of which YAML silently keeps the last, and for recursive or exploding aliases.

    Args:
        counted: results by node id, 0 for nodes being counted.

    Returns:
        The number of nodes with aliases expanded.
    """
    if (count := counted.get(id(node))) is not None:
        if count == 0:
            raise ConfigError(
                f"{path}, line {node.start_mark.line + 1}: not valid YAML: an alias within what it stands for"
            )
        return count
    counted[id(node)] = 0
    children = node.value if isinstance(node, yaml.SequenceNode) else []
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise ConfigError(f"{path}, line {key.start_mark.line + 1}: {key.value!r} is given twice")
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
            children = [*children, key, value]
    count = 1 + sum(_check(child, path, counted) for child in children)
    if count > _MAX_NODES:
        raise ConfigError(
            f"{path}, line {node.start_mark.line + 1}: more than {_MAX_NODES} values, through aliases or not"
        )
    counted[id(node)] = count
    return count


class _Dumper(yaml.SafeDumper):
    """Quotes texts that jsonargparse, whose rules are looser than YAML 1.1, would read as numbers."""

    def ignore_aliases(self, _data: object) -> bool:
        return True


def _text(dumper: Any, value: str) -> Any:
    style = None
    if not value.isprintable():
        style = '"'
    elif value and (value[0].isdigit() or value[0] in "+-._"):
        style = "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)
