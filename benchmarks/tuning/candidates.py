"""Candidates for the degradation block's table of configurations, and what they take of a multiprocessor: no GPU."""

import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from andfast.kernels.common.compilation import Resources, compile_variant, excess, resources
from andfast.kernels.common.config import MAX_REGISTERS, KernelConfig, channel_block
from andfast.kernels.degradation_block.configs import ROWS, ROWS_CANDIDATES, TABLE, TILES
from andfast.kernels.degradation_block.variants import Variant, variants_of
from benchmarks.tuning import config_table

KERNELS: Final = ("forward", "grad_input", "grad_weight")
LAYERS: Final = {(3, 64, "hr"): 1, (64, 64, "hr"): 4, (64, 64, "lr"): 5, (64, 3, "lr"): 1}
"""(Cin, Cout, size) of F's convolutions, and how many of each it has."""

CHOICES: Final[dict[str, tuple[Any, ...]]] = {
    "tile": ((8, 8), (8, 16), (16, 16), (4, 16), (4, 8), (16, 8), (4, 4), (4, 32)),
    "block_k": (16, 32, 64),
    "warps": (4, 8),
    "stages": (1, 2, 3, 4),
    "registers": (MAX_REGISTERS, 168, 128, 96),
}


class Candidate(NamedTuple):
    """A configuration to try, for one kernel and precision of one architecture."""

    architecture: str
    kernel: str
    precision: str
    config: KernelConfig
    distance: int
    """In how many fields, a tile being one, it differs from the table's."""

    def text(self) -> str:
        return f"{self.architecture} {self.kernel} {self.precision} {config_table.config_text(self.config)}"


# -------------------------------------------------------------------------------------------------------- candidates


def candidates(architecture: str, kernel: str, precision: str, *, reduced: bool) -> list[Candidate]:
    """The table's entry first, then by distance; ``reduced``: a distance of one at most."""
    now = TABLE[architecture][kernel, precision]
    programs = (now.programs // 2, now.programs, 2 * now.programs) if kernel == "grad_weight" else (0,)
    rows = ROWS_CANDIDATES[architecture].get(kernel, ()) if precision == "half" else ()
    distances = dict.fromkeys(rows, 1)  # first, so that no time budget cuts them off
    for tile, block_k, warps, stages, registers, many in itertools.product(*CHOICES.values(), programs):
        config = now._replace(
            block_h=tile[0], block_w=tile[1], block_k=block_k, warps=warps, stages=stages,
            registers=registers, programs=many,
        )  # fmt: skip
        # A multiprocessor has 65,536 registers; pixels are a weight gradient's reduction, 16 of them a product.
        if 32 * warps * registers > 65536 or (kernel != "grad_weight" and tile[0] * tile[1] < 16 * warps // 2):
            continue
        distances[config] = _distance(config, now)
    distances[now] = 0
    entries = [Candidate(architecture, kernel, precision, config, distance) for config, distance in distances.items()]
    return sorted(
        (candidate for candidate in entries if not reduced or candidate.distance <= 1),
        key=lambda candidate: candidate.distance,
    )


def _distance(a: KernelConfig, b: KernelConfig) -> int:
    tile = (a.block_h, a.block_w) != (b.block_h, b.block_w)
    return tile + sum(
        x != y for name, x, y in zip(KernelConfig._fields, a, b, strict=True) if name not in ("block_h", "block_w")
    )


def in_turns(groups: Iterable[Sequence[Candidate]]) -> list[Candidate]:
    """One of each group after the other, the nearest first: whatever a budget cuts off, all groups had their turn."""
    return [candidate for turn in itertools.zip_longest(*groups) for candidate in turn if candidate is not None]


def layers(kernel: str) -> dict[tuple[int, int, str], int]:
    """The layers that a kernel runs for; to HR no gradient is asked for."""
    return {layer: times for layer, times in LAYERS.items() if kernel != "grad_input" or layer[0] != 3}


# --------------------------------------------------------------------------------------------------------- compiling


def compiled(candidate: Candidate) -> tuple[Candidate, dict[str, Any] | None, str | None]:
    """Largest resource use over F's layers, or the reason to reject the candidate; runs in its own process."""
    config = candidate.config
    channels = sorted({(c_in, c_out) for c_in, c_out, _ in layers(candidate.kernel)})
    dtype = "bf16" if candidate.precision == "half" else "fp32"
    registers: dict[str, int] = {}
    shared = 0
    for c_in, c_out in channels:
        limits = [channel_block(c_in, config.block_k), channel_block(c_out)]
        if candidate.kernel == "grad_input":
            limits = [channel_block(c_in), channel_block(c_out, config.block_k)]
        elif candidate.kernel == "grad_weight" and config.design != ROWS:
            limits = [channel_block(c_in, config.block_k), channel_block(c_out, config.block_k)]
        layout = "aligned" if c_in % 16 == c_out % 16 == 0 else "odd"
        # Kernels by rows take multiples of 16 channels; the launchers run other layers as tiles.
        launched = TILES[candidate.kernel] if config.design == ROWS and layout == "odd" else config
        if config.design == ROWS and launched is not config:
            limits = [min(limit, launched.block_k) for limit in limits]
        variant = Variant(
            candidate.architecture, candidate.kernel, candidate.precision, dtype, *limits, layout, config=launched
        )
        used, why = _compile(variant)
        if used is None:
            return candidate, None, why
        registers[layout] = max(registers.get(layout, 0), used.registers)
        shared = max(shared, used.shared)
    return candidate, {"registers": registers, "shared": shared}, None


def _compile(variant: Variant) -> tuple[Resources | None, str | None]:
    """A variant's resources, or why it cannot be used."""
    try:
        used = resources(compile_variant(variant))
    except Exception as error:  # of many kinds
        return None, f"does not compile: {str(error).strip().splitlines()[0] if str(error).strip() else error!r}"
    why = excess(used, variant.architecture)
    return (None, why) if why is not None else (used, None)


def everywhere(candidate: Candidate) -> tuple[Candidate, str | None]:
    """Whether all variants of the configuration compile: None, or the first that does not and why."""
    for variant in variants_of(candidate.architecture, candidate.kernel, candidate.precision, candidate.config):
        _, why = _compile(variant)
        if why is not None:
            return candidate, f"{variant.name()}: {why}"
    return candidate, None


def in_parallel(call: Callable[[Any], Any], items: Sequence[Any], deadline: float, processes: int) -> Iterator[Any]:
    """Results as they come, in processes of their own, until all are there or the deadline has passed."""
    if processes == 1:
        for candidate in items:
            if time.monotonic() > deadline:
                return
            yield call(candidate)
        return
    with multiprocessing.get_context("spawn").Pool(min(processes, max(len(items), 1))) as pool:
        results = pool.imap_unordered(call, items)
        for _ in items:
            try:
                yield results.next(timeout=max(0.1, min(deadline - time.monotonic(), 1e6)))
            except multiprocessing.TimeoutError:
                return
