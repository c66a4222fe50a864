"""Export a generator to files for other programs; each file is checked against the generator before it appears.

Formats: BasicSR's .pth (``params_ema``), safetensors, ONNX and torch.export programs. The last two accept any batch and
image size (x2 and x1 pad to multiples of 2 and 4, and crop, inside of the graph); their dense blocks are plain
convolutions, so they run without andfast. The margin of :mod:`andfast.inference.padding` is up to the caller.
"""

import importlib.util
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim

from andfast.data.images import UnusableImageError, decode
from andfast.data.sources import resolve_source
from andfast.files import atomic_path
from andfast.inference.padding import restore_padded
from andfast.nn import RRDBNet
from andfast.nn.plain import plain_copy
from andfast.nn.weights import generator_from_weights, save_weights

SUFFIXES: Final = {"basicsr": ".pth", "safetensors": ".safetensors", "onnx": ".onnx", "torch-export": ".pt2"}
"""Formats and the suffixes of their files."""

OPSET: Final = 18
"""ONNX operator set version."""

TOLERANCE: Final = 1e-4
"""Maximum absolute difference from the generator's output, for values in [0, 1]."""

_SPANDREL_GROWTH: Final = 32  # spandrel reads RRDBNets of this growth only
_PHOTOGRAPH: Final = "package:skimage/data/astronaut.png"
_EXTRA: Final = 'pip install "andfast[export]"'
_LOG = logging.getLogger(__name__)


class ExportError(RuntimeError):
    """The exported file does not reproduce the generator; it has been deleted."""


def export(
    generator: RRDBNet,
    path: Path,
    form: str,
    image: Tensor,
    *,
    metadata: Mapping[str, str] | None = None,
) -> list[str]:
    """Write a generator to a file, read it back, and keep it if it restores an image as the generator does.

    Args:
        generator: G in fp32 on the CPU.
        path: File to write, replaced if it exists. Its folder must exist.
        form: Format, a key of :data:`SUFFIXES`; ``path`` must have its suffix.
        image: Image for the check, (3, H, W) in [0, 1], at least 48 x 64.
        metadata: Strings stored with the weights, where the format has room for them.

    Returns:
        One line per reader with the difference from the generator.

    Raises:
        ValueError: The format is unknown, or ``path`` has another suffix.
        ModuleNotFoundError: A package is missing; the message says how to install it.
        ExportError: The file does not reproduce the generator.
        OSError: The file could not be written.
    """
    if form not in SUFFIXES:
        raise ValueError(f"format must be one of {', '.join(SUFFIXES)}, was {form!r}")
    if path.suffix != SUFFIXES[form]:
        raise ValueError(f"a file of format {form} must end in {SUFFIXES[form]}, was {path.name!r}")
    generator.eval()
    _LOG.info("writing %s", form)
    with atomic_path(path) as temporary, torch.no_grad():
        _WRITERS[form](generator, temporary, dict(metadata or {}))
        _LOG.info("reading it back and comparing")
        return [f"{reader.name}: {_compare(generator, reader, image)}" for reader in _READERS[form](temporary)]


def check_image(path: Path | None) -> tuple[Tensor, str]:
    """Load the image of the check, (3, H, W) in [0, 1], and its name.

    Args:
        path: Image file; None for scikit-image's astronaut or, where that is not installed, a synthetic image.

    Raises:
        ValueError: The file is not a usable image of at least 64 x 64 pixels.
    """
    try:
        file = path if path is not None else resolve_source(_PHOTOGRAPH)
    except FileNotFoundError:
        return _synthetic_image(), "a synthetic image (scikit-image, which has a photograph, is not installed)"
    try:
        pixels = decode(file, min_size=64)
    except UnusableImageError as error:
        raise ValueError(f"{file}: {error}") from error
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255, file.name


