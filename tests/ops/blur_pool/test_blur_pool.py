"""blur_pool: every implementation against the definition; gradients, memory formats, dtypes and registration."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from blur_pool_cases import FORMATS, IMPLS, TOLERANCES, cases, definition, error, large
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from andfast.functional import blur_pool
from andfast.functional.blur_pool import binomial_taps

ODD_SHAPES = [
    (2, 3, 5, 7),
    (1, 1, 1, 1),
    (3, 2, 1, 3),
    (1, 5, 3, 1),
    (1, 17, 2, 11),
    (0, 3, 2, 2),
    (2, 0, 2, 2),
]


def test_definition_matches_docstring():
    """The tests' definition against the formula of the docstring, sample by sample."""
    x = np.random.default_rng(0).normal(size=(8, 12))
    taps, factor, pad = [1 / 128, 7 / 128, 21 / 128, 35 / 128, 35 / 128, 21 / 128, 7 / 128, 1 / 128], 4, 2

    def r(i, size):
        return -i if i < 0 else 2 * (size - 1) - i if i >= size else i

    y = np.zeros((2, 3))
    for i, j, k, m in itertools.product(range(2), range(3), range(8), range(8)):
        y[i, j] += taps[k] * taps[m] * x[r(4 * i + k - pad, 8), r(4 * j + m - pad, 12)]
    actual = definition(torch.from_numpy(x)[None, None], factor, taps)
    np.testing.assert_allclose(actual[0, 0].numpy(), y, rtol=1e-13)


@pytest.mark.parametrize(
    ("factor", "numerators"),
    [(1, [1]), (2, [1, 3, 3, 1]), (3, [1, 4, 6, 4, 1]), (4, [1, 7, 21, 35, 35, 21, 7, 1])],
)
def test_binomial_taps(factor, numerators):
    assert binomial_taps(factor) == tuple(numerator / sum(numerators) for numerator in numerators)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("factor", [1, 2, 3, 4, 5])
def test_forward_and_backward_match_definition(impl, factor, memory_format, dtype):
    # The CPU code has separate paths for NHWC with 16 channels or more, and for 1 and 3 channels.
    for shape in [*ODD_SHAPES, (2, 16, 3, 5), (1, 33, 2, 3), (1, 3, 16, 37), (1, 1, 2, 601)]:
        n, c, h, w = large(shape, factor)
        x = torch.randn(n, c, h, w).to(dtype).contiguous(memory_format=memory_format).requires_grad_()
        wide = x.detach().double().requires_grad_()
        expected = definition(wide, factor)
        y = blur_pool(x, factor, impl=impl)
        assert y.dtype == dtype
        assert y.shape == expected.shape
        assert y.is_contiguous(memory_format=memory_format)
        assert error(y, expected) <= TOLERANCES[dtype], shape
        grad = torch.randn(expected.shape).to(dtype).contiguous(memory_format=memory_format)
        y.backward(grad)
        expected.backward(grad.double())
        assert x.grad.is_contiguous(memory_format=memory_format)
        assert error(x.grad, wide.grad) <= TOLERANCES[dtype], shape


@given(cases())
def test_random_filters_and_shapes(case):
    """Forward against the definition; backward as the adjoint, <A x, g> = <x, A' g>."""
    factor, taps, shape, memory_format, impl = case
    x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=memory_format).requires_grad_()
    y = blur_pool(x, factor, filter=taps, impl=impl)
    torch.testing.assert_close(y, definition(x, factor, taps), rtol=1e-11, atol=1e-11)
    grad = torch.randn_like(y)
    (transposed,) = torch.autograd.grad(y, x, grad)
    left, right = (y * grad).sum().item(), (x * transposed).sum().item()
    assert math.isclose(left, right, rel_tol=1e-9, abs_tol=1e-9)


@given(st.integers(1, 5), st.floats(-1e3, 1e3, width=32), st.integers(1, 6), st.sampled_from(IMPLS))
def test_preserves_constants(factor, value, blocks, impl):
    x = torch.full((1, 2, factor * (blocks + 1), factor * (blocks + 2)), value)
    y = blur_pool(x, factor, impl=impl)
    torch.testing.assert_close(y, torch.full_like(y, value), rtol=1e-6, atol=0)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_output_is_centered(impl, factor):
    """Each LR pixel of a ramp is the mean of its block of HR pixels: there is no shift."""
    rows, columns = torch.meshgrid(torch.arange(8.0 * factor), torch.arange(9.0 * factor), indexing="ij")
    ramp = (rows + 100 * columns)[None, None].double()
    y = blur_pool(ramp, factor, impl=impl)
    torch.testing.assert_close(y[..., 1:-1, 1:-1], F.avg_pool2d(ramp, factor)[..., 1:-1, 1:-1])


