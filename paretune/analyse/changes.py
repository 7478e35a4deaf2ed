"""Every metric of finished models against their base: changes, flips, and corrected p-values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from paretune.analyse.flips import count_flips
from paretune.analyse.record import BASE, StudyRecord
from paretune.analyse.statistics import align, change_sign, holm, p_value, paired_difference


@dataclass(frozen=True)
class Change:
    """One metric of one checkpoint against the base, paired item by item.

    ``change`` is signed so that positive is learned on the target and forgotten on the source;
    ``p`` is two-sided, after Holm's correction over all rows of the assessment. ``lost`` and
    ``gained`` count right-or-wrong items that flipped, None for other metrics.
    """

    model: str
    metric: str
    side: str
    base_value: float | None
    value: float | None
    change: float | None
    low: float | None
    high: float | None
    p: float | None
    lost: int | None
    gained: int | None
    n: int
    reason: str | None


def changes(record: StudyRecord, names: Sequence[str], metrics: Sequence[str]) -> list[Change]:
    """Every metric of every checkpoint against the base."""
    rows: list[dict[str, Any]] = []
    estimates = []
    scores = {(row["arm"], row["metric"]): row for row in record.scores.to_dict("records")}
    for name in names:
        for metric in metrics:
            own, before = scores[name, metric], scores[BASE, metric]
            frames = [record.items(arm, 0, metric) for arm in (BASE, name)]
            sign = change_sign(str(own["side"]), bool(own["higher_is_better"]))
            estimate = paired_difference(frames[1], frames[0], sign=sign)
            flips = None
            if estimate.value is not None and align(frames).binary:
                flips = count_flips(*align(frames).value)
            estimates.append(estimate)
            rows.append(
                {
                    "model": name,
                    "metric": metric,
                    "side": str(own["side"]),
                    "base_value": before["value"],
                    "value": own["value"],
                    "change": estimate.value,
                    "low": estimate.low,
                    "high": estimate.high,
                    "lost": None if flips is None else flips.forgotten,
                    "gained": None if flips is None else flips.learned,
                    "n": estimate.n,
                    "reason": estimate.reason,
                }
            )
    p_values = [p_value(estimate) for estimate in estimates]
    known = [p for p in p_values if p is not None]
    adjusted = iter(holm(known))
    return [
        Change(**row, p=None if p is None else next(adjusted))
        for row, p in zip(rows, p_values, strict=True)
    ]
