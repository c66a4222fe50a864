"""Launches every CUDA kernel of blur_pool at small and odd sizes, for compute-sanitizer to watch.

    compute-sanitizer --tool memcheck --error-exitcode 1 python benchmarks/gpu_check/sanitize_blur_pool.py
    compute-sanitizer --tool racecheck --error-exitcode 1 python benchmarks/gpu_check/sanitize_blur_pool.py
    compute-sanitizer --tool initcheck --error-exitcode 1 python benchmarks/gpu_check/sanitize_blur_pool.py

Results are compared with the reference implementation's on the CPU; a difference ends it with exit code 1.
"""

import os
import sys

# Every tensor an allocation of its own, so that an access beyond its end is one beyond an allocation's.
os.environ.setdefault("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")

import torch

from andfast.functional import blur_pool, dispatch

TOLERANCES = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float64: 1e-14}
# Shapes of the small side, what of them is odd, and how many values the tensors lie off 16 bytes.
TILED = (
    ((2, 64, 5, 19), torch.channels_last, 0),  # a chunk in one pixel
    ((1, 72, 3, 9), torch.channels_last, 0),  # pixels in two slabs
    ((5, 3, 5, 16), torch.channels_last, 0),  # chunks of a row, across pixels
    ((3, 4, 7, 24), torch.contiguous_format, 0),
    ((2, 3, 5, 7), torch.contiguous_format, 0),  # rows that are no whole number of chunks
    ((1, 33, 3, 5), torch.channels_last, 0),  # nor are pixels
    ((2, 64, 3, 9), torch.channels_last, 1),  # nothing is aligned
    ((1, 1, 1, 1), torch.contiguous_format, 0),
    ((0, 3, 2, 2), torch.contiguous_format, 0),
)
ANY_FILTER = (5, [0.0625, 0.125, 0.1875, 0.25, 0.1875, 0.125, 0.0625])


def place(values: torch.Tensor, memory_format: torch.memory_format, offset: int) -> torch.Tensor:
    """The values on the GPU, dense in this order, from ``offset`` values into an allocation on and up to its end."""
    values = values.contiguous(memory_format=memory_format)
    whole = torch.zeros(values.numel() + offset, dtype=values.dtype, device="cuda")
    return whole.as_strided(values.shape, values.stride(), offset).copy_(values)


def check(shape, memory_format, offset, factor, taps, dtype) -> int:
    """Both directions of one call; the number of launches."""
    n, c, h, w = shape
    x = torch.randn(n, c, h * factor, w * factor).to(dtype)
    grad = torch.randn(shape).to(dtype)
    results = []
    for impl in ("reference", "cuda"):
        here, there = (
            (x, grad) if impl == "reference" else (place(tensor, memory_format, offset) for tensor in (x, grad))
        )
        here.requires_grad_()
        y = blur_pool(here, factor, filter=taps, impl=impl)
        results.append((y.detach().cpu(), torch.autograd.grad(y, here, there)[0].cpu()))
    for name, expected, result in zip(("forward", "backward"), *results, strict=True):
        error = (result.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-30)
        if not error <= TOLERANCES[dtype]:
            sys.exit(f"error: {name} of {shape} {memory_format} {dtype} factor {factor}: off by {error:.2e}")
    return 2


def main() -> None:
    try:
        dispatch.resolve("blur_pool", "cuda", "cuda")
    except RuntimeError as error:
        sys.exit(f"error: {error}")
    torch.manual_seed(0)
    launches = 0
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for factor in (2, 3, 4):
            for shape, memory_format, offset in TILED:
                launches += check(shape, memory_format, offset, factor, "binomial", dtype)
    for dtype in TOLERANCES:
        for shape, memory_format, offset in TILED:
            launches += check(shape, memory_format, offset, *ANY_FILTER, dtype)
    torch.cuda.synchronize()
    print(f"blur_pool: {launches} calls, as the reference has them")


if __name__ == "__main__":
    main()
