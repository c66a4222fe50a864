"""Weight files: writes safetensors with BasicSR's names, reads those and all ESRGAN-family checkpoints.

``.pth`` files are loaded with ``weights_only=True``: no code in them is run.
"""

import errno
import json
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
from andfast.nn.weight_names import UnknownArchitectureError, strip_prefixes, to_basicsr

PICKLED: Final = (".pth", ".pt", ".ckpt")
ENTRIES: Final = ("params_ema", "params-ema", "params", "state_dict", "model_state_dict", "model", "net")
"""Entries of a checkpoint that may contain the state dict, in order of preference; otherwise the top level."""

_NAMES_SHOWN: Final = 4
_MAX_EXPANSION: Final = 2
"""Maximum ratio of decompressed to file size: tied weights count twice, decompression bombs by the thousand."""


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a network's weights on the CPU, in their stored dtype, with BasicSR's names.

    ``params_ema`` is preferred to ``params``, ``generator_ema.`` (mmagic) to ``generator.``. The prefixes ``module.``
    (DistributedDataParallel) and ``_orig_mod.`` (torch.compile) are stripped; the names of ESRGAN's first release
    (``model.1.sub.0.RDB1.conv1.0``) and of BSRGAN (``RRDB_trunk.0.RDB1.conv1``) are translated.

    Args:
        path: file ending in .safetensors, .pth, .pt or .ckpt.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it cannot be read, contains code, or contains no state dict.
    """
    return to_basicsr(read_state(path), Path(path))


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Read the state dict of any network like :func:`read_weights`, without translating names.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it cannot be read, contains code, contains no state dict, or is a decompression bomb.
    """
    path = Path(path)
    _check_is_file(path)
    if path.suffix == ".safetensors":
        contents: object = _read_safetensors(path)[0]
    elif path.suffix in PICKLED:
        contents = _read_pickled(path)
    else:
        raise ValueError(f"{path}: weights must end in .safetensors, {', '.join(PICKLED)}, was {path.suffix!r}")
    return strip_prefixes(_state_dict(contents, path), path)


def read_metadata(path: str | Path) -> dict[str, str]:
    """Read the metadata that :func:`save_weights` stored in a .safetensors file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not a safetensors file.
    """
    path = Path(path)
    _check_is_file(path)
    return _read_safetensors(path)[1]


def generator_from_weights(
    source: str | Path | Mapping[str, Tensor], *, scale: int | None = None, impl: str = "auto"
) -> RRDBNet:
    """Build an fp32 RRDBNet from a weight file or a state dict with BasicSR's names.

    Scale, features, blocks, growth and channels are inferred from names and shapes.

    Args:
        source: file (see :func:`read_weights`) or state dict.
        scale: required scale; None for any.
        impl: implementation of the ops, see :class:`RRDBNet`.

    Raises:
        FileNotFoundError: the file does not exist.
        UnknownArchitectureError: the weights are not those of an RRDBNet.
        ValueError: see :func:`read_weights`; or the weights have another scale.
    """
    name = "the state dict" if isinstance(source, Mapping) else str(source)
    state = dict(source) if isinstance(source, Mapping) else read_weights(source)
    sizes = _infer_sizes(state, name)
    if scale is not None and sizes["scale"] != scale:
        raise ValueError(f"{name}: weights must be for scale {scale}, are for scale {sizes['scale']}")
    with torch.device("meta"):  # skip the initialization, which would advance the global generator
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
    """Write weights as safetensors: contiguous, fp32 if floating-point, without prefixes.

    The write is atomic: readers, also after a crash, see either the old or the complete new file. Equal weights and
    metadata give equal bytes.

    Args:
        path: file to write, ending in .safetensors, in an existing folder.
        source: module or state dict.
        metadata: strings to store with the weights: architecture, scale, iteration, version ...

    Raises:
        FileNotFoundError: the folder does not exist.
        TypeError: an entry of the state dict is not a tensor, or of the metadata not a string.
        ValueError: ``path`` does not end in .safetensors, or two names are equal without their prefixes.
        OSError: the file could not be written; an existing one is unchanged.
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
    tensors = {key: _stored(value) for key, value in strip_prefixes(state, path).items()}
    data = to_safetensors(tensors, {"format": "pt", **(metadata or {})})
    with atomic_file(path) as file:
        for part in _with_sorted_metadata(data):
            file.write(part)


# ---------------------------------------------------------------------------------------------------- reading


def _check_is_file(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file of weights")
    if not path.is_file():
        raise ValueError(f"{path}: weights must be a file, was a folder or device")
    with path.open("rb") as file:
        start = file.read(64).lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ValueError(f"{path}: weights must be a checkpoint, was a web page (a failed download?)")
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path}: weights must be a checkpoint, was a Git LFS pointer (run git lfs pull)")


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
            warnings.simplefilter("ignore")  # about other pickle protocols
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        forbidden = re.search(r"GLOBAL (\S+)", str(error))
        if forbidden:
            raise ValueError(
                f"{path}: weights must contain only tensors, contains {forbidden[1]}, which loading would run"
            ) from error
        cause = re.search(r"WeightsUnpickler error: (.*)", str(error))
        why = cause[1].strip() if cause else _first_line(error)
        raise ValueError(f"{path}: not a readable file of weights: {why}") from error
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # seeking to an invalid offset in a truncated archive
        raise ValueError(f"{path}: not a readable file of weights: truncated archive") from error
    except Exception as error:  # torch.load raises nearly anything on damaged files
        raise ValueError(f"{path}: not a readable file of weights: {_first_line(error)}") from error


def _check_archive(path: Path) -> None:
    """Reject decompression bombs; torch.save does not compress."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError, UnicodeDecodeError, struct.error):
        return  # legacy format, or damaged: torch.load reports how
    _check_expansion(path, size)


