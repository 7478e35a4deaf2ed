"""Beyond the last budget: learning and forgetting over log tokens, with prediction intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from paretune.analyse.statistics import Floats, t_quantile

# What is known before any arm has three budgets: over a fourfold budget a slope falls to about
# three quarters of the last one, and may as well hold (a straight line in log tokens) or halve
PER = float(np.log(4))
PRIOR_FALL, PRIOR_FALL_SD = 0.25 / PER, 0.3 / PER
PRIOR_ERROR, PRIOR_DEGREES = 0.2, 6.0
FLOOR = 0.2  # errors do not shrink below this share of a typical step, however flat a curve is
COLLAPSE = 0.1  # learning that fell by this share of what was learned: the arm broke
BROKEN = 0.5  # learning below this share of the most at the same budget: the arm never worked


@dataclass(frozen=True)
class Curve:
    """One setting's values at ascending budgets: tokens [B], learning [B] and forgetting [B]."""

    name: str
    tokens: Floats
    learning: Floats
    forgetting: Floats

    def upto(self, count: int) -> Curve:
        """Its first budgets only."""
        return Curve(self.name, self.tokens[:count], self.learning[:count], self.forgetting[:count])

    def values(self, axis: str) -> Floats:
        """One of the two axes."""
        return self.learning if axis == "learning" else self.forgetting

    def collapsed(self, index: int) -> bool:
        """Whether learning fell, by much, from the budget before this one."""
        before, now = self.learning[index - 1], self.learning[index]
        return bool(now < before - COLLAPSE * abs(before))


@dataclass(frozen=True)
class Forecast:
    """A value at a later budget with its 95% prediction interval (Student's t)."""

    value: float
    scale: float
    degrees: float

    @property
    def low(self) -> float:
        """Lower end."""
        return self.value - t_quantile(self.degrees) * self.scale

    @property
    def high(self) -> float:
        """Upper end."""
        return self.value + t_quantile(self.degrees) * self.scale

    def draws(self, count: int, generator: np.random.Generator) -> Floats:
        """[count] random values."""
        return np.asarray(self.value + self.scale * generator.standard_t(self.degrees, count))


@dataclass(frozen=True)
class Model:
    """How slopes over log tokens fall, pooled over the arms of a study.

    The slope of the next step is the last slope times (1 - c d), d the distance of the two steps'
    middles in log tokens, and c = w . (1, level) the same for all arms, ``level`` being how far
    along the axis a curve is. The weights and the error have a conjugate prior (normal, inverse
    gamma), so that without any arm that has three budgets the prior alone speaks, with wide
    intervals, and with many the study does.
    """

    weights: Floats  # [2]
    covariance: Floats  # [2, 2], in units of the error's variance
    error: float
    degrees: float
    step: float  # typical size of a step on this axis
    most: float  # largest value of the axis

    @classmethod
    def fit(cls, curves: Iterable[Curve], axis: str) -> Model:
        """From every three budgets in a row of every arm that did not collapse over them."""
        curves = list(curves)
        every = np.concatenate([curve.values(axis) for curve in curves] or [np.ones(1)])
        steps = np.abs(np.concatenate([np.diff(c.values(axis)) for c in curves] or [np.zeros(0)]))
        most = float(np.max(np.abs(every), initial=1e-12))
        step = float(np.median(steps)) if len(steps) else most
        rows, targets = [], []
        for curve in curves:
            for last in range(1, len(curve.tokens) - 1):
                if steady(curve.upto(last + 1)) and not curve.collapsed(last + 1):
                    after = float(curve.tokens[last + 1])
                    known = curve.upto(last + 1)
                    features, line, size = _parts(known, axis, after, step, most)
                    rows.append(features / size)
                    targets.append((curve.values(axis)[last + 1] - line) / size)
        x = np.array(rows, dtype=np.float64).reshape(-1, 2)
        y = np.array(targets, dtype=np.float64)
        prior = np.eye(2) * (PRIOR_ERROR / PRIOR_FALL_SD) ** 2
        mean = np.array([PRIOR_FALL, 0.0])
        precision = prior + x.T @ x
        weights: Floats = np.asarray(
            np.linalg.solve(precision, prior @ mean + x.T @ y), dtype=np.float64
        )
        degrees = PRIOR_DEGREES + len(y)
        squares = (
            PRIOR_DEGREES * PRIOR_ERROR**2
            + float(y @ y)
            + float(mean @ prior @ mean)
            - float(weights @ precision @ weights)
        )
        error = float(np.sqrt(max(squares, 1e-12) / degrees))
        covariance = np.asarray(np.linalg.inv(precision), dtype=np.float64)
        return cls(weights, covariance, error, degrees, step, most)

    def forecast(self, curve: Curve, axis: str, tokens: float) -> Forecast:
        """A curve with at least two budgets, read at a later one."""
        features, line, size = _parts(curve, axis, tokens, self.step, self.most)
        spread = 1 + float((features / size) @ self.covariance @ (features / size))
        value = line + float(features @ self.weights)
        return Forecast(value, size * self.error * float(np.sqrt(spread)), self.degrees)


