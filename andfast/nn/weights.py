"""Files of weights: safetensors with BasicSR's names out; these and everything ESRGAN-like in.

Nothing is ever unpickled: ``.pth`` files are read with ``weights_only=True``, which refuses whatever is not a
tensor, a number, a string or a container of them.
"""

import errno
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from andfast.files import atomic_file
from andfast.nn.rrdbnet import SCALES, RRDBNet

PICKLED: Final = (".pth", ".pt", ".ckpt")
ENTRIES: Final = ("params_ema", "params-ema", "params", "state_dict", "model_state_dict", "model", "net")
"""Entries under which a file may hold its weights, the preferred one first; else they are its top level."""

_WRAPPERS: Final = ("module.", "_orig_mod.")
_NAMES_SHOWN: Final = 4
_SLACK: Final = 2
"""How many times its own size a file's contents may claim: tied weights count twice, bombs count by the thousand."""


class UnknownArchitectureError(ValueError):
    """A sound state dict, but no RRDBNet's."""


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the weights of a network on the CPU, as they are stored, under BasicSR's names.

    Of several entries ``params_ema`` comes before ``params``; the prefixes ``module.``
    (DistributedDataParallel) and ``_orig_mod.`` (torch.compile) are stripped; the names of the first ESRGAN
    release (``model.1.sub.0.RDB1.conv1.0``) and of BSRGAN (``RRDB_trunk.0.RDB1.conv1``) become BasicSR's.

    Args:
        path: File ending in .safetensors, or in .pth, .pt or .ckpt.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read, would have to run code to be read, or holds no state dict.
    """
    return _basicsr_names(read_state(path), Path(path))


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict as :func:`read_weights` does, of any network, under the names that it has there.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read, would have to run code to be read, holds no state dict, or claims more than
            it holds.
    """
    path = Path(path)
    _check_is_file(path)
    if path.suffix == ".safetensors":
        found: object = _read_safetensors(path)[0]
    elif path.suffix in PICKLED:
        found = _read_pickled(path)
    else:
        raise ValueError(f"{path}: weights must end in .safetensors, {', '.join(PICKLED)}, was {path.suffix!r}")
    return _without_prefixes(_state_dict(found, path), path)


def read_metadata(path: str | Path) -> dict[str, str]:
    """Read what :func:`save_weights` was given as metadata from a .safetensors file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no safetensors file.
    """
    path = Path(path)
    _check_is_file(path)
    return _read_safetensors(path)[1]


def generator_from_weights(
    source: str | Path | Mapping[str, Tensor], *, scale: int | None = None, impl: str = "auto"
) -> RRDBNet:
    """Build the RRDBNet that fits a file of weights, or a state dict with BasicSR's names, and load them, in
    fp32.

    Scale, features, blocks, growth and channels are read off the names and shapes.

    Args:
        source: File (see :func:`read_weights`) or state dict.
        scale: The scale that the weights must be for; None for any.
        impl: Implementation of the dense blocks, see :class:`RRDBNet`.

    Raises:
        FileNotFoundError: There is no such file.
        UnknownArchitectureError: The weights are no RRDBNet's.
        ValueError: As :func:`read_weights`; or they are not one of that scale.
    """
    name = "the state dict" if isinstance(source, Mapping) else str(source)
    state = dict(source) if isinstance(source, Mapping) else read_weights(source)
    sizes = _infer_sizes(state, name)
    if scale is not None and sizes["scale"] != scale:
        raise ValueError(f"{name}: weights must be for scale {scale}, are for scale {sizes['scale']}")
    with torch.device("meta"):  # neither time nor random numbers for an initialisation that is overwritten
        network = RRDBNet(**sizes, impl=impl)
    expected = network.state_dict()
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or unexpected:
        raise UnknownArchitectureError(_unknown_architecture(name, missing, unexpected))
    for key, tensor in expected.items():
        if state[key].shape != tensor.shape:
            raise ValueError(
                f"{name}: {key} must have shape {tuple(tensor.shape)} in an RRDBNet of "
                f"{sizes['features']} features, {sizes['growth']} of growth, was {tuple(state[key].shape)}"
            )
        if not state[key].is_floating_point():
            raise ValueError(f"{name}: {key} must be floating-point, was {state[key].dtype}")
    network.to_empty(device="cpu").load_state_dict(state)
    return network


