"""degradation_block: against its definition, and as a registered op."""

import itertools
import math
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from andfast.functional import degradation_block
from andfast.functional.degradation_block import PADDINGS
from andfast.functional.degradation_block_reference import degradation_block_reference

FORWARD = torch.ops.andfast.degradation_block.default
BACKWARD = torch.ops.andfast.degradation_block_backward.default
SLOPES = ("float", "scalar", "image", "channel")
NOISES = (None, "full", "single")
NAMES = ("x", "weight", "slope", "noise")


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
    return [one for one in arguments.values() if isinstance(one, Tensor)]


def reference(arguments: dict[str, Any], padding: str = "replicate") -> Tensor:
    slope = torch.as_tensor(arguments["slope"], dtype=arguments["x"].dtype)
    return degradation_block_reference(arguments["x"], arguments["weight"], slope, arguments["noise"], padding)


def relative_error(ours: Tensor, exact: Tensor) -> float:
    """The norm of the difference over the norm; 0 for two tensors without elements."""
    assert ours.shape == exact.shape
    scale = exact.double().norm().item()
    return (ours.double() - exact.double()).norm().item() / scale if scale else ours.double().norm().item()


def outputs_and_gradients(arguments: dict[str, Any], padding: str, *, oracle: bool, **options: Any) -> list[Tensor]:
    out = reference(arguments, padding) if oracle else degradation_block(**arguments, padding=padding, **options)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(out.dtype)
    return [out, *torch.autograd.grad(out, leaves(arguments), grad)]


# ---------------------------------------------------------------------------------------------------- the numbers


@given(
    n=st.sampled_from([0, 1, 2, 3]),
    c_in=st.sampled_from([1, 2, 3, 7]),
    c_out=st.sampled_from([1, 3, 4, 5]),
    height=st.sampled_from([1, 2, 3, 5, 8, 11]),
    width=st.sampled_from([1, 2, 3, 7, 13]),
    shared=st.booleans(),
    slope=st.sampled_from(SLOPES),
    noise=st.sampled_from(NOISES),
    padding=st.sampled_from(PADDINGS),
    channels_last=st.booleans(),
    seed=st.integers(0, 99),
)
def test_random_shapes(padding: str, channels_last: bool, n: int, **shape: Any) -> None:
    arguments = make(n, **shape)
    if channels_last:
        arguments["x"] = arguments["x"].detach().to(memory_format=torch.channels_last).requires_grad_()
    ours = outputs_and_gradients(arguments, padding, oracle=False)
    if n == 0:  # torch.cat of nothing: the definition has no result
        assert ours[0].shape == (0, shape["c_out"], shape["height"], shape["width"])
        for grad, leaf in zip(ours[1:], leaves(arguments), strict=True):
            assert grad.shape == leaf.shape
            assert not grad.any()
        return
    for one, exact in zip(ours, outputs_and_gradients(arguments, padding, oracle=True), strict=True):
        assert one.dtype == torch.float64
        assert relative_error(one, exact) < 1e-12


@pytest.mark.parametrize(
    ("slope", "noise", "padding", "shared"), list(itertools.product(SLOPES, NOISES, PADDINGS, [False, True]))
)
def test_every_form(slope: str, noise: str | None, padding: str, shared: bool) -> None:
    arguments = make(3, 5, 7, 5, 3, slope=slope, noise=noise, shared=shared)
    ours = outputs_and_gradients(arguments, padding, oracle=False)
    exact = outputs_and_gradients(arguments, padding, oracle=True)
    assert max(map(relative_error, ours, exact)) < 1e-12


def test_by_hand() -> None:
    """One pixel, one channel: replicate padding makes all nine taps see it, zeros only the center."""
    x, weight = torch.full((1, 1, 1, 1), 2.0), torch.arange(9.0).view(1, 1, 3, 3) - 5  # sum -9, center -1
    noise = torch.full((1, 1, 1, 1), 10.0)
    assert degradation_block(x, weight, 0.5).item() == -9
    assert degradation_block(x, weight, -0.5, noise).item() == 19
    assert degradation_block(x, weight, 3, padding="zeros").item() == -6
    assert degradation_block(-x, weight, 3, padding="zeros").item() == 2


