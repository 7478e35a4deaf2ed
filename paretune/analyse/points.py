"""Arms at budgets as points of learning and forgetting, with paired draws of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from paretune.analyse.record import BASE, StudyRecord
from paretune.analyse.results import read_all
from paretune.analyse.statistics import (
    Estimate,
    Floats,
    align,
    bootstrap_scores,
    change_sign,
    effective_degrees,
    paired_difference,
)

if TYPE_CHECKING:
    import pandas as pd

Point = tuple[str, int]  # arm id, tokens
RESAMPLES = 2000
SEED = 0


@dataclass
class Points:
    """P points and R bootstrap draws of their learning and forgetting, both against the base.

    Draws are [R, P]; within an axis all points share each draw's items. ``left_out`` names the
    points that were scored but cannot be compared, with the reason.
    """

    learning_metric: str
    forgetting_metric: str
    points: list[Point] = field(default_factory=list)
    learning: list[Estimate] = field(default_factory=list)
    forgetting: list[Estimate] = field(default_factory=list)
    learning_draws: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    forgetting_draws: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    resampled: int = 0  # fewest clusters with weight of the two axes: below 2, draws say nothing
    degrees: tuple[float, float] | None = None  # of the errors of the two axes
    left_out: dict[Point, str] = field(default_factory=dict)
    reason: str | None = None

    @property
    def values(self) -> Floats:
        """[P, 2] learning and forgetting."""
        pairs = zip(self.learning, self.forgetting, strict=True)
        return np.array([[x.value, y.value] for x, y in pairs], dtype=np.float64).reshape(-1, 2)


def measured(
    record: StudyRecord,
    learning: str | None = None,
    forgetting: str | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Points:
    """The study's points on two metrics (its frontier's, unless named), sorted by arm and tokens.

    Items of the two metrics are drawn independently of each other: they are different texts.
    """
    result = Points(
        learning or record.learning_metric(), forgetting or record.config.forgetting_metric()
    )
    metrics = (result.learning_metric, result.forgetting_metric)
    for metric in metrics:
        if metric not in set(record.scores["metric"]):
            result.reason = f"{metric} has no scores"
            return result
    outcomes: dict[Point, list[pd.DataFrame]] = {}
    base = read_all(record, [(BASE, 0, metric) for metric in metrics])
    if isinstance(base, str):
        result.reason = base
        return result
    for point in scored_points(record, metrics):
        frames = read_all(record, [(*point, metric) for metric in metrics])
        if isinstance(frames, str):
            result.left_out[point] = frames
            continue
        estimates = [
            paired_difference(frame, reference, sign=_sign(record, metric))
            for frame, reference, metric in zip(frames, base, metrics, strict=True)
        ]
        problem = next((e.reason for e in estimates if e.value is None), None)
        if problem is not None:
            result.left_out[point] = problem
            continue
        outcomes[point] = frames
        result.points.append(point)
        result.learning.append(estimates[0])
        result.forgetting.append(estimates[1])
    if not result.points:
        result.reason = "no arm has scores on both metrics"
        return result
    draws, clusters, degrees = [], [], []
    for axis, metric in enumerate(metrics):
        frames = [base[axis], *(outcomes[point][axis] for point in result.points)]
        aligned = align(frames)
        clusters.append(aligned.varying)
        degrees.append(effective_degrees(aligned) if aligned.varying > 1 else 0.0)
        scores = bootstrap_scores(aligned, resamples, seed + axis)
        draws.append(_sign(record, metric) * (scores[:, 1:] - scores[:, :1]))
    result.learning_draws, result.forgetting_draws = draws
    result.resampled = min(clusters)
    result.degrees = (degrees[0], degrees[1])
    return result


def scored_points(record: StudyRecord, metrics: Sequence[str]) -> list[Point]:
    """Arms (not the base) and budgets that have a score on every one of ``metrics``, sorted."""
    scores = record.scores
    sets: list[set[Point]] = []
    for metric in metrics:
        rows = scores[(scores["metric"] == metric) & (scores["arm"] != BASE)]
        sets.append({(str(a), int(t)) for a, t in zip(rows["arm"], rows["tokens"], strict=True)})
    return sorted(set.intersection(*sets))


def _sign(record: StudyRecord, metric: str) -> float:
    row = record.scores[record.scores["metric"] == metric].iloc[0]
    return change_sign(str(row["side"]), bool(row["higher_is_better"]))
