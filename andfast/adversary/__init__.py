"""The adversary: identity networks, how far they may go, and the search for the worst of them."""

from andfast.adversary.ball import GROUPS, Ball, project
from andfast.adversary.identity import sample_identity
from andfast.adversary.pgd import Ascent, ascend
from andfast.adversary.presets import PRESETS, Preset, resized

__all__ = ["GROUPS", "PRESETS", "Ascent", "Ball", "Preset", "ascend", "project", "resized", "sample_identity"]
