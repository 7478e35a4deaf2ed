"""The frontier: points that no other beats on both learning and forgetting, and how surely."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from paretune.analyse.points import Points, measured
from paretune.analyse.record import StudyRecord
from paretune.analyse.statistics import Floats

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = [
    "arm",
    "tokens",
    "learning",
    "learning_low",
    "learning_high",
    "forgetting",
    "forgetting_low",
    "forgetting_high",
    "n_learning",
    "n_forgetting",
    "on_frontier",
    "probability",
]


def frontier(
    record: StudyRecord,
    learning: str | None = None,
    forgetting: str | None = None,
    *,
    points: Points | None = None,
) -> pd.DataFrame:
    """Every point (arm at a budget) with its place, sorted by arm and tokens.

    ``on_frontier``: no other point, and not the untrained base at (0, 0), learned at least as much
    and forgot at most as much, with one of the two strictly. ``probability``: the share of paired
    bootstrap resamples of the items in which that holds, NaN where one item or group cannot be
    resampled. Empty when nothing can be compared.
    """
    import pandas as pd

    points = points or measured(record, learning, forgetting)
    if not points.points:
        return pd.DataFrame({name: [] for name in COLUMNS})
    values = points.values
    on_frontier = not_dominated(values[None, :, 0], values[None, :, 1])[0]
    probability = not_dominated(points.learning_draws, points.forgetting_draws).mean(axis=0)
    if points.resampled < 2:
        probability = np.full(len(points.points), np.nan)
    rows = [
        (
            *point,
            learned.value,
            learned.low,
            learned.high,
            forgot.value,
            forgot.low,
            forgot.high,
            learned.n,
            forgot.n,
            bool(on_frontier[index]),
            float(probability[index]),
        )
        for index, (point, learned, forgot) in enumerate(
            zip(points.points, points.learning, points.forgetting, strict=True)
        )
    ]
    frame = pd.DataFrame(rows, columns=COLUMNS)
    bounds = [name for name in COLUMNS if name.endswith(("_low", "_high"))]
    return frame.astype(dict.fromkeys(bounds, "float64"))


def not_dominated(learning: Floats, forgetting: Floats, *, base: bool = True) -> np.ndarray:
    """[R, P] bool: within each row, is the point beaten by no other point of the row.

    A point is beaten by one that has at least its learning and at most its forgetting, and is
    strictly better in one; equal points do not beat each other. With ``base`` the untrained base
    (0, 0) competes too. A NaN coordinate is never on the frontier and beats nobody.
    """
    rows, count = learning.shape
    unusable = np.isnan(learning) | np.isnan(forgetting)
    gain = np.where(unusable, -np.inf, learning)
    cost = np.where(unusable, np.inf, forgetting)
    if base:
        gain = np.concatenate([gain, np.zeros((rows, 1))], axis=1)
        cost = np.concatenate([cost, np.zeros((rows, 1))], axis=1)
    # From most learning to least (least forgetting first among equals), a point survives when it
    # forgets less than all before it, or is equal to the survivor that forgets least.
    order = np.lexsort((cost, -gain), axis=-1)
    everyone = np.arange(rows)
    kept = np.zeros(gain.shape, dtype=bool)
    least = np.full(rows, np.inf)
    least_gain = np.full(rows, np.nan)
    for place in range(gain.shape[1]):
        index = order[:, place]
        x, y = gain[everyone, index], cost[everyone, index]
        better = y < least
        kept[everyone, index] = better | ((y == least) & (x == least_gain))
        least = np.where(better, y, least)
        least_gain = np.where(better, x, least_gain)
    return kept[:, :count] & ~unusable
