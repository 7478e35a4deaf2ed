"""Comparing methods fairly: forgetting at matched learning, and at equal learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from paretune.analyse.points import Points, measured
from paretune.analyse.record import StudyRecord, group_order, method_group
from paretune.analyse.results import read_all
from paretune.analyse.statistics import (
    Estimate,
    Floats,
    centred,
    change_sign,
    paired_difference,
    percentile_interval,
)

if TYPE_CHECKING:
    import pandas as pd

NEEDED = 0.95  # share of resamples that must reach a level for an interval to be given
CANNOT = "cannot be compared"


@dataclass(frozen=True)
class Matched:
    """Two method groups at one level of learning; ``difference`` is forgetting of a minus b."""

    a: str
    b: str
    level: float | None
    forgetting_a: float | None
    forgetting_b: float | None
    difference: Estimate


def envelope_at(learning: Floats, forgetting: Floats, level: Floats | float) -> Floats:
    """[R] forgetting at ``level`` ([R] or one) of learning, for R sets of one method's P points.

    ``learning`` and ``forgetting`` are [R, P]. The lower envelope is the lower convex hull of a
    set's points, made flat to the left of its lowest one: the least forgetting, between any two
    points, that came with at least that much learning. So a method never looks worse for having
    been tried with more settings. NaN where the level lies outside the learning of the set's
    points: nothing is extrapolated.
    """
    level_R = np.broadcast_to(np.asarray(level, dtype=np.float64), (len(learning),))
    distance = learning - level_R[:, None]
    left, right = distance < 0, distance >= 0
    rows = np.arange(len(learning))
    flat = np.where(right, forgetting, np.inf)
    j = flat.argmin(axis=1)
    value = flat[rows, j]
    reached = right.any(axis=1) & (level_R >= learning.min(axis=1))
    # The edge of the hull above the level: from a point on one side the tangent to the other
    # side's points, in turns, until neither end moves. Each turn lowers the edge or ends.
    for _ in range(2 * learning.shape[1]):
        i = _crossing(distance, forgetting, left, distance[rows, j], forgetting[rows, j])
        k = _crossing(distance, forgetting, right, distance[rows, i], forgetting[rows, i])
        if np.array_equal(k, j):
            break
        j = k
    x0, y0, x1, y1 = distance[rows, i], forgetting[rows, i], distance[rows, j], forgetting[rows, j]
    with np.errstate(invalid="ignore", divide="ignore"):
        edge = np.where(left[rows, i] & right[rows, j], y0 - x0 * (y1 - y0) / (x1 - x0), np.inf)
    return np.where(reached, np.minimum(value, edge), np.nan)


def _crossing(distance: Floats, forgetting: Floats, side: Any, x: Floats, y: Floats) -> Any:
    """[R] the point on one side whose chord to (x, y) is lowest where the distance is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = (forgetting - y[:, None]) / (distance - x[:, None])
        height = y[:, None] - x[:, None] * slope
    return np.where(side & np.isfinite(height), height, np.inf).argmin(axis=1)


