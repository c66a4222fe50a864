"""blur_pool in CUDA: when it is selected, that it builds without spills for all architectures, and results on a GPU.

test_blur_pool_emulator.py tests the kernels' code on the CPU; test_blur_pool.py also runs on a GPU if there is one.
"""

import pytest
import torch
from blur_pool_cases import FORMATS, TOLERANCES, cases, definition, error
from built_kernels import built_for
from hypothesis import given, settings

from andfast import _C
from andfast.functional import blur_pool, dispatch, extension

REAL = (48, 64, 256, 256)

# --------------------------------------------------------------------------------------------------- when it is chosen


@pytest.fixture
def fresh(monkeypatch):
    """Clear the cached availability before and after a test that fakes the machine."""
    extension._why_not_cuda_here.cache_clear()
    yield monkeypatch
    extension._why_not_cuda_here.cache_clear()


def fake_machine(monkeypatch, archs="8.0:9.0+PTX", version="13.0", *capabilities):
    monkeypatch.setattr(_C, "CUDA_ARCHS", archs)
    monkeypatch.setattr(torch.version, "cuda", version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=0: capabilities[index])


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        (("",), "the extension was built without its CUDA part"),
        (("9.0", None), r"torch .* is a build without CUDA"),
        (("9.0", "13.0"), "torch finds no CUDA device"),
        (("9.0", "13.0", (9, 0), (8, 0)), "device 1 has compute capability 8.0, the extension was built for 9.0"),
    ],
)
def test_unavailable_cuda_is_explained(fresh, machine, reason):
    fake_machine(fresh, *machine)
    assert dispatch.resolve("blur_pool", "auto", "cuda") == "reference"
    with pytest.raises(RuntimeError, match=f"impl='cuda' of blur_pool is not available: {reason}"):
        dispatch.resolve("blur_pool", "cuda", "cuda")


def test_auto_selects_cuda_if_available(fresh):
    fake_machine(fresh, "8.0:9.0", "13.0", (8, 6), (9, 0))
    assert dispatch.resolve("blur_pool", "auto", "cuda") == "cuda"
    assert dispatch.resolve("blur_pool", "auto", "cpu") == "cpp"


def test_missing_extension_is_reported(fresh):
    fresh.setattr(extension, "why_missing", lambda: "no compiled extension: libtorch.so not found")
    with pytest.raises(RuntimeError, match=r"not available: no compiled extension: libtorch\.so not found"):
        dispatch.resolve("blur_pool", "cuda", "cuda")


def test_rejects_cpu_tensors():
    with pytest.raises(RuntimeError, match=r"impl='cuda' of blur_pool is not available: it runs on CUDA.*on 'cpu'"):
        blur_pool(torch.rand(1, 3, 8, 8), 4, impl="cuda")


@pytest.mark.parametrize(
    ("archs", "capability", "runs"),
    [
        ("8.0:9.0", (8, 0), True),
        ("8.0:9.0", (8, 9), True),  # code for 8.0 runs on all of 8.x
        ("8.6", (8, 0), False),
        ("8.0:9.0", (10, 0), False),
        ("8.0:9.0+PTX", (12, 0), True),
        ("9.0+PTX", (8, 0), False),
        ("9.0a", (9, 0), True),
        ("9.0a", (9, 1), False),
        ("8.0", (7, 5), False),
    ],
)
def test_runs_on_capability(archs, capability, runs):
    assert extension._runs_on(archs, capability) == runs


# ----------------------------------------------------------------------------------------------------- compiled kernels


@pytest.mark.skipif(not _C.CUDA_ARCHS, reason="needs an extension with its CUDA part")
@pytest.mark.parametrize("key", ["CPU", "CUDA"])
@pytest.mark.parametrize("op", ["blur_pool", "blur_pool_backward"])
def test_ops_have_kernels_for_both_devices(op, key):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"andfast::{op}", key)


KERNELS = 3 * 3 * 3 * 2 + 4 * 2  # filters, dtypes, layouts and directions; dtypes and directions of any filter


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a"])
def test_kernels_do_not_spill_and_reach_the_intended_occupancy(architecture):
    kernels = {
        name: resources
        for (arch, name), resources in built_for("sm_80", "sm_90a").items()
        if arch == architecture and "convolution" not in name
    }
    assert len(kernels) == KERNELS
    for name, resources in kernels.items():
        assert resources.stack == resources.local == 0, (name, resources)
        # 65,536 registers for 3 blocks of 288 threads; 1 or 2 blocks where each value of a chunk has its own column.
        narrow = "any_kernel" not in name and ("LayoutE0" in name or ("7Forward" in name and "LayoutE1" in name))
        assert resources.registers <= (72 if narrow else 112), (name, resources)


# ------------------------------------------------------------------------------------------------- what a GPU computes


