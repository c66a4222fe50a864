"""Random arguments of degradation_block, its definition, and comparisons."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from andfast.functional import degradation_block
from andfast.functional.degradation_block_reference import degradation_block_reference

FORWARD = torch.ops.andfast.degradation_block.default
BACKWARD = torch.ops.andfast.degradation_block_backward.default
SLOPES = ("float", "scalar", "image", "channel")
NOISES = (None, "full", "single")
NAMES = ("x", "weight", "slope", "noise")
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def make(
    n: int = 2,
    c_in: int = 3,
    c_out: int = 5,
    height: int = 4,
    width: int = 7,
    *,
    shared: bool = False,
    slope: str = "image",
    noise: str | None = "full",
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> dict[str, Any]:
    """Arguments by name; the tensors are leaves that require gradients. Slopes are -1.5, 0, 0.7, 1 or 2.5."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    slopes = torch.tensor([-1.5, 0.0, 0.7, 1.0, 2.5], dtype=torch.float64)
    shape = {"float": (), "scalar": (), "image": (n,), "channel": (n, c_out)}[slope]
    chosen = slopes[torch.randint(5, shape, generator=generator)].to(dtype)
    maps = {"full": c_out, "single": 1}
    return {
        "x": draw(n, c_in, height, width),
        "weight": draw(*(() if shared else (n,)), c_out, c_in, 3, 3),
        "slope": float(chosen) if slope == "float" else chosen.requires_grad_(),
        "noise": None if noise is None else draw(n, maps[noise], height, width),
    }


def leaves(arguments: dict[str, Any]) -> list[Tensor]:
    return [tensor for tensor in arguments.values() if isinstance(tensor, Tensor)]


def reference(arguments: dict[str, Any], padding: str = "replicate") -> Tensor:
    slope = torch.as_tensor(arguments["slope"], dtype=arguments["x"].dtype)
    return degradation_block_reference(arguments["x"], arguments["weight"], slope, arguments["noise"], padding)


def relative_error(actual: Tensor, exact: Tensor) -> float:
    """Norm of the difference divided by the norm; 0 for two empty tensors."""
    assert actual.shape == exact.shape
    scale = exact.double().norm().item()
    return (actual.double() - exact.double()).norm().item() / scale if scale else actual.double().norm().item()


def outputs_and_gradients(arguments: dict[str, Any], padding: str, *, oracle: bool, **options: Any) -> list[Tensor]:
    """The output, and gradients for a fixed incoming one; ``oracle``: of the definition."""
    out = reference(arguments, padding) if oracle else degradation_block(**arguments, padding=padding, **options)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(out.dtype)
    return [out, *torch.autograd.grad(out, leaves(arguments), grad)]


class Calls(TorchDispatchMode):
    """Records forward calls, and which gradients each backward call computes."""

    def __init__(self) -> None:
        super().__init__()
        self.forwards = 0
        self.saved: list[bool] = []
        self.needs_grad: list[list[bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is FORWARD:
            self.forwards += 1
            self.saved.append(args[5])
        if func is BACKWARD:
            self.needs_grad.append(list(args[8]))
        return func(*args, **(kwargs or {}))
