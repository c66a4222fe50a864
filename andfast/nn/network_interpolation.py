"""Network interpolation: weights between those of two trainings (ESRGAN, section 3.4)."""

from collections.abc import Mapping

from torch import Tensor


def interpolate(first: Mapping[str, Tensor], second: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Weights (1 - share) first + share second, computed in fp64.

    Of use where one training started from the other's weights: with an adversary in the second, ``share`` trades
    quality on clean LR for robustness, often at better terms than the second network itself (Wortsman et al. 2022,
    arXiv 2109.01903; measured in docs/method.md).

    Args:
        first, second: state dicts of floating-point weights of one architecture.
        share: of the second, from 0 to 1.

    Raises:
        ValueError: ``share`` is out of range, or names or shapes differ; the message names the first difference.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be from 0 to 1, was {share}")
    if unpaired := sorted(first.keys() ^ second.keys()):
        raise ValueError(f"weights to interpolate must be of one architecture, only one has {unpaired[0]}")
    result = {}
    for name, weight in first.items():
        if weight.shape != second[name].shape:
            raise ValueError(
                f"weights to interpolate must be of one architecture, {name} has shapes {tuple(weight.shape)} and "
                f"{tuple(second[name].shape)}"
            )
        result[name] = weight.double().lerp(second[name].double(), share).to(weight.dtype)
    return result
