"""degradation_block: errors for invalid arguments, and selection of the implementation."""

from typing import Any

import pytest
import torch
from degradation_block_cases import Calls, make

from andfast.functional import degradation_block


def arguments() -> dict[str, Any]:
    return {name: tensor.detach() for name, tensor in make(2, 3, 5, 4, 7, dtype=torch.float32).items()}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": None}, TypeError, r"x must be a torch\.Tensor, was NoneType"),
        ({"x": torch.zeros(3, 4, 7)}, ValueError, r"x must have shape \(N, C, H, W\), was \(3, 4, 7\)"),
        (
            {"x": torch.zeros(2, 3, 4, 7, dtype=torch.uint8)},
            TypeError,
            r"x must be a floating-point tensor, was torch\.uint8",
        ),
        ({"x": torch.zeros(2, 3, 0, 7)}, ValueError, r"x must have H and W of at least 1, had shape \(2, 3, 0, 7\)"),
        ({"weight": [1.0]}, TypeError, r"weight must be a torch\.Tensor, was list"),
        (
            {"weight": torch.zeros(2, 5, 3, 3, 3, dtype=torch.float64)},
            TypeError,
            r"weight must have the dtype of x, torch\.float32, was torch\.float64",
        ),
        (
            {"weight": torch.zeros(2, 5, 3, 3, 3, device="meta")},
            ValueError,
            "weight must be on the device of x, cpu, was on meta",
        ),
        *(
            ({"weight": torch.zeros(shape)}, ValueError, r"weight must have shape .*, was \(" + str(shape)[1:-1])
            for shape in ((2, 5, 4, 3, 3), (3, 5, 3, 3, 3), (2, 5, 3, 5, 5), (3, 3, 3), (5, 4, 3, 3))
        ),
        ({"slope": "steep"}, TypeError, r"slope must be a number or a torch\.Tensor, was str"),
        ({"slope": None}, TypeError, r"slope must be a number or a torch\.Tensor, was NoneType"),
        (
            {"slope": torch.ones(2, dtype=torch.int64)},
            TypeError,
            r"slope must be a floating-point tensor, was torch\.int64",
        ),
        (
            {"slope": torch.ones(5)},
            ValueError,
            r"slope must have shape \(\), \(N,\) or \(N, Cout\), here \(\) or \(2,\) or \(2, 5\), was \(5,\)",
        ),
        ({"slope": torch.ones(2, 5, 1, 1)}, ValueError, r"slope must have shape .*, was \(2, 5, 1, 1\)"),
        ({"slope": torch.ones(2, device="meta")}, ValueError, "slope must be on the device of x, cpu, was on meta"),
        ({"noise": 0.5}, TypeError, r"noise must be a torch\.Tensor, was float"),
        ({"noise": torch.zeros(2, 5)}, ValueError, r"noise must have shape \(N, C, H, W\), was \(2, 5\)"),
        (
            {"noise": torch.zeros(2, 3, 4, 7)},
            ValueError,
            r"noise must have shape \(N, Cout, H, W\) or \(N, 1, H, W\), here \(2, 5, 4, 7\) or \(2, 1, 4, 7\), "
            r"was \(2, 3, 4, 7\)",
        ),
        ({"noise": torch.zeros(1, 5, 4, 7)}, ValueError, r"noise must have shape .*, was \(1, 5, 4, 7\)"),
        (
            {"noise": torch.zeros(2, 5, 4, 7, dtype=torch.int32)},
            TypeError,
            r"noise must be a floating-point tensor, was torch\.int32",
        ),
        (
            {"noise": torch.zeros(2, 5, 4, 7, device="meta")},
            ValueError,
            "noise must be on the device of x, cpu, was on meta",
        ),
        ({"padding": "reflect"}, ValueError, "padding must be one of 'replicate', 'zeros', was 'reflect'"),
        ({"impl": "fastest"}, ValueError, "impl must be one of auto, reference, triton, cuda, cpp, was 'fastest'"),
    ],
)
def test_rejects_invalid_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    """Errors name the argument, what it must be and what it was, before anything is computed."""
    with Calls() as calls, pytest.raises(error, match=message):
        degradation_block(**(arguments() | change))
    assert calls.forwards == 0


def test_implementations() -> None:
    auto = degradation_block(**arguments())
    assert torch.equal(auto, degradation_block(**arguments(), impl="auto"))
    torch.testing.assert_close(auto, degradation_block(**arguments(), impl="reference"))
    with pytest.raises(RuntimeError, match="impl='cpp' is not available: degradation_block has no such"):
        degradation_block(**arguments(), impl="cpp")
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match=r"impl='triton'.* is not available"):
            degradation_block(**arguments(), impl="triton")
