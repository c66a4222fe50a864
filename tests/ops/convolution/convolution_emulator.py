"""Builds the emulator of csrc/convolution's kernels and runs problems in it, against the definition in float64."""

import ctypes
import dataclasses
import functools
import hashlib
import math
import os
import subprocess
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from convolution_structs import (
    DTYPES,
    GRADIENT_BY_SIGNS,
    GRADIENT_BY_VALUES,
    LEAKY_RELU,
    NO_ACTIVATION,
    NO_RESAMPLING,
    REPLICATE,
    UPSAMPLE,
    UPSAMPLE_ADJOINT,
    Channels,
    PackJob,
    Problem,
    Region,
    Setting,
    Slice,
    WeightPart,
    aligned,
    pointer,
    shape_of,
    weight_part,
)
from torch import Tensor

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[2]
SOURCES = ROOT / "csrc" / "convolution"
COMPILER = os.environ.get("CXX", "c++").split()[-1]
FLAGS = ("-O2", "-std=c++20", "-fPIC", "-shared", "-fno-strict-aliasing", "-Wall", "-Wextra", "-Wno-unknown-pragmas")
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}  # at most, of a normal number
ALIGNED_CHANNELS = 8


class Report(ctypes.Structure):
    """Counts of one launch in the emulator."""

    _fields_ = tuple(
        (name, ctypes.c_int64) for name in ("phases", "wavefronts", "copied_bytes", "products", "loads", "tiles")
    )


@functools.cache
def compiled(driver: str, headers: Path = SOURCES, *flags: str) -> ctypes.CDLL:
    """The emulator's shared library for a driver, a .cpp in emulator/, with the kernels in ``headers``.

    It is kept in build/, by a hash of all that it is made of, so that test processes compile it once.
    """
    command = [COMPILER, *FLAGS, *flags, "-DANDFAST_EMULATOR", str(FOLDER / "emulator" / driver)]
    content = hashlib.sha256(subprocess.run([COMPILER, "--version"], check=True, capture_output=True).stdout)
    content.update(repr([driver, *FLAGS, *flags]).encode())
    for file in sorted([*headers.iterdir(), *(FOLDER / "emulator").iterdir()]):
        content.update(file.name.encode() + file.read_bytes())
    library = ROOT / "build" / "emulators" / f"{content.hexdigest()}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        unfinished = library.with_suffix(f".{os.getpid()}")
        subprocess.run([*command, f"-I{headers}", f"-I{FOLDER}", "-o", str(unfinished)], check=True)
        unfinished.replace(library)
    loaded = ctypes.CDLL(str(library))
    loaded.packed_elements.restype = ctypes.c_int64
    loaded.run.restype = ctypes.c_char_p
    if hasattr(loaded, "run_dense_blocks"):
        loaded.run_dense_blocks.restype = ctypes.c_char_p
        loaded.dense_blocks_packed_bytes.restype = ctypes.c_int64
    return loaded


@dataclasses.dataclass
class Case:
    """Sizes and options of a problem; tensors are drawn from the seed."""

    sources: tuple[int, ...]
    out: int
    height: int
    width: int
    images: int = 1
    dtype: torch.dtype = torch.bfloat16
    resampling: int = NO_RESAMPLING
    padding: int = 0
    per_image: bool = False
    transposed: bool = False  # weights of a gradient to the input
    in_place: bool = False  # out is a slice of the last source's buffer
    beside: int = 0  # groups of 8 channels on both sides of each slice; single ones beside a narrow out
    bias: bool = True
    activation: int = LEAKY_RELU
    slopes: str = "one"  # or "image", "channel"
    store_signs: bool = False
    scale: float = 1.0
    residual: bool = False
    outer: bool = False
    noise: bool = False
    image_channels: int = 0  # of the first source's channels, how many have weights; 0: all
    multiprocessors: int = 2
    order: int = 2
    seed: int = 0


class Outcome(NamedTuple):
    error: str | None  # the emulator's first complaint
    wrong: int  # values that are off by more than a rounding
    not_once: int  # elements that should have been written once and were not
    stray: int  # elements that were written and should not have been
    wrong_signs: int
    report: Report

    @property
    def conflicts(self) -> int:
        return self.report.wavefronts - self.report.phases

    def problems(self) -> dict[str, object]:
        """Failed checks of the run; empty if all passed."""
        fields = {**self._asdict(), "conflicts": self.conflicts}
        return {name: value for name, value in fields.items() if name != "report" and value}


def grids(case: Case) -> tuple[tuple[int, int], tuple[int, int]]:
    """Sizes of the sources and of out."""
    small, large = (case.height, case.width), (2 * case.height, 2 * case.width)
    sources = large if case.resampling == UPSAMPLE_ADJOINT else small
    return sources, large if case.resampling == UPSAMPLE else small


