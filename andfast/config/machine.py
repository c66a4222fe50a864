"""What a configuration needs of this machine: the device, and the weight files that it names."""

from pathlib import Path

from andfast.config.errors import nearest
from andfast.config.losses import VGG_WEIGHTS
from andfast.config.schema import TrainConfig


def validate_machine(config: TrainConfig) -> None:
    """Check that the device and the weight files are available.

    Raises:
        ValueError: the first thing that is missing.
    """
    device = resolve_device(config.device)
    if config.precision == "fp16" and device != "cuda":
        raise ValueError(
            f"precision must be 'bf16' or 'fp32' without CUDA, was 'fp16' (device {config.device!r} is {device!r} here)"
        )
    if config.cuda_graph and device != "cuda":
        raise ValueError(
            f"cuda_graph must be false or null without CUDA, was true (device {config.device!r} is {device!r} here)"
        )
    if config.init_weights is not None and not config.init_weights.is_file():
        raise ValueError(f"init_weights must be a weights file, was {str(config.init_weights)!r}, which is not a file")
    weights = config.loss.vgg_weights
    uses_vgg = "gan" in config.stages and config.loss.perceptual > 0
    if uses_vgg and weights not in VGG_WEIGHTS and not Path(weights).is_file():
        raise ValueError(
            "loss.vgg_weights must be 'torchvision', 'random' or the path of a weights file, "
            f"was {weights!r}, which is not a file; did you mean {nearest(weights, VGG_WEIGHTS)!r}?"
        )


def resolve_device(name: str) -> str:
    """Return "cpu" or "cuda" for a ``device`` setting.

    Raises:
        ValueError: ``name`` is not a valid setting, or it is "cuda" and PyTorch sees no CUDA device.
    """
    import torch  # noqa: PLC0415  (takes seconds, which --help and configuration errors do not need)

    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be 'auto', 'cpu' or 'cuda', was {name!r}")
    if name == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    if name == "cuda":
        raise ValueError("device must be 'auto' or 'cpu' here, was 'cuda': PyTorch sees no CUDA device")
    return "cpu"
