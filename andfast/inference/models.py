"""Restorers: what turns LR pictures into HR ones, behind one interface, whatever network it is.

Weights of the ESRGAN family are this package's own RRDBNet. Those of other architectures (SwinIR, DAT, Real-ESRGAN's
compact networks ...) are recognised by spandrel, an extra, which is given a state dict that this package has read:
nothing is ever unpickled. ``bicubic`` is a restorer too, as everyone's baseline.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from andfast.nn.rrdbnet import RRDBNet
from andfast.nn.weights import UnknownArchitectureError, generator_from_weights, read_state

BICUBIC: Final = "bicubic"
PRECISIONS: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_NAMES_SHOWN: Final = 3


class Restorer:
    """A frozen network, or bicubic interpolation, that restores pictures.

    Attributes:
        name: what results call it: the weights file's name without its ending, or "bicubic".
        architecture: "RRDBNet", spandrel's name of another one, or "bicubic".
        scale: how many times as high and wide its results are.
        device: where it computes.
        multiple: it is exact under shifts by this many LR pixels only (pixel-unshuffle, windows); where tiles begin.
    """

    def __init__(
        self,
        name: str,
        function: Callable[[Tensor], Tensor],
        *,
        architecture: str,
        scale: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        channels: int = 3,
        multiple: int = 1,
    ) -> None:
        self.name = name
        self.architecture = architecture
        self.scale = scale
        self.device = device
        self.multiple = multiple
        self._function = function
        self._dtype = dtype
        self._channels = channels

    def __repr__(self) -> str:
        return f"Restorer({self.name!r}, {self.architecture}, scale={self.scale}, device={str(self.device)!r})"

    def restore(self, lr: Tensor) -> Tensor:
        """Restore pictures, without gradients.

        Args:
            lr: (N, 3, H, W), RGB, floating point in [0, 1], on any device; any H and W of at least 1.

        Returns:
            (N, 3, H * scale, W * scale), fp32, on the restorer's device, neither clamped nor rounded (a few of
            spandrel's networks clamp by themselves). A network of one channel has restored each colour on its own.

        Raises:
            TypeError, ValueError: lr is no such tensor.
        """
        if not isinstance(lr, Tensor) or not lr.is_floating_point():
            raise TypeError(f"lr must be a floating-point tensor, was {getattr(lr, 'dtype', type(lr).__name__)}")
        if lr.dim() != 4 or lr.shape[1] != 3 or min(lr.shape[2:]) < 1:
            raise ValueError(f"lr must have shape (N, 3, H, W), H and W at least 1, was {tuple(lr.shape)}")
        n, _, height, width = lr.shape
        with torch.no_grad():
            x = lr.to(self.device, self._dtype).reshape(n * 3 // self._channels, self._channels, height, width)
            bottom, right = -height % self.multiple, -width % self.multiple
            if bottom or right:
                x = F.pad(x, (0, right, 0, bottom), mode="replicate")
            out = self._function(x)[..., : height * self.scale, : width * self.scale]
            return out.float().reshape(n, 3, height * self.scale, width * self.scale)


def load_restorer(
    source: str | Path, *, device: str | torch.device = "cpu", precision: str = "fp32", scale: int | None = None
) -> Restorer:
    """Load a restorer.

    Args:
        source: a file of weights (.safetensors, .pth, .pt, .ckpt), of the ESRGAN family or, with spandrel installed, of
            any architecture that it knows; or the word "bicubic" (Keys' cubic with a = -0.5, pixel centres aligned:
            what Pillow's BICUBIC and MATLAB's imresize compute inside a picture, here without rounding or clamping).
        device: "cpu", "cuda", "cuda:1", "mps"; or "auto" for the first of CUDA, MPS and the CPU that is there.
        precision: "fp32", "bf16" or "fp16", in which the network computes (bicubic is always fp32).
        scale: the scale that the restorer must have; None takes what the weights have. Bicubic needs it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an argument is none of those named; the file is unusable, its values are not finite, its
            architecture is unknown or not for restoring RGB pictures, or its scale is another. The text is one line
            and begins with the file.
    """
    where = find_device(device)
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, was {precision!r}")
    if scale is not None and scale < 1:
        raise ValueError(f"scale must be at least 1, was {scale}")
    if source == BICUBIC:
        if scale is None:
            raise ValueError("scale must be given for bicubic, which enlarges by any")
        return _bicubic(scale, where)
    path = Path(source)
    try:
        network = generator_from_weights(path)
    except UnknownArchitectureError as error:
        restorer = _from_spandrel(path, where, PRECISIONS[precision], error)
    else:
        restorer = from_network(network, path.stem, device=where, precision=precision, source=str(path))
    if scale is not None and restorer.scale != scale:
        raise ValueError(f"{path}: weights must be for scale {scale}, are for scale {restorer.scale}")
    return restorer


def from_network(
    network: RRDBNet, name: str, *, device: torch.device, precision: str = "fp32", source: str = "the network"
) -> Restorer:
    """A restorer of an RRDBNet, which it takes over: frozen, in eval mode, moved and cast.

    Raises:
        ValueError: the network restores other than 1 or 3 channels, or has values that are not finite.
    """
    _check_channels(source, network.in_channels, network.conv_last.out_channels)
    _check_finite(source, network)
    dtype = PRECISIONS[precision]
    network.requires_grad_(False).eval().to(device, dtype)
    layout = torch.contiguous_format if device.type == "mps" else torch.channels_last  # which matrix units want
    network.to(memory_format=layout)  # type: ignore[call-overload]
    if dtype != torch.float32:
        # bf16 has eight bits of mantissa: as the last layer's output they would be grey levels that are visible.
        network.conv_last.float().register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
    return Restorer(
        name,
        lambda x: network(x.contiguous(memory_format=layout)),
        architecture="RRDBNet",
        scale=network.scale,
        device=device,
        dtype=dtype,
        channels=network.in_channels,
        multiple=network.unshuffle,
    )


def find_device(device: str | torch.device) -> torch.device:
    """The device of a name; "auto" is the first of CUDA, MPS and the CPU that is there.

    Raises:
        ValueError: there is no such device here.
    """
    mps = torch.backends.mps.is_available()
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device must be auto, cpu, cuda, cuda:N or mps, was {device!r}") from None
    if found.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (found.index or 0) >= count:
            raise ValueError(f"device must be one that is here, was {device!r} with {count} CUDA devices")
    elif found.type == "mps" and not mps:
        raise ValueError(f"device must be one that is here, was {device!r} without MPS")
    elif found.type not in {"cpu", "mps"}:
        raise ValueError(f"device must be auto, cpu, cuda, cuda:N or mps, was {device!r}")
    return found


def _bicubic(scale: int, device: torch.device) -> Restorer:
    def enlarge(x: Tensor) -> Tensor:
        # antialias=True does nothing to an enlargement but choose a = -0.5; without it PyTorch's cubic has a = -0.75.
        return F.interpolate(x, scale_factor=float(scale), mode="bicubic", align_corners=False, antialias=True)

    if device.type == "mps":  # where that is not implemented
        device = torch.device("cpu")
    return Restorer(BICUBIC, enlarge, architecture=BICUBIC, scale=scale, device=device)


def _from_spandrel(path: Path, device: torch.device, dtype: torch.dtype, reason: UnknownArchitectureError) -> Restorer:
    """A restorer of an architecture that spandrel knows, from a state dict that was read without unpickling."""
    try:
        import spandrel  # noqa: PLC0415
    except ImportError:
        raise ValueError(
            f"{reason}; other architectures need spandrel, which is not installed: pip install 'andfast[models]'"
        ) from None
    state = spandrel.canonicalize_state_dict(read_state(path))
    _check_sizes(path, state)
    try:
        model = spandrel.ModelLoader(device="cpu").load_from_state_dict(state)
    except spandrel.UnsupportedModelError:
        names = ", ".join(sorted(state)[:_NAMES_SHOWN])
        raise ValueError(f"{path}: weights of no architecture known here or to spandrel, with {names} ...") from None
    except Exception as error:  # its detection meets crafted or damaged shapes with all kinds of errors
        raise ValueError(f"{reason}; spandrel cannot load it either: {_one_line(error)}") from error
    name = model.architecture.name
    if not isinstance(model, spandrel.ImageModelDescriptor):
        raise ValueError(f"{path}: a network of {name} wants a mask beside the picture, which is not restoring")
    _check_channels(str(path), model.input_channels, model.output_channels)
    _check_finite(str(path), model.model)
    model.model.requires_grad_(False)
    try:
        model.eval().to(device, dtype)
    except spandrel.UnsupportedDtypeError:
        raise ValueError(f"{path}: precision must be another for a network of {name}, was {dtype}") from None
    requirements = model.size_requirements
    return Restorer(
        path.stem,
        lambda x: torch.cat([model(one[None]) for one in x]) if len(x) else x.new_empty(0),
        architecture=name,
        scale=model.scale,
        device=device,
        dtype=dtype,
        channels=model.input_channels,
        multiple=max(1, requirements.multiple_of),
    )


def _check_channels(name: str, channels_in: int, channels_out: int) -> None:
    if channels_in != channels_out or channels_in not in {1, 3}:
        raise ValueError(
            f"{name}: a restorer must take and give 3 channels, or 1, takes {channels_in} and gives {channels_out}"
        )


def _check_finite(name: str, network: nn.Module) -> None:
    for key, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{name}: {key} holds values that are not finite")


def _check_sizes(path: Path, state: dict[str, Tensor]) -> None:
    """Refuse names and shapes from which spandrel would infer a network far larger than the file."""
    most = 10 * len(state) + 100
    for key, tensor in state.items():
        if any(part.isdecimal() and (len(part) > 9 or int(part) > most) for part in key.split(".")):
            raise ValueError(f"{path}: {key!r} names a layer beyond {most}, with {len(state)} entries in all")
        if tensor.numel() == 0:
            raise ValueError(f"{path}: {key!r} must not be empty, had shape {tuple(tensor.shape)}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
