"""blur_pool: selection of an implementation, argument errors, and the index arithmetic in C++."""

import math

import numpy as np
import pytest
import torch
from blur_pool_cases import IMPLS
from hypothesis import given
from hypothesis import strategies as st

from andfast.functional import blur_pool, dispatch, extension


def test_auto_selects_cpp_on_cpu():
    assert dispatch.resolve("blur_pool", "auto", "cpu") == "cpp"
    assert dispatch.resolve("blur_pool", "auto", "mps") == "reference"


def test_unavailable_implementations_raise():
    x = torch.rand(1, 3, 8, 8)
    with pytest.raises(ValueError, match=r"impl must be one of .*was 'fast'"):
        blur_pool(x, 4, impl="fast")
    with pytest.raises(RuntimeError, match="impl='triton' is not available: blur_pool has no such implementation"):
        blur_pool(x, 4, impl="triton")
    with pytest.raises(RuntimeError, match=r"impl='cpp' of blur_pool is not available: it runs on the CPU.*'meta'"):
        blur_pool(x.to("meta"), 4, impl="cpp")


def test_missing_extension_is_reported(monkeypatch):
    monkeypatch.setattr(extension, "why_missing", lambda: "no compiled extension: libtorch.so not found")
    x = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(blur_pool(x, 4), blur_pool(x, 4, impl="reference"), rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="impl='cpp' of blur_pool is not available: no compiled extension: libtorch"):
        blur_pool(x, 4, impl="cpp")


def test_cuda_rejects_too_many_taps(monkeypatch):
    monkeypatch.setitem(dispatch._TABLE["blur_pool"], "cuda", dispatch.everywhere)
    x = torch.rand(1, 1, 300, 300)
    with pytest.raises(
        ValueError, match="filter must have at most 256 taps with impl='cuda', had 258; impl='reference'"
    ):
        blur_pool(x, 4, filter=[1 / 258] * 258, impl="cuda")


X = torch.zeros(1, 3, 8, 8)


@pytest.mark.parametrize("impl", IMPLS)
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
def test_rejects_invalid_arguments(kind, message, arguments, impl):
    x, factor, *taps = arguments
    with pytest.raises(kind, match=message):
        blur_pool(x, factor, **({"filter": taps[0]} if taps else {}), impl=impl)


# ------------------------------------------------------------------------------------- the index arithmetic in C++


@given(st.integers(1, 6), st.integers(0, 4), st.integers(1, 9))
def test_index_arithmetic(factor, pad, outputs):
    """csrc/blur_pool/index.h, shared by the CPU and CUDA code, against brute force along one axis."""
    from andfast import _C  # noqa: PLC0415

    size = factor * outputs
    n_taps = factor + 2 * pad
    if size <= pad:
        return
    assert _C.blur_pool_padding_of(n_taps, factor) == pad
    source = np.pad(np.arange(size), pad, mode="reflect")
    for o in range(outputs):
        for k in range(n_taps):
            assert _C.blur_pool_input_of(o, k, factor, pad, size) == source[factor * o + k]
    for p in range(size + 2 * pad):
        first, last = _C.blur_pool_outputs_of(p, factor, n_taps, outputs)
        assert list(range(first, last + 1)) == [o for o in range(outputs) if 0 <= p - factor * o < n_taps]
    for i in range(size):
        assert sorted(_C.blur_pool_padded_of(i, pad, size)) == np.flatnonzero(source == i).tolist()
