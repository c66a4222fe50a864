"""The definition of blur_pool in float64, and random cases, shared by its tests."""

import numpy as np
import torch
from hypothesis import strategies as st

from andfast.functional.blur_pool import binomial_taps

IMPLS = ["reference", "cpp"]
FORMATS = [torch.contiguous_format, torch.channels_last]
TOLERANCES = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}


def matrix(size, taps, factor):
    """The map along one axis, (size / factor, size), built from NumPy's reflection padding."""
    pad = (len(taps) - factor) // 2
    source = np.pad(np.arange(size), pad, mode="reflect") if pad else np.arange(size)
    dense = np.zeros((size // factor, size))
    for o in range(size // factor):
        for k, tap in enumerate(taps):
            dense[o, source[factor * o + k]] += tap
    return torch.from_numpy(dense)


def definition(x, factor, taps=None):
    """The definition in float64 as two dense matrix products; differentiable."""
    taps = binomial_taps(factor) if taps is None else taps
    rows, columns = (matrix(size, taps, factor).to(x.device) for size in x.shape[2:])
    return rows @ x.double() @ columns.T


def large(shape, factor):
    """The shape of the large side for one of the small side."""
    n, c, h, w = shape
    return n, c, h * factor, w * factor


def error(actual, expected):
    return ((actual.double() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


@st.composite
def cases(draw):
    """Factor, taps, shape of the large side, memory format and implementation."""
    factor = draw(st.integers(1, 5))
    extra = draw(st.integers(0, 4))
    half = draw(st.lists(st.floats(-1, 1), min_size=(factor + 1) // 2 + extra, max_size=(factor + 1) // 2 + extra))
    taps = half[::-1] + half if factor % 2 == 0 else half[:0:-1] + half
    total = sum(taps)
    taps = [tap / total for tap in taps] if abs(total) > 0.1 else [1 / len(taps)] * len(taps)
    pad = (len(taps) - factor) // 2
    min_size = pad // factor + 1
    shape = draw(st.tuples(st.integers(0, 3), st.integers(1, 20), st.integers(min_size, 7), st.integers(min_size, 13)))
    return factor, taps, large(shape, factor), draw(st.sampled_from(FORMATS)), draw(st.sampled_from(IMPLS))
