"""Renamed and removed settings: an old name raises with the new one, or with the reason for its removal.

The config.yaml of an old run is translated, as far as its values are still possible.
"""

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

REMOVED: Final = {
    "adversary.precision": (
        "same",
        "fp8 was not faster than bf16 by count, and never timed (docs/method.md); runs with 'same' resume as they are",
    ),
    "adversary.objective": (
        "plain",
        "an attack on SR aligned with HR trains no better G (docs/method.md); runs with 'plain' resume as they are",
    ),
}
"""Dotted name of a removed setting to the value that is now the only behavior, and the reason."""

_ORIGINAL: Final = {new: old for old, new in RENAMED.items()}


def outdated(name: str) -> str | None:
    """The error message for a setting's old name or a removed setting, None for any other name."""
    if name in REMOVED:
        return f"{name} was removed: {REMOVED[name][1]}"
    return f"{name} was renamed to {RENAMED[name]}" if name in RENAMED else None


def original_name(name: str) -> str:
    """The first name of a setting; digests use it, so that old checkpoints stay valid."""
    return _ORIGINAL.get(name, name)


def translate(settings: Mapping[Any, Any]) -> dict[Any, Any]:
    """Settings as read from a file, with old names replaced by the new ones at both levels.

    Removed settings are left out if they have the value that is now the only behavior; others stay, and raise.
    """
    translated: dict[Any, Any] = {}
    for group, value in settings.items():
        members = value
        if isinstance(value, Mapping):
            members = {
                RENAMED.get(f"{group}.{key}", f".{key}").partition(".")[2]: item
                for key, item in value.items()
                if REMOVED.get(f"{group}.{key}", (..., ""))[0] != item
            }
        translated[RENAMED.get(group, group)] = members
    return translated
