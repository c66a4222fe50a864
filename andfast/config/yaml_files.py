"""YAML of configuration files: read safely and strictly, written so that jsonargparse reads the same back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

_MOST_NODES: Final = 100_000


class ConfigError(ValueError):
    """A configuration or a command line that cannot be used; its text is one line."""


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping safely: foreign tags, repeated keys and anything but a mapping are refused.

    Raises:
        ConfigError: the file cannot be read as such; the text names the file and the line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None:
            _check(node, path, {})
        found = yaml.safe_load(text)
    except FileNotFoundError:
        raise ConfigError(f"--config must be a YAML file, {str(path)!r} does not exist") from None
    except IsADirectoryError:
        raise ConfigError(f"--config must be a YAML file, {str(path)!r} is a folder") from None
    except OSError as error:
        raise ConfigError(f"--config {str(path)!r} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not YAML, the file is not UTF-8 text (byte {error.start})") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{where}: not valid YAML: {one_line(error.problem or error.context)}") from error
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        # Deep nesting, or what a tag makes of a value that is not its own: a date that is none, a set of a list.
        raise ConfigError(f"{path}: not valid YAML: {one_line(str(error))}") from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: must hold settings, 'name: value' lines, was a {type(found).__name__}")
    return found


def write_yaml(tree: Mapping[str, Any]) -> str:
    """Plain values as YAML text, in their order."""
    text: str = yaml.dump(dict(tree), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
    return text


def means_null(text: str) -> bool:
    """Whether jsonargparse, which reads texts of settings that can be null as YAML again, makes it null."""
    try:
        return yaml.safe_load(text) is None
    except (yaml.YAMLError, ValueError):
        return False


def one_line(text: str) -> str:
    """Text without line breaks and runs of blanks."""
    return " ".join(text.split())


def _check(node: Any, path: Path, counted: dict[int, int]) -> int:
    """Refuse repeated keys, of which YAML takes the last without a word, and aliases that multiply or hold themselves.

    Returns:
        How many nodes there are once aliases are written out; ``counted`` remembers it of each node.
    """
    if (known := counted.get(id(node))) is not None:
        if known == 0:
            raise ConfigError(
                f"{path}, line {node.start_mark.line + 1}: not valid YAML: an alias within what it stands for"
            )
        return known
    counted[id(node)] = 0  # begun
    children = node.value if isinstance(node, yaml.SequenceNode) else []
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise ConfigError(f"{path}, line {key.start_mark.line + 1}: {key.value!r} is given twice")
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
            children = [*children, key, value]
    count = 1 + sum(_check(child, path, counted) for child in children)
    if count > _MOST_NODES:
        raise ConfigError(
            f"{path}, line {node.start_mark.line + 1}: more than {_MOST_NODES} values, through aliases or not"
        )
    counted[id(node)] = count
    return count


class _Dumper(yaml.SafeDumper):
    """YAML as jsonargparse reads it back: text that its looser rules would take for a number is quoted."""

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
