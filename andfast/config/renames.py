"""Renamed settings: an old name raises with the new one; the config.yaml of an old run is translated."""

from collections.abc import Mapping
from typing import Any, Final

RENAMED: Final = {
    "adversary.images_at_once": "adversary.chunk_size",
    "sharing": "reuse",
    "sharing.cast_weights": "reuse.cast_weights",
    "sharing.discriminator_pass": "reuse.discriminator_pass",
    "sharing.hr_features": "reuse.hr_features",
    "sharing.identity_pass": "reuse.closed_form_first_step",
}
"""Old dotted name to new dotted name, settings and groups."""

_ORIGINAL: Final = {new: old for old, new in RENAMED.items()}


def renamed(name: str) -> str | None:
    """The error message for a setting's old name, None for any other name."""
    return f"{name} was renamed to {RENAMED[name]}" if name in RENAMED else None


def original_name(name: str) -> str:
    """The first name of a setting; digests use it, so that old checkpoints stay valid."""
    return _ORIGINAL.get(name, name)


def translate(settings: Mapping[Any, Any]) -> dict[Any, Any]:
    """Settings as read from a file, with old names replaced by the new ones at both levels."""
    translated: dict[Any, Any] = {}
    for group, value in settings.items():
        members = value
        if isinstance(value, Mapping):
            members = {RENAMED.get(f"{group}.{key}", f".{key}").partition(".")[2]: item for key, item in value.items()}
        translated[RENAMED.get(group, group)] = members
    return translated
