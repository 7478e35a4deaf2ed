"""Series: arms that differ in their seed alone, the unit of choice, of lines and of labels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paretune.analyse.record import StudyRecord, group_order, method_group, unique_names
from paretune.study.arms import ArmConfig

if TYPE_CHECKING:
    import pandas as pd

ALL_BOLD = 8  # up to this many series are all drawn boldly


@dataclass(frozen=True)
class Series:
    """One method with all its settings, under one or more seeds.

    ``sweep`` is shared by the series that differ in learning rate alone; ``short`` is the name
    without what its group's name says already.
    """

    id: str
    sweep: str
    name: str
    short: str
    group: str
    config: ArmConfig
    arms: tuple[str, ...]


def all_series(record: StudyRecord) -> list[Series]:
    """The series of a study, by method, rank, learning rate and name."""
    members: dict[str, list[str]] = {}
    configs: dict[str, ArmConfig] = {}
    for arm in sorted(record.arms, key=lambda arm: (record.arms[arm].seed, arm)):
        alike = record.arms[arm].model_copy(update={"seed": 0})
        members.setdefault(alike.id, []).append(arm)
        configs[alike.id] = alike
    names = unique_names(configs)
    series = []
    for key, config in configs.items():
        group = method_group(config)
        sweep = config.model_copy(update={"learning_rate": 1.0}).id
        short = names[key].removeprefix(group).strip() or names[key]
        series.append(Series(key, sweep, names[key], short, group, config, tuple(members[key])))
    return sorted(
        series, key=lambda one: (group_order(one.group), one.config.learning_rate, one.name)
    )


def leading(series: list[Series], results: pd.DataFrame, learning: str) -> set[str]:
    """Ids of the series to draw boldly: of each sweep the rate that learned most at its end.

    ``results`` is the tidy table. The mean over seeds counts, at the largest budget that any
    series of the sweep reached. Every series leads where there are few, or nothing was learned.
    """
    if len(series) <= ALL_BOLD:
        return {one.id for one in series}
    rows = results[(results["metric"] == learning) & results["change"].notna()]
    learned: dict[str, tuple[int, float]] = {}
    by_arm = {str(arm): part for arm, part in rows.groupby("arm")}
    for one in series:
        parts = [by_arm[arm] for arm in one.arms if arm in by_arm]
        last = max((int(part["tokens"].max()) for part in parts), default=0)
        at_last = [
            float(change) for part in parts for change in part.loc[part["tokens"] == last, "change"]
        ]
        learned[one.id] = (last, sum(at_last) / len(at_last) if at_last else -math.inf)
    best: dict[str, str] = {}
    for one in series:
        if one.sweep not in best or learned[one.id] > learned[best[one.sweep]]:
            best[one.sweep] = one.id
    return set(best.values())
