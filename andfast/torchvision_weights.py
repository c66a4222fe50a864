"""torchvision's ImageNet weights: from torch.hub's cache, downloaded into it if need be; nothing is unpickled."""

from pathlib import Path
from urllib.parse import urlparse

import torch


def cached(url: str) -> Path:
    """Where torch.hub keeps the file of that address, there or not."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name


def fetch(url: str, *, needed: str, instead: str, progress: bool = True) -> Path:
    """The cached file of that address; one that is not there is downloaded, and its checksum compared.

    Args:
        url: of a file whose name ends in ``-CHECKSUM``, as torchvision's do.
        needed: what needs which weights, the beginning of the error's text.
        instead: what else a user can do, its end.
        progress: show a bar.

    Raises:
        FileNotFoundError: it could not be downloaded; the text says which file to put where.
    """
    file = cached(url)
    if not file.is_file():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            checksum = file.stem.rpartition("-")[2]
            torch.hub.download_url_to_file(url, str(file), hash_prefix=checksum, progress=progress)
        except (OSError, RuntimeError) as error:  # RuntimeError: the hash of what came is another
            raise FileNotFoundError(
                f"{needed}, and {file.name} could not be downloaded ({error}). "
                f"Get {url} and put it at {file}, {instead}"
            ) from error
    return file


def read(file: Path) -> object:
    """What a file of tensors holds, .safetensors or .pth; nothing is unpickled.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file  # noqa: PLC0415

            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling, zip and safetensors errors share no class below Exception
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{file} cannot be read as a file of weights, it is damaged, incomplete or something else "
            f"(in torch.hub's cache: once it is deleted, it is downloaded anew): {reason}"
        ) from error
