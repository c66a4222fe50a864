"""What launchers ask of Triton, without a GPU: each launch as Triton's own specialisation of its arguments sees it."""

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
    reason="what Triton's cache looks for is a detail of its version, 3.6 here",
)
"""On tests that a launch finds what was compiled ahead, which only saves a first launch its seconds."""


class Launch(NamedTuple):
    """One launch.

    Attributes:
        kernel: its name, of those that were asked for.
        arguments: by parameter, as they were given.
        source: what would be compiled; its hash is the one that Triton's cache looks for.
    """

    kernel: str
    arguments: Mapping[str, Any]
    source: ASTSource


@contextmanager
def recorded(module: ModuleType, kernels: Collection[str]) -> Iterator[list[Launch]]:
    """Within the context launches of a module's ``_<kernel>_kernel`` are recorded, for sm_90, and nothing runs."""
    backend = CUDABackend(GPUTarget("cuda", 90, 32))
    made: list[Launch] = []

    class Recorded:
        def __init__(self, kernel: str, function: Any) -> None:
            self.kernel, self.function = kernel, function

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return self.launch

        def launch(self, *args: Any, **options: Any) -> None:
            function = self.function
            binder = create_function_from_signature(function.signature, function.params, backend)
            bound, specialization, found = binder(*args, **options)
            _, *specialised = function._pack_args(backend, options, bound, specialization, found)
            made.append(Launch(self.kernel, bound, ASTSource(function, *specialised)))

    with pytest.MonkeyPatch.context() as patched:
        for kernel in kernels:
            name = f"_{kernel}_kernel"
            patched.setattr(module, name, Recorded(kernel, getattr(module, name)))
        yield made
