"""andfast._ops on a GPU: errors against float64 and TFLOP/s for G's shapes, beside cuDNN.

    python -m benchmarks.convolution_check [--images 48] [--dtype bfloat16] [--json FILE]

Takes about a minute. A row is wrong if its relative error exceeds the dtype's bound; the exit status is then 1.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

import andfast
from andfast.functional.residual_dense_block_reference import residual_dense_block_reference

LIBRARY: Final = Path(andfast.__file__).parent / "_ops.abi3.so"
BOUNDS: Final = {torch.bfloat16: 1e-2, torch.float16: 3e-3}
SLOPE: Final = 0.2
OPS: Final[Any] = torch.ops.andfast
# name, inputs, outputs, height and width of the input, factor
LAYERS: Final = (
    ("conv_first", 3, 64, 64, 1),
    ("conv_body", 64, 64, 64, 1),
    ("conv_up1", 64, 64, 64, 2),
    ("conv_up2", 64, 64, 128, 2),
    ("conv_hr", 64, 64, 256, 1),
    ("conv_last", 64, 3, 256, 1),
)


def microseconds(work: Callable[[], object]) -> float:
    """Median of 5 timings of several calls, after a warm-up."""
    work()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    for _ in range(5):
        start.record()
        for _ in range(10):
            work()
        end.record()
        end.synchronize()
        times.append(100 * start.elapsed_time(end))
    return sorted(times)[2]


def error(value: Tensor, expected: Tensor) -> float:
    return float((value.double() - expected).norm() / expected.norm())


def channels_last(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, device="cuda").to(dtype).contiguous(memory_format=torch.channels_last)


def row(name: str, flops: float, wrong: float, bound: float, ours: float, cudnn: float | None) -> dict[str, Any]:
    result = {
        "name": name,
        "error": wrong,
        "ok": wrong <= bound,
        "us": ours,
        "tflops": flops / ours / 1e6,
        "cudnn_us": cudnn,
    }
    beside = "" if cudnn is None else f", cuDNN {cudnn:8.1f} us"
    verdict = "ok" if result["ok"] else "WRONG"
    print(
        f"{name:<28} {verdict:<5} error {wrong:.1e}  {ours:8.1f} us  {result['tflops']:6.0f} TFLOP/s{beside}",
        flush=True,
    )
    return result


def layer_rows(
    name: str, c_in: int, c_out: int, size: int, factor: int, images: int, dtype: torch.dtype
) -> list[dict[str, Any]]:
    """A layer forward and its gradient to x."""
    rows = []
    x = channels_last(images, c_in, size, size, dtype=dtype)
    weight = (torch.randn(c_out, c_in, 3, 3, device="cuda") * (9 * c_in) ** -0.5).to(dtype)
    bias = torch.randn(c_out, device="cuda").to(dtype)
    wide = x[:1].double().requires_grad_()
    enlarged = F.interpolate(wide, scale_factor=factor, mode="nearest") if factor > 1 else wide
    expected = F.leaky_relu(F.conv2d(enlarged, weight.double(), bias.double(), padding=1), SLOPE)
    flops = 2 * 9 * c_in * c_out * images * (factor * size) ** 2

    packed = OPS.convolution_pack(weight, bias, dtype, factor, False)
    arguments = (c_out, factor, SLOPE, None, 1.0, None, None, False, False, c_out >= 8)
    out, _ = OPS.convolution_forward(x, packed, *arguments)
    large = x if factor == 1 else channels_last(images, c_in, 2 * size, 2 * size, dtype=dtype)
    formatted = weight.contiguous(memory_format=torch.channels_last)
    rows.append(
        row(
            name, flops, error(out[:1], expected.detach()), BOUNDS[dtype],
            microseconds(lambda: OPS.convolution_forward(x, packed, *arguments)),
            microseconds(lambda: F.conv2d(large, formatted, bias, padding=1)),
        )
    )  # fmt: skip
    grad = channels_last(*out.shape, dtype=dtype)
    linear = F.conv2d(enlarged, weight.double(), padding=1)
    (expected_grad,) = torch.autograd.grad(linear, wide, grad[:1].double())
    backward = OPS.convolution_pack(weight, None, dtype, factor, True)
    grad_x = OPS.convolution_backward(grad, backward, c_in, factor, None, 1.0, False)
    rows.append(
        row(
            f"{name}, gradient to x", flops, error(grad_x[:1], expected_grad), BOUNDS[dtype],
            microseconds(lambda: OPS.convolution_backward(grad, backward, c_in, factor, None, 1.0, False)),
            microseconds(lambda: F.conv_transpose2d(grad, formatted, padding=1)),
        )
    )  # fmt: skip
    return rows


def block_rows(images: int, dtype: torch.dtype, blocks: int) -> list[dict[str, Any]]:
    """Frozen dense blocks: one, or RRDBs."""
    features, growth, size = 64, 32, 64
    per_group = 3 if blocks > 1 else 0
    weights, biases = [], []
    for n in range(5 * blocks):
        c_out, c_in = growth if n % 5 < 4 else features, features + n % 5 * growth
        weights.append((torch.randn(c_out, c_in, 3, 3, device="cuda") * (9 * c_in) ** -0.5).to(dtype))
        biases.append((torch.randn(c_out, device="cuda") / 4).to(dtype))
    x, grad = (channels_last(images, features, size, size, dtype=dtype) for _ in range(2))
    wide = x[:1].double().requires_grad_()
    expected, group = wide, wide
    for n in range(blocks):
        group = expected if per_group and n % 3 == 0 else group
        of = slice(5 * n, 5 * n + 5)
        expected = residual_dense_block_reference(
            expected, [w.double() for w in weights[of]], [b.double() for b in biases[of]]
        )
        expected = group + 0.2 * expected if per_group and n % 3 == 2 else expected
    (expected_grad,) = torch.autograd.grad(expected, wide, grad[:1].double())

    pack = [OPS.dense_blocks_pack(weights, biases, dtype, per_group, 0.2, 0.2, backward) for backward in (False, True)]
    numbers = (growth, blocks, per_group, SLOPE, 0.2, 0.2)
    out, signs = OPS.dense_blocks_forward(x, pack[0], *numbers, 1)
    grad_x, _ = OPS.dense_blocks_backward(grad, signs, pack[1], *numbers)
    flops = blocks * 2 * 239616 * images * size * size
    name = "dense block" if blocks == 1 else f"{blocks} dense blocks"
    forward = microseconds(lambda: OPS.dense_blocks_forward(x, pack[0], *numbers, 1))
    backward = microseconds(lambda: OPS.dense_blocks_backward(grad, signs, pack[1], *numbers))
    return [
        row(f"{name}, forward", flops, error(out[:1], expected.detach()), BOUNDS[dtype], forward, None),
        row(f"{name}, backward to x", flops, error(grad_x[:1], expected_grad), BOUNDS[dtype], backward, None),
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=48, help="batch size")
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--json", type=Path, help="file for the rows")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.exit("convolution_check needs a CUDA GPU")
    if not LIBRARY.is_file():
        sys.exit(f"{LIBRARY} must exist; build it with a CUDA toolkit (setup.py)")
    torch.ops.load_library(str(LIBRARY))
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    dtype = getattr(torch, options.dtype)
    print(f"# {torch.cuda.get_device_name()}, {options.images} images, {options.dtype}")
    rows = block_rows(options.images, dtype, 1) + block_rows(options.images, dtype, 6)
    for layer in LAYERS:
        rows += layer_rows(*layer, options.images, dtype)
    if options.json is not None:
        options.json.write_text(json.dumps({"gpu": torch.cuda.get_device_name(), "rows": rows}, indent=2))
    return int(not all(result["ok"] for result in rows))


if __name__ == "__main__":
    sys.exit(main())