def steady(curve: Curve) -> bool:
    """Whether a curve can be carried on: two budgets, and it still learned at the last step."""
    return len(curve.tokens) >= 2 and bool(curve.learning[-1] > curve.learning[-2])


def working(curves: Sequence[Curve]) -> list[Curve]:
    """Curves whose second budget (of one: their first) learned at least half of the most there.

    An arm whose rate is far too high learns a little and stays there: it says nothing of others.
    """
    most: dict[float, float] = {}
    for curve in curves:
        for tokens, value in zip(curve.tokens, curve.learning, strict=True):
            most[float(tokens)] = max(most.get(float(tokens), 0.0), float(value))
    kept = []
    for curve in curves:
        at = min(1, len(curve.tokens) - 1)
        if curve.learning[at] >= BROKEN * most[float(curve.tokens[at])]:
            kept.append(curve)
    return kept


def log_linear(curve: Curve, axis: str, tokens: float) -> float:
    """The straight line in log tokens through the last two budgets: what the model must beat."""
    return _parts(curve, axis, tokens, 1.0, 1.0)[1]


@dataclass(frozen=True)
class Test:
    """A forecast of what was then measured."""

    name: str
    axis: str
    way: str
    forecast: Forecast
    line: float
    measured: float

    @property
    def covered(self) -> bool:
        """Whether the interval held the measured value."""
        return self.forecast.low <= self.measured <= self.forecast.high


def back_test(curves: Sequence[Curve]) -> list[Test]:
    """Each curve's last budget from those before it, in two ways, on both axes.

    ``pilot``: no arm of the study is known at the last budget. ``others ran on``: all other
    settings are, and only this one is left out. Curves that did not work, or were no longer
    learning at the last known budget, are not forecast.
    """
    curves = working(curves)
    tests = []
    for axis in ("learning", "forgetting"):
        pilot = Model.fit([curve.upto(len(curve.tokens) - 1) for curve in curves], axis)
        for index, curve in enumerate(curves):
            known = curve.upto(len(curve.tokens) - 1)
            if not steady(known):
                continue
            others = [*curves[:index], *curves[index + 1 :], known]
            tokens, measured = float(curve.tokens[-1]), float(curve.values(axis)[-1])
            line = log_linear(known, axis, tokens)
            for way, model in (("pilot", pilot), ("others ran on", Model.fit(others, axis))):
                made = model.forecast(known, axis, tokens)
                tests.append(Test(curve.name, axis, way, made, line, measured))
    return tests


def _parts(
    curve: Curve, axis: str, tokens: float, step: float, most: float
) -> tuple[Floats, float, float]:
    """Of a forecast: what multiplies the weights, the straight line, and the size of the error."""
    (x1, x2), (y1, y2) = np.log(curve.tokens[-2:]), curve.values(axis)[-2:]
    ahead = np.log(tokens) - x2
    straight = (y2 - y1) / (x2 - x1) * ahead
    apart = (ahead + x2 - x1) / 2
    features = -straight * apart * np.array([1.0, y2 / most - 0.5])
    size = float(np.hypot(straight, FLOOR * step * ahead / (x2 - x1)))
    return features, float(y2 + straight), max(size, 1e-12)
