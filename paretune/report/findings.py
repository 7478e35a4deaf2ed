"""All that a report states about a study, computed once from its record."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING

from paretune.analyse.frontier import frontier
from paretune.analyse.matched import Matched, equal_rate, matched, matched_difference
from paretune.analyse.points import Points, measured
from paretune.analyse.record import StudyRecord, group_order, method_group
from paretune.analyse.results import tidy
from paretune.report.series import Series, all_series, leading
from paretune.report.words import metric_words

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class Findings:
    """A record with its tidy results, a frontier per forgetting metric, and the comparisons.

    ``points`` and ``frontiers`` are by forgetting metric; ``main`` is the study's own choice.
    ``compared`` holds every pair of method groups at matched learning, ``full`` against ``lora``
    first; ``levels`` is the forgetting of each group at a few levels of learning.
    """

    record: StudyRecord
    results: pd.DataFrame
    names: dict[str, str]
    groups: dict[str, str]
    points: dict[str, Points]
    frontiers: dict[str, pd.DataFrame]
    compared: list[Matched]
    levels: pd.DataFrame
    equal_rate: pd.DataFrame

    @classmethod
    def of(cls, record: StudyRecord, points: Points | None = None) -> Findings:
        """Compute everything; a study without scores gives empty tables.

        ``points`` stands for what is measured from outcomes where those are not there: then only
        its own forgetting metric is looked at.
        """
        record = record.cached()
        if points is not None:
            by_metric = {points.forgetting_metric: points}
        else:
            by_metric = {
                metric: measured(record, forgetting=metric)
                for metric in record.forgetting_metrics()
            }
            main = record.config.forgetting_metric()
            if main not in by_metric:
                by_metric = {main: measured(record), **by_metric}
        first = next(iter(by_metric.values()))
        groups = {arm: method_group(config) for arm, config in record.arms.items()}
        return cls(
            record=record,
            results=tidy(record),
            names=record.names(),
            groups=groups,
            points=by_metric,
            frontiers={
                metric: frontier(record, forgetting=metric, points=these)
                for metric, these in by_metric.items()
            },
            compared=_compared(record, first, groups),
            levels=matched(record, _levels(first), points=first),
            equal_rate=equal_rate(record),
        )

    @cached_property
    def series(self) -> list[Series]:
        """Arms that differ in their seed alone, by method, rank and learning rate."""
        return all_series(self.record)

    @cached_property
    def series_by_id(self) -> dict[str, Series]:
        """The series by their ids."""
        return {one.id: one for one in self.series}

    @cached_property
    def leads(self) -> set[str]:
        """Ids of the series that charts draw boldly."""
        return leading(self.series, self.results, self.learning)

    def words(self, metric: str) -> str:
        """A metric of this study in plain words."""
        return metric_words(metric, self.record.config.regime)

    @property
    def learning(self) -> str:
        """The metric of the learning axis."""
        return self.points[self.main].learning_metric

    @property
    def main(self) -> str:
        """The forgetting metric that the study's frontier is drawn with."""
        return next(iter(self.points))

    def unit(self, metric: str) -> str:
        """Unit of a metric's values and changes; empty when it has no scores."""
        rows = self.results.loc[self.results["metric"] == metric, "unit"]
        return str(rows.iloc[0]) if len(rows) else ""


def _compared(record: StudyRecord, points: Points, groups: dict[str, str]) -> list[Matched]:
    """Full against LoRA of all ranks, then each pair of groups that have points."""
    scored = {groups[arm] for arm, _ in points.points}
    names = sorted(scored, key=group_order)
    lora = [name for name in names if name.startswith("lora r")]
    pairs = [("full", "lora")] if "full" in names and len(lora) > 1 else []
    pairs += list(combinations(names, 2))
    return [matched_difference(record, a, b, points=points) for a, b in pairs]


def _levels(points: Points) -> list[float]:
    """Quarters of the most that any point learned, to two digits; empty when nothing was."""
    most = max((estimate.value or 0.0 for estimate in points.learning), default=0.0)
    if most <= 0:
        return []
    return sorted({float(f"{most * share:.2g}") for share in (0.2, 0.4, 0.6, 0.8)})
