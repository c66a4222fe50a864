"""The training losses: pixel, VGG19 perceptual (the paper's eq. 2) and GAN (eq. 3).

Whatever the precision of the networks, every loss is computed and returned in fp32 (float64 for float64
input), as a scalar, without a host synchronisation, and works on meta and fake tensors.
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
    """bf16 and fp16 to fp32; fp32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def l1_loss(sr: Tensor, hr: Tensor, impl: str = "auto") -> Tensor:
    """Mean absolute difference of two equally shaped images, a scalar in fp32 (eq. 2's first term).

    Differentiable in SR; an HR that requires a gradient is refused. ``impl``: of
    :func:`andfast.functional.mean_distance`.
    """
    checks.images("sr", sr)
    checks.images("hr", hr)
    checks.has_shape("sr", sr, hr.shape, meaning="that of hr")
    checks.no_gradient("hr", hr)
    return mean_distance(sr, hr, impl=impl)


# ------------------------------------------------------------------------------------------------- perceptual

# VGG19's (channels, convolutions) between two poolings.
_BLOCKS = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_RANDOM_SEED = 19
_ENTRY = re.compile(r"(?:features\.)?(\d+)\.(weight|bias)")


def _vgg19() -> list[tuple[str, tuple[int, int] | None]]:
    """VGG19's `features`, each convolution in torchvision's place: (name, (in, out) channels or None)."""
    layers: list[tuple[str, tuple[int, int] | None]] = []
    channels = 3
    for block, (width, count) in enumerate(_BLOCKS, start=1):
        for number in range(1, count + 1):
            layers += [(f"conv{block}_{number}", (channels, width)), (f"relu{block}_{number}", None)]
            channels = width
        # torchvision pools after the ReLU. The two commute, gradients included; this way round the ReLU sees a quarter
        # of the values, and the pooling keeps the convolution's output for the backward pass, as the loss does.
        layers.insert(-1, (f"pool{block}", None))
    return layers


VGG19_LAYERS: tuple[str, ...] = tuple(name for name, convolution in _vgg19() if convolution)
"""The names a perceptual layer can have, conv1_1 to conv5_4: the convolution's output before its ReLU."""


class PerceptualLoss(nn.Module):
    """Weighted distance between VGG19 features of SR and of HR (the paper's eq. 2, second term).

    Features are taken before the activation, as ESRGAN does, and the network ends at the deepest layer asked
    for. Each layer contributes ``layers[name] * mean(|difference|)`` ("l1") or ``* mean(difference ** 2)``
    ("l2", the paper's squared 2-norm, per element). VGG is frozen. It follows an autocast region; the
    distances are fp32.

    ``hr_features = loss.features(hr)`` is for the caller to compute once a step, under ``torch.no_grad()``:
    every ascent pass and the training pass then share it.

    Args:
        layers: layer name (`VGG19_LAYERS`) to its coefficient c_j; finite, not negative, one at least above
            0; a layer with 0 is left out.
        weights: "torchvision" for torchvision's VGG19_Weights.IMAGENET1K_V1 (from torch.hub's cache,
            downloaded into it when missing); the path of a file with those weights (the whole network's state
            dict, or its `features` alone); or "random", a fixed Kaiming draw for smoke runs, which says
            nothing about perception.
        criterion: "l1" or "l2".
        impl: implementation of :func:`andfast.functional.mean_distance`.

    Attributes:
        weights_note: where the weights come from, for the log; "random (smoke run only)" for the random ones.

    Raises:
        TypeError, ValueError: an impossible argument, or a file that does not hold VGG19's weights.
        FileNotFoundError: no such file, or torchvision's is neither in the cache nor to be had.
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

        # On the meta device until the weights come: nothing is drawn from the global generator.
        self.vgg = nn.Sequential()
        for name, convolution in _vgg19():
            if convolution:
                self.vgg.add_module(name, nn.Conv2d(*convolution, 3, padding=1, device="meta"))
            elif name.startswith("relu"):
                # In place is free memory, but would overwrite a feature that was asked for, unless that was pooled.
                pooled = f"pool{name[4]}" in dict(self.vgg.named_children())
                self.vgg.add_module(name, nn.ReLU(inplace=pooled or name.replace("relu", "conv") not in self.layers))
            else:
                self.vgg.add_module(name, nn.MaxPool2d(2, 2))
            if name == deepest:
                break
        self.weights_note = _fill(self.vgg, weights)

        # Not in the state dict: they are constants. Shape (1, 3, 1, 1).
        self.register_buffer("mean", torch.tensor(_IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self._smallest = 2 ** (int(deepest[4]) - 1)  # pixels that are left one wide before the deepest block

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """The features of RGB images (N, 3, H, W) in [0, 1], before activation, by layer name.

        Differentiable in `images`. Inside autocast they come in the autocast dtype.
        """
        self._check_images("images", images)
        return dict(self._walk(images))

    def _walk(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The features one after another, as VGG comes by them."""
        x = (images - self.mean) / self.std
        for name, layer in self.vgg.named_children():
            x = layer(x)
            if name in self.layers:
                yield name, x

    def _check_images(self, name: str, images: Tensor) -> None:
        checks.images(name, images)
        if images.shape[1] != 3 or min(images.shape[2:]) < self._smallest:
            raise ValueError(
                f"{name} must have shape (N, 3, H, W) with H and W of at least {self._smallest} "
                f"for the layers {', '.join(self.layers)}, was {checks.shape(images)}"
            )

    def forward(self, sr: Tensor, hr_features: Mapping[str, Tensor]) -> Tensor:
        """The weighted distance, a scalar in fp32.

        Args:
            sr: (N, 3, H, W), RGB in [0, 1]; differentiable.
            hr_features: `features(hr)` of the HR images, computed once by the caller, without a gradient.
        """
        if not isinstance(hr_features, Mapping) or not self.layers.keys() <= hr_features.keys():
            had = ", ".join(hr_features) if isinstance(hr_features, Mapping) else type(hr_features).__name__
            raise ValueError(f"hr_features must be features(hr), with the layers {', '.join(self.layers)}, was {had}")
        self._check_images("sr", sr)
        terms = []
        # Each distance right after its layer: autograd goes back from what was made last, and so makes the gradient to
        # the first and largest features when what deeper layers kept is gone.
        for name, ours in self._walk(sr):
            theirs = hr_features[name]
            checks.has_shape(f"hr_features[{name!r}]", theirs, ours.shape, meaning="that of SR's features")
            checks.no_gradient(f"hr_features[{name!r}]", theirs)
            terms.append(self.layers[name] * mean_distance(ours, theirs, kind=self.criterion, impl=self.impl))
        return torch.stack(terms).sum()

    def extra_repr(self) -> str:
        """What `print` shows: the layers, the criterion and the weights' origin."""
        return f"layers={self.layers}, criterion={self.criterion!r}, weights={self.weights_note!r}"


