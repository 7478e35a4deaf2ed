"""Axis ranges and labels: one far point does not flatten a chart, and no two labels touch."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from paretune.report.layout import axis_range, labels_that_fit, spread


def test_an_axis_holds_zero_and_all_values_that_are_not_far() -> None:
    axis = axis_range([1.0, 2.0, 3.0])
    assert axis.low < 0 < 3 < axis.high
    assert not axis.cut
    assert axis.outside([1.0, 2.0, 3.0]) == []
    assert axis_range([2.0, 2.5], zero=False).low > 1.9


def test_far_values_are_left_outside_and_counted() -> None:
    values = [*np.linspace(0.5, 2, 20), 80.0, 90.0]
    axis = axis_range(values)
    assert axis.cut
    assert axis.high < 3
    assert axis.whole_high > 90
    assert axis.outside(values) == [20, 21]


def test_values_to_keep_are_never_left_outside() -> None:
    values = [*np.linspace(0.5, 2, 20), 80.0]
    axis = axis_range(values, keep=[80.0])
    assert not axis.cut
    assert axis.outside(values) == []


def test_a_little_further_is_not_worth_a_cut() -> None:
    assert not axis_range([*np.linspace(4, 5, 20), 7.5]).cut


@pytest.mark.parametrize("values", [[], [math.nan], [0.0], [3.0, 3.0], [-2.0]])
def test_odd_values_give_a_usable_axis(values: list[float]) -> None:
    axis = axis_range(values)
    assert math.isfinite(axis.low)
    assert axis.low < axis.high


def test_labels_are_spread_by_least_squares() -> None:
    """Against a constrained minimiser on random heights."""
    rng = np.random.default_rng(0)
    for _ in range(5):
        values = sorted(rng.uniform(0.3, 0.7, 5))
        placed = spread(values, 0.08, 0.0, 1.0)
        constraints = [
            {"type": "ineq", "fun": lambda x, i=i: x[i + 1] - x[i] - 0.08} for i in range(4)
        ]
        best = minimize(lambda x, v=values: np.sum((x - v) ** 2), values, constraints=constraints)
        assert placed == pytest.approx(best.x, abs=1e-4)


def test_labels_keep_their_order_and_stay_inside() -> None:
    placed = spread([0.99, 1.0, 0.98], 0.1, 0.0, 1.0)
    assert placed == pytest.approx([0.9, 1.0, 0.8])
    crowded = spread([0.5] * 21, 0.1, 0.0, 1.0)
    assert min(np.diff(sorted(crowded))) == pytest.approx(0.05)
    assert spread([], 0.1, 0, 1) == []


def test_labels_touch_no_point_no_label_and_no_edge() -> None:
    far_apart = labels_that_fit([(0.1, 0.9), (0.5, 0.5)], ["a", "b"], [], (300, 300))
    assert far_apart == [True, True]
    same_place = labels_that_fit([(0.1, 0.9), (0.1, 0.9)], ["a", "b"], [], (300, 300))
    assert same_place == [True, False]
    at_the_edge = labels_that_fit([(0.95, 0.9), (0.5, 0.01)], ["long label", "b"], [], (300, 300))
    assert at_the_edge == [False, False]
    on_a_point = labels_that_fit([(0.1, 0.9)], ["long label"], [(0.2, 0.87)], (300, 300))
    assert on_a_point == [False]
