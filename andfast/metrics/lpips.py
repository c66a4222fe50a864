"""LPIPS (Zhang et al. 2018), version 0.1, by the `lpips` package: full reference, lower is better."""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor

from andfast import checks as _check
from andfast import torchvision_weights

LPIPSNet = Literal["alex", "vgg", "squeeze"]

SMALLEST: Final[Mapping[str, int]] = {"alex": 31, "vgg": 16, "squeeze": 17}
"""The least height and width in pixels that each network's pooling layers leave something of."""

_MODELS: Final = {"alex": "AlexNet", "vgg": "VGG16", "squeeze": "SqueezeNet1_1"}  # torchvision's names
_ENTRY = re.compile(r"(?:features\.)?(\d+\..+)")


class LPIPS:
    """The distance of two images in the features of a network trained on ImageNet.

    Args:
        net: "alex" (the field's default for reporting), "vgg" or "squeeze".
        weights: file of torchvision's ImageNet weights of that network, .pth or .safetensors; None takes
            torch.hub's cache, downloading into it what is not there. The linear layers are the package's own.
        device: where it runs, in fp32.

    Raises:
        ModuleNotFoundError: the `lpips` package is missing.
        FileNotFoundError: no weights; the message says which file to put where.
        ValueError: the file is of another network, or damaged.
    """

    version: Final = "0.1"

    def __init__(
        self, net: LPIPSNet = "alex", *, weights: str | Path | None = None, device: str | torch.device = "cpu"
    ) -> None:
        _check.one_of("net", net, get_args(LPIPSNet))
        try:
            import lpips  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f'LPIPS needs the lpips package, pip install "andfast[metrics]" ({error})'
            ) from error
        state, file = _backbone(net, weights)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the package uses a deprecated argument of torchvision's
            network = lpips.LPIPS(net=net, version=self.version, pnet_rand=True, verbose=False)
        _load(network.net, state, file, net)
        self.net = net
        self.device = torch.device(device)
        self.weights = file.name
        self._network = network.eval().requires_grad_(False).to(self.device)

    def __call__(self, sr: Tensor, hr: Tensor, *, crop_border: int = 0) -> Tensor:
        """LPIPS of each pair: (N,), fp32, on the CPU.

        Args:
            sr, hr: equal shapes, (N, 3, H, W) or (3, H, W), RGB, uint8 or floating point in [0, 1].
            crop_border: pixels left out on every side.

        Raises:
            TypeError, ValueError: no such pair of images, or smaller than the network can take.
        """
        pair = []
        for name, image in (("sr", sr), ("hr", hr)):
            _check.tensor(name, image)
            if image.dim() not in {3, 4} or image.shape[-3] != 3:
                raise ValueError(f"{name} must have shape (N, 3, H, W) or (3, H, W), was {_check.shape(image)}")
            if image.dtype != torch.uint8:
                _check.floating(name, image)
            batch = image if image.dim() == 4 else image[None]
            height, width = batch.shape[-2:]
            least = SMALLEST[self.net]
            if min(height, width) - 2 * crop_border < least:
                raise ValueError(
                    f"{name} must be at least {least} pixels high and wide for LPIPS ({self.net}), not counting a "
                    f"crop_border of {crop_border} on each side, was {_check.shape(image)}"
                )
            batch = batch[..., crop_border : height - crop_border, crop_border : width - crop_border]
            scaled = batch.float() / 255 if batch.dtype == torch.uint8 else batch.float()
            pair.append(scaled.to(self.device) * 2 - 1)
        _check.has_shape("sr", sr, hr.shape, meaning="that of hr")
        with torch.inference_mode():
            found = self._network(*pair).flatten().cpu()
        return found.clone()


def weights_file(net: LPIPSNet) -> tuple[str, Path]:
    """The address of torchvision's weights of a network, and their place in torch.hub's cache."""
    from torchvision import models  # noqa: PLC0415 - takes a second

    url = getattr(models, f"{_MODELS[net]}_Weights").IMAGENET1K_V1.url
    return url, torchvision_weights.cached(url)


def _backbone(net: LPIPSNet, weights: str | Path | None) -> tuple[object, Path]:
    if weights is not None:
        file = Path(weights).expanduser()
        if not file.is_file():
            raise FileNotFoundError(
                f"LPIPS weights must be a file of torchvision's {_MODELS[net]}, there is none at {file}"
            )
        return torchvision_weights.read(file), file
    file = torchvision_weights.fetch(
        weights_file(net)[0],
        needed=f"LPIPS needs torchvision's {_MODELS[net]} weights",
        instead="or give its path (--lpips-weights PATH).",
        progress=False,
    )
    return torchvision_weights.read(file), file


def _load(network: torch.nn.Module, state: object, file: Path, net: LPIPSNet) -> None:
    """Give the package's slices, which keep torchvision's positions in `features`, their weights."""
    entries: Mapping[Any, Any] = state if isinstance(state, Mapping) else {}
    found = {
        match[1]: value
        for key, value in entries.items()
        if isinstance(value, Tensor) and (match := _ENTRY.fullmatch(str(key)))
    }
    wanted = {name.partition(".")[2]: parameter for name, parameter in network.named_parameters()}
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    wrong = [name for name, parameter in wanted.items() if shapes.get(name) != tuple(parameter.shape)]
    # No others either: VGG16 and VGG19 begin alike.
    wrong += [name for name in found if name not in wanted]
    if wrong:
        raise ValueError(
            f"{file} must hold the weights of torchvision's {_MODELS[net]} for LPIPS ({net}); missing or different: "
            f"features.{wrong[0]}" + (f" and {len(wrong) - 1} more" if len(wrong) > 1 else "")
        )
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(found[name])
