"""frozen: networks that serve without gradients of their own and without a trace."""

import pytest
import torch
from torch import nn

from andfast.nn import RRDBNet, UNetDiscriminator, VGGDiscriminator, frozen


def moving() -> nn.Module:
    """Batch statistics and spectral norms: buffers that a forward pass in training mode moves."""
    first = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3))
    return nn.Sequential(first, nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1))


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: one.clone() for name, one in (*module.named_parameters(), *module.named_buffers())}


def same(module: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    now = state(module)
    assert now.keys() == before.keys()
    return all(torch.equal(now[name], before[name]) for name in now)


def test_no_weight_gradients_and_gradients_to_the_input() -> None:
    module, x = moving(), torch.rand(2, 3, 8, 8, requires_grad=True)
    with frozen(module):
        assert not any(one.requires_grad for one in module.parameters())
        module(x).square().sum().backward()
    assert x.grad is not None
    assert x.grad.any()
    assert all(one.grad is None for one in module.parameters())
    assert all(one.requires_grad for one in module.parameters())
    module(x).sum().backward()
    assert all(one.grad is not None for one in module.parameters())


@pytest.mark.parametrize(
    "make", [moving, lambda: VGGDiscriminator(128, features=4), lambda: UNetDiscriminator(features=4)]
)
def test_buffers_are_restored_bit_exactly(make: type) -> None:
    module = make()
    x = torch.rand(2, 3, 128, 128)
    module(x)  # so that the statistics are not the initial ones
    before = state(module)
    with frozen(module):
        for _ in range(3):
            module(x + 1)
        assert not same(module, before)
    assert same(module, before)
    assert module.training
    module(x + 1)
    assert not same(module, before)


def test_buffers_stay_the_same_tensors() -> None:
    """Whoever holds a buffer, an optimizer or a checkpoint for instance, still holds the module's."""
    module = moving()
    buffers = list(module.buffers())
    with frozen(module):
        module(torch.rand(2, 3, 8, 8))
    assert all(a is b for a, b in zip(buffers, module.buffers(), strict=True))


def test_backward_inside_then_training_outside() -> None:
    """The gradient to the input of a frozen pass is the one of an unfrozen pass."""
    module, x = moving(), torch.rand(2, 3, 8, 8, requires_grad=True)
    with frozen(module):
        (frozen_grad,) = torch.autograd.grad(module(x).square().sum(), x)
    (grad,) = torch.autograd.grad(module(x).square().sum(), x)
    assert torch.equal(frozen_grad, grad)


def test_restored_after_an_exception() -> None:
    module = moving()
    before = state(module)

    def fail() -> None:
        with frozen(module):
            module(torch.rand(2, 3, 8, 8))
            raise KeyError("from inside")

    with pytest.raises(KeyError, match="from inside"):
        fail()
    assert all(one.requires_grad for one in module.parameters())
    assert same(module, before)


def test_what_was_frozen_stays_frozen() -> None:
    module = moving()
    module[2].requires_grad_(False)
    flags = [one.requires_grad for one in module.parameters()]
    assert len(set(flags)) == 2
    with frozen(module):
        assert not any(one.requires_grad for one in module.parameters())
    assert [one.requires_grad for one in module.parameters()] == flags


def test_nested_and_named_twice() -> None:
    module = moving()
    before = state(module)
    with frozen(module, module):
        with frozen(module):
            module(torch.rand(2, 3, 8, 8))
        assert not any(one.requires_grad for one in module.parameters())
    assert all(one.requires_grad for one in module.parameters())
    assert same(module, before)


def test_several_modules_and_none() -> None:
    first, second = moving(), nn.Linear(2, 2)
    with frozen(first, None, second):
        assert not any(one.requires_grad for module in (first, second) for one in module.parameters())
    assert all(one.requires_grad for module in (first, second) for one in module.parameters())
    with frozen(), frozen(None):
        assert second.weight.requires_grad


def test_mode_is_left_as_it_is() -> None:
    for training in (True, False):
        module = moving().train(training)
        with frozen(module):
            assert module.training is training
        assert module.training is training


def test_a_frozen_generator_keeps_signs_only() -> None:
    """Without weight gradients to come, autograd keeps a fraction of a dense block's bytes for the backward pass."""
    body, x = RRDBNet(features=8, blocks=1, growth=4).body, torch.rand(1, 8, 8, 8, requires_grad=True)

    def kept() -> int:
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
        less = kept()
    assert 0 < less < 0.1 * kept()
