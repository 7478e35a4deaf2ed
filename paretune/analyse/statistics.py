"""Paired differences of ratio scores: estimates, jackknife errors, intervals and draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from paretune.evaluate.items import MIN_CLUSTERS

if TYPE_CHECKING:
    import pandas as pd

CONFIDENCE = 0.95
Floats = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Estimate:
    """A number with its uncertainty; what is undefined is None, and ``reason`` says why."""

    value: float | None
    stderr: float | None
    low: float | None
    high: float | None
    n: int
    reason: str | None = None
    degrees: float | None = None  # of the t interval


class UnpairedError(ValueError):
    """Two sets of outcomes do not hold the same items, so no paired difference exists."""


@dataclass(frozen=True)
class Aligned:
    """Outcomes of P models on the same n items: ``value`` and ``weight`` are [P, n]."""

    value: Floats
    weight: Floats
    clusters: Ints  # [n], 0 .. G-1: what is resampled or summed together

    @property
    def count(self) -> int:
        """G, the number of clusters."""
        return int(self.clusters.max()) + 1

    @property
    def varying(self) -> int:
        """How many clusters carry weight, in every model: one alone cannot vary."""
        return int((self.by_cluster[1] > 0).sum(axis=1).min())

    @property
    def binary(self) -> bool:
        """Whether every outcome is right (1) or wrong (0), each of weight 1."""
        return bool(np.isin(self.value, (0.0, 1.0)).all() and (self.weight == 1).all())

    @cached_property
    def by_cluster(self) -> tuple[Floats, Floats]:
        """[P, G] sums of values and of weights within clusters."""
        return self._summed(self.value), self._summed(self.weight)

    def _summed(self, rows: Floats) -> Floats:
        sums = [np.bincount(self.clusters, row, minlength=self.count) for row in rows]
        return np.asarray(sums, dtype=np.float64)

    @property
    def scores(self) -> Floats:
        """[P] ratio estimates sum(value) / sum(weight)."""
        return np.asarray(self.value.sum(axis=1) / self.weight.sum(axis=1))


def align(frames: Sequence[pd.DataFrame]) -> Aligned:
    """Bring outcomes (columns item, group, value, weight) into the first frame's item order.

    Raises:
        UnpairedError: no items, an item twice, other items than the first frame's, a value that is
            not finite, or weights that sum to zero.
    """
    first = frames[0]
    if len(first) == 0:
        raise UnpairedError("there are no items")
    if first["item"].duplicated().any():
        raise UnpairedError("an item occurs twice")
    values, weights = [], []
    for frame in frames:
        if not frame["item"].equals(first["item"]):
            if len(frame) != len(first) or set(frame["item"]) != set(first["item"]):
                raise UnpairedError("the items are not the same ones")
            frame = frame.set_index("item").loc[list(first["item"])]
        values.append(frame["value"].to_numpy(dtype=np.float64))
        weights.append(frame["weight"].to_numpy(dtype=np.float64))
    value, weight = np.stack(values), np.stack(weights)
    if not (np.isfinite(value).all() and np.isfinite(weight).all()):
        raise UnpairedError("an item's outcome is not a finite number")
    if (weight.sum(axis=1) <= 0).any():
        raise UnpairedError("the items' weights sum to zero")
    return Aligned(value, weight, cluster_index(list(first["group"])))


def cluster_index(groups: Sequence[str]) -> Ints:
    """[n] cluster of each item: its group when there are at least 8, else the item itself."""
    names = sorted({str(group) for group in groups})
    if len(names) < MIN_CLUSTERS:
        return np.arange(len(groups), dtype=np.int64)
    number = {name: index for index, name in enumerate(names)}
    return np.array([number[str(group)] for group in groups], dtype=np.int64)


def paired_difference(a: pd.DataFrame, b: pd.DataFrame, *, sign: float = 1.0) -> Estimate:
    """``sign`` * (score of a - score of b), both scored on the same items.

    The standard error is the jackknife's over clusters (groups, or items where groups are few),
    and the 95% interval Student's t with ``effective_degrees``: with clusters of unequal size the
    plain G - 1 is too many. Right-or-wrong outcomes get the error of ``influence``.
    """
    try:
        pair = align([a, b])
    except UnpairedError as error:
        return Estimate(None, None, None, None, 0, str(error))
    return contrast(pair, np.array([sign, -sign]))


def contrast(aligned: Aligned, coefficients: Floats) -> Estimate:
    """A weighted sum of P models' scores, with its jackknife standard error and t interval."""
    n = aligned.value.shape[1]
    value = float(aligned.scores @ coefficients) + 0.0  # + 0.0: never written as -0.0
    if aligned.varying < 2:
        reason = "one item has no standard error"
        if aligned.count > 1:
            reason = "one cluster holds all the weight"
        return Estimate(value, None, None, None, n, reason)
    moves = influence(aligned) @ coefficients
    return interval(value, float(np.sqrt(moves @ moves)), effective_degrees(aligned), n)


def interval(value: float, stderr: float, degrees: float, n: int) -> Estimate:
    """An estimate with its t interval."""
    half = t_quantile(degrees) * stderr
    return Estimate(value, stderr, value - half, value + half, n, degrees=degrees)


