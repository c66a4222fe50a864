"""RRDBNet's dense blocks as one op in frozen passes, with the compiled ops emulated on the CPU."""

from collections import Counter
from typing import Any

import compiled_ops_emulation
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from andfast.adversary import PRESETS, Attack, AttackSettings, Objective
from andfast.nn import DegradationNetwork, RRDBNet, frozen


@pytest.fixture(autouse=True)
def _emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled_ops_emulation.use(monkeypatch)


class CountOps(TorchDispatchMode):
    """Counts calls of the package's ops."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "andfast":
            self.calls[func._schema.name.removeprefix("andfast::")] += 1
        return func(*args, **(kwargs or {}))


def networks(memory_format: torch.memory_format = torch.contiguous_format) -> tuple[RRDBNet, RRDBNet]:
    """The same network with impl="cuda" and impl="reference", in float64."""
    result = []
    for impl in ("cuda", "reference"):
        torch.manual_seed(0)
        network = RRDBNet(features=8, blocks=2, growth=8, impl=impl).double()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.copy_(torch.randn_like(parameter) / parameter[0].numel() ** 0.5)
        result.append(network.to(memory_format=memory_format))
    return result[0], result[1]


def results(network: RRDBNet, lr: Tensor) -> list[Tensor]:
    """SR, and the gradient to LR."""
    sr = network(lr)
    return [sr, *torch.autograd.grad(sr.square().sum(), lr)]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_frozen_pass_is_one_op_with_the_same_result(memory_format: torch.memory_format) -> None:
    network, reference = networks(memory_format)
    lr = torch.rand(2, 3, 5, 4, dtype=torch.float64).contiguous(memory_format=memory_format).requires_grad_()
    with frozen(network, reference):
        with CountOps() as counter:
            actual = results(network, lr)
        torch.testing.assert_close(actual, results(reference, lr), rtol=1e-9, atol=1e-9)
    assert counter.calls == {
        "dense_blocks_pack": 2,
        "frozen_dense_blocks": 1,
        "frozen_dense_blocks_backward": 1,
        "upsampled_convolution": 6,
        "upsampled_convolution_backward": 6,
    }


def test_pass_without_gradients_is_one_op() -> None:
    network, reference = networks()
    lr = torch.rand(1, 3, 5, 4, dtype=torch.float64)
    with torch.no_grad(), CountOps() as counter:
        sr = network(lr)
    torch.testing.assert_close(sr, reference(lr).detach(), rtol=1e-9, atol=1e-9)
    assert counter.calls["frozen_dense_blocks"] == 1
    assert counter.calls["residual_dense_block"] == 0


def test_training_pass_differentiates_all_weights() -> None:
    network, reference = networks()
    lr = torch.rand(1, 3, 5, 4, dtype=torch.float64)
    with CountOps() as counter:
        network(lr).square().sum().backward()
    reference(lr).square().sum().backward()
    assert counter.calls["residual_dense_block"] == 6
    for (name, parameter), expected in zip(network.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-9, atol=1e-9, msg=name)


def test_frozen_pass_compiles_to_one_graph() -> None:
    network, reference = networks()
    network.requires_grad_(False)
    lr = torch.rand(1, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    for actual, expected in zip(results(compiled, lr), results(reference, lr), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("impl", "growth"), [("reference", 8), ("auto", 8), ("auto", 3)])
def test_other_implementations_keep_the_blocks(impl: str, growth: int) -> None:
    network = RRDBNet(features=8, blocks=1, growth=growth, impl=impl)
    assert network.frozen_body(torch.device("cpu"), torch.bfloat16) is None


def test_attack_packs_the_weights_once_for_all_steps() -> None:
    """In bf16; the objective is that of the reference within bf16's rounding."""
    hr = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    losses = []
    for network in networks():
        ball = PRESETS["calibrated"].ball_for(32, 32)
        attack = Attack(
            degradation=DegradationNetwork(smallest_slope=ball.smallest_slope),
            generator=network.float(),
            objective=Objective(1.0),
            settings=AttackSettings(ball, steps=3, patch_size=32, channels=8),
            autocast=torch.bfloat16,
        )
        theta = attack.sample(hr, torch.Generator().manual_seed(0))
        with CountOps() as counter:
            losses.append(attack.search(hr, theta)[1].losses)
        if network.impl == "cuda":
            calls = counter.calls
    assert calls["dense_blocks_pack"] == 2
    assert calls["frozen_dense_blocks"] == calls["frozen_dense_blocks_backward"] == 3
    assert calls["residual_dense_block"] == 0
    torch.testing.assert_close(losses[0], losses[1], rtol=2e-2, atol=0)
