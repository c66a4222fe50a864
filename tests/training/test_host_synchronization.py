"""No op of a step makes the host wait for the device, those inside of andfast's own ops included."""

from typing import Any

import pytest
import torch
from small_steps import crops, make
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode

from andfast.training.step import RankInfo

WAITING = {
    "_local_scalar_dense": "reads a value, as .item() or a branch on one does",
    "nonzero": "a shape that depends on values",
    "masked_select": "a shape that depends on values",
    "_unique2": "a shape that depends on values",
    "equal": "reads a value",
    "is_nonzero": "reads a value",
    "lift_fresh": "a tensor made from numbers of the host: a copy to the device, which waits",
}


class Waits(TorchDispatchMode):
    """Looks at every op, and into the bodies of andfast's, whose own ops a mode does not see otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inside = 0
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.seen.add(name)
        if name in WAITING:
            self.found.append(name)
        if name == "index" and any(one is not None and one.dtype == torch.bool for one in args[1]):
            self.found.append("index")
        if name == "_to_copy" and (kwargs or {}).get("device") not in (None, args[0].device):
            self.found.append("a copy to another device")
        definition = OPDEFS.get(f"andfast::{name}")  # None for compiled ops, which have no ops inside
        if func.namespace == "andfast" and definition is not None:
            self.inside += 1
            with self:
                return definition._init_fn(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", [None, "vgg", "unet"])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_step_has_no_host_synchronization(kind: str | None, autocast: torch.dtype | None) -> None:
    size = 128 if kind == "vgg" else 32
    step = make(kind, "relativistic", size=size, steps=2, attack={"autocast": autocast, "round_lr": True})
    hr = crops(2, size)
    with Waits() as waits:
        step.gradients([hr], 0)
    assert waits.found == [], {name: WAITING.get(name, "") for name in waits.found}
    assert waits.inside > 20
    ours = {"residual_dense_block", "degradation_block_backward", "blur_pool", "upsampled_convolution_backward"}
    assert ours | {"conv_transpose2d", "leaky_relu_"} <= waits.seen
    assert {"mean_distance", "mean_distance_backward"} <= waits.seen


@pytest.mark.parametrize("act", [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x + torch.tensor([1.0])])
def test_detects_host_synchronization(act: Any) -> None:
    with Waits() as waits:
        act(torch.rand(3))
    assert waits.found


def test_no_host_synchronisation() -> None:
    """Both stages run on the meta device, where .item(), a branch on a value or a copy to the host raises."""
    for kind in ("vgg", "unet"):
        step = make(kind, "relativistic", size=128, rank_info=RankInfo(0, 1, 1, 2, 2), attack={"round_lr": True})
        for module in (step.generator, step.discriminator, step.objective.vgg):
            assert module is not None
            module.to("meta")
        hr = torch.empty(2, 3, 128, 128, device="meta")
        values = step.gradients([hr, hr], 0)
        assert all(one.is_meta for one in values.values())
        with pytest.raises(RuntimeError, match="meta"):
            values["loss"].item()