def save_weights(
    path: str | Path, source: nn.Module | Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write weights as safetensors: contiguous, fp32 if floating-point, BasicSR's names, no prefixes.

    The file is written beside its place, flushed to the disk and moved there at once: whoever reads ``path``
    at any time, or after a crash, finds the old file or the new one, whole.

    Args:
        path: File to write, ending in .safetensors; its folder must exist.
        source: Module or state dict.
        metadata: Strings to keep with the weights: architecture, scale, iteration, version ...

    Raises:
        FileNotFoundError: The folder does not exist.
        TypeError: An entry of the state dict is no tensor, or one of the metadata no string.
        ValueError: ``path`` does not end in .safetensors; two names are the same without their prefixes.
        OSError: The file could not be written; an old one is unharmed.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path must end in .safetensors, was {path}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist")
    state = source.state_dict() if isinstance(source, nn.Module) else source
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{path}: {key} must be a tensor, was {type(value).__name__}")
    for key, text in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(text, str):
            raise TypeError(f"{path}: metadata must map strings to strings, {key!r} was {type(text).__name__}")
    tensors = {key: _stored(value) for key, value in _without_prefixes(state, path).items()}
    with atomic_file(path) as file:
        file.write(to_safetensors(tensors, {"format": "pt", **(metadata or {})}))


# ------------------------------------------------------------------------------------------------------------
# Reading


def _check_is_file(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file of weights")
    if not path.is_file():
        raise ValueError(f"{path}: weights must be a file, was a folder or device")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file: {_first_line(error)}") from error


def _read_pickled(path: Path) -> object:
    _check_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles of other protocols; whether they can be read shows
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        forbidden = re.search(r"GLOBAL (\S+)", str(error))
        if forbidden:
            raise ValueError(
                f"{path}: refused, for reading it would run {forbidden[1]}; only tensors are read"
            ) from error
        cause = re.search(r"WeightsUnpickler error: (.*)", str(error))
        why = cause[1].strip() if cause else _first_line(error)
        raise ValueError(f"{path}: not a readable file of weights: {why}") from error
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # a seek to where the table of contents of a damaged archive points
        raise ValueError(f"{path}: not a readable file of weights: its archive is cut off") from error
    except Exception as error:  # a damaged zip archive or pickle stream makes torch.load raise nearly anything
        raise ValueError(f"{path}: not a readable file of weights: {_first_line(error)}") from error


def _check_archive(path: Path) -> None:
    """Refuse a zip archive that unpacks to more than it holds; torch.save does not compress."""
    try:
        with zipfile.ZipFile(path) as archive:
            claimed = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError, UnicodeDecodeError, struct.error):
        return  # PyTorch's format before archives, or damaged: torch.load says how
    _check_claim(path, claimed)


def _check_claim(path: Path, claimed: int) -> None:
    held = path.stat().st_size
    if claimed > _SLACK * held:
        raise ValueError(f"{path}: refused, its contents claim {claimed:,} bytes and the file has {held:,}")


def _first_line(error: Exception) -> str:
    """The first line of an error's text: PyTorch adds paragraphs of advice and stack traces."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _state_dict(found: object, path: Path) -> dict[str, Tensor]:
    """The names and tensors in what a file held."""
    if isinstance(found, Mapping):
        for entry in ENTRIES:
            if isinstance(found.get(entry), Mapping):
                found = found[entry]
                break
    if not isinstance(found, Mapping) or not found:
        what = "nothing" if isinstance(found, Mapping) else type(found).__name__
        raise ValueError(f"{path}: must hold a state dict (names of parameters to tensors), held {what}")
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"{path}: must hold a state dict (names of parameters to tensors), "
                f"but its entry {key!r} was {type(value).__name__}"
            )
        if value.is_meta or value.is_quantized or value.layout != torch.strided:
            raise ValueError(
                f"{path}: {key!r} must be a plain dense tensor, was one that is sparse, quantized or empty"
            )
    _check_claim(path, sum(value.numel() * value.element_size() for value in found.values()))
    return dict(found)


def _without_prefixes(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Strip what DistributedDataParallel and torch.compile put before the names."""
    stripped: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key
        while name.startswith(_WRAPPERS):
            name = name.split(".", 1)[1]
        name = name.replace("._orig_mod.", ".")  # a part that was compiled for itself
        if name in stripped:
            raise ValueError(f"{path}: two entries are called {name} once their prefixes are stripped")
        stripped[name] = value
    return stripped


def _basicsr_names(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Translate the names of ESRGAN's first release and of BSRGAN; other state dicts stay as they are."""
    if "model.0.weight" in state and any(key.startswith("model.1.sub.") for key in state):
        return _from_first_release(state, path)
    if "trunk_conv.weight" in state:
        renamed = {
            "trunk_conv": "conv_body",
            "upconv1": "conv_up1",
            "upconv2": "conv_up2",
            "HRconv": "conv_hr",
        }
        result = {}
        for key, value in state.items():
            name = re.sub(r"^RRDB_trunk\.(\d+)\.RDB(\d)\.", r"body.\1.rdb\2.", key)
            layer, _, rest = name.partition(".")
            result[f"{renamed.get(layer, layer)}.{rest}"] = value
        return result
    return state


def _from_first_release(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Translate ``model.{i}``: one sequence that numbers every layer, activation and enlargement."""
    top = sorted({int(match[1]) for key in state if (match := re.match(r"model\.(\d+)\.(weight|bias)$", key))})
    layers = ["conv_first", "conv_up1", "conv_up2", "conv_hr", "conv_last"]
    if len(top) != len(layers):
        raise UnknownArchitectureError(
            f"{path}: an ESRGAN of the first release with {len(top) - 3} enlargements by 2; only those with "
            "2 (scale 4, or 2 and 1 with pixel-unshuffle) are RRDBNets as known here"
        )
    names = {f"model.{number}.": f"{layer}." for number, layer in zip(top, layers, strict=True)}
    result = {}
    for key, value in state.items():
        name = re.sub(r"^model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.", r"body.\1.rdb\2.conv\3.", key)
        name = re.sub(r"^model\.1\.sub\.\d+\.(weight|bias)$", r"conv_body.\1", name)
        for old, new in names.items():
            if name.startswith(old):
                name = new + name.removeprefix(old)
        result[name] = value
    return result


# ------------------------------------------------------------------------------------------------------------
# The generator


def _infer_sizes(state: Mapping[str, Any], name: str) -> dict[str, int]:
    """Read RRDBNet's arguments off the names and shapes of its state dict."""
    telling = ("conv_first.weight", "conv_last.weight", "body.0.rdb1.conv1.weight")
    absent = [key for key in telling if key not in state]
    if absent:
        raise UnknownArchitectureError(_unknown_architecture(name, absent, sorted(state.keys() - set(telling))))
    first, last, dense = (state[key] for key in telling)
    for key, one in zip(telling, (first, last, dense), strict=True):
        if one.dim() != 4 or one.numel() == 0:
            raise ValueError(f"{name}: {key} must have 4 dimensions, none of them 0, was {tuple(one.shape)}")
    out_channels = last.shape[0]
    scale_of = {out_channels * (4 // scale) ** 2: scale for scale in SCALES}
    if first.shape[1] not in scale_of:
        wanted = ", ".join(f"{channels} (scale {scale})" for channels, scale in scale_of.items())
        raise UnknownArchitectureError(f"{name}: conv_first must take {wanted} channels, takes {first.shape[1]}")
    return {
        "scale": scale_of[first.shape[1]],
        "in_channels": out_channels,
        "out_channels": out_channels,
        "features": first.shape[0],
        "blocks": len({match[1] for key in state if (match := re.match(r"body\.(\d+)\.", key))}),
        "growth": dense.shape[0],
    }


def _unknown_architecture(name: str, missing: list[str], unexpected: list[str]) -> str:
    differences = [f"{word} {_some(keys)}" for word, keys in (("missing", missing), ("unexpected", unexpected)) if keys]
    return f"{name}: not the weights of an RRDBNet: {'; '.join(differences)}"


def _some(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


# ------------------------------------------------------------------------------------------------------------
# Writing


def _stored(tensor: Tensor) -> Tensor:
    """A contiguous copy on the CPU, fp32 if floating-point; a copy, as safetensors refuses shared memory."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", dtype, copy=True, memory_format=torch.contiguous_format)
