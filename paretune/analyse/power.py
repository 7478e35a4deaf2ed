"""Power: what a comparison could have seen, and how many more items or seeds would settle it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paretune.analyse.pairs import Seeded

# (1.960 + 0.842)^2: a two-sided test at 5% finds an effect of this many squared standard errors
# four times in five (Cohen, Statistical Power Analysis, 1988)
POWER_80 = 7.849
HOPELESS = 1000.0  # times as many items or seeds: no plan


@dataclass(frozen=True)
class Needed:
    """Items, or seeds, in all that would settle a difference of the size seen; None: not alone."""

    items: int | None
    seeds: int | None

    @property
    def words(self) -> str:
        """What to run, for a reader."""
        options = []
        if self.items is not None:
            options.append(f"about {rounded(self.items):,} items")
        if self.seeds is not None:
            options.append(f"about {self.seeds:,} seeds of each")
        if not options:
            return "more items and more seeds together: neither alone would settle it"
        return " or ".join(options)


def needed(one: Seeded) -> Needed | None:
    """How many items (at these seeds) or seeds (at these items) would show this difference.

    More items shrink the item variance only, more seeds the seed variance only, so each may reach
    a floor that the other sets. None where there is no difference or no interval.
    """
    estimate = one.estimate
    if not estimate.value or estimate.stderr is None:
        return None
    allowed = estimate.value**2 / POWER_80
    return Needed(
        _times(one.item_variance, allowed - one.seed_variance, estimate.n),
        _times(one.seed_variance, allowed - one.item_variance, one.seeds)
        if one.seed_variance > 0
        else None,
    )


def rounded(value: float) -> int:
    """To two digits, upwards: a plan should not promise more digits than it knows."""
    if value < 10:
        return int(np.ceil(value))
    scale = 10 ** (int(np.floor(np.log10(value))) - 1)
    return int(np.ceil(value / scale) * scale)


def _times(variance: float, allowed: float, count: int) -> int | None:
    if allowed <= 0 or variance / allowed > HOPELESS:
        return None
    return int(np.ceil(count * max(1.0, variance / allowed)))