@pytest.mark.parametrize("value", [-2.0, 0.0, 0.2, 1.0, 3.0])
def test_slope_values_and_where_they_act(value: float) -> None:
    """The gradient follows the sign of the pre-activation, which the output's sign does not tell."""
    x = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).view(1, 1, 1, 5).requires_grad_()
    weight = torch.zeros(1, 1, 3, 3)
    weight[..., 1, 1] = 1
    slope = torch.tensor(value, requires_grad=True)
    out = degradation_block(x, weight, slope)
    torch.testing.assert_close(out, torch.where(x > 0, x, x * value))
    out.sum().backward()
    assert x.grad is not None
    assert slope.grad is not None
    assert x.grad.flatten().tolist() == pytest.approx([value, value, value, 1, 1])
    assert slope.grad.item() == -3


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 1e-2)])
@pytest.mark.parametrize("slope", ["image", "channel"])
@pytest.mark.parametrize("shared", [False, True])
def test_precision(dtype: torch.dtype, tolerance: float, slope: str, shared: bool) -> None:
    """Against float64 on the very same numbers; half types are activated in fp32 and rounded once more."""
    arguments = make(3, 16, 17, 12, 11, slope=slope, shared=shared, dtype=dtype)
    wide = {name: one.detach().double().requires_grad_() for name, one in arguments.items()}
    ours = outputs_and_gradients(arguments, "replicate", oracle=False)
    out = reference(wide)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)
    exact = [out, *torch.autograd.grad(out, leaves(wide), grad.double())]
    for name, one, right in zip(("out", *NAMES), ours, exact, strict=True):
        assert one.dtype == dtype, name
        assert relative_error(one, right) <= tolerance, name


def test_half_images_with_float_slopes_and_noise() -> None:
    """theta's slopes and noise stay in fp32 under mixed precision, and so do their gradients."""
    arguments = make(2, 8, 8, 6, 6, dtype=torch.float32)
    mixed = arguments | {name: arguments[name].detach().bfloat16().requires_grad_() for name in ("x", "weight")}
    ours = outputs_and_gradients(mixed, "replicate", oracle=False)
    exact = outputs_and_gradients(arguments, "replicate", oracle=True)
    assert [one.dtype for one in ours] == [torch.bfloat16] * 3 + [torch.float32] * 2
    for one, right in zip(ours, exact, strict=True):
        assert relative_error(one, right) < 2e-2


@pytest.mark.parametrize(
    ("slope", "noise", "padding", "shared"),
    [
        ("image", "full", "replicate", False),
        ("channel", "single", "zeros", False),
        ("scalar", "single", "replicate", True),
    ],
)
def test_gradcheck(slope: str, noise: str, padding: str, shared: bool) -> None:
    arguments = make(2, 2, 2, 2, 3, slope=slope, noise=noise, shared=shared)
    assert torch.autograd.gradcheck(
        lambda *tensors: degradation_block(*tensors, padding=padding), leaves(arguments), atol=1e-7
    )


