"""andfast.functional.constant_result: torch's own mark, without importing the compiler."""

import os
import sys

import torch

from andfast.functional.constant_result import constant_result


def test_mark_is_that_of_torch() -> None:
    ours = constant_result(lambda: 1)
    assert ours() == 1
    assert vars(ours) == vars(torch.compiler.assume_constant_result(lambda: 1)) != {}


def test_commands_start_without_the_compiler() -> None:
    program = (
        f"import sys; sys.path[:] = {sys.path}; import andfast.upscale, andfast.evaluate, andfast.doctor; "
        "import andfast.training.loop; "
        "assert 'torch._dynamo' not in sys.modules"
    )
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", program]) == 0
