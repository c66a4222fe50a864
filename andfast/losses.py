"""Training losses: pixel, VGG19 perceptual (paper, eq. 2) and GAN (eq. 3).

Every loss is a scalar in fp32 (float64 for float64 input), whatever the precision of the networks, without host
synchronization. Meta and fake tensors are supported.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from andfast import checks, torchvision_weights
from andfast.functional import mean_distance

Criterion = Literal["l1", "l2"]
GANKind = Literal["vanilla", "relativistic", "least_squares"]

ESRGAN_LAYERS: dict[str, float] = {"conv5_4": 1.0}
"""ESRGAN's perceptual layer, before activation."""

REAL_ESRGAN_LAYERS: dict[str, float] = {
    "conv1_2": 0.1,
    "conv2_2": 0.1,
    "conv3_4": 1.0,
    "conv4_4": 1.0,
    "conv5_4": 1.0,
}
"""Real-ESRGAN's five layers, before activation."""


def _fp32(x: Tensor) -> Tensor:
    """Upcast bf16 and fp16 to fp32; fp32 and float64 are unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def l1_loss(sr: Tensor, hr: Tensor, impl: str = "auto") -> Tensor:
    """Mean absolute difference of two images of equal shape, a scalar in fp32 (first term of eq. 2).

    Differentiable in ``sr``; raises if ``hr`` requires a gradient. ``impl``: see
    :func:`andfast.functional.mean_distance`.
    """
    checks.images("sr", sr)
    checks.images("hr", hr)
    checks.has_shape("sr", sr, hr.shape, meaning="that of hr")
    checks.no_gradient("hr", hr)
    return mean_distance(sr, hr, impl=impl)


# ------------------------------------------------------------------------------------------------- perceptual

# (channels, number of convolutions) of VGG19's blocks, each followed by a pooling.
_BLOCKS = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_RANDOM_SEED = 19
_ENTRY = re.compile(r"(?:features\.)?(\d+)\.(weight|bias)")


def _vgg19() -> list[tuple[str, tuple[int, int] | None]]:
    """Layers of VGG19's `features`, convolutions at torchvision's indices: (name, (in, out) channels or None)."""
    layers: list[tuple[str, tuple[int, int] | None]] = []
    channels = 3
    for block, (width, count) in enumerate(_BLOCKS, start=1):
        for number in range(1, count + 1):
            layers += [(f"conv{block}_{number}", (channels, width)), (f"relu{block}_{number}", None)]
            channels = width
        # torchvision pools after the ReLU. The two commute, gradients included; in this order the ReLU processes a
        # quarter of the values, and pooling saves the convolution's output for backward, which the loss saves anyway.
        layers.insert(-1, (f"pool{block}", None))
    return layers


VGG19_LAYERS: tuple[str, ...] = tuple(name for name, convolution in _vgg19() if convolution)
"""Valid layer names, conv1_1 to conv5_4: the convolution's output before its ReLU."""


