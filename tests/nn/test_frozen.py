"""frozen: no parameter gradients inside, buffers restored afterwards."""

import pytest
import torch
from torch import nn

from andfast.nn import RRDBNet, UNetDiscriminator, VGGDiscriminator, frozen


def stateful() -> nn.Module:
    """A module with batch statistics and spectral norms, which training-mode forward passes update."""
    first = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3))
    return nn.Sequential(first, nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1))


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in (*module.named_parameters(), *module.named_buffers())}


def same(module: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    now = state(module)
    assert now.keys() == before.keys()
    return all(torch.equal(now[name], before[name]) for name in now)


def test_input_gradients_without_weight_gradients() -> None:
    module, x = stateful(), torch.rand(2, 3, 8, 8, requires_grad=True)
    with frozen(module):
        assert not any(p.requires_grad for p in module.parameters())
        module(x).square().sum().backward()
    assert x.grad is not None
    assert x.grad.any()
    assert all(p.grad is None for p in module.parameters())
    assert all(p.requires_grad for p in module.parameters())
    module(x).sum().backward()
    assert all(p.grad is not None for p in module.parameters())


@pytest.mark.parametrize(
    "make", [stateful, lambda: VGGDiscriminator(128, features=4), lambda: UNetDiscriminator(features=4)]
)
def test_buffers_are_restored_bit_exactly(make: type) -> None:
    module = make()
    x = torch.rand(2, 3, 128, 128)
    module(x)  # away from the initial statistics
    before = state(module)
    with frozen(module):
        for _ in range(3):
            module(x + 1)
        assert not same(module, before)
    assert same(module, before)
    assert module.training
    module(x + 1)
    assert not same(module, before)


def test_buffers_are_restored_in_place() -> None:
    """References to buffers, such as a checkpoint's, stay valid."""
    module = stateful()
    buffers = list(module.buffers())
    with frozen(module):
        module(torch.rand(2, 3, 8, 8))
    assert all(a is b for a, b in zip(buffers, module.buffers(), strict=True))


def test_input_gradient_matches_unfrozen_pass() -> None:
    module, x = stateful(), torch.rand(2, 3, 8, 8, requires_grad=True)
    with frozen(module):
        (frozen_grad,) = torch.autograd.grad(module(x).square().sum(), x)
    (grad,) = torch.autograd.grad(module(x).square().sum(), x)
    assert torch.equal(frozen_grad, grad)


def test_restores_after_an_exception() -> None:
    module = stateful()
    before = state(module)

    def fail() -> None:
        with frozen(module):
            module(torch.rand(2, 3, 8, 8))
            raise KeyError("from inside")

    with pytest.raises(KeyError, match="from inside"):
        fail()
    assert all(p.requires_grad for p in module.parameters())
    assert same(module, before)


def test_frozen_parameters_stay_frozen() -> None:
    module = stateful()
    module[2].requires_grad_(False)
    flags = [p.requires_grad for p in module.parameters()]
    assert len(set(flags)) == 2
    with frozen(module):
        assert not any(p.requires_grad for p in module.parameters())
    assert [p.requires_grad for p in module.parameters()] == flags


def test_nested_and_repeated_modules() -> None:
    module = stateful()
    before = state(module)
    with frozen(module, module):
        with frozen(module):
            module(torch.rand(2, 3, 8, 8))
        assert not any(p.requires_grad for p in module.parameters())
    assert all(p.requires_grad for p in module.parameters())
    assert same(module, before)


def test_several_modules_and_none() -> None:
    first, second = stateful(), nn.Linear(2, 2)
    with frozen(first, None, second):
        assert not any(p.requires_grad for module in (first, second) for p in module.parameters())
    assert all(p.requires_grad for module in (first, second) for p in module.parameters())
    with frozen(), frozen(None):
        assert second.weight.requires_grad


def test_training_mode_is_unchanged() -> None:
    for training in (True, False):
        module = stateful().train(training)
        with frozen(module):
            assert module.training is training
        assert module.training is training


def test_frozen_generator_saves_signs_only() -> None:
    """Without weight gradients, autograd saves a fraction of a dense block's bytes."""
    body, x = RRDBNet(features=8, blocks=1, growth=4).body, torch.rand(1, 8, 8, 8, requires_grad=True)

    def saved_bytes() -> int:
        total = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            if not isinstance(tensor, nn.Parameter):
                total += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            body(x)
        return total

    with frozen(body):
        frozen_bytes = saved_bytes()
    assert 0 < frozen_bytes < 0.1 * saved_bytes()
