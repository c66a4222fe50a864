"""Record launches of Triton kernels without a GPU, with arguments specialized as Triton does."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.compiler import ASTSource
from triton.runtime.jit import create_function_from_signature

hashes_of_reference = pytest.mark.skipif(
    not triton.__version__.startswith("3.6."),
    reason="the keys of Triton's cache depend on its version, 3.6 here",
)
"""For tests that launches find kernels compiled ahead of time, which only saves compilation at the first launch."""


class Launch(NamedTuple):
    """One launch.

    Attributes:
        kernel: its name, one of those recorded.
        arguments: arguments by parameter name.
        source: source that the launch would compile; its hash is the key of Triton's cache.
    """

    kernel: str
    arguments: Mapping[str, Any]
    source: ASTSource


@contextmanager
def recorded(module: ModuleType, kernels: Collection[str]) -> Iterator[list[Launch]]:
    """Record the launches of a module's ``_<kernel>_kernel`` for sm_90 instead of running them."""
    backend = CUDABackend(GPUTarget("cuda", 90, 32))
    launches: list[Launch] = []

    class Recorded:
        def __init__(self, kernel: str, function: Any) -> None:
            self.kernel, self.function = kernel, function

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return self.launch

        def launch(self, *args: Any, **options: Any) -> None:
            function = self.function
            binder = create_function_from_signature(function.signature, function.params, backend)
            bound, specialization, launch_options = binder(*args, **options)
            _, *specialized = function._pack_args(backend, options, bound, specialization, launch_options)
            launches.append(Launch(self.kernel, bound, ASTSource(function, *specialized)))

    with pytest.MonkeyPatch.context() as patched:
        for kernel in kernels:
            name = f"_{kernel}_kernel"
            patched.setattr(module, name, Recorded(kernel, getattr(module, name)))
        yield launches
