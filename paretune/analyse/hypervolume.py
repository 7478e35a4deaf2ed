"""Hypervolume: one number for a whole frontier, with its interval."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from paretune.analyse.points import Points, measured
from paretune.analyse.record import StudyRecord, group_order, method_group
from paretune.analyse.statistics import Floats, centred, percentile_interval

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ["group", "hypervolume", "low", "high", "share", "points", "reference"]


def hypervolume(learning: Floats, forgetting: Floats, reference: float) -> Floats:
    """[R] area dominated by each of R sets of P points [R, P] (Zitzler and Thiele, 1999).

    Between 0 and each amount of learning, the height is ``reference`` minus the least forgetting
    that came with at least that much learning; points that forgot more than the reference, or
    learned nothing, add nothing.
    """
    usable = ~(np.isnan(learning) | np.isnan(forgetting))
    gain = np.where(usable, np.maximum(learning, 0.0), 0.0)
    cost = np.where(usable, np.minimum(forgetting, reference), reference)
    order = np.argsort(-gain, axis=1, kind="stable")
    gain = np.take_along_axis(gain, order, axis=1)
    least = np.minimum.accumulate(np.take_along_axis(cost, order, axis=1), axis=1)
    after = np.concatenate([gain[:, 1:], np.zeros((len(gain), 1))], axis=1)
    return np.asarray(((gain - after) * (reference - least)).sum(axis=1))


def hypervolumes(record: StudyRecord, *, points: Points | None = None) -> pd.DataFrame:
    """The frontier's hypervolume for all points, and for each method group by itself.

    The reference is the most that any point forgot; ``share`` is of the rectangle between it and
    the most that any point learned, so 1 would be: all learned, nothing forgotten. Intervals come
    from the draws, centred on the estimate, the reference held fixed. Sets with more points can
    only gain: compare groups that were given as many rates and budgets.
    """
    import pandas as pd

    points = points or measured(record)
    rows = []
    if points.points:
        values = points.values
        reference = float(values[:, 1].max())
        rectangle = max(float(values[:, 0].max()), 0.0) * reference
        x = np.concatenate([values[None, :, 0], points.learning_draws])
        y = np.concatenate([values[None, :, 1], points.forgetting_draws])
        for name, members in _members(record, points).items():
            area = hypervolume(x[:, members], y[:, members], reference)
            low, high = np.nan, np.nan
            if points.resampled > 1:
                low, high = percentile_interval(centred(float(area[0]), area[1:]))
            share = float(area[0]) / rectangle if rectangle > 0 else np.nan
            rows.append((name, float(area[0]), low, high, share, len(members), reference))
    return pd.DataFrame(rows, columns=COLUMNS)


def _members(record: StudyRecord, points: Points) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for index, (arm, _) in enumerate(points.points):
        config = record.arms[arm]
        groups.setdefault(method_group(config), []).append(index)
        if config.method == "lora":
            groups.setdefault(config.family, []).append(index)
    ordered = {name: groups[name] for name in sorted(groups, key=group_order)}
    return {"all": list(range(len(points.points))), **ordered}