def influence(aligned: Aligned) -> Floats:
    """[C, P] how far each cluster moves each model's score: standard error^2 = sum of squares.

    At least two clusters must carry weight (``varying``).

    Delete-one-cluster jackknife (Shao and Tu, The Jackknife and Bootstrap, 1995):
    (score without the cluster - score) * sqrt((G - 1) / G). With equal clusters it is the
    linearised error, with unequal ones larger. Where all outcomes are 0 or 1, one row for each
    model follows, 1 / (n + 2) for it alone: a difference then has the standard error of Bonett
    and Price (Journal of Educational and Behavioral Statistics 37, 2012), which is not zero when
    no item flipped.
    """
    groups = aligned.count
    value, weight = aligned.by_cluster
    total_v, total_w = value.sum(axis=1, keepdims=True), weight.sum(axis=1, keepdims=True)
    without = (total_v - value) / (total_w - weight)
    moves = (without - total_v / total_w).T * np.sqrt((groups - 1) / groups)
    if not aligned.binary:
        return np.asarray(moves)
    n = aligned.value.shape[1]
    return np.concatenate([moves, np.eye(len(aligned.value)) / (n + 2)])


def effective_degrees(aligned: Aligned) -> float:
    """Degrees of freedom of the jackknife variance over clusters of unequal weight.

    Bell and McCaffrey (Survey Methodology 28, 2002) for a weighted mean of independent items: with
    q = p / (1 - p) of each cluster's share p of the weight,
    (sum q)^2 / (sum q^2 + (sum q^2)^2 - sum q^4). That is G - 1 when all shares are equal.
    """
    weight = aligned.by_cluster[1].mean(axis=0)
    p = weight / weight.sum()
    q = p / np.maximum(1 - p, 1e-12)
    squares = float((q**2).sum())
    return float(q.sum() ** 2 / (squares + squares**2 - (q**4).sum()))


def p_value(estimate: Estimate) -> float | None:
    """Two-sided p of Student's t that the true value is 0; None where there is no error."""
    if estimate.value is None or estimate.stderr is None or estimate.degrees is None:
        return None
    if estimate.stderr == 0:
        return 1.0 if estimate.value == 0 else 0.0
    from scipy.special import stdtr

    return float(2 * stdtr(estimate.degrees, -abs(estimate.value) / estimate.stderr))


def t_quantile(degrees: float, confidence: float = CONFIDENCE) -> float:
    """Half-width of a two-sided Student's t interval, in standard errors."""
    if degrees not in _QUANTILES or confidence != CONFIDENCE:
        from scipy.special import stdtrit

        quantile = float(stdtrit(degrees, 0.5 + confidence / 2))
        if confidence != CONFIDENCE:
            return quantile
        _QUANTILES[degrees] = quantile
    return _QUANTILES[degrees]


def change_sign(side: str, higher_is_better: bool) -> float:
    """Sign of (arm - base) so that learning on the target and forgetting on the source are > 0."""
    better = 1.0 if higher_is_better else -1.0
    return better if side == "target" else -better


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values (Holm, Scandinavian Journal of Statistics 6, 1979), in the order given.

    The k-th smallest of m is multiplied by m - k + 1, and made at least as large as those before
    it. Rejecting what is at most 5% keeps the chance of any false rejection at most 5%, whatever
    the dependence between the tests.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    scaled = p[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return [float(value) for value in adjusted]


def bootstrap_scores(aligned: Aligned, resamples: int, seed: int) -> Floats:
    """[resamples, P] scores as other items (or clusters) might have given them.

    A wild cluster bootstrap on the jackknife's influences: each draw moves the scores by a normal
    multiple of every cluster's influence, the same for all models, which is what keeps comparisons
    paired, divided by the root of a chi-squared over its degrees of freedom. So the percentile
    interval of any weighted sum of scores is its t interval, also with few and unequal clusters,
    where drawing clusters with replacement gives intervals that are too short. One item or cluster
    alone cannot vary: every draw is then the scores themselves.
    """
    if aligned.varying < 2:
        return np.tile(aligned.scores, (resamples, 1))
    moves, degrees = influence(aligned), effective_degrees(aligned)
    generator = np.random.default_rng(seed)
    normal = generator.standard_normal((resamples, len(moves)))
    scale = np.sqrt(generator.chisquare(degrees, size=(resamples, 1)) / degrees)
    return np.asarray(aligned.scores + (normal / scale) @ moves)


def percentile_interval(draws: Floats, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Percentile bootstrap interval of [resamples] draws."""
    low, high = np.quantile(draws, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def centred(value: float, draws: Floats) -> Floats:
    """[resamples] draws, moved so that their median is the estimate.

    For what takes the best of several noisy points, such as an envelope or an area: each draw adds
    noise to an estimate that has it already, so the best comes out too good once more, and the
    draws lie to one side of the estimate. Moving them back takes that second bias away; the
    bootstrap with bias correction by a constant (Efron and Tibshirani, An Introduction to the
    Bootstrap, 1993, section 10.6).
    """
    return np.asarray(draws + (value - np.median(draws)))


_QUANTILES: dict[float, float] = {}
