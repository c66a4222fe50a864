"""The training step as one would write it from the paper, in plain PyTorch: the baseline of andfast.

Nothing of andfast is used but the clock that callers may hand in. The networks keep ESRGAN's concatenating blocks, F is
a grouped convolution over the images of the batch, and each ascent pass is one ``backward`` through everything, which
leaves gradients of G's and D's weights that are thrown away (the paper's 57.85 TFLOP a step count them). Losses, ball
and identity networks are those that docs/method.md describes, so that the same seed, weights and theta give the same
numbers as the package, up to rounding; tests/benchmarks/suites/test_naive.py holds that.

``frozen=True`` is the other baseline, the best that plain PyTorch can do: G and D frozen in the ascent, gradients to
theta alone, HR's features once a step; its caller compiles G, D and VGG.
"""

import itertools
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import vgg19

# -------------------------------------------------------------------------------------------------------- networks


class ResidualDenseBlock(nn.Module):
    """ESRGAN's dense block, with its concatenations (BasicSR's names)."""

    def __init__(self, features, growth):
        super().__init__()
        for k in range(5):
            out = features if k == 4 else growth
            setattr(self, f"conv{k + 1}", nn.Conv2d(features + k * growth, out, 3, padding=1))
        self.lrelu = nn.LeakyReLU(0.2, inplace=True)

    def forward(self, x):
        x1 = self.lrelu(self.conv1(x))
        x2 = self.lrelu(self.conv2(torch.cat((x, x1), 1)))
        x3 = self.lrelu(self.conv3(torch.cat((x, x1, x2), 1)))
        x4 = self.lrelu(self.conv4(torch.cat((x, x1, x2, x3), 1)))
        x5 = self.conv5(torch.cat((x, x1, x2, x3, x4), 1))
        return x5 * 0.2 + x


class RRDB(nn.Module):
    """Three dense blocks."""

    def __init__(self, features, growth):
        super().__init__()
        self.rdb1 = ResidualDenseBlock(features, growth)
        self.rdb2 = ResidualDenseBlock(features, growth)
        self.rdb3 = ResidualDenseBlock(features, growth)

    def forward(self, x):
        return self.rdb3(self.rdb2(self.rdb1(x))) * 0.2 + x


class RRDBNet(nn.Module):
    """ESRGAN's generator for x4."""

    def __init__(self, features=64, blocks=23, growth=32):
        super().__init__()
        self.conv_first = nn.Conv2d(3, features, 3, padding=1)
        self.body = nn.Sequential(*[RRDB(features, growth) for _ in range(blocks)])
        self.conv_body = nn.Conv2d(features, features, 3, padding=1)
        self.conv_up1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv_up2 = nn.Conv2d(features, features, 3, padding=1)
        self.conv_hr = nn.Conv2d(features, features, 3, padding=1)
        self.conv_last = nn.Conv2d(features, 3, 3, padding=1)
        self.lrelu = nn.LeakyReLU(0.2, inplace=True)

    def forward(self, x):
        feat = self.conv_first(x)
        feat = feat + self.conv_body(self.body(feat))
        feat = self.lrelu(self.conv_up1(F.interpolate(feat, scale_factor=2, mode="nearest")))
        feat = self.lrelu(self.conv_up2(F.interpolate(feat, scale_factor=2, mode="nearest")))
        return self.conv_last(self.lrelu(self.conv_hr(feat)))


class Discriminator(nn.Module):
    """ESRGAN's VGG-style discriminator, for images of 128 or 256."""

    def __init__(self, size=256, features=64):
        super().__init__()
        self.stages = {128: 5, 256: 6}[size]
        channels = 3
        for i in range(self.stages):
            width = features * min(2**i, 8)
            setattr(self, f"conv{i}_0", nn.Conv2d(channels, width, 3, padding=1, bias=i == 0))
            if i:
                setattr(self, f"bn{i}_0", nn.BatchNorm2d(width))
            setattr(self, f"conv{i}_1", nn.Conv2d(width, width, 4, 2, 1, bias=False))
            setattr(self, f"bn{i}_1", nn.BatchNorm2d(width))
            channels = width
        self.linear1 = nn.Linear(channels * 4 * 4, 100)
        self.linear2 = nn.Linear(100, 1)
        self.lrelu = nn.LeakyReLU(0.2, inplace=True)

    def forward(self, x):
        for i in range(self.stages):
            x = getattr(self, f"conv{i}_0")(x)
            if i:
                x = getattr(self, f"bn{i}_0")(x)
            x = self.lrelu(x)
            x = self.lrelu(getattr(self, f"bn{i}_1")(getattr(self, f"conv{i}_1")(x)))
        return self.linear2(self.lrelu(self.linear1(x.flatten(1))))


