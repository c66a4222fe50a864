"""mean_distance on the CPU: values, gradients of both orders, saved tensors and errors."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mean_distance_cases import assert_correct, random_pair
from torch import Tensor

from andfast.functional import mean_distance
from andfast.functional.mean_distance import mean_distance_reference
from andfast.functional.selftest import self_test

HALVES = (torch.bfloat16, torch.float16)


def pair(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, target = (torch.randn(*shape, generator=generator).to(dtype) for _ in range(2))
    return x.requires_grad_(), target


@pytest.mark.parametrize("part", range(4))
def test_random_pairs(part: int) -> None:
    for seed in range(part, 100, 4):
        assert_correct(random_pair(seed, (torch.float32, *HALVES)), "reference")


@pytest.mark.parametrize("kind", ["l1", "l2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES])
def test_matches_composed_ops_bit_for_bit(kind: Any, dtype: torch.dtype) -> None:
    x, target = pair(2, 5, 7, 9, dtype=dtype)
    composed, fused = mean_distance_reference(x, target, kind), mean_distance(x, target, kind=kind)
    assert torch.equal(composed, fused)
    grad = torch.tensor(0.37, dtype=fused.dtype)
    assert torch.equal(*(torch.autograd.grad(mean, x, grad)[0] for mean in (composed, fused)))
    distance = F.l1_loss if kind == "l1" else F.mse_loss
    torch.testing.assert_close(fused, distance(x.to(fused.dtype), target.to(fused.dtype)))


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_gradients_of_both_orders(kind: Any) -> None:
    x = torch.randn(2, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    away = torch.where(torch.rand(x.shape) < 0.5, 1.0, -1.0) * (0.1 + torch.rand(x.shape))  # clear of the kink
    target = (x.detach() + away).contiguous(memory_format=torch.channels_last)
    assert torch.autograd.gradcheck(lambda x: mean_distance(x, target, kind=kind), (x,))
    assert torch.autograd.gradgradcheck(lambda x: mean_distance(x, target, kind=kind), (x,))


def test_saves_only_the_arguments() -> None:
    x, target = pair(2, 3, 8, 8, dtype=torch.bfloat16)
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        mean_distance(x, target)
    assert sorted(saved) == sorted([x.data_ptr(), target.data_ptr()])
    with (
        torch.no_grad(),
        torch.autograd.graph.saved_tensors_hooks(lambda _: pytest.fail("saved"), lambda packed: packed),
    ):
        mean_distance(x, target)


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_mean_of_empty_tensors_is_nan(kind: Any) -> None:
    x, target = pair(0, 3, 4, 4)
    mean = mean_distance(x, target, kind=kind)
    assert mean.isnan()
    (grad,) = torch.autograd.grad(mean, x)
    assert grad.shape == x.shape


def test_autocast_has_no_effect() -> None:
    x, target = pair(2, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mean_distance(x, target), mean_distance_reference(x, target))


def test_opcheck() -> None:
    for dtype, form in ((torch.float32, torch.channels_last), (torch.bfloat16, torch.contiguous_format)):
        x, target = (tensor.detach().contiguous(memory_format=form) for tensor in pair(2, 3, 4, 5, dtype=dtype))
        for kind in ("l1", "l2"):
            forward, backward = torch.ops.andfast.mean_distance, torch.ops.andfast.mean_distance_backward
            torch.library.opcheck(forward, (x.clone().requires_grad_(), target, kind, "reference"))
            torch.library.opcheck(backward, (torch.tensor(0.3), x, target, kind, "reference"))


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_compiles_as_one_graph(kind: Any) -> None:
    def loss(x: Tensor, target: Tensor) -> Tensor:
        return mean_distance(2 * x, target, kind=kind)

    x, target = pair(2, 3, 4, 5)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for call in (loss, compiled):
        torch.testing.assert_close(call(x, target), mean_distance_reference(2 * x, target, kind))
    assert torch.equal(*(torch.autograd.grad(call(x, target), x)[0] for call in (loss, compiled)))
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": [1.0]}, TypeError, "x must be a torch.Tensor, was list"),
        ({"target": 0.0}, TypeError, "target must be a torch.Tensor, was float"),
        ({"x": torch.ones(2, 3).int()}, TypeError, "x must be a floating-point tensor"),
        ({"target": torch.ones(2, 3).int()}, TypeError, "target must be a floating-point tensor"),
        ({"target": torch.ones(2, 1)}, ValueError, r"target must have shape that of x, here \(2, 3\), was \(2, 1\)"),
        ({"target": torch.ones(2, 3, device="meta")}, ValueError, "target must be on the device of x"),
        ({"target": torch.ones(2, 3, requires_grad=True)}, ValueError, "target must not require a gradient"),
        ({"kind": "huber"}, ValueError, "kind must be one of 'l1', 'l2', was 'huber'"),
        ({"impl": "cuda"}, RuntimeError, "mean_distance has no such implementation, only triton, reference"),
        ({"impl": "triton"}, RuntimeError, "impl='triton' of mean_distance is not available: it runs on CUDA devices"),
    ],
)
def test_rejects_invalid_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    options = {"x": torch.ones(2, 3), "target": torch.zeros(2, 3)} | arguments
    with pytest.raises(error, match=message):
        mean_distance(options.pop("x"), options.pop("target"), **options)


def test_target_may_require_a_gradient_without_grad_mode() -> None:
    x, target = pair(2, 3)
    with torch.no_grad():
        assert torch.equal(mean_distance(x, target.requires_grad_()), mean_distance_reference(x, target))


def test_self_test_passes() -> None:
    results = self_test("cpu", [torch.float64, torch.float32, *HALVES], ["mean_distance"])
    assert len(results) == 4
    assert all(result.passed for result in results), results
