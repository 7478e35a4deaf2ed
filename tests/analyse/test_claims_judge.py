"""Holm's correction, the judgement, and what would settle an open difference."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from paretune.analyse.claims.evidence import Effect
from paretune.analyse.claims.judge import judge, settle
from paretune.analyse.statistics import Estimate, holm


def effect(value: float, stderr: float = 0.1, n: int = 100) -> Effect:
    p = float(2 * stats.norm.sf(abs(value) / stderr))
    low, high = value - 1.96 * stderr, value + 1.96 * stderr
    return Effect(Estimate(value, stderr, low, high, n), p, stderr**2)


def test_holm_on_a_case_worked_by_hand():
    # 4 x .005, 3 x .01, 2 x .03; then .04 is raised to what came before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_lies_between_the_raw_value_and_bonferronis():
    p = np.random.default_rng(0).random(9)
    adjusted = np.array(holm(list(p)))
    assert (adjusted >= p).all()
    assert (adjusted <= np.minimum(1, 9 * p) + 1e-12).all()


def test_holm_keeps_false_rejections_at_five_percent():
    rng = np.random.default_rng(1)
    false = sum(min(holm(list(rng.random(5)))) <= 0.05 for _ in range(4000))
    assert 0.04 < false / 4000 < 0.06  # 1 - .99^5 = .049


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.5, 0.6], "supported"),
        ([0.5, 0.1], "unresolved"),
        ([0.5, -0.5], "contradicted"),
        ([-0.1, -0.1], "unresolved"),
        ([0.22, 0.23], "supported"),
        # Each is below zero at 5%, none after the correction
        ([-0.21, -0.21, -0.21], "unresolved"),
    ],
)
def test_judgement(values, expected):
    outcome = judge([(str(v), effect(v)) for v in values], "u")
    assert outcome.judgement == expected
    assert outcome.effect.value == min(values)
    assert (outcome.resolve is None) == (expected != "unresolved")


def test_a_difference_without_an_interval_decides_nothing():
    bare = Effect(Estimate(0.5, None, None, None, 1, "one item has no interval"))
    outcome = judge([("a", effect(0.5)), ("b", bare)], "u")
    assert outcome.judgement == "unresolved"
    assert "one item has no interval" in outcome.reason


def test_what_would_settle_it_has_the_power_it_promises():
    """With as many items as it says, 4 of 5 repetitions find the difference."""
    text = settle(effect(0.1, 0.1, n=100))
    items = int(text.split()[1].replace(",", ""))
    stderr = 0.1 * np.sqrt(100 / items)
    power = stats.norm.sf(1.96 - 0.1 / stderr)
    assert 0.80 <= power < 0.83


def test_what_no_more_items_would_settle():
    assert "nil" in settle(effect(0.001, 0.1))
    seeds = Effect(Estimate(0.1, 0.1, -0.1, 0.3, 100), 0.3, 0.0001, 0.0099)
    assert "seeds" in settle(seeds)
