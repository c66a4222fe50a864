"""A generator as a file for other programs, checked against the generator before the file appears.

Formats: BasicSR's .pth (``params_ema``), safetensors, ONNX and torch.export programs. The last two take batches and
pictures of any size; their dense blocks are plain convolutions, so that nothing of andfast is needed to run them.
"""

import importlib.util
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.export import Dim

from andfast.data.images import UnusableImageError, decode
from andfast.data.sources import resolve_source
from andfast.files import atomic_path
from andfast.nn import RRDBNet
from andfast.nn.plain import plain_copy
from andfast.nn.weights import generator_from_weights, save_weights

SUFFIXES: Final = {"basicsr": ".pth", "safetensors": ".safetensors", "onnx": ".onnx", "torch-export": ".pt2"}
"""The formats and the suffixes of their files."""

OPSET: Final = 18
"""ONNX's operator set that is written."""

TOLERANCE: Final = 1e-4
"""The largest difference from the generator that a file may have, for values of 0 to 1."""

_SPANDRELS_GROWTH: Final = 32  # it takes this number for granted, and reads no RRDBNet that has another
_PHOTOGRAPH: Final = "package:skimage/data/astronaut.png"
_EXTRA: Final = 'pip install "andfast[export]"'


class ExportError(RuntimeError):
    """A file that does not compute what the generator does; it has not been written."""


