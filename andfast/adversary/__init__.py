"""The adversary: identity networks, the ball around them, and the attack that searches it."""

from andfast.adversary.attack import AdversarialBatch, Attack, AttackSettings, ReuseOptions, Start
from andfast.adversary.ball import GROUPS, Ball, ConvolutionRadii, project
from andfast.adversary.identity import sample_identity, seeded_generator
from andfast.adversary.objective import Objective, Targets
from andfast.adversary.pgd import Ascent, ascend
from andfast.adversary.presets import PRESETS, Preset, resized

__all__ = [
    "GROUPS",
    "PRESETS",
    "AdversarialBatch",
    "Ascent",
    "Attack",
    "AttackSettings",
    "Ball",
    "ConvolutionRadii",
    "Objective",
    "Preset",
    "ReuseOptions",
    "Start",
    "Targets",
    "ascend",
    "project",
    "resized",
    "sample_identity",
    "seeded_generator",
]
