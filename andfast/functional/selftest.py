"""Self-test: run every op on a device and compare it with its definition in float64. Takes seconds.

An implementation that compiles may still be wrong on an untested GPU, driver or compiler. Each is run forward and
backward on small inputs of awkward shapes and compared with the op's definition, differentiated by autograd in float64
on the CPU. Inputs and definitions are in :mod:`andfast.functional.selftest_cases`.
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
"""Maximum relative error per dtype: the norm of the difference over the norm of the exact tensor."""

TF32_TOLERANCE: Final = 2e-3
"""Maximum relative error of float32 on a CUDA device if PyTorch's settings allow tf32."""

DEFAULT_DTYPES: Final = (torch.float32, torch.bfloat16)
"""The dtypes that training uses by default."""

_SEED: Final = 20260101


class SelfTestResult(NamedTuple):
    """Result of one implementation of one op in one dtype.

    Attributes:
        op, impl: names as in :mod:`andfast.functional`.
        dtype: of x and the weights.
        passed: whether the result and all gradients are within the tolerance.
        error: the largest relative error; NaN if the op raised.
        seconds: elapsed time, compilation included.
        message: tensor and case of the largest error, or a description of the failure.
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
    """Run ops forward and backward on a device and compare them with float64.

    Does not touch the global random state. On a CUDA device, Triton kernels that are not in its cache are compiled:
    nine per dtype for the degradation block (one more for half types), 7 to 9 s on one core.

    Args:
        device: device of the ops under test; definitions run on the CPU.
        dtypes: dtypes of x and the weights, among those of :data:`TOLERANCES`; None for :data:`DEFAULT_DTYPES`.
        ops: names of ops; None for all.
        every: test every implementation available on the device, not only the one that "auto" selects.

    Returns:
        One result per op, implementation and dtype. An exception becomes a failed result with its message.

    Raises:
        ValueError: unknown op, or a dtype without a tolerance.
    """
    device = torch.device(device)
    names = tuple(CASES) if ops is None else tuple(ops)
    for op in names:
        if op not in CASES:
            raise ValueError(f"ops must be among {', '.join(CASES)}, was {op!r}")
    for dtype in dtypes or ():
        if dtype not in TOLERANCES:
            raise ValueError(f"dtypes must be among {', '.join(map(str, TOLERANCES))}, was {dtype}")
    results = []
    for op in names:
        for dtype in DEFAULT_DTYPES if dtypes is None else dtypes:
            impls = dispatch.available(op, device.type, dtype)
            results += [_test(op, impl, device, dtype) for impl in (impls if every else impls[:1])]
    return results


def _test(op: str, impl: str, device: torch.device, dtype: torch.dtype) -> SelfTestResult:
    """Run all cases of an op up to the first failure; the error is the largest of all tensors."""
    start = time.perf_counter()
    limit = _tolerance(device, dtype)
    worst, case_name, message = 0.0, "", ""
    try:
        for case in CASES[op](Draw(_SEED)):
            case_name = case.name
            for name, error in _errors(case, impl, device, dtype).items():
                if not error <= worst:  # so that NaN is the worst
                    worst, message = error, f"{name}, {case.name}"
                if not error <= limit:
                    raise _WrongError(f"{name} is off by {error:.2g}, at most {limit:g} is allowed ({case.name})")
    except _WrongError as error:
        return SelfTestResult(op, impl, dtype, False, worst, time.perf_counter() - start, str(error))
    except Exception as error:  # any failure on a broken machine is a result, not an exception
        text = " ".join(str(error).split()) or "no message"
        message = f"{type(error).__name__}: {text} ({case_name})"
        return SelfTestResult(op, impl, dtype, False, math.nan, time.perf_counter() - start, message)
    return SelfTestResult(op, impl, dtype, True, worst, time.perf_counter() - start, message)


class _WrongError(Exception):
    """A result outside its tolerance, or with wrong metadata."""


def _tolerance(device: torch.device, dtype: torch.dtype) -> float:
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    switches = (torch.backends.cuda.matmul.fp32_precision, convolutions.fp32_precision)
    if dtype == torch.float32 and device.type == "cuda" and "tf32" in switches:
        return TF32_TOLERANCE
    return TOLERANCES[dtype]


def _errors(case: Case, impl: str, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Relative errors of the result and of the gradients to all inputs that are not frozen, by name."""
    inputs, exact_inputs = {}, {}
    for name, value in case.inputs.items():
        rounded = _rounded(value, name, case, dtype)
        tensor = rounded.to(device)
        if name == "x":
            tensor = tensor.contiguous(memory_format=case.memory_format)
        inputs[name] = tensor.requires_grad_(name not in case.frozen)
        exact_inputs[name] = rounded.double().requires_grad_(name not in case.frozen)
    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        out, expected = case.run(inputs, impl), case.definition(exact_inputs)
        if (out.shape, out.dtype, out.device.type) != (expected.shape, dtype, device.type):
            raise _WrongError(f"the result is {out.dtype} {tuple(out.shape)} on {out.device} ({case.name})")
        if not out.is_contiguous(memory_format=case.memory_format):
            raise _WrongError(f"the result is not {FORMATS[case.memory_format]} as x is ({case.name})")
        grad = Draw(_SEED + 1).normal(*expected.shape).to(dtype)
        leaves = [name for name in inputs if name not in case.frozen]
        grads: tuple[Tensor, ...] = ()
        exact_grads: tuple[Tensor, ...] = ()
        if leaves:  # an op may have no gradients
            grads = torch.autograd.grad(out, [inputs[name] for name in leaves], grad.to(device))
            exact_grads = torch.autograd.grad(expected, [exact_inputs[name] for name in leaves], grad.double())
    errors = {"the result": _error(out, expected)}
    for name, actual, exact in zip(leaves, grads, exact_grads, strict=True):
        errors[f"the gradient to {name}"] = _error(actual, exact)
    return errors


def _rounded(value: Tensor, name: str, case: Case, dtype: torch.dtype) -> Tensor:
    """An input rounded to the dtype that the op gets; the definition gets the same numbers in float64."""
    wide = name in case.wide and dtype in (torch.bfloat16, torch.float16)
    return value.to(torch.float32 if wide else dtype)


def _error(actual: Tensor, exact: Tensor) -> float:
    """The norm of the difference over the norm of ``exact``."""
    if actual.shape != exact.shape:
        raise _WrongError(f"a gradient must have shape {tuple(exact.shape)}, had {tuple(actual.shape)}")
    difference = torch.linalg.vector_norm(actual.detach().cpu().double() - exact.detach())
    return float(difference / torch.linalg.vector_norm(exact.detach()))
