"""blur_pool: every implementation against the definition, its gradients, registration, formats, dtypes and errors."""

import contextlib
import itertools
import math
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from andfast.functional import blur_pool, dispatch
from andfast.functional.blur_pool import binomial_taps

IMPLS = ["reference", "cpp"]
GPU = pytest.param("cuda", marks=pytest.mark.gpu)
FORMATS = [torch.contiguous_format, torch.channels_last]
TOLERANCES = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}
ODD_SHAPES = [
    (2, 3, 5, 7),
    (1, 1, 1, 1),
    (3, 2, 1, 3),
    (1, 5, 3, 1),
    (1, 17, 2, 11),
    (0, 3, 2, 2),
    (2, 0, 2, 2),
]


@pytest.fixture(params=[*IMPLS, GPU])
def impl(request):
    """An implementation's name; tensors that the test makes are on its device."""
    with torch.device("cuda") if request.param == "cuda" else contextlib.nullcontext():
        yield request.param


def matrix(size, taps, factor):
    """The map along one axis, (size / factor, size), from numpy's own reflection padding and nothing of the package."""
    pad = (len(taps) - factor) // 2
    seen = np.pad(np.arange(size), pad, mode="reflect") if pad else np.arange(size)
    dense = np.zeros((size // factor, size))
    for o in range(size // factor):
        for k, tap in enumerate(taps):
            dense[o, seen[factor * o + k]] += tap
    return torch.from_numpy(dense)


def definition(x, factor, taps=None):
    """The definition in float64 as two dense matrix products; differentiable."""
    taps = binomial_taps(factor) if taps is None else taps
    rows, columns = (matrix(size, taps, factor).to(x.device) for size in x.shape[2:])
    return rows @ x.double() @ columns.T


def large(shape, factor):
    n, c, h, w = shape
    return n, c, h * factor, w * factor


def error(found, expected):
    return ((found.double() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def test_definition_by_loops():
    """The tests' own oracle against the formula of the docstring, sample by sample."""
    x = np.random.default_rng(0).normal(size=(8, 12))
    taps, factor, pad = [1 / 128, 7 / 128, 21 / 128, 35 / 128, 35 / 128, 21 / 128, 7 / 128, 1 / 128], 4, 2

    def r(i, size):
        return -i if i < 0 else 2 * (size - 1) - i if i >= size else i

    y = np.zeros((2, 3))
    for i, j, k, m in itertools.product(range(2), range(3), range(8), range(8)):
        y[i, j] += taps[k] * taps[m] * x[r(4 * i + k - pad, 8), r(4 * j + m - pad, 12)]
    found = definition(torch.from_numpy(x)[None, None], factor, taps)
    np.testing.assert_allclose(found[0, 0].numpy(), y, rtol=1e-13)


@pytest.mark.parametrize(
    ("factor", "numerators"),
    [(1, [1]), (2, [1, 3, 3, 1]), (3, [1, 4, 6, 4, 1]), (4, [1, 7, 21, 35, 35, 21, 7, 1])],
)
def test_binomial_taps(factor, numerators):
    assert binomial_taps(factor) == tuple(one / sum(numerators) for one in numerators)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("factor", [1, 2, 3, 4, 5])
def test_forward_and_backward_are_the_definition(impl, factor, memory_format, dtype):
    # 16 channels and more take a path of their own in NHWC; 3 and 1 have loops of their own.
    for shape in [*ODD_SHAPES, (2, 16, 3, 5), (1, 33, 2, 3), (1, 3, 16, 37), (1, 1, 2, 601)]:
        n, c, h, w = large(shape, factor)
        x = torch.randn(n, c, h, w).to(dtype).contiguous(memory_format=memory_format).requires_grad_()
        wide = x.detach().double().requires_grad_()
        expected = definition(wide, factor)
        found = blur_pool(x, factor, impl=impl)
        assert found.dtype == dtype
        assert found.shape == expected.shape
        assert found.is_contiguous(memory_format=memory_format)
        assert error(found, expected) <= TOLERANCES[dtype], shape
        grad = torch.randn(expected.shape).to(dtype).contiguous(memory_format=memory_format)
        found.backward(grad)
        expected.backward(grad.double())
        assert x.grad.is_contiguous(memory_format=memory_format)
        assert error(x.grad, wide.grad) <= TOLERANCES[dtype], shape


@st.composite
def cases(draw):
    factor = draw(st.integers(1, 5))
    extra = draw(st.integers(0, 4))
    half = draw(st.lists(st.floats(-1, 1), min_size=(factor + 1) // 2 + extra, max_size=(factor + 1) // 2 + extra))
    taps = half[::-1] + half if factor % 2 == 0 else half[:0:-1] + half
    total = sum(taps)
    taps = [one / total for one in taps] if abs(total) > 0.1 else [1 / len(taps)] * len(taps)
    pad = (len(taps) - factor) // 2
    least = pad // factor + 1
    shape = draw(st.tuples(st.integers(0, 3), st.integers(1, 20), st.integers(least, 7), st.integers(least, 13)))
    return factor, taps, large(shape, factor), draw(st.sampled_from(FORMATS)), draw(st.sampled_from(IMPLS))


@given(cases())
def test_any_filter_and_shape(case):
    """Forward against the definition; backward as the adjoint, <A x, g> = <x, A' g>."""
    factor, taps, shape, memory_format, impl = case
    x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=memory_format).requires_grad_()
    found = blur_pool(x, factor, filter=taps, impl=impl)
    torch.testing.assert_close(found, definition(x, factor, taps), rtol=1e-11, atol=1e-11)
    grad = torch.randn_like(found)
    (transposed,) = torch.autograd.grad(found, x, grad)
    left, right = (found * grad).sum().item(), (x * transposed).sum().item()
    assert math.isclose(left, right, rel_tol=1e-9, abs_tol=1e-9)


@given(st.integers(1, 5), st.floats(-1e3, 1e3, width=32), st.integers(1, 6), st.sampled_from(IMPLS))
def test_constant_stays_constant(factor, value, blocks, impl):
    x = torch.full((1, 2, factor * (blocks + 1), factor * (blocks + 2)), value)
    y = blur_pool(x, factor, impl=impl)
    torch.testing.assert_close(y, torch.full_like(y, value), rtol=1e-6, atol=0)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_lr_is_centred(impl, factor):
    """A ramp's LR pixel is the mean of its block of HR pixels: nothing is shifted."""
    rows, columns = torch.meshgrid(torch.arange(8.0 * factor), torch.arange(9.0 * factor), indexing="ij")
    ramp = (rows + 100 * columns)[None, None].double()
    y = blur_pool(ramp, factor, impl=impl)
    torch.testing.assert_close(y[..., 1:-1, 1:-1], F.avg_pool2d(ramp, factor)[..., 1:-1, 1:-1])


def test_half_types_are_summed_in_fp32(impl):
    """A sum in half precision would be off by several units in the last place."""
    for dtype in (torch.bfloat16, torch.float16):
        x = (1 + torch.rand(2, 3, 64, 64)).to(dtype)
        assert torch.equal(blur_pool(x, 4, impl=impl), blur_pool(x.float(), 4, impl=impl).to(dtype))


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_strided_inputs(impl, memory_format):
    """Crops and flips of larger tensors; a crop of an NHWC tensor gives NHWC."""
    whole = torch.randn(2, 6, 40, 48, dtype=torch.float64).contiguous(memory_format=memory_format)
    crop = whole[:, :, 4:28, 8:40]
    y = blur_pool(crop, 4, impl=impl)
    torch.testing.assert_close(y, definition(crop, 4))
    assert y.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(blur_pool(crop.mT, 4, impl=impl), definition(crop.mT, 4))
    expanded = torch.ones(1, dtype=torch.float64).expand(1, 3, 8, 8)
    torch.testing.assert_close(blur_pool(expanded, 2, impl=impl), torch.ones(1, 3, 4, 4, dtype=torch.float64))


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_gradcheck(impl, factor, memory_format):
    x = torch.randn(1, 2, 2 * factor if factor < 4 else 4, 2 * factor, dtype=torch.float64).contiguous(
        memory_format=memory_format
    )
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda one: blur_pool(one, factor, impl=impl), (x,))
    assert torch.autograd.gradgradcheck(lambda one: blur_pool(one, factor, impl=impl).sin(), (x,))


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 8, 12), (0, 3, 8, 8), (1, 1, 4, 4)], ids=str)
def test_opcheck(impl, shape, memory_format):
    x = torch.randn(shape).contiguous(memory_format=memory_format).requires_grad_()
    taps = list(binomial_taps(4))
    torch.library.opcheck(torch.ops.andfast.blur_pool, (x, taps, 4, impl))
    torch.library.opcheck(torch.ops.andfast.blur_pool_backward, (x, taps, 4, impl))


@pytest.mark.slow
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole(impl, dynamic):
    def scaled(x):
        return blur_pool(x.sin(), 4, impl=impl) * 2

    torch.compiler.reset()
    compiled = torch.compile(scaled, fullgraph=True, dynamic=dynamic)
    for size, memory_format in itertools.product((16, 24), FORMATS):
        x = torch.randn(2, 3, size, size).contiguous(memory_format=memory_format).requires_grad_()
        found = compiled(x)
        (grad,) = torch.autograd.grad(found.square().sum(), x)
        expected = scaled(x)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(grad, torch.autograd.grad(expected.square().sum(), x)[0])
        assert found.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_changes_nothing(impl, dtype):
    x = torch.randn(1, 3, 16, 16).to(dtype).requires_grad_()
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        inside = blur_pool(x, 4, impl=impl)
        (grad_inside,) = torch.autograd.grad(inside.sum(), x)
    outside = blur_pool(x, 4, impl=impl)
    assert inside.dtype == dtype
    assert torch.equal(inside, outside)
    assert torch.equal(grad_inside, torch.autograd.grad(outside.sum(), x)[0])


def test_no_gradient_where_none_is_wanted(impl):
    assert not blur_pool(torch.rand(1, 3, 8, 8), 4, impl=impl).requires_grad


def test_results_do_not_depend_on_threads():
    x = torch.randn(3, 3, 64, 64)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = blur_pool(x, 4, impl="cpp")
        torch.set_num_threads(3)
        assert torch.equal(blur_pool(x, 4, impl="cpp"), alone)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("filter_", [torch.tensor([0.25, 0.25, 0.25, 0.25]), (0.25,) * 4], ids=["tensor", "tuple"])
def test_a_box_filter_is_average_pooling(impl, filter_):
    x = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    torch.testing.assert_close(blur_pool(x, 4, filter=filter_, impl=impl), F.avg_pool2d(x, 4))


def test_operation_count(impl):
    x = torch.randn(2, 3, 16, 24, requires_grad=True)
    macs = 2 * 3 * (4 * 24 * 8 + 4 * 6 * 8)
    with FlopCounterMode(display=False) as counter:
        y = blur_pool(x, 4, impl=impl)
    assert counter.get_total_flops() == 2 * macs
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 2 * macs


# --------------------------------------------------------------------------------------------------------- dispatch


def test_cpu_takes_the_compiled_code():
    assert dispatch.resolve("blur_pool", "auto", "cpu") == "cpp"
    assert dispatch.resolve("blur_pool", "auto", "mps") == "reference"


def test_explicit_choices_that_cannot_run():
    x = torch.rand(1, 3, 8, 8)
    with pytest.raises(ValueError, match=r"impl must be one of .*was 'fast'"):
        blur_pool(x, 4, impl="fast")
    with pytest.raises(RuntimeError, match="impl='triton' is not available: blur_pool has no such implementation"):
        blur_pool(x, 4, impl="triton")
    with pytest.raises(RuntimeError, match=r"impl='cpp' of blur_pool is not available: it runs on the CPU.*'meta'"):
        blur_pool(x.to("meta"), 4, impl="cpp")


def test_missing_extension_is_told(monkeypatch):
    module = sys.modules["andfast.functional.blur_pool"]  # the package's attribute of that name is the function
    monkeypatch.setattr(module, "_cpp_error", "no compiled extension: libtorch.so not found")
    x = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(blur_pool(x, 4), blur_pool(x, 4, impl="reference"), rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="impl='cpp' of blur_pool is not available: no compiled extension: libtorch"):
        blur_pool(x, 4, impl="cpp")


X = torch.zeros(1, 3, 8, 8)


@pytest.mark.parametrize(
    ("kind", "message", "arguments"),
    [
        (TypeError, "x must be a torch.Tensor, was list", ([1.0], 4)),
        (ValueError, r"x must have shape \(N, C, H, W\), was \(3, 8, 8\)", (X[0], 4)),
        (TypeError, "x must be a floating-point tensor, was torch.uint8", (X.byte(), 4)),
        (ValueError, r"x must have H and W divisible by the factor, 3, had shape \(1, 3, 8, 8\)", (X, 3)),
        (
            ValueError,
            r"x must have H and W divisible by the factor, 4, had shape \(1, 3, 8, 6\)",
            (X[..., :6], 4),
        ),
        (ValueError, "x must have H and W greater than the padding of 4 taps, 1, had", (X[:, :, :0], 2)),
        (
            ValueError,
            "x must have H and W greater than the padding of 18 taps, 8, had",
            (X, 2, [1 / 18] * 18),
        ),
        (TypeError, "factor must be an int, was float", (X, 4.0)),
        (TypeError, "factor must be an int, was bool", (X, True)),
        (ValueError, "factor must be positive, was 0", (X, 0)),
        (ValueError, "factor must be positive, was -2", (X, -2)),
        (ValueError, "filter must be 'binomial' or a sequence of taps, was 'gauss'", (X, 4, "gauss")),
        (
            TypeError,
            "filter must be 'binomial', a 1-D tensor or a sequence of floats, was NoneType",
            (X, 4, None),
        ),
        (
            TypeError,
            "filter must be 'binomial', a 1-D tensor or a sequence of floats, was list",
            (X, 2, ["a", "b"]),
        ),
        (ValueError, r"filter must be one-dimensional, had shape \(2, 2\)", (X, 2, torch.ones(2, 2))),
        (
            ValueError,
            "filter must have an even number of taps, at least 4, for factor 4, had 5",
            (X, 4, [0.2] * 5),
        ),
        (
            ValueError,
            "filter must have an even number of taps, at least 4, for factor 4, had 2",
            (X, 4, [0.5] * 2),
        ),
        (
            ValueError,
            "filter must have an odd number of taps, at least 1, for factor 1, had 2",
            (X, 1, [0.5] * 2),
        ),
        (ValueError, "filter must be symmetric, was", (X, 2, [0.25, 0.75])),
        (ValueError, "filter must sum to 1, summed to 0.8", (X, 2, [0.4, 0.4])),
        (ValueError, "filter must sum to 1, summed to nan", (X, 2, [math.nan] * 2)),
    ],
)
def test_errors_name_the_argument(kind, message, arguments, impl):
    x, factor, *taps = arguments
    with pytest.raises(kind, match=message):
        blur_pool(x, factor, **({"filter": taps[0]} if taps else {}), impl=impl)


# ------------------------------------------------------------------------------------- the index arithmetic in C++


@given(st.integers(1, 6), st.integers(0, 4), st.integers(1, 9))
def test_index_arithmetic(factor, pad, outputs):
    """blur_pool_index.h, which the CPU code and the CUDA code use: one axis, by brute force."""
    from andfast import _C  # noqa: PLC0415

    size = factor * outputs
    n_taps = factor + 2 * pad
    if size <= pad:
        return
    assert _C.blur_pool_padding_of(n_taps, factor) == pad
    seen = np.pad(np.arange(size), pad, mode="reflect")
    for o in range(outputs):
        for k in range(n_taps):
            assert _C.blur_pool_input_of(o, k, factor, pad, size) == seen[factor * o + k]
    for p in range(size + 2 * pad):
        first, last = _C.blur_pool_outputs_of(p, factor, n_taps, outputs)
        assert list(range(first, last + 1)) == [o for o in range(outputs) if 0 <= p - factor * o < n_taps]
    for i in range(size):
        assert sorted(_C.blur_pool_padded_of(i, pad, size)) == np.flatnonzero(seen == i).tolist()