def test_sums_half_types_in_fp32(impl):
    """A sum in half precision would be off by several units in the last place."""
    for dtype in (torch.bfloat16, torch.float16):
        x = (1 + torch.rand(2, 3, 64, 64)).to(dtype)
        assert torch.equal(blur_pool(x, 4, impl=impl), blur_pool(x.float(), 4, impl=impl).to(dtype))


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_strided_inputs(impl, memory_format):
    """Crops, transposes and expanded tensors; a crop of an NHWC tensor gives NHWC."""
    whole = torch.randn(2, 6, 40, 48, dtype=torch.float64).contiguous(memory_format=memory_format)
    crop = whole[:, :, 4:28, 8:40]
    y = blur_pool(crop, 4, impl=impl)
    torch.testing.assert_close(y, definition(crop, 4))
    assert y.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(blur_pool(crop.mT, 4, impl=impl), definition(crop.mT, 4))
    expanded = torch.ones(1, dtype=torch.float64).expand(1, 3, 8, 8)
    torch.testing.assert_close(blur_pool(expanded, 2, impl=impl), torch.ones(1, 3, 4, 4, dtype=torch.float64))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_gradcheck(impl, factor, memory_format):
    x = torch.randn(1, 2, 2 * factor if factor < 4 else 4, 2 * factor, dtype=torch.float64).contiguous(
        memory_format=memory_format
    )
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: blur_pool(x, factor, impl=impl), (x,))
    assert torch.autograd.gradgradcheck(lambda x: blur_pool(x, factor, impl=impl).sin(), (x,))


@pytest.mark.parametrize(
    ("shape", "memory_format"),
    [((2, 3, 8, 12), FORMATS[0]), ((2, 3, 8, 12), FORMATS[1]), ((0, 3, 8, 8), FORMATS[0])],
    ids=str,
)
def test_opcheck(impl, shape, memory_format):
    x = torch.randn(shape).contiguous(memory_format=memory_format).requires_grad_()
    taps = list(binomial_taps(4))
    suffix = "_reference" if impl == "reference" else ""
    for name in (f"blur_pool{suffix}", f"blur_pool{suffix}_backward"):
        torch.library.opcheck(getattr(torch.ops.andfast, name), (x, taps, 4))


@pytest.mark.slow
@pytest.mark.parametrize(("impl", "dynamic", "backend"), [("cpp", False, "inductor"), ("reference", True, "aot_eager")])
def test_compiles_to_one_graph(impl, dynamic, backend):
    def scaled(x):
        return blur_pool(x.sin(), 4, impl=impl) * 2

    torch.compiler.reset()
    compiled = torch.compile(scaled, fullgraph=True, dynamic=dynamic, backend=backend)
    for size, memory_format in itertools.product((16, 24), FORMATS):
        x = torch.randn(2, 3, size, size).contiguous(memory_format=memory_format).requires_grad_()
        y = compiled(x)
        (grad,) = torch.autograd.grad(y.square().sum(), x)
        expected = scaled(x)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(grad, torch.autograd.grad(expected.square().sum(), x)[0])
        assert y.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_has_no_effect(impl, dtype):
    x = torch.randn(1, 3, 16, 16).to(dtype).requires_grad_()
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        inside = blur_pool(x, 4, impl=impl)
        (grad_inside,) = torch.autograd.grad(inside.sum(), x)
    outside = blur_pool(x, 4, impl=impl)
    assert inside.dtype == dtype
    assert torch.equal(inside, outside)
    assert torch.equal(grad_inside, torch.autograd.grad(outside.sum(), x)[0])


@pytest.mark.parametrize("impl", IMPLS)
def test_result_requires_no_gradient_if_x_does_not(impl):
    assert not blur_pool(torch.rand(1, 3, 8, 8), 4, impl=impl).requires_grad


def test_result_is_independent_of_threads():
    x = torch.randn(3, 3, 64, 64)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        single = blur_pool(x, 4, impl="cpp")
        torch.set_num_threads(3)
        assert torch.equal(blur_pool(x, 4, impl="cpp"), single)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("filter_", [torch.tensor([0.25, 0.25, 0.25, 0.25]), (0.25,) * 4], ids=["tensor", "tuple"])
def test_box_filter_is_average_pooling(impl, filter_):
    x = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    torch.testing.assert_close(blur_pool(x, 4, filter=filter_, impl=impl), F.avg_pool2d(x, 4))


@pytest.mark.parametrize("impl", IMPLS)
def test_operation_count(impl):
    x = torch.randn(2, 3, 16, 24, requires_grad=True)
    macs = 2 * 3 * (4 * 24 * 8 + 4 * 6 * 8)
    with FlopCounterMode(display=False) as counter:
        y = blur_pool(x, 4, impl=impl)
    assert counter.get_total_flops() == 2 * macs
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 2 * macs