class VGGFeatures(nn.Module):
    """torchvision's VGG19 up to the last requested layer; features before activation.

    Args:
        layers: indices in torchvision's ``features`` and their weights.
    """

    def __init__(self, layers):
        super().__init__()
        self.layers = dict(layers)
        self.features = vgg19(weights=None).features[: max(layers) + 1]
        for layer in self.features:
            if isinstance(layer, nn.ReLU):
                layer.inplace = False
        self.requires_grad_(False)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, x):
        x = (x - self.mean) / self.std
        features = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.layers:
                features.append(x)
        return features

    def distance(self, ours, theirs):
        pairs = zip(self.layers.values(), ours, theirs, strict=True)
        return sum(weight * F.l1_loss(wide(a), wide(b)) for weight, a, b in pairs)


def wide(x):
    """Half types in fp32, for losses."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


# ------------------------------------------------------------------------------------------------------- degradation


def blur_pool(x, factor=4):
    """Binomial low-pass of 8 taps for x4 (4 for x2), reflected at the border, every factor-th sample."""
    taps = {2: [1.0, 3, 3, 1], 4: [1.0, 7, 21, 35, 35, 21, 7, 1]}[factor]
    taps = torch.tensor(taps, dtype=x.dtype, device=x.device)
    kernel = torch.outer(taps, taps) / taps.sum() ** 2
    pad = (len(taps) - factor) // 2
    x = F.pad(x, (pad, pad, pad, pad), mode="reflect")
    return F.conv2d(x, kernel.expand(x.shape[1], 1, -1, -1), stride=factor, groups=x.shape[1])


def convolve(x, weight):
    """A 3x3 convolution with other weights (N, Cout, Cin, 3, 3) for every image."""
    n, cin, height, width = x.shape
    x = F.pad(x, (1, 1, 1, 1), mode="replicate").reshape(1, n * cin, height + 2, width + 2)
    return F.conv2d(x, weight.flatten(0, 1), groups=n).reshape(n, -1, height, width)


def activate(x, slope, noise):
    """What follows a convolution of F."""
    return torch.where(x > 0, x, x * slope.view(-1, 1, 1, 1)) + noise


def degrade(x, weights, noises, slopes, scale=4, activate=activate):
    """F: five blocks, pooling, five blocks, one convolution."""
    for k, (weight, noise, slope) in enumerate(zip(weights[:-1], noises, slopes, strict=True)):
        if k == 5:
            x = blur_pool(x, scale)
        x = activate(convolve(x, weight), slope, noise)
    return convolve(x, weights[-1])


def identity(n, size, channels=64, scale=4, device="cpu"):
    """A fresh identity network an image: Xavier-normal centers, then the pseudo-inverse of their product."""
    widths = [3] + [channels] * 10
    centers = [
        torch.randn(n, rows, columns, device=device, dtype=torch.float64) * (2 / (rows + columns)) ** 0.5
        for columns, rows in itertools.pairwise(widths)
    ]
    product = centers[0]
    for center in centers[1:]:
        product = center @ product
    centers.append(torch.linalg.pinv(product))
    weights = []
    for center in centers:
        weight = torch.zeros(*center.shape, 3, 3, device=device)
        weight[..., 1, 1] = center
        weights.append(weight)
    sizes = [size] * 5 + [size // scale] * 5
    noises = [torch.zeros(n, channels, side, side, device=device) for side in sizes]
    slopes = [torch.ones(n, device=device) for _ in range(10)]
    return weights, noises, slopes


def norm(group):
    """L2 norm per image over all tensors of a group."""
    return sum(tensor.flatten(1).square().sum(1) if tensor.dim() > 1 else tensor.square() for tensor in group).sqrt()


def scaled(tensor, factor):
    return tensor * factor.view(-1, *[1] * (tensor.dim() - 1))


# ---------------------------------------------------------------------------------------------------------- the step


class NaiveStep:
    """Plain ESRGAN steps and AND steps.

    Args:
        generator, discriminator, vgg: the networks; without the last two it is stage net.
        radii: of the balls of convolutions, noises and slopes.
        weights: of L1, VGG and GAN loss.
        steps, step_size: of the ascent.
        channels, scale: of F.
        autocast: dtype of mixed precision, or None.
        degradation_autocast: whether F follows it.
        frozen: the better baseline, see above.
        part: context manager of a sub-step's name that takes its time.
    """

    def __init__(
        self,
        generator,
        discriminator=None,
        vgg=None,
        *,
        radii,
        weights=(1.0, 1.0, 0.1),
        steps=5,
        step_size=0.3,
        channels=64,
        scale=4,
        autocast=None,
        degradation_autocast=False,
        frozen=False,
        part=None,
    ):
        self.generator, self.discriminator, self.vgg = generator, discriminator, vgg
        self.radii, self.weights, self.steps, self.step_size = radii, weights, steps, step_size
        self.channels, self.scale, self.autocast, self.frozen = channels, scale, autocast, frozen
        self.degradation_autocast = degradation_autocast
        self.activate = activate  # for callers that compile it
        self.part = part or (lambda name: nullcontext())

    def mixed(self, x):
        return nullcontext() if self.autocast is None else torch.autocast(x.device.type, self.autocast)

    def run_degradation(self, hr, theta):
        with self.mixed(hr) if self.degradation_autocast else nullcontext():
            return degrade(hr, *theta, scale=self.scale, activate=self.activate)

    def set_trainable(self, trainable, *modules):
        for module in modules:
            if module is not None:
                module.requires_grad_(trainable)

    def loss(self, sr, hr, hr_features=None):
        """What G minimises and the adversary maximises."""
        total = self.weights[0] * F.l1_loss(wide(sr), hr)
        if self.vgg is not None:
            if hr_features is None:
                with torch.no_grad():
                    hr_features = self.vgg(hr)
            total = total + self.weights[1] * self.vgg.distance(self.vgg(sr), hr_features)
        if self.discriminator is not None:
            total = total + self.weights[2] * F.softplus(-wide(self.discriminator(sr))).mean()
        return total

    def ascend(self, hr, theta, hr_features=None):
        """PGD on theta; returns it and the loss before each pass."""
        start = theta
        losses = []
        for _ in range(self.steps):
            leaves = [[tensor.detach().requires_grad_() for tensor in group] for group in theta]
            flat = [tensor for group in leaves for tensor in group]
            lr = self.run_degradation(hr, leaves)
            with self.mixed(hr):
                loss = self.loss(self.generator(lr), hr, hr_features)
            losses.append(loss.detach())
            if self.frozen:
                computed = iter(torch.autograd.grad(loss, flat))
                gradients = [[next(computed) for _ in group] for group in leaves]
            else:
                loss.backward()
                gradients = [[tensor.grad for tensor in group] for group in leaves]
                for module in (self.generator, self.discriminator):
                    if module is not None:
                        module.zero_grad()
            with torch.no_grad():
                theta = [
                    self.project(self.move(*parts), zero, radius)
                    for *parts, zero, radius in zip(leaves, gradients, self.radii, start, self.radii, strict=True)
                ]
        return theta, losses

    def move(self, group, gradient, radius):
        """A step of a fraction of the radius along the normalised gradient."""
        factor = self.step_size * radius / norm(gradient).clamp_min(1e-30)
        return [tensor + scaled(up, factor) for tensor, up in zip(group, gradient, strict=True)]

    def project(self, group, start, radius):
        """Back onto the ball around the identity."""
        distance = norm([tensor - zero for tensor, zero in zip(group, start, strict=True)])
        factor = (radius / distance.clamp_min(1e-30)).clamp_max(1)
        return [zero + scaled(tensor - zero, factor) for tensor, zero in zip(group, start, strict=True)]

    def and_step(self, hr, theta=None):
        """Gradients of an AND step; theta is the identity networks, drawn if None. Returns G's, D's and clean loss."""
        with self.part("identity"):
            if theta is None:
                theta = identity(len(hr), hr.shape[2], self.channels, self.scale, hr.device)
        with self.part("ascent"):
            hr_features = None
            if self.frozen:
                self.set_trainable(False, self.generator, self.discriminator)
                if self.vgg is not None:
                    with torch.no_grad(), self.mixed(hr):
                        hr_features = self.vgg(hr)
            theta, losses = self.ascend(hr, theta, hr_features)
            if self.frozen:
                self.set_trainable(True, self.generator, self.discriminator)
        with self.part("degradation"), torch.no_grad():
            lr = wide(self.run_degradation(hr, theta)).clamp(0, 1)
        return {**self.train(hr, lr, hr_features), "loss_clean": losses[0]}

    def plain_step(self, hr):
        """Gradients of ESRGAN's step on clean LR, which a data loader would hand over."""
        return self.train(hr, blur_pool(hr, self.scale))

    def train(self, hr, lr, hr_features=None):
        """G's and D's gradients on LR."""
        with self.part("generator"):
            self.set_trainable(False, self.discriminator)
            with self.mixed(hr):
                sr = self.generator(lr)
                loss = self.loss(sr, hr, hr_features)
            loss.backward()
            self.set_trainable(True, self.discriminator)
        values = {"loss": loss.detach()}
        if self.discriminator is not None:
            with self.part("discriminator"):
                with self.mixed(hr):
                    real, fake = self.discriminator(hr), self.discriminator(sr.detach())
                judged = F.softplus(-wide(real)).mean() + F.softplus(wide(fake)).mean()
                judged.backward()
            values["discriminator"] = judged.detach()
        return values