class PerceptualLoss(nn.Module):
    """Weighted distance between VGG19 features of SR and HR (paper, second term of eq. 2).

    Features are taken before the activation, as in ESRGAN; the network ends at the deepest layer used. Each layer
    contributes ``layers[name] * mean(|difference|)`` ("l1") or ``layers[name] * mean(difference ** 2)`` ("l2", the
    paper's squared 2-norm, per element). VGG is frozen and follows autocast; the distances are fp32.

    Compute ``hr_features = loss.features(hr)`` once per step under ``torch.no_grad()``: all ascent passes and the
    training pass share it.

    Args:
        layers: coefficients c_j by layer name (`VGG19_LAYERS`); finite and non-negative, at least one positive. Layers
            with coefficient 0 are ignored.
        weights: "torchvision" for VGG19_Weights.IMAGENET1K_V1 (torch.hub's cache, downloaded if missing); the path of
            a file with those weights (full state dict, or `features` only); or "random", a fixed Kaiming draw for
            smoke tests that is not a perceptual metric.
        criterion: "l1" or "l2".
        impl: implementation of :func:`andfast.functional.mean_distance`.

    Attributes:
        weights_note: origin of the weights, for logs; "random (smoke run only)" for random weights.

    Raises:
        TypeError, ValueError: invalid argument, or a file without VGG19's weights.
        FileNotFoundError: the file does not exist, or torchvision's cannot be downloaded.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        layers: Mapping[str, float],
        *,
        weights: str | Path = "torchvision",
        criterion: Criterion = "l1",
        impl: str = "auto",
    ) -> None:
        super().__init__()
        checks.one_of("criterion", criterion, get_args(Criterion))
        self.layers = _checked_layers(layers)
        self.criterion: Criterion = criterion
        self.impl = impl
        deepest = max(self.layers, key=VGG19_LAYERS.index)

        # On the meta device until the weights are loaded, so that the global generator is not advanced.
        self.vgg = nn.Sequential()
        for name, convolution in _vgg19():
            if convolution:
                self.vgg.add_module(name, nn.Conv2d(*convolution, 3, padding=1, device="meta"))
            elif name.startswith("relu"):
                # In place saves memory, but would overwrite a returned feature unless pooling came in between.
                pooled = f"pool{name[4]}" in dict(self.vgg.named_children())
                self.vgg.add_module(name, nn.ReLU(inplace=pooled or name.replace("relu", "conv") not in self.layers))
            else:
                self.vgg.add_module(name, nn.MaxPool2d(2, 2))
            if name == deepest:
                break
        self.weights_note = _load_weights(self.vgg, weights)

        # Constants, not in the state dict. Shape (1, 3, 1, 1).
        self.register_buffer("mean", torch.tensor(_IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self._min_size = 2 ** (int(deepest[4]) - 1)  # the deepest block must see at least one pixel

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Features of RGB images (N, 3, H, W) in [0, 1] before activation, by layer name.

        Differentiable in ``images``. Under autocast, in the autocast dtype.
        """
        self._check_images("images", images)
        return dict(self._iter_features(images))

    def _iter_features(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield the features as the forward pass reaches them."""
        x = (images - self.mean) / self.std
        for name, layer in self.vgg.named_children():
            x = layer(x)
            if name in self.layers:
                yield name, x

    def _check_images(self, name: str, images: Tensor) -> None:
        checks.images(name, images)
        if images.shape[1] != 3 or min(images.shape[2:]) < self._min_size:
            raise ValueError(
                f"{name} must have shape (N, 3, H, W) with H and W of at least {self._min_size} "
                f"for the layers {', '.join(self.layers)}, was {checks.shape(images)}"
            )

    def forward(self, sr: Tensor, hr_features: Mapping[str, Tensor]) -> Tensor:
        """Weighted feature distance, a scalar in fp32.

        Args:
            sr: (N, 3, H, W), RGB in [0, 1]; differentiable.
            hr_features: ``features(hr)``, without gradient.
        """
        if not isinstance(hr_features, Mapping) or not self.layers.keys() <= hr_features.keys():
            was = ", ".join(hr_features) if isinstance(hr_features, Mapping) else type(hr_features).__name__
            raise ValueError(f"hr_features must be features(hr), with the layers {', '.join(self.layers)}, was {was}")
        self._check_images("sr", sr)
        terms = []
        # Compute each distance right after its layer: autograd runs in reverse order, so the gradient to the first
        # and largest features is allocated once the deeper layers' saved tensors are freed.
        for name, sr_feature in self._iter_features(sr):
            hr_feature = hr_features[name]
            checks.has_shape(f"hr_features[{name!r}]", hr_feature, sr_feature.shape, meaning="that of SR's features")
            checks.no_gradient(f"hr_features[{name!r}]", hr_feature)
            distance = mean_distance(sr_feature, hr_feature, kind=self.criterion, impl=self.impl)
            terms.append(self.layers[name] * distance)
        return torch.stack(terms).sum()

    def extra_repr(self) -> str:
        return f"layers={self.layers}, criterion={self.criterion!r}, weights={self.weights_note!r}"


def _checked_layers(layers: Mapping[str, float]) -> dict[str, float]:
    """Layers with a positive coefficient, shallow to deep."""
    if not isinstance(layers, Mapping):
        raise TypeError(f"layers must map layer names to coefficients, was {type(layers).__name__}")
    for name, coefficient in layers.items():
        if name not in VGG19_LAYERS:
            raise ValueError(f"layers must be convolutions of VGG19, {', '.join(VGG19_LAYERS)}, was {name!r}")
        if isinstance(coefficient, bool) or not isinstance(coefficient, (int, float)):
            raise TypeError(f"layers[{name!r}] must be a number, was {coefficient!r}")
        if not 0 <= coefficient < float("inf"):
            raise ValueError(f"layers[{name!r}] must be finite and non-negative, was {coefficient}")
    positive = {name: float(layers[name]) for name in VGG19_LAYERS if layers.get(name, 0) > 0}
    if not positive:
        raise ValueError(f"layers must have at least one positive coefficient, was {dict(layers)}")
    return positive


def _load_weights(vgg: nn.Sequential, weights: str | Path) -> str:
    """Materialize the meta parameters of ``vgg``; returns the origin of the weights."""
    if not isinstance(weights, (str, Path)) or not str(weights):
        raise TypeError(f'weights must be "torchvision", "random" or a file, was {weights!r}')
    if weights == "random":
        _init_random(vgg)
        return "random (smoke run only)"
    if weights == "torchvision":
        state, origin = _torchvision_state()
    else:
        origin = Path(weights).expanduser()
        if not origin.is_file():
            raise FileNotFoundError(
                f'weights must be "torchvision", "random" or a file with VGG19 weights, {origin} does not exist'
            )
        state = torchvision_weights.read(origin)
    # Convolutions have torchvision's indices, so its keys apply directly.
    tensors = _vgg_tensors(state, origin)
    for index, layer in enumerate(vgg):
        if isinstance(layer, nn.Conv2d):
            layer.weight = _frozen(tensors[f"{index}.weight"].float())
            layer.bias = _frozen(tensors[f"{index}.bias"].float())
    return "torchvision VGG19_Weights.IMAGENET1K_V1" if weights == "torchvision" else str(origin)


def _init_random(vgg: nn.Sequential) -> None:
    """Kaiming-normal weights, which preserve the scale through the ReLUs, and zero biases, with a fixed seed."""
    generator = torch.Generator().manual_seed(_RANDOM_SEED)
    for layer in vgg:
        if isinstance(layer, nn.Conv2d):
            weight = torch.empty(layer.weight.shape, device="cpu")
            nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)
            layer.weight = _frozen(weight)
            layer.bias = _frozen(torch.zeros(layer.out_channels, device="cpu"))


def _frozen(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.contiguous(), requires_grad=False)


def _torchvision_state() -> tuple[object, Path]:
    """torchvision's VGG19 state dict and its file in torch.hub's cache, downloaded if missing."""
    from torchvision.models import VGG19_Weights  # noqa: PLC0415 - takes a second

    file = torchvision_weights.fetch(
        VGG19_Weights.IMAGENET1K_V1.url,
        needed="the perceptual loss requires torchvision's VGG19 weights",
        instead="or pass the file's path as weights (in a configuration: loss.vgg_weights=/path/to/file). "
        'For a smoke test, "random" needs no file.',
    )
    return torchvision_weights.read(file), file


def _vgg_tensors(state: object, file: Path) -> dict[str, Tensor]:
    """VGG19's convolutions by "INDEX.weight" and "INDEX.bias"; raises if the file contains another network."""
    expected: dict[str, tuple[int, ...]] = {}
    for index, (_, convolution) in enumerate(_vgg19()):
        if convolution:
            expected[f"{index}.weight"] = (convolution[1], convolution[0], 3, 3)
            expected[f"{index}.bias"] = (convolution[1],)
    tensors: dict[str, Tensor] = {}
    entries: Mapping[Any, Any] = state if isinstance(state, Mapping) else {}
    for key, value in entries.items():
        match = _ENTRY.fullmatch(str(key))
        if match and isinstance(value, Tensor):
            tensors[f"{match[1]}.{match[2]}"] = value
    # Extra entries are errors too: VGG16 and the batch-normalized variants share a prefix.
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    if shapes != expected:
        mismatched = [key for key in expected.keys() | shapes.keys() if shapes.get(key) != expected.get(key)]
        mismatched.sort(key=lambda key: (int(key.partition(".")[0]), key))
        more = f" and {len(mismatched) - 1} more" if len(mismatched) > 1 else ""
        raise ValueError(
            f"{file} must contain torchvision's VGG19 weights without batch normalization (features.0.weight to "
            f"features.34.bias, with or without 'features.'); missing or mismatched: features.{mismatched[0]}{more}"
        )
    return tensors


# -------------------------------------------------------------------------------------------------------- GAN


class GANLoss(nn.Module):
    """Generator and discriminator losses on logits (N, 1) or logit maps (N, 1, H, W), scalars in fp32.

    With D = sigmoid(logits) and E the mean over all elements:

    - "vanilla" (paper, eq. 3): discriminator -E log D(real) - E log(1 - D(fake)); generator -E log D(fake), the
      non-saturating form of eq. 3's last term.
    - "relativistic" (ESRGAN's relativistic average): D_ra(a, b) = sigmoid(a - E b); discriminator
      (-E log D_ra(real, fake) - E log(1 - D_ra(fake, real))) / 2; generator with the roles swapped. E b is the mean
      over this process's batch. The generator loss requires the real logits, see `needs_real`.
    - "least_squares" (LSGAN without the factors 1/2): discriminator E (real - 1)^2 + E fake^2; generator
      E (fake - 1)^2.

    The generator loss sends no gradient into the real logits. The caller detaches SR for the discriminator's step.
    """

    def __init__(self, kind: GANKind = "vanilla") -> None:
        super().__init__()
        checks.one_of("kind", kind, get_args(GANKind))
        self.kind: GANKind = kind

    @property
    def needs_real(self) -> bool:
        """Whether `generator` requires the logits of the real images."""
        return self.kind == "relativistic"

    def generator(self, fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
        """Generator loss of D(SR), and of D(HR) if `needs_real`."""
        fake = _logits("fake_logits", fake_logits)
        if self.kind == "vanilla":
            return F.softplus(-fake).mean()  # -log sigmoid(x) = softplus(-x)
        if self.kind == "least_squares":
            return (fake - 1).square().mean()
        if real_logits is None:
            raise ValueError("real_logits must be a tensor for the relativistic generator loss, was None")
        real = _logits("real_logits", real_logits).detach()
        return (F.softplus(real - fake.mean()).mean() + F.softplus(real.mean() - fake).mean()) / 2

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """Discriminator loss of D(HR) and D(SR)."""
        real, fake = _logits("real_logits", real_logits), _logits("fake_logits", fake_logits)
        if self.kind == "vanilla":
            return F.softplus(-real).mean() + F.softplus(fake).mean()
        if self.kind == "least_squares":
            return (real - 1).square().mean() + fake.square().mean()
        return (F.softplus(fake.mean() - real).mean() + F.softplus(fake - real.mean()).mean()) / 2

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}"


def _logits(name: str, logits: Tensor) -> Tensor:
    """Validate logits of shape (N, 1) or (N, 1, H, W) and convert them to fp32."""
    checks.tensor(name, logits)
    checks.floating(name, logits)
    if logits.dim() not in {2, 4} or logits.shape[1] != 1:
        raise ValueError(f"{name} must have shape (N, 1) or (N, 1, H, W), was {checks.shape(logits)}")
    return _fp32(logits)