def _checked_layers(layers: Mapping[str, float]) -> dict[str, float]:
    """The layers with a coefficient above zero, shallow to deep."""
    if not isinstance(layers, Mapping):
        raise TypeError(f"layers must map layer names to coefficients, was {type(layers).__name__}")
    for name, coefficient in layers.items():
        if name not in VGG19_LAYERS:
            raise ValueError(f"layers must name convolutions of VGG19, {', '.join(VGG19_LAYERS)}, was {name!r}")
        if isinstance(coefficient, bool) or not isinstance(coefficient, (int, float)):
            raise TypeError(f"layers[{name!r}] must be a number, was {coefficient!r}")
        if not 0 <= coefficient < float("inf"):
            raise ValueError(f"layers[{name!r}] must be finite and not negative, was {coefficient}")
    used = {name: float(layers[name]) for name in VGG19_LAYERS if layers.get(name, 0) > 0}
    if not used:
        raise ValueError(f"layers must have one coefficient above 0 at least, was {dict(layers)}")
    return used


def _fill(vgg: nn.Sequential, weights: str | Path) -> str:
    """Give the meta parameters of `vgg` their values; returns where these are from."""
    if not isinstance(weights, (str, Path)) or not str(weights):
        raise TypeError(f'weights must be "torchvision", "random" or the path of a file, was {weights!r}')
    if weights == "random":
        _fill_randomly(vgg)
        return "random (smoke run only)"
    if weights == "torchvision":
        state, origin = _torchvision_state()
    else:
        origin = Path(weights).expanduser()
        if not origin.is_file():
            raise FileNotFoundError(
                'weights must be "torchvision", "random" or the path of a file with VGG19 weights; '
                f"there is no file {origin}"
            )
        state = torchvision_weights.read(origin)
    # torchvision's positions in `features` are ours, so its keys need no table.
    found = _features_of(state, origin)
    for position, layer in enumerate(vgg):
        if isinstance(layer, nn.Conv2d):
            layer.weight = _frozen(found[f"{position}.weight"].float())
            layer.bias = _frozen(found[f"{position}.bias"].float())
    return "torchvision VGG19_Weights.IMAGENET1K_V1" if weights == "torchvision" else str(origin)


def _fill_randomly(vgg: nn.Sequential) -> None:
    """Kaiming-normal weights, which keep the scale through the ReLUs, and no bias; always the same draw."""
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
    """torchvision's VGG19 state dict, from torch.hub's cache or downloaded into it, and its file."""
    # Imported here: it takes a second, and nothing else of the package needs it.
    from torchvision.models import VGG19_Weights  # noqa: PLC0415

    file = torchvision_weights.fetch(
        VGG19_Weights.IMAGENET1K_V1.url,
        needed="the perceptual loss needs torchvision's VGG19 weights",
        instead="or give the path of the file as weights (in a configuration: loss.vgg_weights=/path/to/file). "
        'For a smoke run, "random" needs no file.',
    )
    return torchvision_weights.read(file), file


