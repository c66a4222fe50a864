"""What the ops and a training step cost, from shapes: operations, and the bytes that cannot be avoided.

A floor's bytes are those of an ideal fused implementation: every argument read once, every result written once, of what
the backward pass needs only what cannot be recomputed from its own operands (one bit per sign). What an implementation
moves beyond that is its distance from the roofline.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

ALL: Final = ("x", "weight", "slope", "noise")
SCALE_BLOCKS: Final = 5
"""Basic blocks of F before, and after, the pooling."""
VGG19: Final = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))
"""(channels, convolutions) between two poolings; ESRGAN's perceptual loss reads the last one."""


class Work(NamedTuple):
    """One pass of one op."""

    flops: int
    """Operations, two a multiply-accumulate."""
    bytes: int
    """Bytes of device memory, read and written."""
    matrix: bool = True
    """Whether the operations are for the matrix units; else their time is not counted, memory binds."""


class Layer(NamedTuple):
    """A convolution, a linear layer or a fused block of them; all passes of it are counted alike."""

    name: str
    macs: int  # multiply-accumulates of a forward pass
    reads: int  # values read by a forward pass, weights apart
    writes: int  # values written by it
    weights: int  # values of its weights
    signs: int = 0  # bits kept for the backward pass
    adds: int = 0  # values of a noise map, read forward; its gradient is the incoming one
    image: bool = False  # reads the network's input, to which a training pass wants no gradient

    def forward(self, size: int, *, keep: bool = True) -> Work:
        """With ``keep``, the signs are written for a backward pass. ``size``: bytes a value."""
        moved = size * (self.reads + self.writes + self.weights + self.adds) + (self.signs // 8 if keep else 0)
        return Work(2 * self.macs, moved)

    def backward(self, size: int, *, x: bool = True, weights: bool = False) -> Work:
        """Gradients to the input, to the weights, or to both in one pass that reads the incoming gradient once."""
        moved = self.writes + (self.weights + self.reads) * x + (self.reads + self.weights) * weights
        return Work(2 * self.macs * (x + weights), size * moved + self.signs // 8)


# ------------------------------------------------------------------------------------------------------------- ops


def degradation_block(
    x: Sequence[int],
    c_out: int,
    *,
    size: int,
    shared: bool = False,
    noise: int | None = None,
    needs: Sequence[str] = (),
) -> tuple[Work, Work]:
    """Forward and backward of the op.

    Args:
        x: shape (N, Cin, H, W).
        c_out: output channels.
        size: bytes a value.
        shared: one weight for all images.
        noise: channels of the noise maps, c_out or 1; None without noise.
        needs: gradients to compute, of :data:`ALL`.
    """
    n, c_in, height, width = x
    pixels = n * height * width
    macs = pixels * 9 * c_in * c_out
    values, weights, out = pixels * c_in, (1 if shared else n) * 9 * c_in * c_out, pixels * c_out
    signs = out // 8 if set(needs) & {"x", "weight", "slope"} else 0
    forward = Work(2 * macs, size * (values + weights + out + pixels * (noise or 0)) + signs)
    if not needs:
        return forward, Work(0, 0)
    moved = out * size  # the incoming gradient; that of a noise map per channel is the same tensor
    if signs:
        moved += signs + size * values * ("weight" in needs or "slope" in needs) + size * weights
    moved += size * (values * ("x" in needs) + weights * ("weight" in needs))
    moved += size * pixels * ("noise" in needs and noise == 1 and c_out > 1)
    return forward, Work(2 * macs * (("x" in needs) + ("weight" in needs)), moved)


def identity_gradients(
    x: Sequence[int], channels: int, layers: int, *, noise: int, noise_size: int = 4, size: int = 4
) -> Work:
    """All gradients of layers at the identity: x and g are read, what is written are the noises' gradients.

    Args:
        x: shape (N, 3, H, W).
        channels: of the layers.
        layers: how many.
        noise: channels of the noise maps, ``channels`` or 1.
        noise_size: bytes a value of a noise; size: of x and g.
    """
    n, colours, height, width = x
    pixels = n * height * width
    small = 4 * n * (layers * channels * (2 * colours + 1) + 9 * colours * colours)  # matrices, slopes, correlation
    macs = layers * (2 * colours + 1) * channels + 9 * colours * colours
    return Work(2 * pixels * macs, pixels * (2 * colours * size + layers * noise * noise_size) + small, matrix=False)


def blur_pool(x: Sequence[int], factor: int, *, size: int) -> tuple[Work, Work]:
    """Forward and backward of the op with its default filter: bound by bytes, in both directions."""
    n, channels, height, width = x
    taps = 2 * factor - factor % 2
    rows, out = n * channels * (height // factor) * width, n * channels * (height // factor) * (width // factor)
    work = Work(2 * taps * (rows + out), size * (n * channels * height * width + out), matrix=False)
    return work, work


def mean_distance(x: Sequence[int], *, size: int) -> tuple[Work, Work]:
    """Forward, which reads two tensors, and backward, which reads them again and writes the gradient to one."""
    values = math.prod(x)
    return Work(3 * values, 2 * size * values, matrix=False), Work(3 * values, 3 * size * values, matrix=False)


def residual_dense_block(x: Sequence[int], growth: int = 32) -> Layer:
    """The five convolutions as one layer: x is read, the result written, four signs per element of growth kept."""
    n, features, height, width = x
    pixels = n * height * width
    weights = sum(9 * (features + k * growth) * (growth if k < 4 else features) for k in range(5))
    values = pixels * features
    return Layer("residual dense block", pixels * weights, values, values, weights, signs=4 * growth * pixels)


def upsampled_convolution(x: Sequence[int], c_out: int, factor: int) -> Layer:
    """Upsampling, 3x3 convolution and activation as one layer, with the fewest products: 4 for x2, where 9 define it.

    The small map is read, one sign per element of the result kept.
    """
    n, c_in, height, width = x
    pixels = n * height * width
    taps = {1: 9, 2: 4}[factor]
    values = factor**2 * pixels * c_out
    return Layer("upsampled convolution", values * taps * c_in, pixels * c_in, values, 9 * c_in * c_out, signs=values)


# -------------------------------------------------------------------------------------------------------- networks


def convolution(
    name: str, n: int, c_in: int, c_out: int, height: int, width: int, kernel: int = 3, *, reads: int = 0, image=False
) -> Layer:
    """A convolution with an output of (height, width); it reads as many pixels unless ``reads`` says another number."""
    weights = kernel * kernel * c_in * c_out
    pixels = n * height * width
    return Layer(name, pixels * weights, (reads or pixels) * c_in, pixels * c_out, weights, image=image)


def degradation_network(n: int, size: int, *, scale: int = 4, channels: int = 64) -> list[Layer]:
    """F of section 3.1: ten blocks with per-image weights and a noise map per channel, one plain convolution."""
    layers = []
    for index in range(2 * SCALE_BLOCKS + 1):
        side = size if index < SCALE_BLOCKS else size // scale
        pixels, last = n * side * side, index == 2 * SCALE_BLOCKS
        c_in, c_out = 3 if index == 0 else channels, 3 if last else channels
        extra = {} if last else {"signs": pixels * c_out, "adds": pixels * c_out}
        macs, weights = pixels * 9 * c_in * c_out, n * 9 * c_in * c_out
        layers.append(Layer(f"block {index}", macs, pixels * c_in, pixels * c_out, weights, image=index == 0, **extra))
    return layers


def rrdbnet(
    n: int, size: int, *, scale: int = 4, features: int = 64, blocks: int = 23, growth: int = 32
) -> list[Layer]:
    """G for LR of ``size`` by ``size``; the upsampled maps are read as they were before upsampling.

    Operations are the definition's: 1.68 of 73.43 G multiply-accumulates an image of 64x64 more than the fewest, which
    :func:`upsampled_convolution` counts.
    """
    unshuffle = 4 // scale
    side = size // unshuffle
    pixels = n * side * side
    block = residual_dense_block((n, features, side, side), growth)
    return [
        convolution("conv_first", n, 3 * unshuffle**2, features, side, side, image=True),
        *[block] * (3 * blocks),
        convolution("conv_body", n, features, features, side, side),
        convolution("conv_up1", n, features, features, 2 * side, 2 * side, reads=pixels),
        convolution("conv_up2", n, features, features, 4 * side, 4 * side, reads=4 * pixels),
        convolution("conv_hr", n, features, features, 4 * side, 4 * side),
        convolution("conv_last", n, features, 3, 4 * side, 4 * side),
    ]


def vgg19(n: int, size: int) -> list[Layer]:
    """VGG19 to conv5_4."""
    layers, before = [], 3
    for block, (channels, count) in enumerate(VGG19, start=1):
        side = size >> (block - 1)
        for number in range(1, count + 1):
            layers.append(convolution(f"conv{block}_{number}", n, before, channels, side, side))
            before = channels
    return layers


def vgg_discriminator(n: int, size: int, *, features: int = 64) -> list[Layer]:
    """ESRGAN's discriminator: a 3x3 and a strided 4x4 convolution a stage down to 4x4, two linear layers."""
    layers, before, side, stage = [], 3, size, 0
    while side > 4:
        channels = features * min(2**stage, 8)
        layers.append(convolution(f"conv{stage}_0", n, before, channels, side, side, image=stage == 0))
        pixels, side = n * side * side, side // 2
        layers.append(convolution(f"conv{stage}_1", n, channels, channels, side, side, 4, reads=pixels))
        before, stage = channels, stage + 1
    for name, c_in, c_out in (("linear1", before * side * side, 100), ("linear2", 100, 1)):
        layers.append(Layer(name, n * c_in * c_out, n * c_in, n * c_out, c_in * c_out))
    return layers


# ------------------------------------------------------------------------------------------------------------ step

STAGES: Final = ("net", "gan")
PARTS: Final = ("identity", "ascent", "degradation", "generator", "discriminator")
"""The phases of a step, by the names of its spans."""


class Entry(NamedTuple):
    """One layer's pass within a step, ``times`` over."""

    part: str
    network: str
    layer: Layer
    work: Work
    times: int = 1


def step(
    stage: str,
    n: int,
    *,
    adversarial: bool = True,
    ascent_steps: int = 5,
    hr_size: int = 256,
    scale: int = 4,
    size: int = 2,
    features: int = 64,
    blocks: int = 23,
) -> list[Entry]:
    """All passes of one step over n images: the exact algorithm without reuse between passes, but for HR's features.

    That is: no gradients to weights of G and D in the ascent, HR's VGG features once a step. Without ``adversarial``,
    ESRGAN's plain step, whose LR is given. Pooling, losses and the optimizer are not in it.
    """
    if stage not in STAGES:
        raise ValueError(f"stage must be one of {', '.join(STAGES)}, was {stage!r}")
    f = degradation_network(n, hr_size, scale=scale)
    g = rrdbnet(n, hr_size // scale, scale=scale, features=features, blocks=blocks)
    judges = {"VGG": vgg19(n, hr_size), "D": vgg_discriminator(n, hr_size)} if stage == "gan" else {}
    entries: list[Entry] = []

    def forward(part: str, network: str, layers: list[Layer], times: int = 1, *, keep: bool = True) -> None:
        entries.extend(Entry(part, network, layer, layer.forward(size, keep=keep), times) for layer in layers)

    def backward(
        part: str, network: str, layers: list[Layer], times: int = 1, *, x: bool = True, weights: bool = False
    ) -> None:
        """``x``: down to the network's input."""
        for layer in layers:
            work = layer.backward(size, x=x or not layer.image, weights=weights)
            entries.append(Entry(part, network, layer, work, times))

    features_part = "ascent" if adversarial else "generator"
    if judges:
        forward(features_part, "VGG", judges["VGG"], keep=False)
    if adversarial:
        k = ascent_steps
        for network, layers in {"F": f, "G": g, **judges}.items():
            forward("ascent", network, layers, k)
            backward("ascent", network, layers, k, x=network != "F", weights=network == "F")
        forward("degradation", "F", f, keep=False)
    forward("generator", "G", g)
    backward("generator", "G", g, x=False, weights=True)
    for network, layers in judges.items():
        forward("generator", network, layers)
        backward("generator", network, layers)
    if judges:
        forward("discriminator", "D", judges["D"], 2)
        backward("discriminator", "D", judges["D"], 2, x=False, weights=True)
    return entries


def by_part(entries: list[Entry]) -> Iterator[tuple[str, str, list[Entry]]]:
    """The entries in groups of equal (part, network), in the order of a step."""
    keys = dict.fromkeys((entry.part, entry.network) for entry in entries)
    for part, network in keys:
        yield part, network, [entry for entry in entries if (entry.part, entry.network) == (part, network)]
