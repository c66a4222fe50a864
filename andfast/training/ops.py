"""Op implementations that a run uses, and their self-test before a run on a GPU."""

import torch

from andfast.config.schema import TrainConfig
from andfast.functional import dispatch
from andfast.functional.selftest import self_test
from andfast.training.build import AUTOCAST


class UntrustedOpError(ValueError):
    """An op failed its self-test on this device."""


def ops_used(config: TrainConfig, device: torch.device) -> dict[str, str]:
    """Implementation of each op that a run may call."""
    return dispatch.chosen(device.type, config.ops)


def check_ops(config: TrainConfig, device: torch.device) -> float:
    """Compare a run's fused ops with their references on a CUDA device, in the run's dtypes.

    Reference implementations and CPU ops are not tested.

    Returns:
        Seconds taken, including compilation; 0 if there was nothing to test.

    Raises:
        UntrustedOpError: an op failed; the message says which, its error, and how to train without it.
    """
    if device.type != "cuda" or config.ops == "reference":
        return 0.0
    dtypes = sorted({torch.float32, AUTOCAST[config.precision] or torch.float32}, key=str)
    results = self_test(device, dtypes, every=False)
    failures = [f"{r.op} ({r.impl}, {r.dtype}): {r.message}" for r in results if not r.passed]
    if failures:
        raise UntrustedOpError(
            f"the self-test of the ops failed on {torch.cuda.get_device_name(device)}: {'; '.join(failures)}. "
            "--ops=reference trains with plain PyTorch instead"
        )
    return sum(result.seconds for result in results)
