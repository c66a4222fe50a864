"""torchvision's ImageNet weights: read from torch.hub's cache, downloaded if missing; nothing is unpickled."""

from pathlib import Path
from urllib.parse import urlparse

import torch


def cached(url: str) -> Path:
    """Path of the URL's file in torch.hub's cache, whether it exists or not."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name


def fetch(url: str, *, needed: str, instead: str, progress: bool = True) -> Path:
    """Return the cached file of a URL; download it and verify its checksum if it is missing.

    Args:
        url: URL of a file whose name ends in ``-CHECKSUM``, as torchvision's do.
        needed: start of the error message, which names the feature and the weights that it needs.
        instead: end of the error message, with an alternative.
        progress: whether to show a progress bar.

    Raises:
        FileNotFoundError: the download failed; the message says which file to put where.
    """
    file = cached(url)
    if not file.is_file():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            checksum = file.stem.rpartition("-")[2]
            torch.hub.download_url_to_file(url, str(file), hash_prefix=checksum, progress=progress)
        except (OSError, RuntimeError) as error:  # RuntimeError: checksum mismatch
            raise FileNotFoundError(
                f"{needed}, and {file.name} could not be downloaded ({error}). "
                f"Get {url} and put it at {file}, {instead}"
            ) from error
    return file


def read(file: Path) -> object:
    """Read a file of tensors, .safetensors or .pth, without unpickling.

    Raises:
        ValueError: The file cannot be read.
    """
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file  # noqa: PLC0415

            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling, zip and safetensors errors share no base class below Exception
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{file} cannot be read as a file of weights, it is damaged, incomplete or another kind of file "
            f"(in torch.hub's cache: delete it to download it again): {reason}"
        ) from error
