"""Every setting against every other on one metric: items and seeds paired, p-values corrected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from paretune.analyse.record import StudyRecord
from paretune.analyse.results import read_items
from paretune.analyse.statistics import (
    Aligned,
    Estimate,
    UnpairedError,
    align,
    change_sign,
    effective_degrees,
    holm,
    influence,
    t_quantile,
)

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = [
    "a", "b", "difference", "low", "high", "p", "p_holm", "n", "seeds",
    "item_stderr", "seed_stderr", "detectable", "note",
]  # fmt: skip
POWER = 0.80
ONE_RUN = "one run of each: the interval is for these runs, not for other seeds"


@dataclass(frozen=True)
class Seeded:
    """A difference of two settings, with what items and what seeds contribute to its variance."""

    estimate: Estimate
    p: float | None
    item_variance: float
    item_degrees: float
    seed_variance: float = 0.0
    seed_degrees: float = 0.0
    seeds: int = 1
    note: str = ""


@dataclass(frozen=True)
class Runs:
    """Variance of a run's score about its setting's mean, pooled over settings.

    ``gross`` holds what scoring each run on a sample of items adds to it, ``net`` does not.
    """

    net: float = 0.0
    gross: float = 0.0
    degrees: int = 0


def two_sources(
    value: float, item: tuple[float, float], seed: tuple[float, float], n: int
) -> tuple[Estimate, float]:
    """An estimate whose variance has two parts, each (variance, degrees of freedom), with its p.

    The half-width of the interval is sqrt(t_items^2 V_items + t_seeds^2 V_seeds) (Graybill and
    Wang, Journal of the American Statistical Association 75, 1980): with two or three seeds it
    keeps its coverage, where a t interval with Satterthwaite's degrees of freedom is too short.
    The two-sided p is one minus the confidence at which the interval just reaches 0.
    """
    from scipy.special import stdtrit

    parts = [(variance, degrees) for variance, degrees in (item, seed) if variance > 0]
    stderr = float(np.sqrt(sum(variance for variance, _ in parts)))

    def half(confidence: float) -> float:
        quantile = 0.5 + confidence / 2
        return float(np.sqrt(sum(stdtrit(d, quantile) ** 2 * v for v, d in parts)))

    width = half(0.95)
    estimate = Estimate(value, stderr, value - width, value + width, n)
    if len(parts) <= 1:
        estimate = replace(estimate, degrees=parts[0][1] if parts else item[1])
    if not parts:
        return estimate, 1.0 if value == 0 else 0.0
    low, high = 0.0, 1.0 - 1e-15
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if half(middle) < abs(value) else (low, middle)
    return estimate, 1.0 - low


def seeded_difference(
    aligned: Aligned,
    a: Mapping[int, int],
    b: Mapping[int, int],
    *,
    sign: float = 1.0,
    runs: Runs = Runs(),
) -> Seeded:
    """``sign`` * (setting a - setting b), over the seeds that both have, else over all of each.

    Items and seeds are crossed: every run is scored on the same items. The variance over items is
    the jackknife's of the mean over seeds; that over seeds is the spread of the paired
    differences, less what scoring each run on a sample of items adds to it. Where the study
    knows more of the spread between runs, from all its repeated settings, that is used:
    ``runs``, taken to be alike for all settings. For p the interval is
    not made shorter by taking off: far out in the tail, where corrected p-values lie, a spread of
    a few runs that happens to be small would mislead.

    Args:
        aligned: outcomes of all runs on the same items.
        a: seed -> place of that run in ``aligned``; ``b`` likewise.
    """
    shared = sorted(a.keys() & b.keys())
    rows_a = [a[seed] for seed in (shared or sorted(a))]
    rows_b = [b[seed] for seed in (shared or sorted(b))]
    scores = aligned.scores
    value = sign * float(scores[rows_a].mean() - scores[rows_b].mean()) + 0.0
    n = aligned.value.shape[1]
    seeds = len(shared)
    if aligned.varying < 2:
        reason = "one item has no standard error"
        nothing = Estimate(value, None, None, None, n, reason)
        return Seeded(nothing, None, 0.0, 0.0, seeds=seeds, note=reason)
    every = influence(aligned)
    moves = every[:, rows_a].mean(axis=1) - every[:, rows_b].mean(axis=1)
    items = (float(moves @ moves), effective_degrees(aligned))
    note, whole = "", 0.0
    if seeds >= 2 and runs.degrees <= seeds - 1:
        differences = scores[rows_a] - scores[rows_b]
        each = every[:, rows_a] - every[:, rows_b]
        # What items and seeds do together is in both parts: it counts once, with the items
        both = float(((each - moves[:, None]) ** 2).sum()) / (seeds - 1) / seeds
        whole = float(differences.var(ddof=1)) / seeds
        spread = (max(whole - both, 0.0), float(seeds - 1))
    elif runs.degrees:
        times = 1 / len(rows_a) + 1 / len(rows_b)
        spread, whole = (runs.net * times, float(runs.degrees)), runs.gross * times
        note = "spread of runs pooled over the settings with several seeds"
    else:
        spread, note = (0.0, 0.0), ONE_RUN
    estimate, p = two_sources(value, items, spread, n)
    if whole:
        p = max(p, two_sources(value, items, (whole, spread[1]), n)[1])
    return Seeded(estimate, p, *items, *spread, seeds=max(seeds, 1), note=note)


def run_variance(aligned: Aligned, settings: Iterable[Mapping[int, int]]) -> Runs:
    """The spread of runs, from the settings that have several.

    Args:
        settings: for each setting, seed -> place of that run in ``aligned``.
    """
    moves = influence(aligned) if aligned.varying > 1 else np.zeros((1, len(aligned.value)))
    squares, sampled, degrees = 0.0, 0.0, 0
    for places in settings:
        rows = list(places.values())
        values, parts = aligned.scores[rows], moves[:, rows]
        squares += float(((values - values.mean()) ** 2).sum())
        sampled += float(((parts - parts.mean(axis=1, keepdims=True)) ** 2).sum())
        degrees += len(rows) - 1
    if not degrees:
        return Runs()
    return Runs(max(squares - sampled, 0.0) / degrees, squares / degrees, degrees)


def compare_pairs(
    record: StudyRecord, metric: str | None = None, tokens: int | None = None
) -> pd.DataFrame:
    """All pairs of settings on one metric at one budget, the last by default.

    A setting is what arms share that differ only in their seed, named by its first arm. The
    difference is a minus b, positive when a learned (or, on the source, forgot) more. ``p_holm``
    corrects over all pairs; ``detectable`` is the smallest difference that the pair would show at
    80% power, without correction. Runs whose items are missing, damaged or not finite are left
    out; where the items of the others are not the same ones, ``note`` says so on every pair.
    """
    import pandas as pd

    record = record.cached()
    metric = metric or record.learning_metric()
    tokens = tokens or (record.budgets[-1] if record.budgets else 0)
    settings, frames = _outcomes(record, metric, tokens)
    if not frames:
        return pd.DataFrame({name: [] for name in COLUMNS})
    row = record.scores[record.scores["metric"] == metric].iloc[0]
    sign = change_sign(str(row["side"]), bool(row["higher_is_better"]))
    pairs = list(combinations(settings, 2))
    try:
        aligned = align(frames)
    except UnpairedError as error:
        found = [_unpaired(str(error))] * len(pairs)
    else:
        runs = run_variance(aligned, settings.values())
        found = [
            seeded_difference(aligned, settings[a], settings[b], sign=sign, runs=runs)
            for a, b in pairs
        ]
    tested = [one.p for one in found if one.p is not None]
    adjusted = iter(holm(tested))
    rows = []
    for (a, b), one in zip(pairs, found, strict=True):
        estimate = one.estimate
        rows.append(
            (
                a,
                b,
                estimate.value,
                estimate.low,
                estimate.high,
                one.p,
                None if one.p is None else next(adjusted),
                estimate.n,
                one.seeds,
                np.sqrt(one.item_variance),
                np.sqrt(one.seed_variance),
                detectable(one),
                one.note,
            )
        )
    numbers = [name for name in COLUMNS if name not in ("a", "b", "n", "seeds", "note")]
    return pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(numbers, "float64"))


def detectable(one: Seeded, power: float = POWER) -> float | None:
    """The smallest true difference that a test at 5% would find with this probability.

    (t_0.975 + t_power) standard errors, each source of variance with its own degrees of freedom.
    """
    if one.estimate.stderr is None:
        return None
    total = 0.0
    for variance, degrees in (
        (one.item_variance, one.item_degrees),
        (one.seed_variance, one.seed_degrees),
    ):
        if variance > 0:
            total += variance * (t_quantile(degrees) + t_quantile(degrees, 2 * power - 1)) ** 2
    return float(np.sqrt(total))


def _unpaired(reason: str) -> Seeded:
    """A pair of which nothing can be said."""
    unknown = float("nan")
    nothing = Estimate(None, None, None, None, 0, reason)
    return Seeded(nothing, None, unknown, 0.0, unknown, seeds=0, note=reason)


def _outcomes(
    record: StudyRecord, metric: str, tokens: int
) -> tuple[dict[str, dict[int, int]], list[pd.DataFrame]]:
    """Settings by their first arm -> seed -> place in the list of outcomes."""
    scores = record.scores
    scored = set(scores.loc[(scores["metric"] == metric) & (scores["tokens"] == tokens), "arm"])
    first: dict[str, str] = {}
    settings: dict[str, dict[int, int]] = {}
    frames: list[pd.DataFrame] = []
    for arm, config in record.arms.items():
        items = read_items(record, arm, tokens, metric) if arm in scored else ""
        if isinstance(items, str) or not np.isfinite(items["value"]).all():
            continue
        name = first.setdefault(config.model_copy(update={"seed": 0}).id, arm)
        settings.setdefault(name, {})[config.seed] = len(frames)
        frames.append(items)
    return settings, frames
