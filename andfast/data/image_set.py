"""The set of training images of a run, to be recorded and compared when the run is resumed.

A pack that holds the recorded set is complete: a run can be resumed from it without its sources.
"""

import hashlib
import json
from collections.abc import Mapping

from andfast.data.pack_update import shown
from andfast.data.store import PackedImages


def image_set(images: PackedImages) -> dict[str, str]:
    """Name of each image to its size and the digest of its pixels, in the order of the pack.

    Raises:
        ValueError: The pack has format version 1, without digests; pack again to add them.
    """
    if not all(images.digests):
        raise ValueError(f"{images.path} must have digests, has format version 1: pack again to add them")
    return {
        name: f"{width}x{height} {digest}"
        for name, (height, width), digest in zip(images.names, images.sizes.tolist(), images.digests, strict=True)
    }


def image_set_digest(images: Mapping[str, str]) -> str:
    """SHA-256 (hexadecimal) of an :func:`image_set`, its order included."""
    return hashlib.sha256(json.dumps(list(images.items())).encode()).hexdigest()


def describe_changes(recorded: Mapping[str, str], current: Mapping[str, str]) -> str | None:
    """How a set of images differs from the recorded one, or None: "1 missing (a.png), 2 new (b.png, c.png)"."""
    groups = {
        "missing": [name for name in recorded if name not in current],
        "new": [name for name in current if name not in recorded],
        "changed": [name for name in recorded if name in current and recorded[name] != current[name]],
    }
    parts = [f"{len(names)} {text} ({shown(names)})" for text, names in groups.items() if names]
    if not parts and list(recorded) != list(current):
        parts.append("another order")
    return ", ".join(parts) or None
