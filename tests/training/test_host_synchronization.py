"""No op of a step synchronizes the host with the device, including ops inside andfast's own ops."""

from typing import Any

import pytest
import torch
from small_steps import crops, make
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode

from andfast.training.radius_controller import RadiusController
from andfast.training.step import RankInfo

WAITING = {
    "_local_scalar_dense": "reads a value, as .item() or a branch on a tensor does",
    "nonzero": "the result's shape depends on values",
    "masked_select": "the result's shape depends on values",
    "_unique2": "the result's shape depends on values",
    "equal": "reads a value",
    "is_nonzero": "reads a value",
    "lift_fresh": "copies numbers from the host to the device",
}


class SynchronizingOps(TorchDispatchMode):
    """Records synchronizing ops, also in the bodies of andfast's ops, which a mode does not see otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.synchronizing: list[str] = []
        self.inside = 0
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.seen.add(name)
        if name in WAITING:
            self.synchronizing.append(name)
        if name == "index" and any(index is not None and index.dtype == torch.bool for index in args[1]):
            self.synchronizing.append("index")
        if name == "_to_copy" and (kwargs or {}).get("device") not in (None, args[0].device):
            self.synchronizing.append("a copy to another device")
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
    with SynchronizingOps() as ops:
        step.gradients([hr], 0)
    assert ops.synchronizing == [], {name: WAITING.get(name, "") for name in ops.synchronizing}
    assert ops.inside > 20
    ours = {"residual_dense_block", "degradation_block_backward", "blur_pool", "upsampled_convolution_backward"}
    assert ours | {"conv_transpose2d", "leaky_relu_"} <= ops.seen
    assert {"mean_distance", "mean_distance_backward"} <= ops.seen


def test_radii_that_follow_a_target_have_no_host_synchronization() -> None:
    radii = RadiusController(30.0, torch.device("cpu"))
    settings = {"image_radius": "uniform"}
    step, hr = make(steps=1, attack={"radius_factor": radii.factor}, settings=settings), crops(2)
    with SynchronizingOps() as ops:
        values = step.gradients([hr], 0)
        radii.update(values["lr_psnr"], skip=values["loss"] > 1e9)
    assert ops.synchronizing == []
    assert radii.state()["count"] == 1


@pytest.mark.parametrize("act", [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x + torch.tensor([1.0])])
def test_detects_host_synchronization(act: Any) -> None:
    with SynchronizingOps() as ops:
        act(torch.rand(3))
    assert ops.synchronizing


def test_step_runs_on_the_meta_device() -> None:
    """On the meta device, .item(), a branch on a value or a copy to the host raises."""
    for kind in ("vgg", "unet"):
        step = make(kind, "relativistic", size=128, rank_info=RankInfo(0, 1, 1, 2, 2), attack={"round_lr": True})
        for module in (step.generator, step.discriminator, step.objective.vgg):
            assert module is not None
            module.to("meta")
        hr = torch.empty(2, 3, 128, 128, device="meta")
        values = step.gradients([hr, hr], 0)
        assert all(value.is_meta for value in values.values())
        with pytest.raises(RuntimeError, match="meta"):
            values["loss"].item()
