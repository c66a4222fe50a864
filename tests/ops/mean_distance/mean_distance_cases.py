"""Random pairs of tensors and comparisons, shared by the tests of mean_distance on the CPU and on a GPU."""

import random
from typing import NamedTuple

import layouts
import torch
from torch import Tensor

from andfast.functional import mean_distance
from andfast.functional.mean_distance import Kind, mean_distance_reference


class Pair(NamedTuple):
    """Arguments of mean_distance and the incoming gradient; ``poison`` names the non-finite value, or is empty."""

    x: Tensor
    target: Tensor
    kind: Kind
    grad: Tensor
    poison: str


def random_pair(seed: int, dtypes: tuple[torch.dtype, ...], device: str = "cpu") -> Pair:
    """Random shape, layouts and dtypes; many values are equal; a quarter of the pairs has a non-finite value."""
    g = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    size = [g.choice(sizes) for sizes in ([1, 2, 3], [1, 3, 16, 24], [1, 2, 5, 9, 13], [1, 2, 5, 9, 13])]
    shape = g.choice([(), tuple(size[:1]), tuple(size[1:3]), tuple(size), tuple(size), tuple(size), (4, 16, 8, 16)])
    if seed % 17 == 5:
        shape = (0, 3, 4, 5)
    x = 10 ** g.uniform(-3, 2) * torch.randn(shape, generator=generator)
    apart = torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) < 0.7)
    dtype = g.choice(dtypes)
    x = x.to(dtype)
    target_dtype = dtype if g.random() < 0.7 else g.choice(dtypes)
    target = x.to(target_dtype) if g.random() < 0.1 else (x.float() + 10 ** g.uniform(-3, 1) * apart).to(target_dtype)
    poison = (
        g.choice(["x inf", "x nan", "target -inf", "target nan", "both inf"]) if seed % 4 == 3 and x.numel() else ""
    )
    for name, tensor in (("x", x), ("target", target)):
        if poison.startswith((name, "both")):
            tensor.view(-1)[g.randrange(tensor.numel())] = float(poison.split()[1])
    kinds = (*layouts.KINDS, "channels_last", "prefix")
    x, target = x.to(device), target.to(device)
    if x.dim() == 4:
        x = layouts.laid_out(g, x, kinds)
        target = layouts.laid_out(g, target, kinds)
        if g.random() < 0.5 and x.numel():  # as in training
            target = torch.empty_like(x, dtype=target.dtype).copy_(target)
        elif g.random() < 0.1:
            target = target[:1].expand_as(target)
    grad = torch.tensor(g.choice([1.0, -0.3, 3e-4, 65536.0, 0.0]), device=device)
    return Pair(x, target, g.choice(["l1", "l2"]), grad, poison)


def run(pair: Pair, impl: str) -> tuple[Tensor, Tensor]:
    """The mean and the gradient to x."""
    x = pair.x.detach().requires_grad_()
    mean = mean_distance(x, pair.target, kind=pair.kind, impl=impl)
    (grad,) = torch.autograd.grad(mean, x, pair.grad)
    return mean.detach(), grad


def assert_correct(pair: Pair, impl: str) -> None:
    """The mean is within float32's rounding of float64's; the gradient is that of float32, rounded once, bit for bit.

    Also compares dtypes and strides.
    """
    mean, grad = run(pair, impl)
    assert (mean.shape, mean.dtype, mean.device) == ((), torch.float32, pair.x.device)
    like = torch.empty_like(pair.x)
    assert (grad.shape, grad.dtype, grad.stride()) == (like.shape, like.dtype, like.stride())
    exact = mean_distance_reference(pair.x.double(), pair.target.double(), pair.kind)
    difference = pair.x.float() - pair.target.float()
    largest = max((pair.x.abs().max().item(), pair.target.abs().max().item())) if pair.x.numel() else 0.0
    rounding = 1e-7 * largest if largest < float("inf") else 0.0  # of one difference
    close = {"rtol": 1e-6, "atol": rounding, "equal_nan": True}
    if pair.kind == "l1":
        torch.testing.assert_close(mean.double(), exact, **close)
    else:
        torch.testing.assert_close(mean.double().sqrt(), exact.sqrt(), **close)
    # Divide by a tensor: for a Python number CUDA multiplies by the reciprocal, which may be off by one bit.
    scale = pair.grad / torch.tensor(float(max(pair.x.numel(), 1)), device=pair.grad.device)
    expected = difference.sign() * scale if pair.kind == "l1" else difference * (2 * scale)
    torch.testing.assert_close(grad, expected.to(pair.x.dtype), rtol=0, atol=0, equal_nan=True)
