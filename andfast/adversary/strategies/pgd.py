"""Complete AND: projected gradient ascent from identity networks (paper, sections 3.2 and 3.3)."""

from torch import Tensor

from andfast.adversary.attack import Attack, Start
from andfast.adversary.objective import Targets
from andfast.adversary.pgd import Ascent
from andfast.adversary.strategies.strategy import StepSeed, Strategy


class PGD(Strategy):
    """The attack itself."""

    ascends = uses_ball = starts_clean = True

    def draw(
        self, attack: Attack, hr: Tensor, seed: StepSeed, *, chunk: range | None = None, shard: tuple[int, int] = (0, 1)
    ) -> Start:
        """Fresh identity networks, and factors of their radii."""
        return attack.start(hr, seed.generator(hr.device), chunk=chunk, shard=shard)

    def search(self, attack: Attack, hr: Tensor, draw: Start) -> tuple[Targets, Ascent]:
        """Ascend from the drawn networks."""
        return attack.search(hr, draw)

    def degrade(self, attack: Attack, hr: Tensor, result: Ascent) -> tuple[Tensor, Tensor]:
        """LR of the networks that the ascent ends at."""
        return attack.degrade(hr, result.theta)
