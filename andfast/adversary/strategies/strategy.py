"""The interface between a training step and the way it makes LR from HR."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from andfast.adversary.attack import Attack
from andfast.adversary.identity import seeded_generator
from andfast.adversary.objective import Targets


@dataclass(frozen=True)
class StepSeed:
    """Source of all random numbers of a training step, equal on every rank; a resumed run has the same.

    Attributes:
        numbers: seed of the run, number of the stage, number of the step.
    """

    numbers: tuple[int, int, int]

    def generator(self, device: torch.device, *more: int) -> torch.Generator | None:
        """A generator seeded by the step and ``more``, see :func:`andfast.adversary.seeded_generator`."""
        return seeded_generator(device, *self.numbers, *more)

    def numpy_generator(self, *more: int) -> np.random.Generator:
        """The same for NumPy's random numbers."""
        return np.random.default_rng([*self.numbers, *more])


class SearchResult(Protocol):
    """Result of a search, nested tuples of tensors.

    Attributes:
        losses: (K,), the mean objective before each ascent step; empty without an ascent.
    """

    @property
    def losses(self) -> Tensor:
        """(K,)."""


class Strategy(ABC):
    """Makes LR from HR in three parts: draw, search, degrade.

    All randomness is in :meth:`draw`, which may wait for the device. The other two do not, so they can be captured in a
    CUDA graph with the draw as their input. Networks and settings of the ascent are the attack's.

    Attributes:
        ascends: whether ``search`` ascends, so that the attack's steps, step size and precision apply.
        uses_ball: whether the attack's ball applies.
        starts_clean: whether the first loss of an ascent is that of the clean LR.
    """

    ascends: ClassVar[bool] = False
    uses_ball: ClassVar[bool] = False
    starts_clean: ClassVar[bool] = False

    def draw(
        self, attack: Attack, hr: Tensor, seed: StepSeed, *, chunk: range | None = None, shard: tuple[int, int] = (0, 1)
    ) -> Any:
        """The random numbers of some images: nested tuples of tensors, empty if nothing is random.

        Args:
            attack: networks and settings.
            hr: (N, 3, H, W) in [0, 1].
            seed: of the step.
            chunk: the images of ``hr`` to draw for; all of them if None.
            shard: (index, count), where ``hr`` is one of ``count`` equal parts of a global batch. Shards draw disjoint
                parts of what one process would draw for the whole batch.
        """
        return ()

    @abstractmethod
    def search(self, attack: Attack, hr: Tensor, draw: Any) -> tuple[Targets, Any]:
        """The objective's targets for ``hr``, which the training pass needs as well, and a :class:`SearchResult`.

        Args:
            attack: networks and settings.
            hr: (N, 3, H, W) in [0, 1], the images of a chunk.
            draw: from :meth:`draw`, for these images.
        """

    @abstractmethod
    def degrade(self, attack: Attack, hr: Tensor, result: Any) -> tuple[Tensor, Tensor]:
        """LR for G to restore, and the clean LR, each (N, 3, H / scale, W / scale), from the result of a search."""


def chunk_in_global_batch(hr: Tensor, chunk: range | None, shard: tuple[int, int]) -> range:
    """The images of a chunk, numbered within the global batch; arguments as for :meth:`Strategy.draw`."""
    images = hr.shape[0]
    chunk = range(images) if chunk is None else chunk
    return range(shard[0] * images + chunk.start, shard[0] * images + chunk.stop)


def networks_in_global_batch(attack: Attack, hr: Tensor, chunk: range | None, shard: tuple[int, int]) -> range:
    """The degradation networks of a chunk, numbered within the global batch."""
    images = chunk_in_global_batch(hr, chunk, shard)
    per_network = attack.settings.images_per_network or hr.shape[0]
    return range(images.start // per_network, images.stop // per_network)
