"""Comparing methods fairly: forgetting at matched learning, and at equal learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from paretune.analyse.frontier import not_dominated
from paretune.analyse.points import Points, measured
from paretune.analyse.record import StudyRecord, group_order, method_group
from paretune.analyse.results import read_items
from paretune.analyse.statistics import (
    Estimate,
    Floats,
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

    ``learning`` and ``forgetting`` are [R, P]. The lower envelope joins by straight lines the
    points that no other of the set beats, and is flat to their left: it is the least forgetting
    that came with at least that much learning. NaN where the level lies outside the learning of
    the set's points: nothing is extrapolated.
    """
    kept = not_dominated(learning, forgetting, base=False)
    level_R = np.broadcast_to(np.asarray(level, dtype=np.float64), (len(learning),))
    below = np.where(kept & (learning <= level_R[:, None]), learning, -np.inf)
    above = np.where(kept & (learning >= level_R[:, None]), learning, np.inf)
    rows = np.arange(len(learning))
    left, right = below.argmax(axis=1), above.argmin(axis=1)
    x0, x1 = below[rows, left], above[rows, right]
    y0, y1 = forgetting[rows, left], forgetting[rows, right]
    with np.errstate(invalid="ignore", divide="ignore"):
        inside = np.where(x1 > x0, y0 + (y1 - y0) * (level_R - x0) / (x1 - x0), y0)
    value = np.where(np.isneginf(x0), y1, inside)
    reached = (level_R >= learning.min(axis=1)) & (level_R <= learning.max(axis=1))
    return np.where(reached, value, np.nan)


def matched(
    record: StudyRecord, learning_levels: Sequence[float], *, points: Points | None = None
) -> pd.DataFrame:
    """Forgetting of each method group at given levels of learning (in the metric's unit).

    Groups are ``full``, ``lora`` (all ranks) and ``lora rN``; arms that differ only in their seed
    count once, by their mean. Columns: group, learning, forgetting, low, high, reason. The 95%
    interval is the percentile one over paired resamples of the items, the envelope found anew in
    each; the reason begins with "cannot be compared" where the level is out of a method's reach.
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
                low, high, reason = _interval(values[1:])
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
    levels = np.minimum(xa.max(axis=1), xb.max(axis=1))
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
    draws = draws_a[1:] - draws_b[1:]
    low, high, missing_interval = _interval(draws)
    stderr = float(np.nanstd(draws, ddof=1)) if low is not None else None
    difference = Estimate(at_a - at_b, stderr, low, high, count, missing_interval)
    return Matched(a, b, level, at_a, at_b, difference)


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
    outcomes = [read_items(record, arm, tokens, metric) for arm in (a, b)]
    for outcome in outcomes:
        if isinstance(outcome, str):
            return Estimate(None, None, None, None, 0, outcome)
    row = sides.loc[metric]
    sign = change_sign(str(row["side"]), bool(row["higher_is_better"]))
    return paired_difference(*outcomes, sign=sign)  # type: ignore[arg-type]


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
            names.append("lora")
        for name in names:
            members.setdefault(name, {}).setdefault(alike, []).append(index)

    def mean(values: Floats, sets: dict[str, list[int]]) -> Floats:
        return np.stack([values[:, indices].mean(axis=1) for indices in sets.values()], axis=1)

    return {
        name: (mean(x, members[name]), mean(y, members[name]))
        for name in sorted(members, key=group_order)
    }


def _interval(draws: Floats) -> tuple[float | None, float | None, str | None]:
    defined = draws[~np.isnan(draws)]
    share = len(defined) / max(1, len(draws))
    if share < NEEDED:
        return None, None, f"no interval: the level is reached in {share:.0%} of resamples"
    return *percentile_interval(defined), None