def _synthetic_image() -> Tensor:
    """(3, 96, 128): gradients, waves of rising frequency, a hard edge and noise."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 96), torch.linspace(0, 1, 128), indexing="ij")
    waves = torch.sin(60 * x * x) * torch.cos(25 * y * y)
    noise = torch.rand(96, 128, generator=torch.Generator().manual_seed(0))
    image = torch.stack([x, 0.5 + 0.5 * waves, 0.7 * y + 0.3 * noise])
    image[:, 30:60, 40:80] = 1 - image[:, 30:60, 40:80]
    return image


# ------------------------------------------------------------------------------------------------------------ writing


def _write_basicsr(generator: RRDBNet, path: Path, _metadata: dict[str, str]) -> None:
    state = {name: value.detach().cpu().float().contiguous().clone() for name, value in generator.state_dict().items()}
    with path.open("wb") as file:  # by name, PyTorch's errors do not say that the disk is full
        torch.save({"params_ema": state}, file)


def _write_safetensors(generator: RRDBNet, path: Path, metadata: dict[str, str]) -> None:
    save_weights(path, generator, metadata)


def _write_onnx(generator: RRDBNet, path: Path, metadata: dict[str, str]) -> None:
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"format onnx needs the package {package}: {_EXTRA}")
    example, shapes = _example(generator)
    with _quiet():
        try:
            program = torch.onnx.export(
                _AnySize(generator).eval(),
                (example,),
                dynamo=True,
                dynamic_shapes=shapes,
                opset_version=OPSET,
                input_names=["lr"],
                output_names=["sr"],
                external_data=False,
                verbose=False,
            )
        except ModuleNotFoundError as error:  # onnxscript has modules for specific torch versions
            raise ModuleNotFoundError(f"format onnx needs newer packages for this torch: {_EXTRA} ({error})") from error
        assert program is not None
        program.model.metadata_props.update(metadata)
        program.save(path, external_data=False)


def _write_program(generator: RRDBNet, path: Path, metadata: dict[str, str]) -> None:
    example, shapes = _example(generator)
    with _quiet():
        program = torch.export.export(_AnySize(generator).eval(), (example,), dynamic_shapes=shapes)
        with path.open("wb") as file:
            torch.export.save(program, file, extra_files=metadata)


def _example(generator: RRDBNet) -> tuple[Tensor, dict[str, Any]]:
    """An example input and its dynamic dimensions: all but the channels."""
    minimum = generator.unshuffle + 1  # torch.export specializes on sizes of 1 after pixel-unshuffle
    free = {0: Dim("batch", min=1), 2: Dim("height", min=minimum), 3: Dim("width", min=minimum)}
    return torch.rand(2, generator.in_channels, 13, 18), {"x": free}


class _AnySize(nn.Module):
    """A generator with pixel-unshuffle that accepts any size: replicates the last row and column, crops the output."""

    def __init__(self, generator: RRDBNet) -> None:
        super().__init__()
        self.generator = plain_copy(generator)
        self.scale, self.multiple = generator.scale, generator.unshuffle

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if self.multiple == 1:
            return self.generator(x)
        rows, columns = (self._padded(size, x.device) for size in (height, width))
        sr = self.generator(x.index_select(2, rows).index_select(3, columns))
        # Indices instead of a slice, whose end torch.export cannot prove to be inside.
        rows, columns = (torch.arange(size * self.scale, device=x.device) for size in (height, width))
        return sr.index_select(2, rows).index_select(3, columns)

    def _padded(self, size: int, device: torch.device) -> Tensor:
        multiples = (size + self.multiple - 1) // self.multiple
        return torch.arange(multiples * self.multiple, device=device).clamp(max=size - 1)


def _quiet() -> Any:
    """Suppress the deprecation warnings of torch's own exporters."""
    context = warnings.catch_warnings()
    warnings.simplefilter("ignore")
    return context


# -------------------------------------------------------------------------------------------------- reading, comparing