def export(
    generator: RRDBNet,
    path: Path,
    form: str,
    picture: Tensor,
    *,
    metadata: Mapping[str, str] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[str]:
    """Write a generator, read the file back, and let it appear if it restores a picture as the generator does.

    Args:
        generator: G in fp32 on the CPU.
        path: of the file; one that is there is replaced. Its folder must exist.
        form: a key of :data:`SUFFIXES`, whose suffix ``path`` has.
        picture: the picture for the check, (3, H, W) in [0, 1]; of the generator's input, at least 48 x 64.
        metadata: text to keep with safetensors.
        say: is told what goes on.

    Returns:
        What was checked, and how far the results were apart, a line each.

    Raises:
        ValueError: the format is none of :data:`SUFFIXES`, or the path has another suffix.
        ModuleNotFoundError: a package is missing; the text says how to install it.
        ExportError: the file did not compute the same.
        OSError: it could not be written.
    """
    if form not in SUFFIXES:
        raise ValueError(f"format must be one of {', '.join(SUFFIXES)}, was {form!r}")
    if path.suffix != SUFFIXES[form]:
        raise ValueError(f"a file of format {form} must end in {SUFFIXES[form]}, was {path.name!r}")
    generator.eval()
    say(f"writing {form}")
    with atomic_path(path) as temporary, torch.no_grad():
        _WRITERS[form](generator, temporary, dict(metadata or {}))
        say("reading it back and comparing")
        return [
            f"{reader}: {_compare(generator, run, picture, small=small, what=reader)}"
            for reader, run, small in _READERS[form](temporary)
        ]


def check_picture(image: Path | None) -> tuple[Tensor, str]:
    """A picture to compare on, (3, H, W) in [0, 1], and its name: a file, scikit-image's astronaut, or a drawn one.

    Raises:
        ValueError: the file is no usable picture of at least 64 x 64 pixels.
    """
    try:
        file = image if image is not None else resolve_source(_PHOTOGRAPH)
    except FileNotFoundError:
        return _drawn(), "a drawn picture (scikit-image, which has a photograph, is not installed)"
    try:
        pixels = decode(file, min_size=64)
    except UnusableImageError as error:
        raise ValueError(f"{file}: {error}") from error
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255, file.name


def _drawn() -> Tensor:
    """Gradients, waves of rising frequency, a hard edge and noise, (3, 96, 128)."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 96), torch.linspace(0, 1, 128), indexing="ij")
    waves = torch.sin(60 * x * x) * torch.cos(25 * y * y)
    noise = torch.rand(96, 128, generator=torch.Generator().manual_seed(0))
    picture = torch.stack([x, 0.5 + 0.5 * waves, 0.7 * y + 0.3 * noise])
    picture[:, 30:60, 40:80] = 1 - picture[:, 30:60, 40:80]
    return picture


# ------------------------------------------------------------------------------------------------------------ writing


def _write_basicsr(generator: RRDBNet, path: Path, _metadata: dict[str, str]) -> None:
    state = {name: one.detach().cpu().float().contiguous().clone() for name, one in generator.state_dict().items()}
    torch.save({"params_ema": state}, path)


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
                plain_copy(generator),
                (example,),
                dynamo=True,
                dynamic_shapes=shapes,
                opset_version=OPSET,
                input_names=["lr"],
                output_names=["sr"],
                external_data=False,
                verbose=False,
            )
        except ModuleNotFoundError as error:  # onnxscript has a part for every torch that it knows
            raise ModuleNotFoundError(f"format onnx needs newer packages for this torch: {_EXTRA} ({error})") from error
        assert program is not None
        program.model.metadata_props.update(metadata)
        program.save(path, external_data=False)


def _write_program(generator: RRDBNet, path: Path, metadata: dict[str, str]) -> None:
    example, shapes = _example(generator)
    with _quiet():
        program = torch.export.export(plain_copy(generator), (example,), dynamic_shapes=shapes)
        torch.export.save(program, path, extra_files=metadata)


def _example(generator: RRDBNet) -> tuple[Tensor, dict[str, Any]]:
    """An input, and which of its sizes are free: all but the channels; x2 takes multiples of 2."""
    height, width = Dim("height", min=2), Dim("width", min=2)
    fold = generator.unshuffle
    free = {0: Dim("batch", min=1), 2: height * fold if fold > 1 else height, 3: width * fold if fold > 1 else width}
    return torch.rand(2, generator.in_channels, 12, 16), {"x": free}


def _quiet() -> Any:
    """torch's exporters warn of their own deprecations."""
    context = warnings.catch_warnings()
    warnings.simplefilter("ignore")
    return context


# -------------------------------------------------------------------------------------------------- reading, comparing

Reader = tuple[str, Callable[[Tensor], Tensor], bool]
"""A name, the function that a file computes, and whether it is so slow that only small pictures will do."""


def _read_weights(path: Path) -> list[Reader]:
    ours = generator_from_weights(path).eval()
    readers: list[Reader] = [("andfast", ours, False)]
    if importlib.util.find_spec("spandrel") is None or ours.growth != _SPANDRELS_GROWTH:
        return readers
    from spandrel import ModelLoader  # noqa: PLC0415

    try:
        network = ModelLoader(device="cpu").load_from_file(path).model
    except Exception as error:  # spandrel's errors share no class below Exception
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExportError(f"spandrel cannot read it: {reason}") from error
    return [*readers, ("spandrel", network.eval(), False)]


def _read_onnx(path: Path) -> list[Reader]:
    import onnx  # noqa: PLC0415

    onnx.checker.check_model(str(path), full_check=True)
    if importlib.util.find_spec("onnxruntime") is not None:
        import onnxruntime  # noqa: PLC0415

        session: Any = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        name = f"onnxruntime {onnxruntime.__version__}"
    else:
        from onnx.reference import ReferenceEvaluator  # noqa: PLC0415

        session, name = ReferenceEvaluator(str(path)), f"onnx {onnx.__version__}'s reference evaluator"
    return [(name, lambda lr: torch.from_numpy(session.run(None, {"lr": lr.numpy()})[0]), name.startswith("onnx "))]


def _read_program(path: Path) -> list[Reader]:
    with _quiet():
        return [(f"torch.export of torch {torch.__version__}", torch.export.load(path).module(), False)]


def _compare(generator: RRDBNet, run: Callable[[Tensor], Tensor], picture: Tensor, *, small: bool, what: str) -> str:
    """Compare on the picture in two sizes, one alone and two in a batch; the largest difference, in words."""
    sizes = [(1, 8, 12), (2, 12, 4)] if small else [(1, 48, 64), (2, 36, 20)]  # multiples of 4, for x1
    picture = picture[: generator.in_channels] if generator.in_channels < 3 else picture
    worst = 0.0
    for batch, height, width in sizes:
        top, left = (picture.shape[1] - height) // 2, (picture.shape[2] - width) // 2
        lr = picture[:, top : top + height, left : left + width].contiguous()
        lr = torch.stack([lr, lr.flip(-1)][:batch])
        expected, found = generator(lr), run(lr)
        if found.shape != expected.shape:
            raise ExportError(f"{what} made {tuple(found.shape)} of {tuple(lr.shape)}, not {tuple(expected.shape)}")
        difference = float((found - expected).abs().max() / expected.abs().max().clamp_min(1))
        if not difference <= TOLERANCE:
            raise ExportError(f"{what} differs by {difference:.2g} from the model, at most {TOLERANCE:g} is allowed")
        worst = max(worst, difference)
    shapes = " and ".join(f"{batch}x3x{height}x{width}" for batch, height, width in sizes)
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
