"""LPIPS (Zhang et al. 2018), version 0.1, computed by the `lpips` package: full reference, lower is better."""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor

from andfast import checks, torchvision_weights
from andfast.metrics.color import image_pair

LPIPSNet = Literal["alex", "vgg", "squeeze"]

MIN_SIZE: Final[Mapping[str, int]] = {"alex": 31, "vgg": 16, "squeeze": 17}
"""Minimum height and width in pixels, by network: smaller images vanish in the pooling layers."""

_MODELS: Final = {"alex": "AlexNet", "vgg": "VGG16", "squeeze": "SqueezeNet1_1"}  # torchvision's names
_ENTRY = re.compile(r"(?:features\.)?(\d+\..+)")


class LPIPS:
    """Learned perceptual distance between images, from features of a network trained on ImageNet.

    Args:
        net: "alex" (the usual choice for reporting), "vgg" or "squeeze".
        weights: file with torchvision's ImageNet weights of that network, .pth or .safetensors; None uses
            torch.hub's cache and downloads the file if missing. The linear layers come with the package.
        device: device to run on, in fp32.

    Raises:
        ModuleNotFoundError: the `lpips` package is not installed.
        FileNotFoundError: no weights; the message states which file to place where.
        ValueError: the file is damaged or contains another network's weights.
    """

    version: Final = "0.1"

    def __init__(
        self, net: LPIPSNet = "alex", *, weights: str | Path | None = None, device: str | torch.device = "cpu"
    ) -> None:
        checks.one_of("net", net, get_args(LPIPSNet))
        try:
            import lpips  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f'LPIPS requires the lpips package, pip install "andfast[metrics]" ({error})'
            ) from error
        state, file = _backbone(net, weights)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lpips uses a deprecated torchvision argument
            network = lpips.LPIPS(net=net, version=self.version, pnet_rand=True, verbose=False)
        _load(network.net, state, file, net)
        self.net = net
        self.device = torch.device(device)
        self.weights = file.name
        self._network = network.eval().requires_grad_(False).to(self.device)

    def __call__(self, sr: Tensor, hr: Tensor, *, crop_border: int = 0) -> Tensor:
        """LPIPS of each pair: (N,), fp32, on the CPU.

        Args:
            sr, hr: equal shapes, (N, 3, H, W) or (3, H, W), RGB, each uint8 or floating point in [0, 1].
            crop_border: pixels excluded on each side.

        Raises:
            TypeError, ValueError: invalid images, mismatched shapes, or smaller than MIN_SIZE after cropping.
        """
        inputs = []
        for image in image_pair(sr, hr, crop_border=crop_border, min_size=MIN_SIZE[self.net]):
            scaled = image.float() / 255 if image.dtype == torch.uint8 else image.float()
            inputs.append(scaled.to(self.device) * 2 - 1)
        with torch.inference_mode():
            distances = self._network(*inputs).flatten().cpu()
        return distances.clone()


def weights_file(net: LPIPSNet) -> tuple[str, Path]:
    """URL of torchvision's weights of a network, and their path in torch.hub's cache."""
    from torchvision import models  # noqa: PLC0415 - takes a second

    url = getattr(models, f"{_MODELS[net]}_Weights").IMAGENET1K_V1.url
    return url, torchvision_weights.cached(url)


def _backbone(net: LPIPSNet, weights: str | Path | None) -> tuple[object, Path]:
    if weights is not None:
        file = Path(weights).expanduser()
        if not file.is_file():
            raise FileNotFoundError(
                f"LPIPS weights must be a file with torchvision's {_MODELS[net]} weights, {file} does not exist"
            )
        return torchvision_weights.read(file), file
    file = torchvision_weights.fetch(
        weights_file(net)[0],
        needed=f"LPIPS requires torchvision's {_MODELS[net]} weights",
        instead="or pass its path (--lpips-weights PATH).",
        progress=False,
    )
    return torchvision_weights.read(file), file


def _load(network: torch.nn.Module, state: object, file: Path, net: LPIPSNet) -> None:
    """Load weights into the package's slices, which keep torchvision's layer indices."""
    entries: Mapping[Any, Any] = state if isinstance(state, Mapping) else {}
    tensors = {
        match[1]: value
        for key, value in entries.items()
        if isinstance(value, Tensor) and (match := _ENTRY.fullmatch(str(key)))
    }
    parameters = {name.partition(".")[2]: parameter for name, parameter in network.named_parameters()}
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    mismatched = [name for name, parameter in parameters.items() if shapes.get(name) != tuple(parameter.shape)]
    # Extra entries are errors too: VGG16 is a prefix of VGG19.
    mismatched += [name for name in tensors if name not in parameters]
    if mismatched:
        more = f" and {len(mismatched) - 1} more" if len(mismatched) > 1 else ""
        raise ValueError(
            f"{file} must contain torchvision's {_MODELS[net]} weights for LPIPS ({net}); missing or mismatched: "
            f"features.{mismatched[0]}{more}"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
