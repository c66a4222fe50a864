"""Every op against its definition in float64, on a device, in seconds: what one runs before trusting a machine.

An implementation that compiles may still be wrong on a GPU, a driver or a compiler that nobody has tried. So each is
run forward and backward on small awkward inputs and compared with the op's definition, differentiated by autograd in
float64 on the CPU. The inputs and definitions are in :mod:`andfast.functional.selftest_cases`.
"""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from andfast.functional import dispatch
from andfast.functional.selftest_cases import CASES, FORMATS, Case, Draw

TOLERANCES: Final[Mapping[torch.dtype, float]] = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.bfloat16: 1e-2,
    torch.float16: 1e-2,
}
"""The largest error by dtype: the norm of a tensor's difference over the norm of the tensor."""

TF32_TOLERANCE: Final = 2e-3
"""That of float32 on a CUDA device where the user's switches allow tf32."""

DEFAULT_DTYPES: Final = (torch.float32, torch.bfloat16)
"""What a training run computes in, unless it is told otherwise."""

_SEED: Final = 20260101


class SelfTestResult(NamedTuple):
    """How one implementation of one op did in one dtype.

    Attributes:
        op, impl: their names, as in :mod:`andfast.functional`.
        dtype: of x and the weights.
        passed: whether the results and all gradients are within the tolerance.
        error: the largest relative error of any of them; NaN where the op could not be run.
        seconds: what it took, compilation included.
        message: the case and the tensor of that error; or what went wrong.
    """

    op: str
    impl: str
    dtype: torch.dtype
    passed: bool
    error: float
    seconds: float
    message: str


def self_test(
    device: torch.device | str,
    dtypes: Sequence[torch.dtype] | None = None,
    ops: Sequence[str] | None = None,
    *,
    every: bool = True,
) -> list[SelfTestResult]:
    """Run the ops forward and backward on a device and compare them with float64.

    The global random state is left alone. On a CUDA device the Triton kernels are compiled where they are not in
    Triton's cache: nine kernels a dtype for the degradation block, 7 to 9 s on one core, once; one more in half types.

    Args:
        device: where the ops run; the reference runs on the CPU.
        dtypes: of x and the weights, from :data:`TOLERANCES`; :data:`DEFAULT_DTYPES` if None.
        ops: names of ops; all if None.
        every: test every implementation that can run on the device; else only the one that "auto" takes.

    Returns:
        A result for each op, implementation and dtype. An exception becomes a failed result with its text.

    Raises:
        ValueError: there is no such op, or no tolerance for a dtype.
    """
    device = torch.device(device)
    wanted = tuple(CASES) if ops is None else tuple(ops)
    for op in wanted:
        if op not in CASES:
            raise ValueError(f"ops must be among {', '.join(CASES)}, was {op!r}")
    for dtype in dtypes or ():
        if dtype not in TOLERANCES:
            raise ValueError(f"dtypes must be among {', '.join(map(str, TOLERANCES))}, was {dtype}")
    results = []
    for op in wanted:
        for dtype in DEFAULT_DTYPES if dtypes is None else dtypes:
            impls = dispatch.available(op, device.type, dtype)
            results += [_test(op, impl, device, dtype) for impl in (impls if every else impls[:1])]
    return results


def _test(op: str, impl: str, device: torch.device, dtype: torch.dtype) -> SelfTestResult:
    """Run all cases of an op; the worst error counts, and the first exception ends it."""
    begun = time.perf_counter()
    limit = _tolerance(device, dtype)
    worst, where, message = 0.0, "", ""
    try:
        for case in CASES[op](Draw(_SEED)):
            where = case.name
            for name, error in _errors(case, impl, device, dtype).items():
                if not error <= worst:  # NaN counts as worse
                    worst, message = error, f"{name}, {case.name}"
                if not error <= limit:
                    raise _WrongError(f"{name} is off by {error:.2g}, at most {limit:g} is allowed ({case.name})")
    except _WrongError as error:
        return SelfTestResult(op, impl, dtype, False, worst, time.perf_counter() - begun, str(error))
    except Exception as error:  # whatever a broken machine makes of it is a result, and never ends the caller
        text = " ".join(str(error).split()) or "no text"
        message = f"{type(error).__name__}: {text} ({where})"
        return SelfTestResult(op, impl, dtype, False, math.nan, time.perf_counter() - begun, message)
    return SelfTestResult(op, impl, dtype, True, worst, time.perf_counter() - begun, message)


class _WrongError(Exception):
    """A result that is not what it must be."""


def _tolerance(device: torch.device, dtype: torch.dtype) -> float:
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    switches = (torch.backends.cuda.matmul.fp32_precision, convolutions.fp32_precision)
    if dtype == torch.float32 and device.type == "cuda" and "tf32" in switches:
        return TF32_TOLERANCE
    return TOLERANCES[dtype]


def _errors(case: Case, impl: str, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """The relative errors of the result and of the gradient to every input that takes one, by name."""
    rounded = {name: _rounded(one, name, case, dtype) for name, one in case.inputs.items()}
    given, exact = {}, {}
    for name, one in rounded.items():
        placed = one.to(device)
        if name == "x":
            placed = placed.contiguous(memory_format=case.memory_format)
        given[name] = placed.requires_grad_(name not in case.frozen)
        exact[name] = one.double().requires_grad_(name not in case.frozen)
    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        out, expected = case.run(given, impl), case.definition(exact)
        if (out.shape, out.dtype, out.device.type) != (expected.shape, dtype, device.type):
            raise _WrongError(f"the result is {out.dtype} {tuple(out.shape)} on {out.device} ({case.name})")
        if not out.is_contiguous(memory_format=case.memory_format):
            raise _WrongError(f"the result is not {FORMATS[case.memory_format]} as x is ({case.name})")
        weights = Draw(_SEED + 1).normal(*expected.shape).to(dtype)
        taking = [name for name in rounded if name not in case.frozen]
        found: tuple[Tensor, ...] = ()
        right: tuple[Tensor, ...] = ()
        if taking:  # an op may have no gradients
            found = torch.autograd.grad(out, [given[name] for name in taking], weights.to(device))
            right = torch.autograd.grad(expected, [exact[name] for name in taking], weights.double())
    errors = {"the result": _error(out, expected)}
    for name, ours, theirs in zip(taking, found, right, strict=True):
        errors[f"the gradient to {name}"] = _error(ours, theirs)
    return errors


def _rounded(value: Tensor, name: str, case: Case, dtype: torch.dtype) -> Tensor:
    """An input as the op gets it: float64 sees the same rounded numbers."""
    wide = name in case.wide and dtype in (torch.bfloat16, torch.float16)
    return value.to(torch.float32 if wide else dtype)


def _error(found: Tensor, exact: Tensor) -> float:
    """The norm of the difference over the norm of what is right."""
    if found.shape != exact.shape:
        raise _WrongError(f"a gradient has shape {tuple(found.shape)}, must have {tuple(exact.shape)}")
    difference = torch.linalg.vector_norm(found.detach().cpu().double() - exact.detach())
    return float(difference / torch.linalg.vector_norm(exact.detach()))