def definition(case: Case, x: Tensor, weight: Tensor) -> Tensor:
    """The sum, in float64: (N, H, W, Cin) and (N or 1, Cout, Cin, 3, 3) to (N, H, W, Cout)."""
    x = x.double().permute(0, 3, 1, 2)
    if case.resampling == UPSAMPLE:
        x = F.interpolate(x, scale_factor=2, mode="nearest")
    x = F.pad(x, (1, 1, 1, 1), mode="replicate" if case.padding == REPLICATE else "constant")
    weights = weight.double().expand(len(x), -1, -1, -1, -1)
    out = torch.cat([F.conv2d(image[None], w) for image, w in zip(x, weights, strict=True)])
    if case.resampling == UPSAMPLE_ADJOINT:
        out = 4 * F.avg_pool2d(out, 2)
    return out.permute(0, 2, 3, 1)


def run(case: Case, library: ctypes.CDLL) -> Outcome:
    """Run a case in the emulator and compare all that it wrote."""
    generator = torch.Generator().manual_seed(case.seed)
    draw = functools.partial(_draw, generator, case)
    source_grid, out_grid = grids(case)
    c_out, narrow = case.out, case.out < ALIGNED_CHANNELS

    # Channels beside the slices are NaN: reading one shows in the result.
    sources = [_beside(case, draw(*source_grid, count), 0) for count in case.sources]
    if case.in_place:
        last = sources[-1]
        buffer = aligned(*last.buffer.shape[:3], last.buffer.shape[3] + c_out, dtype=case.dtype).fill_(torch.nan)
        buffer[..., : last.buffer.shape[3]] = last.buffer
        sources[-1] = Slice(buffer, last.first, last.count)
        out = Slice(buffer, last.buffer.shape[3], c_out)
    else:
        out = _beside(case, torch.full((case.images, *out_grid, c_out), torch.nan, dtype=case.dtype), int(narrow))

    c_in = sum(case.sources)
    with_weights = case.image_channels or c_in
    shape = (case.images if case.per_image else 1, c_out, with_weights, 3, 3)
    # Whole numbers up to 15 over a power of two: sums of four are exact in bf16, so packing rounds nothing.
    weight = torch.randint(-15, 16, shape, generator=generator) / 2.0 ** round(math.log2(c_in**0.5 * 30))
    source = weight.flip(3, 4).transpose(1, 2).contiguous() if case.transposed else weight
    packed, parts = _packed(case, library, source)

    tensors: dict[str, Tensor] = {}
    if case.bias:
        tensors["bias"] = F.pad(torch.randn(c_out, generator=generator) / 2, (0, -c_out % 64))
    if case.activation == GRADIENT_BY_VALUES:
        tensors["kept"] = draw(*out_grid, c_out)
        tensors["kept"].view(-1)[::7] = 0
    sign_bytes = -(-c_out // 32) * 4
    if case.activation == GRADIENT_BY_SIGNS:
        bits = torch.randint(0, 256, (case.images, *out_grid, sign_bytes), generator=generator)
        tensors["kept_signs"] = bits.to(torch.uint8)
    if case.store_signs:
        tensors["signs"] = torch.zeros((case.images, *out_grid, sign_bytes), dtype=torch.uint8)
    strides = {"one": (0, 0), "image": (1, 0), "channel": (c_out, 1)}[case.slopes]
    if case.slopes != "one":
        slopes_shape = (case.images, 1 if case.slopes == "image" else c_out)
        tensors["slopes"] = 0.5 + torch.randn(slopes_shape, generator=generator)  # some below zero, some above one
    for name in ("residual", "outer"):
        if getattr(case, name):
            tensors[name] = draw(*out_grid, c_out)
    if case.noise:
        tensors["noise"] = draw(*out_grid, 1)[..., 0].contiguous()

    none = Channels(None, 0, 0)
    whole = {name: Slice(value, 0, c_out).struct() for name, value in tensors.items() if value.shape[-1] == c_out}
    problem = Problem(
        dtype=DTYPES[case.dtype], images=case.images, height=case.height, width=case.width,
        resampling=case.resampling, padding=case.padding,
        sources=(Channels * 2)(*[source.struct() for source in sources]),
        weights=packed.data_ptr(), per_image_weights=case.per_image, bias=pointer(tensors.get("bias")),
        out=out.struct(), activation=case.activation, slope=0.2, slopes=pointer(tensors.get("slopes")),
        slopes_image_stride=strides[0], slopes_channel_stride=strides[1],
        kept=whole.get("kept", none) if case.activation == GRADIENT_BY_VALUES else none,
        kept_signs=pointer(tensors.get("kept_signs")), signs=pointer(tensors.get("signs")), sign_bytes=sign_bytes,
        scale=case.scale, residual=whole.get("residual", none) if case.residual else none, residual_scale=0.75,
        outer=whole.get("outer", none) if case.outer else none, outer_scale=1.5, noise=pointer(tensors.get("noise")),
    )  # fmt: skip

    writes = torch.zeros(out.buffer.numel(), dtype=torch.uint8)
    sign_writes = torch.zeros(tensors["signs"].numel() // 2 if case.store_signs else 0, dtype=torch.uint8)
    regions = [(out.buffer, writes), (packed, None)] + [(source.buffer, None) for source in sources]
    regions += [(value, sign_writes if name == "signs" else None) for name, value in tensors.items()]
    structs = [Region(value.data_ptr(), value.nbytes, pointer(counts)) for value, counts in regions]
    report = Report()
    before = [source.values.clone() for source in sources]
    setting = Setting((Region * len(structs))(*structs), len(structs), case.multiprocessors, case.order, case.seed)
    error = library.run(ctypes.byref(problem), ctypes.byref(setting), ctypes.byref(report))
    del parts

    x = torch.cat(before, -1)[..., :with_weights]
    expected, positive = _expected(case, x, weight, tensors)
    # One rounding of the result, and those of sums in fp32.
    size = definition(case, x.abs(), weight.abs()) * case.scale
    tolerance = 1.01 * ROUNDING[case.dtype] * expected.abs() + 1e-6 * (1 + size)
    wrong = ~((out.values.double() - expected).abs() <= tolerance)
    written = writes.view(out.buffer.shape)[..., out.first : out.first + out.count]
    wrong_signs = 0
    if case.store_signs:
        bits = tensors["signs"][..., None] >> torch.arange(8) & 1
        sure = positive[1]
        wrong_signs = int(((bits.flatten(-2)[..., :c_out].bool() != positive[0]) & sure).sum())
    once = int((written != 1).sum()) + int((sign_writes != 1).sum())
    return Outcome(
        None if error is None else error.decode(), int(wrong.sum()), once, int(writes.sum()) - int(written.sum()),
        wrong_signs, report,
    )  # fmt: skip


def _draw(generator: torch.Generator, case: Case, *shape: int) -> Tensor:
    values = torch.randn((case.images, *shape), generator=generator)
    return aligned(*values.shape, dtype=case.dtype).copy_(values)


def _beside(case: Case, values: Tensor, offset: int) -> Slice:
    """The values as a slice of a buffer of NaN."""
    count = values.shape[-1]
    beside = case.beside * (ALIGNED_CHANNELS if count >= ALIGNED_CHANNELS else 1)
    buffer = aligned(*values.shape[:3], count + 2 * beside, dtype=case.dtype, offset=offset).fill_(torch.nan)
    result = Slice(buffer, beside, count)
    result.values.copy_(values)
    return result


def _packed(case: Case, library: ctypes.CDLL, weight: Tensor) -> tuple[Tensor, object]:
    """Weights (N or 1, ...) as the kernels want them, in up to three parts along the reduction."""
    images = len(weight)
    shape = shape_of(case.dtype, case.sources, case.out, case.resampling, case.per_image)
    elements = library.packed_elements(ctypes.byref(shape))
    packed = aligned(images * elements, dtype=case.dtype).fill_(torch.nan)
    axis = 1 if case.transposed else 2
    third = -(-weight.shape[axis] // 3)
    parts = [weight_part(part, transposed=case.transposed) for part in weight.split(third, axis)]
    job = PackJob(shape, images, len(parts), (WeightPart * 5)(*parts), packed.data_ptr())
    library.pack_weights(ctypes.byref(job))
    return packed, job


def _expected(
    case: Case, x: Tensor, weight: Tensor, tensors: dict[str, Tensor]
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Out, and where the activation's input is positive, with where that is beyond doubt."""
    value = definition(case, x, weight)
    if case.bias:
        value = value + tensors["bias"][: case.out].double()
    doubt = 1e-6 * definition(case, x.abs(), weight.abs()) + 1e-7
    positive = value > 0, value.abs() > doubt
    slope: Tensor | float = 0.2
    if case.slopes != "one":
        slope = tensors["slopes"].double()[:, None, None, :]
    if case.activation == LEAKY_RELU:
        value = torch.where(value > 0, value, slope * value)
    elif case.activation == GRADIENT_BY_VALUES:
        value = torch.where(tensors["kept"] > 0, value, slope * value)
    elif case.activation == GRADIENT_BY_SIGNS:
        bits = tensors["kept_signs"][..., None] >> torch.arange(8) & 1
        value = torch.where(bits.flatten(-2)[..., : case.out].bool(), value, slope * value)
    else:
        assert case.activation == NO_ACTIVATION
    value = case.scale * value
    if case.residual:
        value = value + 0.75 * tensors["residual"].double()
    if case.outer:
        value = value + 1.5 * tensors["outer"].double()
    if case.noise:
        value = value + tensors["noise"].double()[..., None]
    return value, positive
