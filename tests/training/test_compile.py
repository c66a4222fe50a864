"""compile_networks: number of compiled graphs, and no weight gradients for frozen networks."""

from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from small_steps import assert_close, crops, gradients, make
from torch._dynamo.backends.common import aot_autograd

from andfast.nn import RRDBNet, frozen
from andfast.training.build import compile_networks
from andfast.training.step import TrainingStep


class Graphs:
    """A torch.compile backend that runs graphs unchanged and records them, forward and backward separately."""

    def __init__(self) -> None:
        self.forward: list[Any] = []
        self.backward: list[Any] = []

    def backend(self) -> Any:
        def keep(graphs: list[Any]) -> Any:
            def compiler(graph: Any, _example: Any) -> Any:
                graphs.append(graph)
                return make_boxed_func(graph.forward)

            return compiler

        return aot_autograd(fw_compiler=keep(self.forward), bw_compiler=keep(self.backward))


def weight_gradients(graph: Any) -> int:
    """Number of dense blocks in a backward graph whose weight gradients are computed."""
    calls = [node for node in graph.graph.nodes if "residual_dense_block_backward" in str(node.target)]
    assert calls
    return sum(any(node.args[6]) for node in calls)


@pytest.fixture(autouse=True)
def _reset_compiler() -> Any:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def test_blocks_share_one_graph_per_frozen_state() -> None:
    """Ten blocks share two graphs: one to train them, and one without weight gradients while they are frozen."""
    graphs = Graphs()
    generator = RRDBNet(features=6, blocks=10, growth=3)
    compile_networks(generator, None, backend=graphs.backend())
    lr = torch.rand(1, 3, 8, 8)
    for _ in range(2):
        generator(lr).sum().backward()
        with frozen(generator):
            x = lr.clone().requires_grad_()
            torch.autograd.grad(generator(x).sum(), x)
    assert len(graphs.forward) == len(graphs.backward) == 2
    assert [weight_gradients(graph) for graph in graphs.backward] == [3, 0]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "autocast"), [("vgg", None), ("unet", torch.bfloat16)])
def test_compiled_step_matches_eager_without_recompiling(kind: str, autocast: torch.dtype | None) -> None:
    """Losses and gradients match; nothing is recompiled after the first step, cast weights included."""
    size, graphs = 128 if kind == "vgg" else 32, Graphs()
    eager, compiled = (make(kind, size=size, steps=2, attack={"autocast": autocast}) for _ in range(2))
    compile_networks(compiled.generator, compiled.discriminator, backend=graphs.backend())
    seen = []

    def values(step: TrainingStep, number: int) -> dict[str, float]:
        step.generator.zero_grad()
        return {name: value.item() for name, value in step.gradients([crops(2, size)], number).items()}

    for number in range(2):
        assert values(compiled, number) == pytest.approx(values(eager, number), rel=1e-3, abs=1e-4)
        tolerance = 1e-3 if autocast is None else 5e-2
        assert_close(gradients(compiled.generator), gradients(eager.generator), tolerance)
        seen.append(len(graphs.forward))
    assert seen[0] == seen[1]