_WEIGHTS_SIZES: Final = ((1, 48, 64), (2, 36, 20))  # (batch, height, width), multiples of 4 as x1 needs
_GRAPH_SIZES: Final = ((1, 48, 64), (2, 37, 21))
_SLOW_SIZES: Final = ((1, 8, 12), (2, 11, 5))  # for onnx's reference evaluator


class Reader(NamedTuple):
    """Name of a reader, the function that it computes from the file, and the input sizes to compare on."""

    name: str
    run: Callable[[Tensor], Tensor]
    sizes: Sequence[tuple[int, int, int]]


def _read_weights(path: Path) -> list[Reader]:
    network = generator_from_weights(path).eval()
    readers = [Reader("andfast", network, _WEIGHTS_SIZES)]
    if importlib.util.find_spec("spandrel") is None or network.growth != _SPANDREL_GROWTH:
        return readers
    from spandrel import ModelLoader  # noqa: PLC0415

    try:
        model = ModelLoader(device="cpu").load_from_file(path).model
    except Exception as error:  # spandrel's errors share no base class below Exception
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExportError(f"spandrel cannot read it: {reason}") from error
    return [*readers, Reader("spandrel", model.eval(), _WEIGHTS_SIZES)]


def _read_onnx(path: Path) -> list[Reader]:
    import onnx  # noqa: PLC0415

    onnx.checker.check_model(str(path), full_check=True)
    if importlib.util.find_spec("onnxruntime") is not None:
        import onnxruntime  # noqa: PLC0415

        session: Any = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        name, sizes = f"onnxruntime {onnxruntime.__version__}", _GRAPH_SIZES
    else:
        from onnx.reference import ReferenceEvaluator  # noqa: PLC0415

        session = ReferenceEvaluator(str(path))
        name, sizes = f"onnx {onnx.__version__}'s reference evaluator", _SLOW_SIZES
    return [Reader(name, lambda lr: torch.from_numpy(session.run(None, {"lr": lr.numpy()})[0]), sizes)]


def _read_program(path: Path) -> list[Reader]:
    with _quiet():
        return [Reader(f"torch.export of torch {torch.__version__}", torch.export.load(path).module(), _GRAPH_SIZES)]


def _compare(generator: RRDBNet, reader: Reader, image: Tensor) -> str:
    """Compare on a single image and on a batch of two of another size; return the maximum difference as text."""
    image = image[: generator.in_channels] if generator.in_channels < 3 else image
    worst = 0.0
    for batch, height, width in reader.sizes:
        top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
        lr = image[:, top : top + height, left : left + width].contiguous()
        lr = torch.stack([lr, lr.flip(-1)][:batch])
        expected, result = restore_padded(generator, lr, margin=0, multiple=generator.unshuffle), reader.run(lr)
        if result.shape != expected.shape:
            raise ExportError(
                f"the output of {reader.name} for {tuple(lr.shape)} must have shape {tuple(expected.shape)}, "
                f"was {tuple(result.shape)}"
            )
        difference = float((result - expected).abs().max() / expected.abs().max().clamp_min(1))
        if not difference <= TOLERANCE:
            raise ExportError(
                f"{reader.name} must differ by at most {TOLERANCE:g} from the model, was {difference:.2g}"
            )
        worst = max(worst, difference)
    shapes = " and ".join(f"{batch}x3x{height}x{width}" for batch, height, width in reader.sizes)
    return f"differs by at most {worst:.1e} from the model, on {shapes} pixels"


_WRITERS: Final[dict[str, Callable[[RRDBNet, Path, dict[str, str]], None]]] = {
    "basicsr": _write_basicsr,
    "safetensors": _write_safetensors,
    "onnx": _write_onnx,
    "torch-export": _write_program,
}
_READERS: Final[dict[str, Callable[[Path], Sequence[Reader]]]] = {
    "basicsr": _read_weights,
    "safetensors": _read_weights,
    "onnx": _read_onnx,
    "torch-export": _read_program,
}