def matched(
    record: StudyRecord, learning_levels: Sequence[float], *, points: Points | None = None
) -> pd.DataFrame:
    """Forgetting of each method group at given levels of learning (in the metric's unit).

    Groups are ``full``, ``lora`` (all ranks) and ``lora rN``, and so for each variant; arms that
    differ only in their seed count once, by their mean. Columns: group, learning, forgetting, low,
    high, reason. The 95% interval is the percentile one over paired resamples of the items, the
    envelope found anew in each; the reason begins with "cannot be compared" where the level is out
    of a method's reach.
    """
    import pandas as pd

    points = points or measured(record)
    rows = []
    for group, (x, y) in _groups(record, points).items():
        for level in learning_levels:
            values = envelope_at(x, y, level)
            value = float(values[0])
            low = high = None
            if np.isnan(value):
                reason: str | None = (
                    f"{CANNOT}: its learning spans {x[0].min():.4g} to {x[0].max():.4g}"
                )
            else:
                low, high, reason = _interval(values, points)
            rows.append((group, level, None if np.isnan(value) else value, low, high, reason))
    columns = ["group", "learning", "forgetting", "low", "high", "reason"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.astype(dict.fromkeys(columns[1:5], "float64"))


def matched_difference(
    record: StudyRecord, a: str, b: str, *, points: Points | None = None
) -> Matched:
    """Two groups at the largest learning that both reached: who forgot less, and how surely.

    The level is min(largest learning of a, of b), found anew in each resample, so the interval
    also carries its uncertainty.
    """
    points = points or measured(record)
    groups = _groups(record, points)
    missing = [name for name in (a, b) if name not in groups]
    if missing:
        reason = f"{CANNOT}: {' and '.join(missing)} has no points"
        return Matched(a, b, None, None, None, Estimate(None, None, None, None, 0, reason))
    (xa, ya), (xb, yb) = groups[a], groups[b]
    levels = top_level(xa, xb)
    draws_a, draws_b = envelope_at(xa, ya, levels), envelope_at(xb, yb, levels)
    level, at_a, at_b = float(levels[0]), float(draws_a[0]), float(draws_b[0])
    count = min(e.n for e in points.forgetting)
    if np.isnan(at_a) or np.isnan(at_b):
        smaller = a if xa[0].max() <= xb[0].max() else b
        other = b if smaller == a else a
        reason = (
            f"{CANNOT}: {smaller} reached {level:.4g}, and {other} learned more than that at "
            "every point"
            if level > 0
            else f"{CANNOT}: {smaller} learned nothing"
        )
        return Matched(a, b, level, None, None, Estimate(None, None, None, None, count, reason))
    gaps = draws_a - draws_b
    low, high, missing_interval = _interval(gaps, points)
    stderr = float(np.nanstd(gaps[1:], ddof=1)) if low is not None else None
    difference = Estimate(at_a - at_b, stderr, low, high, count, missing_interval)
    return Matched(a, b, level, at_a, at_b, difference)


def top_level(learning_a: Floats, learning_b: Floats) -> Floats:
    """[R] the largest learning that both of two sets of points [R, P] reached."""
    return np.asarray(np.minimum(learning_a.max(axis=1), learning_b.max(axis=1)))


def forgetting_gap(xa: Floats, ya: Floats, xb: Floats, yb: Floats) -> Floats:
    """[R] forgetting of a minus b at the largest learning both reached, from [R, P] points."""
    levels = top_level(xa, xb)
    return envelope_at(xa, ya, levels) - envelope_at(xb, yb, levels)


def equal_rate(record: StudyRecord) -> pd.DataFrame:
    """LoRA minus full at one learning rate, seed and budget, paired item by item.

    Columns: learning_rate, tokens, seed, full, lora (arm ids), group, then for learning and
    forgetting the difference with low, high and reason. A LoRA arm is compared with every full
    arm of its rate and seed. Empty when no rate is shared.
    """
    import pandas as pd

    record = record.cached()
    metrics = {
        "learning": record.learning_metric(),
        "forgetting": record.config.forgetting_metric(),
    }
    sides = record.scores.drop_duplicates("metric").set_index("metric")
    arms = sorted(record.arms)
    rows = []
    for lora in (arm for arm in arms if record.arms[arm].method == "lora"):
        for full in (arm for arm in arms if record.arms[arm].method == "full"):
            x, y = record.arms[lora], record.arms[full]
            if x.learning_rate != y.learning_rate or x.seed != y.seed:
                continue
            for tokens in record.budgets:
                row = {
                    "learning_rate": x.learning_rate,
                    "tokens": tokens,
                    "seed": x.seed,
                    "full": full,
                    "lora": lora,
                    "group": method_group(x),
                }
                for name, metric in metrics.items():
                    estimate = _between(record, lora, full, tokens, metric, sides)
                    row |= {
                        name: estimate.value,
                        f"{name}_low": estimate.low,
                        f"{name}_high": estimate.high,
                        f"{name}_reason": estimate.reason,
                    }
                rows.append(row)
    columns = ["learning_rate", "tokens", "seed", "full", "lora", "group"]
    columns += [f"{n}{part}" for n in metrics for part in ("", "_low", "_high", "_reason")]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.sort_values(
        ["learning_rate", "tokens", "group", "lora", "full"], kind="stable", ignore_index=True
    )


def _between(
    record: StudyRecord, a: str, b: str, tokens: int, metric: str, sides: pd.DataFrame
) -> Estimate:
    if metric not in sides.index:
        return Estimate(None, None, None, None, 0, f"{metric} has no scores")
    outcomes = read_all(record, [(arm, tokens, metric) for arm in (a, b)])
    if isinstance(outcomes, str):
        return Estimate(None, None, None, None, 0, outcomes)
    row = sides.loc[metric]
    sign = change_sign(str(row["side"]), bool(row["higher_is_better"]))
    return paired_difference(*outcomes, sign=sign)


def _groups(record: StudyRecord, points: Points) -> dict[str, tuple[Floats, Floats]]:
    """Learning and forgetting [1 + R, P_group] of each group: estimates first, then the draws."""
    if not points.points:
        return {}
    x = np.concatenate([points.values[None, :, 0], points.learning_draws])
    y = np.concatenate([points.values[None, :, 1], points.forgetting_draws])
    members: dict[str, dict[str, list[int]]] = {}
    for index, (arm, tokens) in enumerate(points.points):
        config = record.arms[arm]
        alike = f"{config.model_copy(update={'seed': 0}).id} {tokens}"
        names = [method_group(config)]
        if config.method == "lora":
            names.append(config.family)
        for name in names:
            members.setdefault(name, {}).setdefault(alike, []).append(index)

    def mean(values: Floats, sets: dict[str, list[int]]) -> Floats:
        return np.stack([values[:, indices].mean(axis=1) for indices in sets.values()], axis=1)

    return {
        name: (mean(x, members[name]), mean(y, members[name]))
        for name in sorted(members, key=group_order)
    }


def _interval(values: Floats, points: Points) -> tuple[float | None, float | None, str | None]:
    """Interval of ``values[0]`` from the draws that follow it."""
    if points.resampled < 2:
        return None, None, "no interval: too few items to resample"
    defined = values[1:][~np.isnan(values[1:])]
    share = len(defined) / max(1, len(values) - 1)
    if share < NEEDED:
        return None, None, f"no interval: the level is reached in {share:.0%} of resamples"
    return *percentile_interval(centred(float(values[0]), defined)), None
