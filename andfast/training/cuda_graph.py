"""A function of tensors as CUDA graphs: recorded once a shape, then replayed without the host in between.

An ascent is thousands of small launches, whose cost on the host a replay does not have. The price is memory: a graph's
buffers are its own from then on.
"""

import time
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

WARM_UP: int = 3
"""Runs before a recording, in which libraries choose algorithms, allocate workspaces and compile."""


AGREEMENT: float = 0.25
"""How far a replay's tensors may be from those without one, in the norm. Kernels whose sums have no fixed order, chosen
anew for each run, are a few percent apart after five normalised steps; a replay that read the wrong memory, as far as
the results are long."""


class CaptureError(RuntimeError):
    """A function could not be recorded, or a replay computes something else."""


class Backend(Protocol):
    """How a function is recorded."""

    def record(self, function: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
        """Return what replays ``function``, and its results, which are filled by every replay and by the recording."""
        ...


class CUDAGraphBackend:
    """CUDA graphs of one memory pool: they never run at the same time, so that one may use what another has freed."""

    def __init__(self) -> None:
        self._pool: Any = None

    def record(self, function: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
        """Warm up on a side stream, record, and replay once, as a recording computes nothing."""
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                function()
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # The loader's threads go on meanwhile, and what they call must not spoil the recording: thread_local.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            results = function()
        self._pool = graph.pool()
        graph.replay()
        return graph.replay, results


@dataclass
class _Recording:
    inputs: list[Tensor]
    replay: Callable[[], object]
    results: Any


class CUDAGraphCallable:
    """A function of tensors that runs as a recording of itself.

    The function must be one that can be recorded: no randomness, no host synchronisation, no shapes that depend on
    values. Tensors that it reads beside its arguments are read again at each replay, at the recording's addresses.

    Args:
        function: maps nested tuples, lists and dictionaries of tensors (and constants) to such.
        backend: how it is recorded.
        watch: gives the tensors beside the arguments that it reads, the weights for instance. Changed in place they
            need nothing; once one is at another address, all recordings are made anew.
        check: compare a replay of every new recording with the function itself; the host then waits for the device.
        required: whether a recording that fails, or whose replay is wrong, is an error; else the function runs as it
            is from then on.
        tell: is told what was recorded, or why not.

    Attributes:
        recordings: number of recordings so far.
        given_up: whether the function runs as it is.

    Raises:
        CaptureError: see ``required``; by a call.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        backend: Backend,
        *,
        watch: Callable[[], Iterable[Tensor]] = tuple,
        check: bool = False,
        required: bool = True,
        tell: Callable[[str], None] = lambda message: None,
    ) -> None:
        self._function, self._backend, self._watch = function, backend, watch
        self._check, self._required, self._tell = check, required, tell
        self._addresses: tuple[int, ...] = ()
        self._made: dict[Hashable, _Recording] = {}
        self.recordings = 0
        self.given_up = False

    def __call__(self, *arguments: Any) -> Any:
        """The function's results for these arguments; the next call of the same shapes overwrites them."""
        if self.given_up:
            return self._function(*arguments)
        leaves, structure = tree_flatten(arguments)
        addresses = tuple(one.data_ptr() for one in self._watch())
        if addresses != self._addresses:
            self._made.clear()
            self._addresses = addresses
        key = (structure, *(_kind(one) for one in leaves))
        made = self._made.get(key)
        if made is None:
            try:
                made = self._made[key] = self._record(leaves, structure)
            except RuntimeError as error:  # what a CUDA graph does not like, and want of memory
                self._give_up(error)
                return self._function(*arguments)
        else:
            for buffer, one in zip(made.inputs, _tensors(leaves), strict=True):
                buffer.copy_(_without_repeats(one))
            made.replay()
        return made.results

    def _record(self, leaves: list[Any], structure: TreeSpec) -> _Recording:
        begun = time.perf_counter()
        inputs = [_without_repeats(one).clone() for one in _tensors(leaves)]
        buffers = iter(inputs)
        static = [next(buffers).expand(one.shape) if isinstance(one, Tensor) else one for one in leaves]
        arguments = tree_unflatten(static, structure)
        given = {one.untyped_storage().data_ptr() for one in inputs}

        def computed(results: Any) -> list[Tensor]:
            """The results that are not the arguments themselves."""
            made = _tensors(tree_flatten(results)[0])
            return [one for one in made if one.untyped_storage().data_ptr() not in given]

        expected = computed(self._function(*arguments)) if self._check else []
        replay, results = self._backend.record(lambda: self._function(*arguments))
        apart = 0.0
        if self._check:
            found = computed(results)
            for one in found:
                one.zero_()  # so that it is the replay that fills them
            replay()
            apart = distance(found, expected)
            if not apart <= AGREEMENT:  # not a number is no agreement either
                raise CaptureError(f"a replay is {apart:.3g} times as far from what it records as that is from zero")
        self.recordings += 1
        self._tell(f"recorded in {time.perf_counter() - begun:.1f} s" + f", replays agree: {apart:.1g}" * self._check)
        return _Recording(inputs, replay, results)

    def _give_up(self, error: RuntimeError) -> None:
        self._made.clear()
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        if self._required:
            raise error if isinstance(error, CaptureError) else CaptureError(reason) from error
        self.given_up = True
        self._tell(f"not recorded, runs without: {reason}")


def distance(found: Iterable[Tensor], expected: Iterable[Tensor]) -> float:
    """The largest relative distance, in the norm, of a floating-point tensor from what was expected."""
    apart = 0.0
    for one, other in zip(found, expected, strict=True):
        if one.is_floating_point() and one.numel():
            length = torch.linalg.vector_norm(other, dtype=torch.float64)
            away = torch.linalg.vector_norm(one - other, dtype=torch.float64)
            # Of two numbers the larger; max() would drop one that is not a number.
            ratio = float(away / length.clamp_min(1e-30))
            apart = ratio if not ratio <= apart else apart
    return apart


def _tensors(leaves: list[Any]) -> list[Tensor]:
    return [one for one in leaves if isinstance(one, Tensor)]


def _kind(leaf: Any) -> Hashable:
    """What a recording depends on: all but a tensor's values."""
    return (leaf.shape, leaf.stride(), leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else leaf


def _without_repeats(x: Tensor) -> Tensor:
    """The part of an expanded tensor that is in memory: a fresh noise map of zeros is one number."""
    for dim, (length, stride) in enumerate(zip(x.shape, x.stride(), strict=True)):
        if length > 1 and stride == 0:
            x = x.narrow(dim, 0, 1)
    return x
