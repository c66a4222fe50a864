"""Which implementation every op has in a run, and whether a GPU may be trusted with them."""

import torch

from andfast.config.schema import TrainConfig
from andfast.functional import dispatch
from andfast.functional.residual_dense_block_fp8 import NAME as FP8
from andfast.functional.selftest import self_test
from andfast.functional.selftest_cases import CASES
from andfast.training.build import AUTOCAST


class UntrustedOpError(ValueError):
    """An op computes something else on this device than its definition says."""


def ops_used(config: TrainConfig, device: torch.device) -> dict[str, str]:
    """The implementation that each op has in this run, by op."""
    return {op: impl for op, impl in dispatch.chosen(device.type, config.ops).items() if _used(op, config)}


def _used(op: str, config: TrainConfig) -> bool:
    """Whether a run can call the op."""
    return op != FP8 or config.adversary.precision == "fp8"


def check_ops(config: TrainConfig, device: torch.device) -> float:
    """Compare the fused ops of a run with their definitions, on a CUDA device and in the run's dtypes.

    Plain PyTorch is not tested, and neither is the CPU, where the project's own tests run.

    Returns:
        The seconds that it took, compilation included; 0 where there was nothing to test.

    Raises:
        UntrustedOpError: an op failed; the text says which, by how much, and how to train without it.
    """
    if device.type != "cuda" or config.ops == "reference":
        return 0.0
    dtypes = sorted({torch.float32, AUTOCAST[config.precision] or torch.float32}, key=str)
    ops = [op for op in CASES if _used(op, config)]
    results = self_test(device, dtypes, ops, every=False)
    failed = [one for one in results if not one.passed]
    if failed:
        found = "; ".join(f"{one.op} ({one.impl}, {one.dtype}): {one.message}" for one in failed)
        raise UntrustedOpError(
            f"the self-test of the ops failed on {torch.cuda.get_device_name(device)}: {found}. "
            "--ops=reference trains with plain PyTorch instead"
        )
    return sum(one.seconds for one in results)