def test_second_derivatives_are_refused() -> None:
    arguments = make()
    (grad,) = torch.autograd.grad(degradation_block(**arguments).square().sum(), arguments["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="degradation_block_backward"):
        grad.sum().backward()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["x", "weight", "slope", "noise"])
def test_what_is_not_finite_propagates(where: str, value: float) -> None:
    arguments = make(2, 3, 4, 5, 6)
    with torch.no_grad():
        arguments[where].view(-1)[-1] = value
        ours, exact = degradation_block(**arguments), reference(arguments)
    assert not ours[-1].isfinite().all()
    assert ours[0].isfinite().all()  # the first image has its own parameters
    torch.testing.assert_close(ours, exact, equal_nan=True)


def test_nan_propagates_into_gradients() -> None:
    arguments = make(2, 3, 4, 5, 6)
    with torch.no_grad():
        arguments["x"][1, 0, 2, 2] = math.nan
    ours = outputs_and_gradients(arguments, "replicate", oracle=False)
    exact = outputs_and_gradients(arguments, "replicate", oracle=True)
    for one, right in zip(ours, exact, strict=True):
        torch.testing.assert_close(one, right, equal_nan=True)
    assert ours[2][1].isnan().any()
    assert ours[3][1].isnan()


# ------------------------------------------------------------------------------------------- layouts and gradients


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("shared", [False, True])
def test_memory_formats(noise: str | None, shared: bool) -> None:
    arguments = make(2, 3, 4, 5, 6, noise=noise, shared=shared)
    plain = outputs_and_gradients(arguments, "replicate", oracle=False)
    assert plain[0].is_contiguous()
    assert plain[1].is_contiguous()
    arguments["x"] = arguments["x"].detach().to(memory_format=torch.channels_last).requires_grad_()
    last = outputs_and_gradients(arguments, "replicate", oracle=False)
    assert last[0].is_contiguous(memory_format=torch.channels_last)
    assert last[1].is_contiguous(memory_format=torch.channels_last)
    for one, other in zip(plain, last, strict=True):
        torch.testing.assert_close(one, other)


def test_inputs_that_are_not_contiguous() -> None:
    arguments = make(4, 6, 5, 8, 9)
    exact = outputs_and_gradients(arguments, "replicate", oracle=False)

    def scattered(tensor: Tensor) -> Tensor:
        """The same values with gaps between them, along reversed dimensions."""
        store = torch.empty([2 * size for size in reversed(tensor.shape)], dtype=tensor.dtype)
        view = store.permute(*reversed(range(tensor.dim())))[tuple([slice(None, None, 2)] * tensor.dim())]
        return view.copy_(tensor.detach()).requires_grad_()

    views = {name: scattered(one) for name, one in arguments.items()}
    assert not views["x"].is_contiguous()
    for one, other in zip(exact, outputs_and_gradients(views, "replicate", oracle=False), strict=True):
        torch.testing.assert_close(one, other)


def test_expanded_inputs_and_gradients() -> None:
    """Noise that is one zero seen often, as a fresh theta has it, and the gradient of a sum."""
    arguments = make(2, 3, 4, 5, 6)
    arguments["noise"] = torch.zeros((), dtype=torch.float64).expand(2, 4, 5, 6).requires_grad_()
    out = degradation_block(**arguments)
    grads = torch.autograd.grad(out.sum(), leaves(arguments))
    exact = torch.autograd.grad(reference(arguments).sum(), leaves(arguments))
    for one, right in zip(grads, exact, strict=True):
        torch.testing.assert_close(one, right)


class Calls(TorchDispatchMode):
    """Remembers which ops ran, with the `wanted` of every backward."""

    def __init__(self) -> None:
        super().__init__()
        self.forwards = 0
        self.saved: list[bool] = []
        self.wanted: list[list[bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is FORWARD:
            self.forwards += 1
            self.saved.append(args[5])
        if func is BACKWARD:
            self.wanted.append(list(args[8]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("subset", [one for one in itertools.product([False, True], repeat=4) if any(one)])
def test_gradients_only_where_asked(subset: tuple[bool, ...]) -> None:
    arguments = make(2, 3, 4, 5, 6)
    full = dict(zip(NAMES, outputs_and_gradients(arguments, "replicate", oracle=False)[1:], strict=True))
    for name, wanted in zip(NAMES, subset, strict=True):
        arguments[name].requires_grad_(wanted)
    with Calls() as calls:
        out = degradation_block(**arguments)
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        out.backward(grad)
    assert calls.saved == [True]
    assert calls.wanted == [list(subset)]
    for name, wanted in zip(NAMES, subset, strict=True):
        if wanted:
            torch.testing.assert_close(arguments[name].grad, full[name])
        else:
            assert arguments[name].grad is None


def test_nothing_is_kept_where_nobody_asks() -> None:
    arguments = make()
    with Calls() as calls:
        with torch.no_grad():
            assert not degradation_block(**arguments).requires_grad
        for one in leaves(arguments):
            one.requires_grad_(False)
        assert not degradation_block(**arguments).requires_grad
    assert calls.saved == [False, False]
    _, saved = FORWARD(*arguments.values(), "replicate", False, "reference")
    assert saved.numel() == 0


def test_arguments_are_left_alone_and_results_are_new() -> None:
    arguments = make(2, 4, 4, 5, 6, noise="full")
    before = {name: one.detach().clone() for name, one in arguments.items()}
    out = degradation_block(**arguments)
    grad = torch.randn_like(out)
    grads = torch.autograd.grad(out, leaves(arguments), grad)
    for name, one in arguments.items():
        assert torch.equal(one, before[name])
    pointers = [one.data_ptr() for one in (*leaves(arguments), out, grad, *grads)]
    assert len(set(pointers)) == len(pointers)


# -------------------------------------------------------------------------------------------- as a registered op


@pytest.mark.slow
@pytest.mark.parametrize(
    ("slope", "noise", "padding", "shared", "memory_format"),
    [
        ("image", "full", "replicate", False, torch.contiguous_format),
        ("channel", "single", "replicate", False, torch.channels_last),
        ("scalar", None, "zeros", True, torch.channels_last),
    ],
)
def test_opcheck_forward(
    slope: str, noise: str | None, padding: str, shared: bool, memory_format: torch.memory_format
) -> None:
    arguments = make(shared=shared, noise=noise, slope=slope)
    arguments["x"] = arguments["x"].detach().to(memory_format=memory_format).requires_grad_()
    torch.library.opcheck(FORWARD, (*arguments.values(), padding, True, "reference"))
    frozen = [None if one is None else one.detach() for one in arguments.values()]
    torch.library.opcheck(FORWARD, (*frozen, padding, False, "reference"))


FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def both_ways(
    x_format: str, grad_format: str, wanted: list[bool], **options: Any
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Arguments of the forward and of the backward op."""
    arguments = {name: one.detach() for name, one in make(**options).items()}
    x = arguments["x"].to(memory_format=FORMATS[x_format])
    forward = (x, arguments["weight"], arguments["slope"], arguments["noise"], "replicate", True, "reference")
    out, saved = FORWARD(*forward)
    grad = torch.randn_like(out, memory_format=FORMATS[grad_format])
    noise_shape = list(arguments["noise"].shape)
    backward = (grad, *forward[:3], saved, noise_shape, torch.float64, "replicate", wanted, "reference")
    return forward, backward


@pytest.mark.slow
@pytest.mark.parametrize(
    ("x_format", "grad_format", "wanted", "noise"),
    [
        ("contiguous", "contiguous", [True] * 4, "full"),
        ("channels_last", "contiguous", [False, True, True, True], "single"),
        ("contiguous", "channels_last", [True, False, False, False], "full"),
    ],
)
def test_opcheck_backward(x_format: str, grad_format: str, wanted: list[bool], noise: str) -> None:
    torch.library.opcheck(BACKWARD, both_ways(x_format, grad_format, wanted, noise=noise)[1])


@pytest.mark.parametrize("x_format", FORMATS)
@pytest.mark.parametrize("grad_format", FORMATS)
def test_fake_results_are_like_the_real_ones(x_format: str, grad_format: str) -> None:
    """Shapes, dtypes and strides, which compiled graphs rely on and opcheck does not compare."""
    sizes: list[dict[str, Any]] = [{}, {"c_out": 1}, {"c_in": 1}, {"height": 1, "width": 1}, {"n": 1}, {"n": 0}]
    for size, (noise, shared) in itertools.product(sizes, (("full", False), ("single", True))):
        forward, backward = both_ways(x_format, grad_format, [True] * 4, noise=noise, shared=shared, **size)
        for op, args in ((FORWARD, forward), (BACKWARD, backward)):
            with FakeTensorMode() as mode:
                foretold = op(*[mode.from_tensor(one) if isinstance(one, Tensor) else one for one in args])
            for real, fake in zip(op(*args), foretold, strict=True):
                expected = (fake.shape, fake.dtype, fake.stride())
                assert (real.shape, real.dtype, real.stride()) == expected, (op, size, noise, shared)


def test_meta_device() -> None:
    arguments = {name: one.detach().to("meta").requires_grad_() for name, one in make().items()}
    out = degradation_block(**arguments)
    out.sum().backward()
    assert out.shape == (2, 5, 4, 7)
    assert out.is_meta
    for one in leaves(arguments):
        assert one.grad is not None
        assert one.grad.shape == one.shape


@pytest.mark.slow
def test_compiles_to_one_node() -> None:
    torch._dynamo.reset()
    arguments = make(2, 3, 4, 6, 5, dtype=torch.float32)
    counter = torch._dynamo.testing.EagerAndRecordGraphs()
    torch.compile(degradation_block, backend=counter, fullgraph=True)(**arguments)
    targets = [node.target for graph in counter.graphs for node in graph.graph.nodes if node.op == "call_function"]
    assert [target for target in targets if "andfast" in str(target)] == [torch.ops.andfast.degradation_block]
    assert len(counter.graphs) == 1
    torch._dynamo.reset()

    def turned(**given: Any) -> Tensor:
        """Then the gradient that reaches the op is not contiguous."""
        return degradation_block(**given).permute(0, 2, 3, 1)

    grad = torch.randn(2, 6, 5, 4)
    compiled, eager = torch.compile(turned, fullgraph=True)(**arguments), turned(**arguments)
    torch.testing.assert_close(compiled, eager)
    ours = torch.autograd.grad(compiled, leaves(arguments), grad)
    for one, other in zip(ours, torch.autograd.grad(eager, leaves(arguments), grad), strict=True):
        torch.testing.assert_close(one, other)
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    arguments = make(2, 8, 8, 6, 6, dtype=torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        out = degradation_block(**arguments)
        nested = degradation_block(out, arguments["weight"].detach(), 0.5)
        exact = degradation_block(**{name: one.detach().double() for name, one in arguments.items()})
    assert out.dtype == nested.dtype == dtype
    assert exact.dtype == torch.float64  # autocast leaves float64 alone
    assert relative_error(out, reference(arguments)) < 1e-2
    out.float().square().sum().backward()
    for one in leaves(arguments):
        assert one.grad is not None
        assert one.grad.dtype == torch.float32


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("c_out", [1, 7])
def test_operation_count_is_exact(shared: bool, c_out: int) -> None:
    """Two operations a multiply-accumulate; a grouped convolution costs what its groups cost."""
    n, c_in, height, width = 3, 5, 6, 11
    macs = n * height * width * c_in * c_out * 9
    for subset in itertools.product([False, True], repeat=4):
        arguments = make(n, c_in, c_out, height, width, shared=shared)
        for name, wanted in zip(NAMES, subset, strict=True):
            arguments[name].requires_grad_(wanted)
        with FlopCounterMode(display=False) as counter:
            out = degradation_block(**arguments)
            assert counter.get_total_flops() == 2 * macs
            if any(subset):
                out.sum().backward()
        assert counter.get_total_flops() == 2 * macs * (1 + subset[0] + subset[1])


# ------------------------------------------------------------------------------------------------------- errors


def plain() -> dict[str, Any]:
    arguments: dict[str, Any] = {name: one.detach() for name, one in make(2, 3, 5, 4, 7, dtype=torch.float32).items()}
    return arguments


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": None}, TypeError, r"x must be a torch\.Tensor, was NoneType"),
        ({"x": torch.zeros(3, 4, 7)}, ValueError, r"x must have shape \(N, C, H, W\), was \(3, 4, 7\)"),
        (
            {"x": torch.zeros(2, 3, 4, 7, dtype=torch.uint8)},
            TypeError,
            r"x must be a floating-point tensor, was torch\.uint8",
        ),
        ({"x": torch.zeros(2, 3, 0, 7)}, ValueError, r"x must have H and W of at least 1, had shape \(2, 3, 0, 7\)"),
        ({"weight": [1.0]}, TypeError, r"weight must be a torch\.Tensor, was list"),
        (
            {"weight": torch.zeros(2, 5, 3, 3, 3, dtype=torch.float64)},
            TypeError,
            r"weight must have the dtype of x, torch\.float32, was torch\.float64",
        ),
        (
            {"weight": torch.zeros(2, 5, 3, 3, 3, device="meta")},
            ValueError,
            "weight must be on the device of x, cpu, was on meta",
        ),
        *(
            ({"weight": torch.zeros(shape)}, ValueError, r"weight must have shape .*, was \(" + str(shape)[1:-1])
            for shape in ((2, 5, 4, 3, 3), (3, 5, 3, 3, 3), (2, 5, 3, 5, 5), (3, 3, 3), (5, 4, 3, 3))
        ),
        ({"slope": "steep"}, TypeError, r"slope must be a number or a torch\.Tensor, was str"),
        ({"slope": None}, TypeError, r"slope must be a number or a torch\.Tensor, was NoneType"),
        (
            {"slope": torch.ones(2, dtype=torch.int64)},
            TypeError,
            r"slope must be a floating-point tensor, was torch\.int64",
        ),
        (
            {"slope": torch.ones(5)},
            ValueError,
            r"slope must have shape \(\), \(N,\) or \(N, Cout\), here \(\) or \(2,\) or \(2, 5\), was \(5,\)",
        ),
        ({"slope": torch.ones(2, 5, 1, 1)}, ValueError, r"slope must have shape .*, was \(2, 5, 1, 1\)"),
        ({"slope": torch.ones(2, device="meta")}, ValueError, "slope must be on the device of x, cpu, was on meta"),
        ({"noise": 0.5}, TypeError, r"noise must be a torch\.Tensor, was float"),
        ({"noise": torch.zeros(2, 5)}, ValueError, r"noise must have shape \(N, C, H, W\), was \(2, 5\)"),
        (
            {"noise": torch.zeros(2, 3, 4, 7)},
            ValueError,
            r"noise must have shape \(N, Cout, H, W\) or \(N, 1, H, W\), here \(2, 5, 4, 7\) or \(2, 1, 4, 7\), "
            r"was \(2, 3, 4, 7\)",
        ),
        ({"noise": torch.zeros(1, 5, 4, 7)}, ValueError, r"noise must have shape .*, was \(1, 5, 4, 7\)"),
        (
            {"noise": torch.zeros(2, 5, 4, 7, dtype=torch.int32)},
            TypeError,
            r"noise must be a floating-point tensor, was torch\.int32",
        ),
        (
            {"noise": torch.zeros(2, 5, 4, 7, device="meta")},
            ValueError,
            "noise must be on the device of x, cpu, was on meta",
        ),
        ({"padding": "reflect"}, ValueError, "padding must be one of 'replicate', 'zeros', was 'reflect'"),
        ({"impl": "fastest"}, ValueError, "impl must be one of auto, reference, triton, cuda, cpp, was 'fastest'"),
    ],
)
def test_errors(change: dict[str, Any], error: type[Exception], message: str) -> None:
    """The argument is named, with what it must be and what it was, before anything is computed."""
    with Calls() as calls, pytest.raises(error, match=message):
        degradation_block(**(plain() | change))
    assert calls.forwards == 0


def test_implementations() -> None:
    auto = degradation_block(**plain())
    assert torch.equal(auto, degradation_block(**plain(), impl="auto"))
    torch.testing.assert_close(auto, degradation_block(**plain(), impl="reference"))
    with pytest.raises(RuntimeError, match="impl='cpp' is not available: degradation_block has no such"):
        degradation_block(**plain(), impl="cpp")
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match=r"impl='triton'.* is not available"):
            degradation_block(**plain(), impl="triton")
