"""Restorers: map LR images to HR images behind one interface, for any network.

Weights of the ESRGAN family load into this package's RRDBNet. Other architectures (SwinIR, DAT, Real-ESRGAN's compact
networks ...) are recognised by spandrel, an optional dependency, from a state dict read by this package: nothing is
unpickled. The baseline ``bicubic`` is a restorer too.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from andfast.inference.padding import ALL_SIDES, MARGIN, Sides, restore_padded
from andfast.nn.rrdbnet import RRDBNet
from andfast.nn.weights import UnknownArchitectureError, generator_from_weights, read_state
from andfast.resize import bicubic_upscale

BICUBIC: Final = "bicubic"
PRECISIONS: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_NAMES_SHOWN: Final = 3


class Restorer:
    """A frozen network, or bicubic interpolation, that restores images.

    Attributes:
        name: Name in reports: the stem of the weights file, or "bicubic".
        architecture: "RRDBNet", spandrel's name of another architecture, or "bicubic".
        scale: Upscaling factor.
        device: Device of the computation.
        multiple: Shifts by multiples of this many LR pixels commute with the restorer (pixel-unshuffle, windows); tiles
            start at multiples of it.
        margin: LR pixels of replicate padding around an image, see :func:`andfast.inference.padding.restore_padded`.
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
        margin: int = MARGIN,
    ) -> None:
        self.name = name
        self.architecture = architecture
        self.scale = scale
        self.device = device
        self.multiple = multiple
        self.margin = margin
        self._function = function
        self._dtype = dtype
        self._channels = channels

    def __repr__(self) -> str:
        return f"Restorer({self.name!r}, {self.architecture}, scale={self.scale}, device={str(self.device)!r})"

    def restore(self, lr: Tensor, sides: Sides = ALL_SIDES) -> Tensor:
        """Restore images, without gradients; their borders are padded by replication.

        Args:
            lr: (N, 3, H, W), RGB, floating point in [0, 1], on any device; H and W at least 1.
            sides: Sides to pad; for a tile, those at which the image ends.

        Returns:
            (N, 3, H * scale, W * scale), fp32, on the restorer's device, neither clamped nor rounded (a few spandrel
            networks clamp internally). A single-channel network restores each color channel separately.

        Raises:
            TypeError: ``lr`` is not a floating-point tensor.
            ValueError: ``lr`` has another shape.
        """
        if not isinstance(lr, Tensor) or not lr.is_floating_point():
            raise TypeError(f"lr must be a floating-point tensor, was {getattr(lr, 'dtype', type(lr).__name__)}")
        if lr.dim() != 4 or lr.shape[1] != 3 or min(lr.shape[2:]) < 1:
            raise ValueError(f"lr must have shape (N, 3, H, W), H and W at least 1, was {tuple(lr.shape)}")
        n, _, height, width = lr.shape
        with torch.no_grad():
            x = lr.to(self.device, self._dtype).reshape(n * 3 // self._channels, self._channels, height, width)
            out = restore_padded(self._function, x, margin=self.margin, multiple=self.multiple, sides=sides)
            return out.float().reshape(n, 3, height * self.scale, width * self.scale)


def load_restorer(
    source: str | Path, *, device: str | torch.device = "cpu", precision: str = "fp32", scale: int | None = None
) -> Restorer:
    """Load a restorer.

    Args:
        source: Weights file (.safetensors, .pth, .pt, .ckpt) of the ESRGAN family or, with spandrel installed, of any
            architecture it supports; or "bicubic" (Keys' cubic with a = -0.5 and aligned pixel centres, as Pillow's
            BICUBIC and MATLAB's imresize inside the image, without rounding or clamping).
        device: "cpu", "cuda", "cuda:1", "mps", or "auto" for the first available of CUDA, MPS and CPU.
        precision: Compute precision of the network: "fp32", "bf16" or "fp16" (bicubic always uses fp32).
        scale: Required scale; None takes the scale of the weights. Mandatory for bicubic.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: An argument is invalid; or the weights are unusable, not finite, of an unknown architecture, not for
            RGB restoration, or of another scale. The message is one line that starts with the file.
    """
    where = find_device(device)
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, was {precision!r}")
    if scale is not None and scale < 1:
        raise ValueError(f"scale must be at least 1, was {scale}")
    if source == BICUBIC:
        if scale is None:
            raise ValueError("scale must be given for bicubic, was None")
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
    """Create a restorer from an RRDBNet; the network itself is frozen, moved, cast and set to eval mode.

    Raises:
        ValueError: The network does not map 1 or 3 channels to as many, or its weights are not finite.
    """
    _check_channels(source, network.in_channels, network.conv_last.out_channels)
    _check_finite(source, network)
    dtype = PRECISIONS[precision]
    network.requires_grad_(False).eval().to(device, dtype)
    layout = torch.contiguous_format if device.type == "mps" else torch.channels_last
    network.to(memory_format=layout)  # type: ignore[call-overload]
    if dtype != torch.float32:
        # bf16 has an 8-bit significand: rounding the output to it would show as banding.
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
    """Resolve a device name; "auto" is the first available of CUDA, MPS and CPU.

    Raises:
        ValueError: The device is not available.
    """
    mps = torch.backends.mps.is_available()
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device must be auto, cpu, cuda, cuda:N or mps, was {device!r}") from None
    if resolved.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (resolved.index or 0) >= count:
            raise ValueError(f"device must be available, was {device!r} with {count} CUDA devices")
    elif resolved.type == "mps" and not mps:
        raise ValueError(f"device must be available, was {device!r} without MPS")
    elif resolved.type not in {"cpu", "mps"}:
        raise ValueError(f"device must be auto, cpu, cuda, cuda:N or mps, was {device!r}")
    return resolved


def _bicubic(scale: int, device: torch.device) -> Restorer:
    if device.type == "mps":  # antialias is not implemented on MPS
        device = torch.device("cpu")
    return Restorer(
        BICUBIC, lambda x: bicubic_upscale(x, scale), architecture=BICUBIC, scale=scale, device=device, margin=0
    )


def _from_spandrel(path: Path, device: torch.device, dtype: torch.dtype, reason: UnknownArchitectureError) -> Restorer:
    """Create a restorer of a spandrel architecture from a state dict read without unpickling."""
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
        raise ValueError(f"{path}: weights of an architecture unknown to spandrel, with {names} ...") from None
    except Exception as error:  # its detection raises arbitrary exceptions on damaged or crafted shapes
        raise ValueError(f"{reason}; spandrel cannot load it either: {_one_line(error)}") from error
    name = model.architecture.name
    if not isinstance(model, spandrel.ImageModelDescriptor):
        raise ValueError(f"{path}: {name} must take an image only, takes an image and a mask")
    _check_channels(str(path), model.input_channels, model.output_channels)
    _check_finite(str(path), model.model)
    model.model.requires_grad_(False)
    try:
        model.eval().to(device, dtype)
    except spandrel.UnsupportedDtypeError:
        raise ValueError(f"{path}: precision must be one that {name} supports, was {dtype}") from None
    requirements = model.size_requirements
    return Restorer(
        path.stem,
        lambda x: torch.cat([model(image[None]) for image in x]) if len(x) else x.new_empty(0),
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
            f"{name}: a restorer must map 3 channels to 3, or 1 to 1, this one maps {channels_in} to {channels_out}"
        )


def _check_finite(name: str, network: nn.Module) -> None:
    for key, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{name}: {key} must be finite, has infinite or NaN values")


def _check_sizes(path: Path, state: dict[str, Tensor]) -> None:
    """Raise for names and shapes from which spandrel would infer a network far larger than the file."""
    limit = 10 * len(state) + 100
    for key, tensor in state.items():
        if any(part.isdecimal() and (len(part) > 9 or int(part) > limit) for part in key.split(".")):
            raise ValueError(f"{path}: layer numbers must be at most {limit} for {len(state)} entries, was {key!r}")
        if tensor.numel() == 0:
            raise ValueError(f"{path}: {key!r} must not be empty, had shape {tuple(tensor.shape)}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
