"""CUDA graphs of a function of tensors: captured once per input shape, then replayed without CPU launch overhead.

A training step consists of thousands of small launches. The price of replaying them is memory: a graph keeps its
buffers as long as it lives.
"""

import logging
import time
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

logger = logging.getLogger(__name__)

WARMUP_RUNS: int = 3
"""Number of runs before a capture, in which libraries choose algorithms, allocate workspaces and compile."""

TOLERANCE: float = 0.25
"""Maximum relative error of a replay (norm). Nondeterministic sums differ by a few percent after five normalized ascent
steps; a bad replay has a relative error near 1."""


STATE_TOLERANCE: float = 0.9
"""The same for changes to state other than gradients. Adam's first updates are signs of gradients, many of which
rounding flips near zero; a replay that changes nothing has a relative error of 1."""


class CaptureError(RuntimeError):
    """A function could not be captured, or its replay differs from the eager function."""


class Backend(Protocol):
    """Captures functions."""

    def capture(self, function: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
        """Return a function that replays ``function``, and its static results, filled by capture and by each replay."""
        ...


class CUDAGraphBackend:
    """CUDA graphs that share one memory pool, as they never run at the same time."""

    def __init__(self) -> None:
        self._pool: Any = None

    def capture(self, function: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
        """Warm up on a side stream, capture, and replay once, since a capture computes nothing."""
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(WARMUP_RUNS):
                function()
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # thread_local: CUDA calls of the data loader's threads must not invalidate the capture.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            results = function()
        self._pool = graph.pool()
        graph.replay()
        return graph.replay, results


_State = dict[str, list[Tensor]]


@dataclass
class _Graph:
    static_inputs: list[Tensor]
    replay: Callable[[], object]
    results: Any


class CUDAGraphCallable:
    """A function of tensors that is captured at its first call per input shape, and replayed after that.

    The function must be capturable: no randomness, no host synchronization, no shapes that depend on values. Tensors
    that it reads besides its arguments are read again by each replay, at the addresses they had at capture.

    Args:
        function: takes and returns nested tuples, lists and dictionaries of tensors and constants.
        backend: captures the function.
        name: of the function, for log messages.
        static_tensors: returns the tensors that the function reads besides its arguments, such as weights. They may
            change in place; if any address changes, all graphs are captured again.
        state: returns the tensors that the function changes in place, by kind. A capture, including its check, changes
            them exactly as one call does.
        check: compare a replay of each new graph with the eager function, which waits for the device.
        required: whether a failed capture or a wrong replay is an error; if not, it is logged as a warning and the
            function runs eagerly from then on.

    Attributes:
        captures: number of captures so far.
        disabled: whether the function runs eagerly since a capture failed.

    Raises:
        CaptureError: by a call, see ``required``.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        backend: Backend,
        *,
        name: str = "CUDA graph",
        static_tensors: Callable[[], Iterable[Tensor]] = tuple,
        state: Callable[[], dict[str, list[Tensor]]] = dict,
        check: bool = False,
        required: bool = True,
    ) -> None:
        self._function, self._backend, self._name = function, backend, name
        self._static_tensors, self._state = static_tensors, state
        self._check, self._required = check, required
        self._addresses: tuple[int, ...] = ()
        self._graphs: dict[Hashable, _Graph] = {}
        self.captures = 0
        self.disabled = False

    def __call__(self, *arguments: Any) -> Any:
        """Return the function's results for these arguments; the next call with the same shapes overwrites them."""
        if self.disabled:
            return self._function(*arguments)
        leaves, structure = tree_flatten(arguments)
        addresses = tuple(tensor.data_ptr() for tensor in self._static_tensors())
        if addresses != self._addresses:
            self._graphs.clear()
            self._addresses = addresses
        key = (structure, *(_signature(leaf) for leaf in leaves))
        graph = self._graphs.get(key)
        if graph is None:
            before = _host_copies(self._state())
            try:
                graph, results = self._capture(leaves, structure, before)
            except RuntimeError as error:  # an operation that cannot be captured, or out of memory
                _restore(self._state(), before)
                self._disable(error)
                return self._function(*arguments)
            if graph is not None:
                self._graphs[key] = graph
            return results
        for buffer, tensor in zip(graph.static_inputs, _tensors(leaves), strict=True):
            buffer.copy_(_without_repeats(tensor))
        graph.replay()
        return graph.results

    def _capture(self, leaves: list[Any], structure: TreeSpec, before: _State) -> tuple[_Graph | None, Any]:
        start = time.perf_counter()
        static_inputs = [_without_repeats(tensor).clone() for tensor in _tensors(leaves)]
        buffers = iter(static_inputs)
        static_leaves = [next(buffers).expand(leaf.shape) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        arguments = tree_unflatten(static_leaves, structure)
        input_storages = {tensor.untyped_storage().data_ptr() for tensor in static_inputs}

        def outputs(results: Any) -> list[Tensor]:
            """The results that are not arguments passed through."""
            tensors = _tensors(tree_flatten(results)[0])
            return [tensor for tensor in tensors if tensor.untyped_storage().data_ptr() not in input_storages]

        expected, expected_state = [], {}
        if self._check:
            eager_results = self._function(*arguments)
            expected = [tensor.clone() for tensor in outputs(eager_results)]
            expected_state = _host_copies(self._state())
            if before and not _finite([*expected, *expected_state.get("gradients", [])]):
                return None, eager_results  # nothing to compare with; the caller handles non-finite results
            _restore(self._state(), before)
        replay, results = self._backend.capture(lambda: self._function(*arguments))
        message = f"captured in {time.perf_counter() - start:.1f} s"
        if before:
            _restore(self._state(), before)
        if self._check:
            actual = outputs(results)
            for tensor in actual:
                tensor.zero_()  # so that a replay that does nothing is detected
            replay()
            for kind, tolerance in {**dict.fromkeys(before, STATE_TOLERANCE), "gradients": TOLERANCE}.items():
                if before.get(kind):
                    error = change_error(_host_copies(self._state())[kind], expected_state[kind], before[kind])
                    if not error <= tolerance:
                        raise CaptureError(
                            f"a replay must change the {kind} within {tolerance} of the eager function, "
                            f"was off by {error:.3g}"
                        )
            error = relative_error(actual, expected)
            if not error <= TOLERANCE:  # also rejects NaN
                raise CaptureError(f"a replay must be within {TOLERANCE} of the eager function, was off by {error:.3g}")
            message = f"captured in {time.perf_counter() - start:.1f} s, relative error of a replay {error:.1g}"
        elif before:
            replay()
        self.captures += 1
        logger.info("%s: %s", self._name, message)
        return _Graph(static_inputs, replay, results), results

    def _disable(self, error: RuntimeError) -> None:
        self._graphs.clear()
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        if self._required:
            raise error if isinstance(error, CaptureError) else CaptureError(reason) from error
        self.disabled = True
        logger.warning("%s: capture failed, running eagerly: %s", self._name, reason)


def relative_error(actual: Iterable[Tensor], expected: Iterable[Tensor]) -> float:
    """Largest relative error (norm) among floating-point tensors; NaN if any is NaN."""
    largest = 0.0
    for ours, reference in zip(actual, expected, strict=True):
        if ours.is_floating_point() and ours.numel():
            norm = torch.linalg.vector_norm(reference, dtype=torch.float64)
            difference = torch.linalg.vector_norm(ours - reference, dtype=torch.float64)
            error = float(difference / norm.clamp_min(1e-30))
            largest = error if not error <= largest else largest  # max() would drop NaN
    return largest


def change_error(actual: list[Tensor], expected: list[Tensor], before: list[Tensor]) -> float:
    """Relative error (norm) of all changes from ``before`` together; NaN if any is NaN, 0 if there is no error."""
    error = change = 0.0
    for ours, reference, old in zip(actual, expected, before, strict=True):
        error += float((ours.double() - reference.double()).square().sum())
        change += float((reference.double() - old.double()).square().sum())
    return 0.0 if error == 0 else (error / max(change, 1e-300)) ** 0.5


def _finite(tensors: list[Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _host_copies(state: _State) -> _State:
    """Copies in host memory, since a step may fill the GPU's."""
    return {kind: [tensor.detach().to("cpu", copy=True) for tensor in tensors] for kind, tensors in state.items()}


@torch.no_grad()
def _restore(state: _State, values: _State) -> None:
    for kind, tensors in state.items():
        for tensor, value in zip(tensors, values[kind], strict=True):
            tensor.copy_(value)


def _tensors(leaves: list[Any]) -> list[Tensor]:
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _signature(leaf: Any) -> Hashable:
    """Properties of an argument that a graph depends on: all but a tensor's values."""
    return (leaf.shape, leaf.stride(), leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else leaf


def _without_repeats(x: Tensor) -> Tensor:
    """A view of an expanded tensor without its repeats: an initial noise map of zeros is a single element."""
    for dim, (length, stride) in enumerate(zip(x.shape, x.stride(), strict=True)):
        if length > 1 and stride == 0:
            x = x.narrow(dim, 0, 1)
    return x
