"""Ceilings by count of the mma.sync convolution kernels (csrc/convolution/mma_tile.h) on an A100.

    python -m benchmarks.convolution_counts          # the table of docs/kernels/convolution.md

Clocks per tile of one multiprocessor: the matrix units' (1,024 multiply-accumulates), shared memory's (128 bytes:
operands by ldmatrix, arriving copies, shuffles), the epilogue's instructions (4 a clock). With two CTAs per
multiprocessor one's epilogue overlaps with the other's products; with one CTA it does not.
"""

import math
from typing import Final, NamedTuple

MULTIPROCESSORS: Final = 108
CLOCK: Final = 1.41e9
MATRIX_RATE: Final = 1024  # multiply-accumulates per clock of a multiprocessor
SHARED_BYTES: Final = 128  # per clock of a multiprocessor
L2_BYTES: Final = 5120 / 108  # per clock of a multiprocessor
DRAM: Final = 1.555e12  # bytes per second of the 40 GB card
EPILOGUE_INSTRUCTIONS: Final = (
    135  # per warp and 32 channels of 8 pixels, with bias, LeakyReLU and signs; from the SASS
)
FIRST_CHUNK: Final = 1000  # clocks of latency before a CTA's first product, besides the transfer


class Tile(NamedTuple):
    """As in mma_tile.h."""

    out: int  # rows of packed weights per tap
    columns: int  # outputs that are multiplied
    chunk: int
    warps: int
    ctas: int
    taps: int = 3


WIDE: Final = Tile(64, 64, 32, 8, 1)
GROWTH: Final = Tile(32, 32, 32, 4, 2)
NARROW: Final = Tile(16, 8, 32, 4, 2)
FEW_INPUTS: Final = Tile(64, 64, 16, 4, 2)
RESAMPLED: Final = Tile(64, 64, 32, 4, 2, taps=2)


class Layer(NamedTuple):
    """A convolution at its smaller grid."""

    name: str
    tile: Tile
    inputs: int
    outputs: int
    size: int
    dram_channels: int  # read and written, of 2 bytes, per pixel of the smaller grid
    phases: int = 1  # 4 with upsampling or its adjoint
    adjoint: bool = False


LAYERS: Final = (
    Layer("growth 1: 64 → 32", GROWTH, 64, 32, 64, 96),
    Layer("growth 2: 96 → 32", GROWTH, 96, 32, 64, 128),
    Layer("growth 3: 128 → 32", GROWTH, 128, 32, 64, 160),
    Layer("growth 4: 160 → 32", GROWTH, 160, 32, 64, 192),
    Layer("last of a block: 192 → 64, residual", WIDE, 192, 64, 64, 256),
    Layer("conv_first: 3 → 64", FEW_INPUTS, 8, 64, 64, 72),
    Layer("conv_body: 64 → 64, residual", WIDE, 64, 64, 64, 192),
    Layer("conv_up1", RESAMPLED, 64, 64, 64, 320, 4),
    Layer("conv_up2", RESAMPLED, 64, 64, 128, 320, 4),
    Layer("conv_hr: 64 → 64 at 256", WIDE, 64, 64, 256, 128),
    Layer("conv_last: 64 → 3 at 256", NARROW, 64, 3, 256, 67),
    Layer("conv_last backward: 3 → 64", FEW_INPUTS, 8, 64, 256, 72),
    Layer("conv_up2 adjoint", RESAMPLED, 64, 64, 128, 320, 4, adjoint=True),
)


class Ceiling(NamedTuple):
    tiles: int
    full: float  # part of the CTAs' slots that are used
    matrix: float  # clocks per tile
    shared: float
    epilogue: float
    l2: float  # bytes per clock of a multiprocessor
    rate: float  # of the matrix units', of the products that the tile multiplies
    products: float  # microseconds
    dram: float
    flops: float


def ceiling(layer: Layer, images: int = 48) -> Ceiling:
    t = layer.tile
    chunks = math.ceil(layer.inputs / t.chunk) * (4 if layer.adjoint else 1)
    height = 4 * t.warps
    per_phase = images * math.ceil(layer.size / 16) * math.ceil(layer.size / height)
    tiles = per_phase * (1 if layer.adjoint else layer.phases)
    steps = chunks * t.chunk // 16 * t.taps  # column taps and sixteens of channels of a tile
    products = t.warps * steps * t.taps * 4 * (t.columns // 8)
    loads = t.warps * steps * (3 + t.taps + t.taps * t.out // 16)
    weights = t.taps**2 * t.out * t.chunk * 2
    halo = 18 * (height + 2) * t.chunk * 2
    resident = chunks <= 2 and (layer.phases == 1 or layer.adjoint)
    copied = chunks * (halo + (0 if resident else weights))
    groups = t.warps * 8 * max(1, t.columns // 32)
    matrix = products * 2048 / MATRIX_RATE
    shared = loads * 512 / SHARED_BYTES + copied / SHARED_BYTES + groups * 6
    epilogue = groups * EPILOGUE_INSTRUCTIONS / 4
    bound = max(matrix, shared)
    of_tile = max(bound, (shared + epilogue) / 2) if t.ctas == 2 else bound + epilogue
    slots = MULTIPROCESSORS * t.ctas
    rounds = math.ceil(tiles / slots)
    fill = FIRST_CHUNK + t.ctas * (halo + weights) / L2_BYTES
    clocks = rounds * t.ctas * of_tile + fill
    flops = tiles * products * 2 * 2048
    seconds = clocks / CLOCK
    peak = MULTIPROCESSORS * MATRIX_RATE * 2 * CLOCK
    return Ceiling(
        tiles, tiles / rounds / slots, matrix, shared, epilogue, copied / of_tile, flops / seconds / peak,
        1e6 * seconds, 1e6 * images * layer.size**2 * layer.dram_channels * 2 / DRAM, flops,
    )  # fmt: skip


def main() -> None:
    print(
        "| shape | tiles (of full rounds) | matrix | shared memory | epilogue | L2, B/clock | of rate "
        "| products, us | DRAM, us |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for layer in LAYERS:
        c = ceiling(layer)
        print(
            f"| {layer.name} | {c.tiles} ({c.full:.0%}) | {c.matrix:.0f} | {c.shared:.0f} | {c.epilogue:.0f} "
            f"| {c.l2:.1f} | {c.rate:.0%} | {c.flops / 1e9:.1f} GFLOP, {c.products:.0f} | {c.dram:.0f} |"
        )


if __name__ == "__main__":
    main()
