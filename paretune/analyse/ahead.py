"""Settings of a study read at the budget after its last one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paretune.analyse.candidates import Candidates
from paretune.analyse.claims.evidence import Evidence
from paretune.analyse.curves import Curve, Forecast, Model, steady, working
from paretune.analyse.record import BASE
from paretune.analyse.statistics import Floats, percentile_interval

SEED = 29


@dataclass(frozen=True)
class Ahead:
    """A setting read at a budget that was not run."""

    setting: str
    name: str
    tokens: int
    learning: tuple[float, float, float]  # value, low, high
    forgetting: tuple[float, float, float]
    within: float | None


def ahead_of(candidates: Candidates, places: list[int]) -> list[Ahead]:
    """Settings that still learn, read at the budget after the last one."""
    x, y = candidates.learning[0], candidates.forgetting[0]
    by_key: dict[str, list[int]] = {}
    for index in places:
        by_key.setdefault(candidates.cells[index][0], []).append(index)
    curves = [
        Curve(key, np.array([float(candidates.cells[i][1]) for i in rows]), x[rows], y[rows])
        for key, rows in by_key.items()
    ]
    curves = [curve for curve in working(curves) if steady(curve)]
    budgets = candidates.evidence.record.budgets
    if not curves or len(budgets) < 2:
        return []
    tokens = round(budgets[-1] * budgets[-1] / budgets[-2])
    models = {axis: Model.fit(curves, axis) for axis in ("learning", "forgetting")}
    generator = np.random.default_rng(SEED)
    most = _most_to_learn(candidates.evidence)
    found = []
    for curve in curves:
        if curve.tokens[-1] != budgets[-1]:
            continue
        last = by_key[curve.name][-1]
        both = {axis: model.forecast(curve, axis, tokens) for axis, model in models.items()}
        learned = _spread(candidates, both["learning"], candidates.learning[1:, last], generator)
        learned = np.minimum(learned, most)
        forgot = _spread(candidates, both["forgetting"], candidates.forgetting[1:, last], generator)
        within = (
            None if candidates.limit is None else float((forgot[1:] <= candidates.limit).mean())
        )
        found.append(
            Ahead(
                curve.name,
                candidates.candidate(last).name,
                tokens,
                (float(learned[0]), *percentile_interval(learned[1:])),
                (float(forgot[0]), *percentile_interval(forgot[1:])),
                within,
            )
        )
    return sorted(found, key=lambda one: -one.learning[0])


def curves_of(evidence: Evidence) -> list[Curve]:
    """Every setting's learning and forgetting over its budgets, the mean of its seeds."""
    values = evidence.points.values
    found = []
    for key, budgets in sorted(evidence.cells.items()):
        tokens = sorted(budgets)
        means = np.array([values[budgets[at]].mean(axis=0) for at in tokens])
        found.append(Curve(key, np.array(tokens, dtype=np.float64), means[:, 0], means[:, 1]))
    return found


def _most_to_learn(evidence: Evidence) -> float:
    """What the base leaves to be learned: to no bits at all, or to every answer right."""
    rows = evidence.record.scores
    rows = rows[(rows["arm"] == BASE) & (rows["metric"] == evidence.points.learning_metric)]
    if rows.empty:
        return np.inf
    base = float(rows["value"].iloc[0])
    if not rows["higher_is_better"].iloc[0]:
        return base
    return 1 - base if rows["unit"].iloc[0] == "accuracy" else np.inf


def _spread(
    candidates: Candidates, forecast: Forecast, draws: Floats, generator: np.random.Generator
) -> Floats:
    """The forecast, then draws of it with the errors of items and runs added."""
    noise = draws - draws.mean() if candidates.resampled else np.zeros(len(draws))
    return np.concatenate([[forecast.value], forecast.draws(len(draws), generator) + noise])
