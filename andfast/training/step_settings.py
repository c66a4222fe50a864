"""How a step is taken: the search of the worst case, what is computed once, and this process's part of a batch."""

from dataclasses import dataclass
from itertools import pairwise

import torch

from andfast.adversary import Ball


@dataclass(frozen=True)
class AttackSettings:
    """How the worst case is searched.

    Attributes:
        ball, steps, step_size: as of :func:`andfast.adversary.ascend`.
        channels, noise, noise_dtype, slope: of F's parameters, as of :func:`andfast.adversary.sample_identity`.
        images_per_network: images that share one F; 0: one F for the whole micro batch.
        chunk_size: the most images whose worst cases are searched together; 0: all of a micro batch.
        precision: "same" as the step's, or "fp8" in the dense blocks of G; see :class:`andfast.nn.fp8_body.Fp8Body`.
    """

    ball: Ball
    steps: int = 5
    step_size: float = 0.3
    channels: int = 64
    noise: str = "full"
    noise_dtype: torch.dtype = torch.float32
    slope: str = "layer"
    images_per_network: int = 1
    chunk_size: int = 0
    precision: str = "same"

    def groups(self, images: int) -> list[range]:
        """The images of a micro batch in consecutive groups, as equal as whole networks allow."""
        most = self.chunk_size if self.images_per_network else images
        if not 0 < most < images or images % self.images_per_network:
            return [range(images)]
        networks = images // self.images_per_network
        count = min(-(-images // most), networks)
        ends = [networks * number // count * self.images_per_network for number in range(count + 1)]
        return [range(*pair) for pair in pairwise(ends)]


@dataclass(frozen=True)
class ReuseOptions:
    """What a step computes once and uses again; see :class:`andfast.config.schema.ReuseConfig`.

    Attributes:
        closed_form_first_step: the first ascent pass is at the identity: F in closed form.
        hr_features: HR's features and logits serve all passes.
        cast_weights: G's weights are cast to the autocast dtype once for all ascent passes.
        discriminator_pass: one pass of D over SR serves G's loss and D's.
    """

    closed_form_first_step: bool = True
    hr_features: bool = True
    cast_weights: bool = True
    discriminator_pass: bool = False


@dataclass(frozen=True)
class RankInfo:
    """Which part of the global batch this process works on, and where its randomness starts."""

    seed: int
    stage: int
    rank: int = 0
    world_size: int = 1
    accumulate: int = 1
