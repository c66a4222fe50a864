"""Random calls of identity_gradients and comparisons, shared by its tests on the CPU and on a GPU."""

import random
from typing import Any, NamedTuple

import layouts
import torch
import torch.nn.functional as F
from torch import Tensor

TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}

Results = tuple[Tensor | None, list[Tensor | None], Tensor]


class Call(NamedTuple):
    """Arguments of identity_gradients; ``poison`` names the argument with a non-finite value, or is empty."""

    x: Tensor
    grad: Tensor
    before: Tensor
    after: Tensor
    options: dict[str, Any]
    poison: str = ""


def exact(call: Call) -> Results:
    """The formulas in float64 on the CPU."""
    x, grad, before, after = (tensor.detach().cpu().double() for tensor in call[:4])
    noises, slopes = call.options["noises"], call.options["slopes"]
    up = torch.einsum("lnjc,njhw->lnchw", after, grad)
    z = torch.einsum("lnic,nihw->lnchw", before, x)
    maps = [
        None if channels == 0 else grads if channels == grads.shape[1] else grads.sum(1, keepdim=True)
        for grads, channels in zip(up, noises, strict=True)
    ]
    over = (torch.where(z > 0, 0, z) * up).sum((3, 4))
    correlation = None
    if call.options["correlation"]:
        mode = "replicate" if call.options.get("padding", "replicate") == "replicate" else "constant"
        padded = F.pad(x, (1, 1, 1, 1), mode=mode)
        height, width = x.shape[2:]
        taps = [padded[:, :, dy : dy + height, dx : dx + width] for dy in range(3) for dx in range(3)]
        correlation = torch.stack([torch.einsum("njhw,nihw->nji", grad, tap) for tap in taps], 1)
    return correlation, maps, over[[layer for layer, needs_grad in enumerate(slopes) if needs_grad]]


def assert_correct(results: Results, call: Call) -> None:
    """Compare shapes, dtypes, memory formats and values with the formulas, and which values are finite.

    Whether a sum is infinite or NaN depends on its order. A non-finite matrix also meets the zeros that the kernels
    load beyond the end of an image, so it may give NaN where the formulas are finite.
    """
    correlation, maps, sums = exact(call)
    wide = torch.promote_types(call.x.dtype, torch.float32)
    noise_dtype = call.options.get("noise_dtype") or wide
    assert (results[0] is None) == (correlation is None)
    if correlation is not None:
        _assert_near(results[0], correlation, wide)
    _assert_near(results[2], sums, wide, extra_nan=call.poison in ("before", "after"))
    last = not call.x.is_contiguous() and call.x.is_contiguous(memory_format=torch.channels_last)
    assert len(results[1]) == len(maps)
    for noise_map, expected in zip(results[1], maps, strict=True):
        assert (noise_map is None) == (expected is None)
        if expected is not None:
            _assert_near(noise_map, expected, noise_dtype)
            assert noise_map.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _assert_near(actual: Tensor | None, expected: Tensor, dtype: torch.dtype, extra_nan: bool = False) -> None:
    """``extra_nan``: values need not be finite where expected ones are."""
    assert actual is not None
    assert (actual.shape, actual.dtype) == (expected.shape, dtype)
    actual = actual.detach().cpu().double()
    finite = expected.isfinite()
    assert not (actual.isfinite() & ~finite).any()
    if extra_nan:
        finite = finite & actual.isfinite()
    assert torch.equal(actual.isfinite(), finite)
    difference = torch.where(finite, actual - expected, 0).norm()
    assert difference <= TOLERANCES[dtype] * torch.where(finite, expected, 0).norm() + 1e-30


def random_call(seed: int, device: str = "cpu", dtypes: tuple[torch.dtype, ...] = (torch.float32,)) -> Call:
    """Random layers, channels, shapes, layouts, dtypes and required gradients; a sixth has a non-finite value."""
    g = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    n = 0 if seed % 19 == 5 else g.choice([1, 1, 2, 3])
    channels = g.choice([1, 3, 5, 8, 13, 16, 17, 64, 65])
    layers = g.choice([0, 1, 2, 3, 5])
    height, width = g.choice([1, 2, 3, 5, 8]), g.choice([1, 1, 2, 3, 7, 16, 33])

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def image() -> Tensor:
        value = layouts.laid_out(g, normal(n, 3, height, width).to(device=device, dtype=g.choice(dtypes)))
        return value if g.random() > 0.1 else value[:, :, :1, :1].expand(n, 3, height, width)

    x, grad = image(), image()
    before, after = (normal(layers, n, 3, channels).to(device=device, dtype=torch.float32) for _ in range(2))
    poison = g.choice(["x", "grad", "before", "after"]) if seed % 6 == 3 and n and layers else ""
    if poison:
        victim = {"x": x, "grad": grad, "before": before, "after": after}[poison]
        if 0 in victim.stride():
            poison = ""
        else:
            place = tuple(g.randrange(size) for size in victim.shape)
            victim[place] = g.choice([float("nan"), float("inf"), -float("inf")])
    forms = g.choice([[channels], [1], [0], [channels, 1], [channels, 0], [channels, 1, 0]])
    which = g.choice([[True], [True], [True, False], [False]])
    options = {
        "noises": [g.choice(forms) for _ in range(layers)],
        "slopes": [g.choice(which) for _ in range(layers)],
        "correlation": g.random() < 0.7,
        "noise_dtype": g.choice([None, torch.float32, *dtypes]),
        "padding": g.choice(["replicate", "zeros"]),
    }
    return Call(x, grad, before, after, options, poison)
