"""Learning-rate sensitivity: the best rate, how wide its basin is, and where training breaks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from paretune.analyse.points import Points, measured
from paretune.analyse.record import StudyRecord, group_order, method_group
from paretune.analyse.statistics import Floats

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = [
    "group", "tokens", "best_rate", "learning", "probability", "at_edge", "basin_low",
    "basin_high", "basin_decades", "edge", "rates", "ratio_to_full",
]  # fmt: skip
WITHIN = 0.05
BROKEN = 0.5


def sensitivity(
    record: StudyRecord, *, within: float = WITHIN, points: Points | None = None
) -> pd.DataFrame:
    """Each method group's learning over its learning rates, at the last budget.

    ``probability``: the share of draws in which the best rate is best. ``basin``: the unbroken run
    of rates about the best that learned within ``within`` (a share) of it. ``edge``: the lowest
    rate above the best at which every arm diverged or learned less than half of the best; missing
    where the sweep met none. ``at_edge``: the best is the lowest or the highest rate tried, so the
    true best may lie beyond. ``ratio_to_full``: best rate over full finetuning's. Rates are those
    of the sweep: nothing between them is interpolated. Seeds count by their mean, and of several
    settings at one rate the one that learned most.
    """
    import pandas as pd

    points = points or measured(record)
    budget = max((tokens for _, tokens in points.points), default=0)
    rows = []
    for group, by_rate in sorted(_by_rate(record, points, budget).items(), key=_order):
        broken = _diverged(record, group, set(by_rate))
        rates = sorted(by_rate)
        learned = np.stack([by_rate[rate] for rate in rates], axis=1)
        top = int(learned[0].argmax())
        good = learned[0] >= (1 - within) * learned[0, top]
        low, high = top, top
        while low > 0 and good[low - 1]:
            low -= 1
        while high + 1 < len(rates) and good[high + 1]:
            high += 1
        fallen = [
            rate
            for index, rate in enumerate(rates)
            if index > top and learned[0, index] < BROKEN * learned[0, top]
        ]
        edge = min([*fallen, *(rate for rate in broken if rate > rates[top])], default=np.nan)
        won = float((learned[1:].argmax(axis=1) == top).mean()) if points.resampled > 1 else np.nan
        rows.append(
            (
                group,
                budget,
                rates[top],
                float(learned[0, top]),
                won,
                top == 0 or (top == len(rates) - 1 and np.isnan(edge)),
                rates[low],
                rates[high],
                float(np.log10(rates[high] / rates[low])),
                edge,
                len(rates) + len(broken),
                np.nan,
            )
        )
    frame = pd.DataFrame(rows, columns=COLUMNS)
    full = frame.loc[frame["group"] == "full", "best_rate"]
    if len(full):
        frame["ratio_to_full"] = frame["best_rate"] / float(full.iloc[0])
    return frame


def _by_rate(record: StudyRecord, points: Points, budget: int) -> dict[str, dict[float, Floats]]:
    """[1 + R] learning, the estimate first, by method group and rate."""
    draws = np.concatenate([points.values[None, :, 0], points.learning_draws])
    alike: dict[tuple[str, float, str], list[int]] = {}
    for index, (arm, tokens) in enumerate(points.points):
        if tokens == budget:
            config = record.arms[arm]
            setting = config.model_copy(update={"seed": 0}).id
            key = (method_group(config), config.learning_rate, setting)
            alike.setdefault(key, []).append(index)
    found: dict[str, dict[float, Floats]] = {}
    for (group, rate, _), members in sorted(alike.items()):
        mean = draws[:, members].mean(axis=1)
        best = found.setdefault(group, {})
        if rate not in best or mean[0] > best[rate][0]:
            best[rate] = mean
    return found


def _diverged(record: StudyRecord, group: str, scored: set[float]) -> list[float]:
    """Rates of a group at which every arm diverged."""
    return sorted(
        {
            config.learning_rate
            for arm, config in record.arms.items()
            if method_group(config) == group
            and record.state(arm) == "diverged"
            and config.learning_rate not in scored
        }
    )


def _order(item: tuple[str, dict[float, Floats]]) -> tuple[int, int, str]:
    return group_order(item[0])
