"""Small generators and a comparison of state dicts, for tests of weight files."""

import torch
from torch import Tensor

from andfast.nn import RRDBNet


def small_generator(scale: int = 4, *, features: int = 8, blocks: int = 2, growth: int = 4) -> RRDBNet:
    torch.manual_seed(scale)
    return RRDBNet(scale, features=features, blocks=blocks, growth=growth)


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
