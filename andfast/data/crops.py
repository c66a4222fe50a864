"""Random crops of packed pictures, each a pure function of (seed, stage, number).

Nothing here has state that a result depends on: sample g is the same in whatever process, order or run it is
asked for. The random numbers are raw outputs of the Philox counter generator, keyed by (seed, stage), at a
counter made of g; raw outputs are the same in every version of numpy.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

_EPOCH, _CROP = 0, 1  # the counter's last word: what the numbers are for


class Images(Protocol):
    """Pictures by number: ``PackedImages``, or a list of (H, W, 3) uint8 arrays."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> NDArray[np.uint8]: ...


class CropDataset(Dataset[Tensor]):
    """Crops without end: epoch after epoch, each a new permutation of the pictures, one crop a picture.

    Sample g is from picture ``permutation(g // n)[g % n]``, n pictures in all; its position is uniform over
    all that lie inside, its orientation uniform over the eight of the square (horizontal flip, vertical flip,
    quarter turn).

    Args:
        images: the pictures; ``PackedImages`` or any sequence of (H, W, 3) uint8 arrays.
        patch_size: height and width of a crop, in pixels.
        seed: any integer.
        stage: a name or number that gives a training stage its own sequence.

    Raises:
        ValueError: no pictures, a picture smaller than the patch, or a patch size below 1.
    """

    def __init__(self, images: Images, patch_size: int, *, seed: int, stage: str | int) -> None:
        if patch_size < 1:
            raise ValueError(f"patch_size must be at least 1, was {patch_size}")
        if len(images) == 0:
            raise ValueError("images must hold at least one picture, was empty")
        names: Sequence[str] | None = getattr(images, "names", None)
        for i in range(len(images)):
            height, width = images[i].shape[:2]
            if min(height, width) < patch_size:
                name = repr(names[i]) if names is not None else f"number {i}"
                raise ValueError(
                    f"images must all be at least patch_size {patch_size} high and wide, "
                    f"{name} has {width}x{height} pixels"
                )
        self.images, self.patch_size, self.seed, self.stage = images, patch_size, seed, stage
        digest = blake2b(repr((int(seed), stage)).encode(), digest_size=16).digest()
        self._key = np.frombuffer(digest, "<u8").astype(np.uint64)
        self._permutations: dict[int, NDArray[np.int64]] = {}

    def __getitem__(self, g: int) -> Tensor:
        """Sample g >= 0: (3, P, P) uint8, a view of (P, P, 3) memory (channels last)."""
        if g < 0:
            raise IndexError(f"g must not be negative, was {g}")
        epoch, position = divmod(g, len(self.images))
        image = self.images[int(self._permutation(epoch)[position])]
        top, left, orientation = self._random(_CROP, g, 3).tolist()
        size = self.patch_size
        top, left = _below(image.shape[0] - size + 1, top), _below(image.shape[1] - size + 1, left)
        crop = image[top : top + size, left : left + size]
        if orientation & 1:
            crop = crop[:, ::-1]
        if orientation & 2:
            crop = crop[::-1]
        if orientation & 4:
            crop = crop.swapaxes(0, 1)  # together with the flips: the four quarter turns and their mirror images
        return torch.from_numpy(crop.copy(order="C")).permute(2, 0, 1)

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._permutations:
            for old in sorted(self._permutations)[:-1]:  # a batch may straddle two epochs
                del self._permutations[old]
            order = self._random(_EPOCH, epoch, len(self.images))
            self._permutations[epoch] = np.argsort(order, kind="stable")
        return self._permutations[epoch]

    def _random(self, purpose: int, number: int, count: int) -> NDArray[np.uint64]:
        counter = np.array([0, 0, number, purpose], np.uint64)  # counts up in its first word
        return np.asarray(np.random.Philox(key=self._key, counter=counter).random_raw(count))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_permutations": {}}


def _below(bound: int, random: int) -> int:
    """A uniform number in [0, bound) from a uniform 64-bit one; the bias is below bound / 2**64."""
    return (random * bound) >> 64
