"""What tests of strategies share: building one, the LR it makes, and comparing nested tensors."""

from typing import Any

import torch
from small_steps import make
from torch import Tensor
from torch.utils._pytree import tree_flatten

from andfast.adversary import Attack
from andfast.adversary.strategies import StepSeed, Strategy
from andfast.config.adversary import AdversaryConfig
from andfast.training.build import build_strategy
from andfast.training.step import TrainingStep

SEED = StepSeed((1, 0, 7))


def strategy(name: Any, **settings: Any) -> Strategy:
    return build_strategy(AdversaryConfig(strategy=name, **settings))


def step_of(name: Any, **options: Any) -> TrainingStep:
    return make(strategy=strategy(name), **options)


def lr_of(made_by: Strategy, attack: Attack, hr: Tensor, seed: StepSeed = SEED) -> tuple[Tensor, Tensor]:
    return made_by.degrade(attack, hr, made_by.search(attack, hr, made_by.draw(attack, hr, seed))[1])


def tree_leaves(tree: Any) -> list[Tensor]:
    """Its tensors."""
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


def assert_equal(a: Any, b: Any) -> None:
    for ours, theirs in zip(tree_leaves(a), tree_leaves(b), strict=True):
        assert torch.equal(ours, theirs)
