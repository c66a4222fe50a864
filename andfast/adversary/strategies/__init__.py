"""Strategies: how a training step makes LR from HR. One file each, behind :class:`Strategy`."""

from andfast.adversary.strategies.classical import Bicubic, CleanPooling
from andfast.adversary.strategies.fast import FastPGD
from andfast.adversary.strategies.lr_noise import LRNoise
from andfast.adversary.strategies.pgd import PGD
from andfast.adversary.strategies.random_point import FastRandomStart, PGDRandomStart, RandomPoint
from andfast.adversary.strategies.strategy import StepSeed, Strategy
from andfast.adversary.strategies.style_shift import StyleShift
from andfast.adversary.strategies.synthetic import Synthetic

__all__ = [
    "PGD",
    "Bicubic",
    "CleanPooling",
    "FastPGD",
    "FastRandomStart",
    "LRNoise",
    "PGDRandomStart",
    "RandomPoint",
    "StepSeed",
    "Strategy",
    "StyleShift",
    "Synthetic",
]
