"""Random crops of packed images, each a pure function of (seed, stage, index).

A sample does not depend on the process, the order of access or the run: its random numbers are raw outputs of the
counter-based Philox generator, keyed by (seed, stage), at a counter derived from the index. Raw outputs are the same in
every version of numpy.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

_EPOCH, _CROP = 0, 1  # last word of the counter: separates the two uses of the generator


class Images(Protocol):
    """Images by index: ``PackedImages``, or a list of (H, W, 3) uint8 arrays."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> NDArray[np.uint8]: ...


class CropDataset(Dataset[Tensor]):
    """Infinite dataset of random crops: every epoch is a new permutation of the images, one crop per image.

    Sample g is a crop of image ``permutation(g // n)[g % n]`` of n images. Its position is uniform over all positions
    inside the image, its orientation uniform over the eight symmetries of the square (flips and quarter turns).

    Args:
        images: ``PackedImages`` or any sequence of (H, W, 3) uint8 arrays.
        patch_size: Height and width of a crop in pixels.
        seed: Any integer.
        stage: Name or number of the training stage; each stage has its own sequence.

    Raises:
        ValueError: ``images`` is empty, an image is smaller than the patch, or ``patch_size`` is below 1.
    """

    def __init__(self, images: Images, patch_size: int, *, seed: int, stage: str | int) -> None:
        if patch_size < 1:
            raise ValueError(f"patch_size must be at least 1, was {patch_size}")
        if len(images) == 0:
            raise ValueError("images must hold at least one image, was empty")
        names: Sequence[str] | None = getattr(images, "names", None)
        for index in range(len(images)):
            height, width = images[index].shape[:2]
            if min(height, width) < patch_size:
                name = repr(names[index]) if names is not None else f"number {index}"
                raise ValueError(
                    f"images must be at least patch_size {patch_size} high and wide, {name} has {width}x{height} pixels"
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
            crop = crop.swapaxes(0, 1)  # with the flips: all quarter turns and their mirror images
        return torch.from_numpy(crop.copy(order="C")).permute(2, 0, 1)

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._permutations:
            for old in sorted(self._permutations)[:-1]:  # keep one: a batch may straddle two epochs
                del self._permutations[old]
            order = self._random(_EPOCH, epoch, len(self.images))
            self._permutations[epoch] = np.argsort(order, kind="stable")
        return self._permutations[epoch]

    def _random(self, purpose: int, number: int, count: int) -> NDArray[np.uint64]:
        counter = np.array([0, 0, number, purpose], np.uint64)  # Philox increments the first word
        return np.asarray(np.random.Philox(key=self._key, counter=counter).random_raw(count))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_permutations": {}}


def _below(bound: int, random: int) -> int:
    """Map a uniform 64-bit number to [0, bound); the bias is below bound / 2**64."""
    return (random * bound) >> 64