def both_directions(x, factor, impl="cuda"):
    """The pooled x and the gradient to x of a random gradient, with that gradient."""
    x = x.detach().requires_grad_()
    y = blur_pool(x, factor, impl=impl)
    grad = torch.randn_like(y)
    return y.detach(), torch.autograd.grad(y, x, grad)[0], grad


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("shape", "memory_format", "dtype"),
    [
        (REAL, FORMATS[1], torch.bfloat16),
        (REAL, FORMATS[0], torch.float32),
        ((48, 3, 256, 256), FORMATS[0], torch.float32),
        ((48, 3, 256, 256), FORMATS[1], torch.float16),
        ((5, 65, 252, 188), FORMATS[0], torch.bfloat16),
        ((5, 65, 252, 188), FORMATS[1], torch.float32),
    ],
    ids=str,
)
def test_real_sizes(shape, memory_format, dtype):
    x = torch.randn(shape, device="cuda").to(dtype).contiguous(memory_format=memory_format)
    y, grad_x, grad = both_directions(x, 4)
    assert y.is_contiguous(memory_format=memory_format)
    assert grad_x.is_contiguous(memory_format=memory_format)
    for part in (slice(0, 1), slice(shape[0] // 2, shape[0] // 2 + 1), slice(shape[0] - 1, None)):  # float64 is large
        wide = x[part].double().requires_grad_()
        expected = definition(wide, 4)
        assert error(y[part], expected) <= TOLERANCES[dtype]
        (expected_grad,) = torch.autograd.grad(expected, wide, grad[part].double())
        assert error(grad_x[part], expected_grad) <= TOLERANCES[dtype]
    # Every image: an interior pixel's sum of weights is 1, so that one constant an image shows in all its pixels.
    levels = torch.arange(shape[0], device="cuda", dtype=dtype).view(-1, 1, 1, 1)
    constant = levels.expand(shape).contiguous(memory_format=memory_format)
    assert torch.equal(blur_pool(constant, 4, impl="cuda"), levels.expand(y.shape).to(dtype))


@pytest.mark.gpu
@settings(max_examples=100)
@given(cases())
def test_random_filters_on_a_gpu(case):
    factor, taps, shape, memory_format, _ = case
    x = torch.randn(shape, dtype=torch.float64, device="cuda").contiguous(memory_format=memory_format)
    torch.testing.assert_close(
        blur_pool(x, factor, filter=taps, impl="cuda"), definition(x, factor, taps), rtol=1e-11, atol=1e-11
    )


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("memory_format", "offset"),
    [(FORMATS[0], 1), (FORMATS[0], 4), (FORMATS[1], 2), (FORMATS[1], 3)],
    ids=str,
)
def test_unaligned_tensors(memory_format, offset):
    whole = torch.randn(2 * 64 * 24 * 32 + offset, device="cuda").bfloat16()
    strides = torch.empty(2, 64, 24, 32).contiguous(memory_format=memory_format).stride()
    x = whole[offset:].as_strided((2, 64, 24, 32), strides, whole[offset:].storage_offset())
    y, grad_x, grad = both_directions(x, 4)
    wide = x.double().requires_grad_()
    expected = definition(wide, 4)
    assert error(y, expected) <= TOLERANCES[torch.bfloat16]
    (expected_grad,) = torch.autograd.grad(expected, wide, grad.double())
    assert error(grad_x, expected_grad) <= TOLERANCES[torch.bfloat16]


@pytest.mark.gpu
def test_runs_on_the_current_stream():
    """Runs while the stream is still computing x; on another stream it would read old values."""
    stream = torch.cuda.Stream()
    x = torch.zeros(8, 64, 256, 256, device="cuda").contiguous(memory_format=torch.channels_last)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        x.fill_(1)
        y = blur_pool(x, 4, impl="cuda")
    stream.synchronize()
    torch.testing.assert_close(y, torch.ones_like(y), rtol=1e-6, atol=0)


@pytest.mark.gpu
def test_cuda_graph():
    x = torch.randn(4, 64, 64, 64, device="cuda").bfloat16().contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    grad = torch.randn(4, 64, 16, 16, device="cuda").bfloat16().contiguous(memory_format=torch.channels_last)

    def work():
        y = blur_pool(x, 4, impl="cuda")
        return y, torch.autograd.grad(y, x, grad)[0]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, grad_x = work()
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
        grad.copy_(torch.randn_like(grad))
    graph.replay()
    expected = work()
    assert torch.equal(y, expected[0])
    assert torch.equal(grad_x, expected[1])


@pytest.mark.gpu
@pytest.mark.slow
def test_compiles_to_one_graph_on_a_gpu():
    torch.compiler.reset()
    compiled = torch.compile(lambda x: blur_pool(x.sin(), 4) * 2, fullgraph=True)
    for memory_format in FORMATS:
        x = torch.randn(2, 64, 32, 32, device="cuda").contiguous(memory_format=memory_format).requires_grad_()
        y = compiled(x)
        expected = blur_pool(x.sin(), 4, impl="cuda") * 2
        torch.testing.assert_close(y, expected)
        grad = torch.randn_like(y)
        torch.testing.assert_close(torch.autograd.grad(y, x, grad), torch.autograd.grad(expected, x, grad))


@pytest.mark.gpu
def test_auto_selects_cuda():
    assert dispatch.resolve("blur_pool", "auto", "cuda") == "cuda"
    x = torch.randn(2, 3, 16, 16, device="cuda")
    assert torch.equal(blur_pool(x, 4), blur_pool(x, 4, impl="cuda"))
    torch.testing.assert_close(blur_pool(x, 4), blur_pool(x, 4, impl="reference"))