def _features_of(state: object, file: Path) -> dict[str, Tensor]:
    """VGG19's convolutions, "POSITION.weight" and ".bias"; an error if the file holds something else."""
    wanted: dict[str, tuple[int, ...]] = {}
    for position, (_, convolution) in enumerate(_vgg19()):
        if convolution:
            wanted[f"{position}.weight"] = (convolution[1], convolution[0], 3, 3)
            wanted[f"{position}.bias"] = (convolution[1],)
    found: dict[str, Tensor] = {}
    entries: Mapping[Any, Any] = state if isinstance(state, Mapping) else {}
    for key, value in entries.items():
        match = _ENTRY.fullmatch(str(key))
        if match and isinstance(value, Tensor):
            found[f"{match[1]}.{match[2]}"] = value
    # All of them, and no others: VGG16 and the batch-normalised variants begin alike.
    if {key: tuple(value.shape) for key, value in found.items()} != wanted:
        shapes = {key: tuple(value.shape) for key, value in found.items()}
        different = [key for key in wanted.keys() | found.keys() if shapes.get(key) != wanted.get(key)]
        different.sort(key=lambda key: (int(key.partition(".")[0]), key))
        raise ValueError(
            f"{file} must hold the weights of torchvision's VGG19 without batch normalisation "
            "(features.0.weight to features.34.bias, or the same without 'features.'); missing or different: "
            f"features.{different[0]}" + (f" and {len(different) - 1} more" if len(different) > 1 else "")
        )
    return found


# -------------------------------------------------------------------------------------------------------- GAN


class GANLoss(nn.Module):
    """The adversarial losses of the generator and the discriminator, on logits (N, 1) or maps (N, 1, H, W).

    With D = sigmoid(logits), E the mean over all elements:

    - "vanilla" (the paper's eq. 3): discriminator -E log D(real) - E log(1 - D(fake)); generator -E log
      D(fake), the non-saturating form that eq. 3's last term asks for.
    - "relativistic" (ESRGAN's relativistic average): D_ra(a, b) = sigmoid(a - E b); discriminator
      (-E log D_ra(real, fake) - E log(1 - D_ra(fake, real))) / 2; generator the same with the roles
      exchanged. E b is taken over this process's batch. The generator's side needs the real logits,
      `needs_real`.
    - "least_squares" (LSGAN, in the field's scale, without the halves): discriminator E (real - 1)^2 + E
      fake^2; generator E (fake - 1)^2.

    The generator's loss never sends a gradient into the real logits. Detaching SR for the discriminator's
    step is the caller's. Scalars in fp32.
    """

    def __init__(self, kind: GANKind = "vanilla") -> None:
        super().__init__()
        checks.one_of("kind", kind, get_args(GANKind))
        self.kind: GANKind = kind

    @property
    def needs_real(self) -> bool:
        """Whether `generator` needs the logits of the real images."""
        return self.kind == "relativistic"

    def generator(self, fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
        """The generator's loss from D(SR), and D(HR) where `needs_real`."""
        fake = _logits("fake_logits", fake_logits)
        if self.kind == "vanilla":
            return F.softplus(-fake).mean()  # -log sigmoid(x) = softplus(-x)
        if self.kind == "least_squares":
            return (fake - 1).square().mean()
        if real_logits is None:
            raise ValueError("real_logits must be given for the relativistic generator loss, was None")
        real = _logits("real_logits", real_logits).detach()
        return (F.softplus(real - fake.mean()).mean() + F.softplus(real.mean() - fake).mean()) / 2

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """The discriminator's loss from D(HR) and D(SR)."""
        real, fake = _logits("real_logits", real_logits), _logits("fake_logits", fake_logits)
        if self.kind == "vanilla":
            return F.softplus(-real).mean() + F.softplus(fake).mean()
        if self.kind == "least_squares":
            return (real - 1).square().mean() + fake.square().mean()
        return (F.softplus(fake.mean() - real).mean() + F.softplus(fake - real.mean()).mean()) / 2

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"kind={self.kind!r}"


def _logits(name: str, logits: Tensor) -> Tensor:
    """Logits in fp32, refused if they are not (N, 1) or (N, 1, H, W)."""
    checks.tensor(name, logits)
    checks.floating(name, logits)
    if logits.dim() not in {2, 4} or logits.shape[1] != 1:
        raise ValueError(f"{name} must have shape (N, 1) or (N, 1, H, W), was {checks.shape(logits)}")
    return _fp32(logits)
