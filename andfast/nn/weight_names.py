"""Parameter names of ESRGAN-family checkpoints, translated to BasicSR's."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from torch import Tensor

_WRAPPERS: Final = ("module.", "_orig_mod.")
_GENERATORS: Final = ("generator_ema.", "generator.")
"""Prefixes of a generator inside a model's state dict (mmagic, Lightning), the preferred one first."""


class UnknownArchitectureError(ValueError):
    """A valid state dict, but not of an RRDBNet."""


def strip_prefixes(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Strip the prefixes of DistributedDataParallel (``module.``) and torch.compile (``_orig_mod.``).

    Of a state dict with a generator among other networks, the generator's part is returned: ``generator_ema.`` if
    present, otherwise ``generator.``.

    Raises:
        ValueError: two names are equal without their prefixes.
    """
    stripped = _strip_wrappers(state, path)
    for prefix in _GENERATORS:
        part = {name.removeprefix(prefix): value for name, value in stripped.items() if name.startswith(prefix)}
        if part:
            part.pop("steps", None)  # counter of mmengine's averaged models
            return _strip_wrappers(part, path)
    return stripped


def _strip_wrappers(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    stripped: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key
        while name.startswith(_WRAPPERS):
            name = name.split(".", 1)[1]
        name = name.replace("._orig_mod.", ".")  # a submodule compiled on its own
        if name in stripped:
            raise ValueError(f"{path}: names must differ without their prefixes, {name} occurs twice")
        stripped[name] = value
    return stripped


def to_basicsr(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Translate the names of ESRGAN's first release and of BSRGAN; other state dicts are returned unchanged.

    Raises:
        UnknownArchitectureError: an ESRGAN of the first release with other than two upsampling layers.
    """
    if "model.0.weight" in state and any(key.startswith("model.1.sub.") for key in state):
        return _from_first_release(state, path)
    if "trunk_conv.weight" in state:
        return _from_bsrgan(state)
    return state


def _from_bsrgan(state: dict[str, Tensor]) -> dict[str, Tensor]:
    layers = {"trunk_conv": "conv_body", "upconv1": "conv_up1", "upconv2": "conv_up2", "HRconv": "conv_hr"}
    result = {}
    for key, value in state.items():
        name = re.sub(r"^RRDB_trunk\.(\d+)\.RDB(\d)\.", r"body.\1.rdb\2.", key)
        layer, _, rest = name.partition(".")
        result[f"{layers.get(layer, layer)}.{rest}"] = value
    return result


def _from_first_release(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """``model.{i}`` is one sequence that numbers all layers, activations and upsamplings."""
    top = sorted({int(match[1]) for key in state if (match := re.match(r"model\.(\d+)\.(weight|bias)$", key))})
    layers = ["conv_first", "conv_up1", "conv_up2", "conv_hr", "conv_last"]
    if len(top) != len(layers):
        raise UnknownArchitectureError(
            f"{path}: an ESRGAN of the first release must have 2 upsampling layers (scale 4, or 2 and 1 with "
            f"pixel-unshuffle), had {len(top) - 3}"
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