def _check_expansion(path: Path, size: int) -> None:
    limit = _MAX_EXPANSION * path.stat().st_size
    if size > limit:
        raise ValueError(f"{path}: contents must have at most {limit:,} bytes, twice the file's size, was {size:,}")


def _first_line(error: Exception) -> str:
    """First line of an error message; PyTorch appends advice and stack traces."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _state_dict(contents: object, path: Path) -> dict[str, Tensor]:
    """Extract the state dict from a checkpoint's contents."""
    if isinstance(contents, Mapping):
        for entry in ENTRIES:
            if isinstance(contents.get(entry), Mapping):
                contents = contents[entry]
                break
    if not isinstance(contents, Mapping) or not contents:
        was = "empty" if isinstance(contents, Mapping) else type(contents).__name__
        raise ValueError(f"{path}: must contain a state dict (parameter names to tensors), was {was}")
    for key, value in contents.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"{path}: must contain a state dict (parameter names to tensors), "
                f"its entry {key!r} was {type(value).__name__}"
            )
        if value.is_meta or value.is_quantized or value.layout != torch.strided:
            raise ValueError(f"{path}: {key!r} must be a dense tensor, was sparse, quantized or meta")
    _check_expansion(path, sum(value.numel() * value.element_size() for value in contents.values()))
    return dict(contents)


# -------------------------------------------------------------------------------------------------- generator


def _infer_sizes(state: Mapping[str, Any], name: str) -> dict[str, int]:
    """Infer RRDBNet's arguments from the names and shapes of its state dict."""
    keys = ("conv_first.weight", "conv_last.weight", "body.0.rdb1.conv1.weight")
    missing = [key for key in keys if key not in state]
    if missing:
        raise UnknownArchitectureError(_unknown_architecture(name, missing, sorted(state.keys() - set(keys))))
    first, last, dense = (state[key] for key in keys)
    for key in keys:
        if state[key].dim() != 4 or state[key].numel() == 0:
            raise ValueError(f"{name}: {key} must have 4 non-empty dimensions, was {tuple(state[key].shape)}")
    out_channels = last.shape[0]
    scale_of = {out_channels * (4 // scale) ** 2: scale for scale in SCALES}
    if first.shape[1] not in scale_of:
        channels = ", ".join(f"{count} (scale {scale})" for count, scale in scale_of.items())
        raise UnknownArchitectureError(f"{name}: conv_first must have {channels} input channels, was {first.shape[1]}")
    return {
        "scale": scale_of[first.shape[1]],
        "in_channels": out_channels,
        "out_channels": out_channels,
        "features": first.shape[0],
        "blocks": len({match[1] for key in state if (match := re.match(r"body\.(\d+)\.", key))}),
        "growth": dense.shape[0],
    }


def _unknown_architecture(name: str, missing: list[str], unexpected: list[str]) -> str:
    differences = [
        f"{word} {_abbreviated(keys)}" for word, keys in (("missing", missing), ("unexpected", unexpected)) if keys
    ]
    return f"{name}: not the weights of an RRDBNet: {'; '.join(differences)}"


def _abbreviated(names: list[str]) -> str:
    """The first few names and the number of others."""
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


# ---------------------------------------------------------------------------------------------------- writing


def _stored(tensor: Tensor) -> Tensor:
    """A contiguous CPU copy, fp32 if floating-point; safetensors rejects tensors that share memory."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", dtype, copy=True, memory_format=torch.contiguous_format)


def _with_sorted_metadata(data: bytes) -> tuple[bytes, memoryview]:
    """Header and tensors of a safetensors file, whose library writes metadata in a random order."""
    end = 8 + int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8:end])
    metadata = dict(sorted(header.pop("__metadata__").items()))
    text = json.dumps({"__metadata__": metadata, **header}, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors are aligned
    return len(text).to_bytes(8, "little") + text, memoryview(data)[end:]
