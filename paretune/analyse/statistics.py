"""Paired differences of ratio scores: estimate, linearised standard error, interval, bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from paretune.evaluate.items import MIN_CLUSTERS, ratio_stderr

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


class UnpairedError(ValueError):
    """Two sets of outcomes do not hold the same items, so no paired difference exists."""


@dataclass(frozen=True)
class Aligned:
    """Outcomes of P models on the same n items: ``value`` and ``weight`` are [P, n]."""

    value: Floats
    weight: Floats
    clusters: Ints  # [n], 0 .. G-1: what is resampled or summed together

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

    The standard error is by linearisation (Cochran, Sampling Techniques, equation 6.13): item i
    contributes d_i = (v_ai - R_a w_ai) / mean(w_a) - (v_bi - R_b w_bi) / mean(w_b), which sum to
    zero, and the standard error is that of their mean, clustered as ``ratio_stderr`` does. The
    95% interval uses Student's t with G - 1 degrees of freedom, G the number of clusters.
    """
    try:
        pair = align([a, b])
    except UnpairedError as error:
        return Estimate(None, None, None, None, 0, str(error))
    n = pair.value.shape[1]
    score_a, score_b = pair.scores
    value = sign * float(score_a - score_b) + 0.0  # + 0.0: no change is never written as -0.0
    residual = (pair.value - pair.scores[:, None] * pair.weight) / pair.weight.mean(
        axis=1, keepdims=True
    )
    stderr = ratio_stderr(residual[0] - residual[1], np.ones(n), list(a["group"]))
    if stderr is None:
        return Estimate(value, None, None, None, n, "one item has no standard error")
    count = int(pair.clusters.max()) + 1
    half = t_quantile(count - 1) * stderr
    return Estimate(value, stderr, value - half, value + half, n)


def t_quantile(degrees: int, confidence: float = CONFIDENCE) -> float:
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


def bootstrap_scores(aligned: Aligned, resamples: int, seed: int) -> Floats:
    """[resamples, P] ratio scores on items (or clusters) drawn with replacement.

    Every model sees the same draws, which is what keeps comparisons paired. A draw whose weights
    sum to zero gives NaN.
    """
    count = int(aligned.clusters.max()) + 1
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(count, np.full(count, 1 / count), size=resamples)
    times = drawn[:, aligned.clusters].astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((times @ aligned.value.T) / (times @ aligned.weight.T))


def percentile_interval(draws: Floats, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Percentile bootstrap interval of [resamples] draws."""
    low, high = np.quantile(draws, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


_QUANTILES: dict[int, float] = {}
