"""The null model: what a random matrix of the same shape would show.

The squared singular values of an n x N matrix with independent entries of variance 1/N follow the
law of Marchenko and Pastur (1967) with ratio beta = n / N <= 1. With
x = 1 + beta + 2 sqrt(beta) cos(theta), 0 <= theta <= pi, its density becomes
(2 / pi) sin^2(theta) / x dtheta, and the variance above an angle is (theta - sin cos) / pi
whatever beta is: both have closed forms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# 99% quantile of the Tracy-Widom law of order 1, for the largest value of pure noise
# (Johnstone, 2001, table 2)
_TRACY_WIDOM_99 = 2.0234
_NODES = 400


@dataclass(frozen=True)
class Null:
    """What a random matrix of one shape shows, whatever its norm.

    Attributes:
        rank90: expected smallest k whose k largest squared values hold 90% of the variance.
        effective_rank: exp of the entropy of the singular values' shares (Roy and Vetterli, 2007).
        stable_rank: squared Frobenius over squared spectral norm.
        median: the median singular value, for entries of variance 1.
        edge: what the largest singular value exceeds once in a hundred, for entries of variance 1.
    """

    rank90: float
    effective_rank: float
    stable_rank: float
    median: float
    edge: float


@lru_cache(maxsize=512)
def null(rows: int, columns: int, share: float = 0.9) -> Null:
    """The null of a matrix of this shape."""
    n, long = min(rows, columns), max(rows, columns)
    beta = n / long
    theta = angle_of_variance(share)
    # The smallest whole number above n F is on average half a unit above it
    rank = min(float(n), n * above(theta, beta) + 0.5)
    x, weight = _law(beta)
    sigma = np.sqrt(x)
    mean = float((weight * sigma).sum())
    entropy = -float((weight * (sigma / mean) * np.log(np.maximum(sigma, 1e-300) / mean)).sum())
    edge, width = edge_of(n, long)
    return Null(
        rank90=max(1.0, rank),
        effective_rank=n * math.exp(entropy),
        stable_rank=max(1.0, n * long / edge**2),
        median=math.sqrt(long * _median(beta)),
        edge=math.sqrt(edge**2 + _TRACY_WIDOM_99 * width),
    )


def angle_of_variance(share: float) -> float:
    """theta at which the values above hold ``share`` of the variance: (theta - sin cos) / pi."""
    low, high = 0.0, math.pi
    for _ in range(80):
        middle = (low + high) / 2
        if (middle - math.sin(middle) * math.cos(middle)) / math.pi < share:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def above(theta: float, beta: float) -> float:
    """Share of the singular values whose angle is at most ``theta`` (the largest have angle 0)."""
    if beta < 1e-3:
        # The closed form loses digits to cancellation; the law is smooth here
        nodes, weights = np.polynomial.legendre.leggauss(_NODES)
        t = theta * (nodes + 1) / 2
        x = 1 + beta + 2 * math.sqrt(beta) * np.cos(t)
        return float((weights * (2 / math.pi) * np.sin(t) ** 2 / x).sum() * theta / 2)
    p, q = 1 + beta, 2 * math.sqrt(beta)
    root = math.sqrt(beta)
    turn = (
        math.atan((1 - root) / (1 + root) * math.tan(theta / 2)) if theta < math.pi else math.pi / 2
    )
    inner = p * theta - q * math.sin(theta) - 2 * (1 - beta) * turn
    return 2 / math.pi * inner / q**2


def edge_of(n: int, long: int) -> tuple[float, float]:
    """Centre of the largest singular value of noise, and the width of its square's law.

    Centre and scale of the largest eigenvalue by Johnstone (2001), for entries of variance 1.
    """
    a, b = math.sqrt(max(long - 1, 1)), math.sqrt(n)
    return a + b, (a + b) * (1 / a + 1 / b) ** (1 / 3)


def signal_count(values: NDArray[np.float64], rows: int, columns: int) -> int:
    """How many singular values stand above what noise of this shape would reach.

    The noise's level is read from the median value (Gavish and Donoho, 2014), which a few large
    values do not move; those above the 99% quantile of the largest value of such noise count.
    """
    law = null(rows, columns)
    if not len(values) or not values[0] > 0:
        return 0
    level = float(np.median(values)) / law.median
    return int((values > level * law.edge).sum())


def spectrum(rows: int, columns: int) -> NDArray[np.float64]:
    """The null's singular values, descending, for entries of variance 1: the law's quantiles."""
    n, long = min(rows, columns), max(rows, columns)
    beta = n / long
    angles = np.linspace(0, math.pi, 2001)
    shares = np.array([above(float(angle), beta) for angle in angles])
    at = np.interp((np.arange(n) + 0.5) / n, shares, angles)
    squares = 1 + beta + 2 * math.sqrt(beta) * np.cos(at)
    values: NDArray[np.float64] = np.sqrt(long * np.maximum(squares, 0.0))
    return values


def _law(beta: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Nodes x of the law and their probabilities."""
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    t = math.pi * (nodes + 1) / 2
    x = 1 + beta + 2 * math.sqrt(beta) * np.cos(t)
    probability = weights * math.pi / 2 * (2 / math.pi) * np.sin(t) ** 2 / x
    return x, probability / probability.sum()


def _median(beta: float) -> float:
    """The median of the law: the x above which half of the values lie."""
    low, high = 0.0, math.pi
    for _ in range(80):
        middle = (low + high) / 2
        if above(middle, beta) < 0.5:
            low = middle
        else:
            high = middle
    return 1 + beta + 2 * math.sqrt(beta) * math.cos((low + high) / 2)
