"""A study as the claims see it: settings at budgets, and contrasts of them with their errors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from paretune.analyse.claims.verdict import missing
from paretune.analyse.points import Points, measured
from paretune.analyse.record import StudyRecord, method_group
from paretune.analyse.statistics import Estimate, Floats, change_sign, t_quantile
from paretune.study.arms import ArmConfig

if TYPE_CHECKING:
    import pandas as pd

Axis = Literal["learning", "forgetting"]
SEED = 17


@dataclass(frozen=True)
class Effect:
    """A contrast of points: its estimate, two-sided p, and where its variance comes from."""

    estimate: Estimate
    p: float | None = None
    item_variance: float = 0.0
    run_variance: float = 0.0
    unpaired: bool = False


@dataclass
class Evidence:
    """What a claim is tested on.

    ``points`` are the study's on its frontier's two metrics. ``unpaired`` says that the points
    have no outcomes item by item, so that differences have larger errors than they need.
    ``spectra`` has a row for each matrix of an arm at a budget, with the columns arm, tokens,
    layer, kind ("attention" or "mlp"), rank90 and null_rank90.
    """

    record: StudyRecord
    points: Points
    unpaired: bool = False
    spectra: pd.DataFrame | None = None
    notes: tuple[str, ...] = field(default=())

    @classmethod
    def of(
        cls,
        record: StudyRecord,
        spectra: pd.DataFrame | None = None,
        points: Points | None = None,
    ) -> Evidence:
        """The evidence of a study's record; ``points`` where they are measured already."""
        record = record.cached()
        return cls(record, points or measured(record), spectra=spectra)

    def on(self, metric: str) -> Evidence:
        """The same study with another metric in the place of the learning metric."""
        return replace(self, points=measured(self.record, learning=metric))

    def unit(self, axis: Axis) -> str:
        """Unit of an axis."""
        points = self.points
        metric = points.learning_metric if axis == "learning" else points.forgetting_metric
        rows = self.record.scores.loc[self.record.scores["metric"] == metric, "unit"]
        return str(rows.iloc[0]) if len(rows) else ""

    @cached_property
    def settings(self) -> dict[str, ArmConfig]:
        """Settings that have points, by their key: arms that differ only in their seed are one."""
        found: dict[str, ArmConfig] = {}
        for arm, _ in self.points.points:
            config = self.record.arms[arm]
            found.setdefault(setting_key(config), config)
        return dict(sorted(found.items()))

    @cached_property
    def cells(self) -> dict[str, dict[int, list[int]]]:
        """Setting -> budget -> the points (one a seed) by their place in ``points``."""
        cells: dict[str, dict[int, list[int]]] = {}
        for index, (arm, tokens) in enumerate(self.points.points):
            key = setting_key(self.record.arms[arm])
            cells.setdefault(key, {}).setdefault(tokens, []).append(index)
        return cells

    @cached_property
    def repeats(self) -> tuple[int, int]:
        """Settings that were run under several seeds, and degrees of freedom of their spread."""
        return len(self._residuals), sum(len(rows) - 1 for rows in self._residuals)

    def groups(self) -> dict[str, list[str]]:
        """Plain settings by method and rank: regularised arms and variants are left out."""
        groups: dict[str, list[str]] = {}
        for key in self.plain():
            groups.setdefault(method_group(self.settings[key]), []).append(key)
        return groups

    def plain(self) -> list[str]:
        """Settings with no more weight decay or attention dropout than their method's least.

        Full finetuning and LoRA as it was published: the claims are not about its variants.
        """
        kept: list[str] = []
        for method in ("full", "lora"):
            same = {k: c for k, c in self.settings.items() if c.family == method}
            least = min((regularisation(c) for c in same.values()), default=(0.0, 0.0))
            kept += [key for key, config in same.items() if regularisation(config) == least]
        return kept

    def best(self, settings: Iterable[str]) -> str:
        """The setting that learned most at the last budget that all of them reached."""
        settings = sorted(settings)
        shared = set.intersection(*({*self.cells[key]} for key in settings))
        last = max(shared) if shared else None

        def learned(key: str) -> float:
            cell = self.cells[key][last if last is not None else max(self.cells[key])]
            return float(self.points.values[cell, 0].mean())

        return max(settings, key=learned)

    def full(self) -> str:
        """The best plain full setting."""
        groups = self.groups()
        if "full" not in groups:
            raise missing("the study has no scored full finetuning")
        return self.best(groups["full"])

    def ranks(self) -> dict[int, str]:
        """Each LoRA rank's best plain setting, by rank."""
        found: dict[int, str] = {}
        for group, keys in self.groups().items():
            if group.startswith("lora r"):
                found[int(group.removeprefix("lora r"))] = self.best(keys)
        if not found:
            raise missing("the study has no scored LoRA")
        return dict(sorted(found.items()))

    def key(self, arm: str) -> str:
        """The setting of an arm."""
        return setting_key(self.record.arms[arm])

    def draws(self, axis: Axis) -> Floats:
        """[1 + R, P] an axis: the estimates, then draws of the items and of the runs."""
        points = self.points
        column, draws = (
            (0, points.learning_draws) if axis == "learning" else (1, points.forgetting_draws)
        )
        noisy = draws + self._run_noise[column]
        return np.concatenate([points.values[None, :, column], noisy])

    def difference(self, axis: Axis, a: str, b: str) -> Effect:
        """Setting a minus setting b: the mean over the budgets that both have."""
        shared = sorted(self.cells[a].keys() & self.cells[b].keys())
        if not shared:
            reason = "no budget in common"
            return Effect(Estimate(None, None, None, None, 0, reason))
        weights: dict[int, float] = {}
        for sign, key in ((1.0, a), (-1.0, b)):
            for tokens in shared:
                cell = self.cells[key][tokens]
                for index in cell:
                    weights[index] = weights.get(index, 0.0) + sign / len(cell) / len(shared)
        return self.contrast(axis, weights)

    def contrast(self, axis: Axis, weights: Mapping[int, float]) -> Effect:
        """A weighted sum of points, with a t interval.

        The standard error is that of the bootstrap over items, and the spread of repeated runs
        added to it; degrees of freedom by Welch and Satterthwaite.
        """
        points = self.points
        c = np.zeros(len(points.points))
        for index, weight in weights.items():
            c[index] = weight
        column, draws, all_n = (
            (0, points.learning_draws, points.learning)
            if axis == "learning"
            else (1, points.forgetting_draws, points.forgetting)
        )
        value = float(points.values[:, column] @ c)
        n = min(all_n[index].n for index in weights)
        if points.resampled < 2:
            reason = "one item has no interval"
            return Effect(Estimate(value, None, None, None, n, reason))
        # Draws of a t distribution vary more than their standard error by d / (d - 2)
        free = points.degrees[column] if points.degrees else points.resampled - 1.0
        shrink = (free + 1) / free
        if points.degrees:
            shrink = (free - 2) / free if free > 3 else 1.0
        items = float((draws @ c).var(ddof=1)) * shrink
        runs = self._run_variance(column, c)
        stderr = float(np.sqrt(items + runs))
        parts = [(items, free), (runs, float(self.repeats[1]))]
        degrees = _degrees(parts)
        half = t_quantile(degrees) * stderr
        estimate = Estimate(value, stderr, value - half, value + half, n)
        return Effect(estimate, two_sided(value, stderr, degrees), items, runs, self.unpaired)

    def metric(self, names: Iterable[str]) -> str | None:
        """The first scored metric whose name, or its part after the slash, is one of these."""
        scored = self.record.metrics()
        for name in names:
            for metric in scored:
                if name in (metric, metric.partition("/")[2]):
                    return metric
        return None

    def raw_sign(self, metric: str) -> float:
        """Turns a change of this metric (positive: learned or forgotten) into arm minus base."""
        row = self.record.scores[self.record.scores["metric"] == metric].iloc[0]
        return change_sign(str(row["side"]), bool(row["higher_is_better"]))

    @cached_property
    def _residuals(self) -> list[Floats]:
        """For each setting with several runs at all budgets: [S, 2, B] deviations of its runs."""
        budgets = sorted({tokens for _, tokens in self.points.points})
        found = []
        for key in self.cells:
            runs: dict[str, dict[int, int]] = {}
            for tokens, cell in self.cells[key].items():
                for index in cell:
                    runs.setdefault(self.points.points[index][0], {})[tokens] = index
            whole = [run for run in runs.values() if sorted(run) == budgets]
            if len(whole) > 1:
                values = np.stack(
                    [self.points.values[[run[tokens] for tokens in budgets]].T for run in whole]
                )
                found.append(values - values.mean(axis=0))
        return found

    @cached_property
    def _loadings(self) -> Floats:
        """[T, 2, P] vectors whose Gaussian mixture, a draw for each run, has the runs' covariance.

        The covariance over axes and budgets is pooled over the repeated settings, and is taken to
        hold for all arms.
        """
        if not self._residuals:
            return np.zeros((0, 2, len(self.points.points)))
        budgets = sorted({tokens for _, tokens in self.points.points})
        place = [budgets.index(tokens) for _, tokens in self.points.points]
        rows = np.concatenate(self._residuals) / np.sqrt(self.repeats[1])
        return np.asarray(rows[:, :, place])

    @cached_property
    def _runs(self) -> np.ndarray:
        """[P] number of the run that each point belongs to."""
        names = {
            arm: i for i, arm in enumerate(dict.fromkeys(arm for arm, _ in self.points.points))
        }
        return np.array([names[arm] for arm, _ in self.points.points], dtype=np.int64)

    @cached_property
    def _run_noise(self) -> Floats:
        """[2, R, P] draws of the deviation of each run."""
        loadings, resamples = self._loadings, len(self.points.learning_draws)
        count = len(self.points.points)
        if not len(loadings):
            return np.zeros((2, resamples, count))
        generator = np.random.default_rng(SEED)
        z = generator.standard_normal((len(loadings), resamples, int(self._runs.max()) + 1))
        return np.asarray(np.einsum("trp,tap->arp", z[:, :, self._runs], loadings))

    def _run_variance(self, column: int, c: Floats) -> float:
        if not len(self._loadings):
            return 0.0
        weighted = self._loadings[:, column, :] * c
        return float(
            sum((weighted[:, self._runs == run].sum(axis=1) ** 2).sum() for run in set(self._runs))
        )


def setting_key(config: ArmConfig) -> str:
    """What arms share that differ only in their seed."""
    return config.model_copy(update={"seed": 0}).id


def regularisation(config: ArmConfig) -> tuple[float, float]:
    """Weight decay (torch's convention) and attention dropout."""
    return config.decay, config.attention_dropout or 0.0


def two_sided(value: float, stderr: float, degrees: float) -> float:
    """Two-sided p of Student's t."""
    from scipy.special import stdtr

    if stderr == 0:
        return 1.0 if value == 0 else 0.0
    return float(2 * stdtr(degrees, -abs(value) / stderr))


def _degrees(parts: list[tuple[float, float]]) -> float:
    """Welch and Satterthwaite: of a sum of variances, each with its degrees of freedom."""
    total = sum(variance for variance, _ in parts)
    spread = sum(variance**2 / degrees for variance, degrees in parts if variance and degrees)
    return max(1.0, round(total**2 / spread)) if spread else max(1.0, parts[0][1])
