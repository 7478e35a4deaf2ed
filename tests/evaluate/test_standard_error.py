"""Scores and standard errors against closed forms and the bootstrap."""

from __future__ import annotations

import math

import numpy as np
import pytest

from paretune.evaluate.items import Items, outcomes, ratio_stderr, score


def items(value, weight, groups=None, metric="target/bits_per_byte"):
    n = len(value)
    ids = [f"i{i}" for i in range(n)]
    return Items(
        metric,
        "target",
        "bits/byte",
        False,
        ids,
        groups or ids,
        np.array(value, dtype=np.float64),
        np.array(weight, dtype=np.float64),
    )


def test_equal_weights_give_the_standard_error_of_a_mean():
    value = np.random.default_rng(0).normal(size=40)
    expected = value.std(ddof=1) / math.sqrt(40)
    got = ratio_stderr(value, np.ones(40), [str(i) for i in range(40)])
    assert got == pytest.approx(expected, rel=1e-12)


def test_accuracy_of_a_coin_has_the_binomial_error():
    value = np.array([1.0] * 30 + [0.0] * 70)
    result = score(items(value, np.ones(100)))
    assert result.value == pytest.approx(0.3)
    assert result.stderr == pytest.approx(math.sqrt(0.3 * 0.7 / 99), rel=1e-12)
    assert (result.n, result.reason) == (100, None)


def test_ratio_agrees_with_the_bootstrap_over_items():
    rng = np.random.default_rng(1)
    weight = rng.integers(40, 400, 300).astype(float)
    value = weight * rng.normal(2.0, 0.3, 300) + rng.normal(0, 20, 300)
    draws = rng.integers(0, 300, (4000, 300))
    bootstrap = (value[draws].sum(1) / weight[draws].sum(1)).std()
    got = ratio_stderr(value, weight, [str(i) for i in range(300)])
    assert got == pytest.approx(bootstrap, rel=0.05)


def test_items_of_a_group_are_clustered():
    """Against a bootstrap that draws whole groups; items alone would give too small an error."""
    rng = np.random.default_rng(2)
    level = rng.normal(2.0, 0.5, 60)
    member = np.repeat(np.arange(60), rng.integers(2, 12, 60))
    weight = rng.integers(80, 200, len(member)).astype(float)
    value = weight * (level[member] + rng.normal(0, 0.1, len(member)))
    by_group = [(value[member == g].sum(), weight[member == g].sum()) for g in range(60)]
    sums = np.array(by_group)
    drawn = sums[rng.integers(0, 60, (4000, 60))].sum(1)
    bootstrap = (drawn[:, 0] / drawn[:, 1]).std()
    clustered = ratio_stderr(value, weight, [f"g{g}" for g in member])
    alone = ratio_stderr(value, weight, [str(i) for i in range(len(member))])
    assert clustered == pytest.approx(bootstrap, rel=0.07)
    assert alone < 0.6 * clustered


def test_clustered_error_by_hand():
    """Eight groups of two: G / (G - 1) * sum over groups of (sum of residuals)^2 / weight^2."""
    value = np.arange(16.0)
    groups = [f"g{i // 2}" for i in range(16)]
    residual = (value - 7.5).reshape(8, 2).sum(1)
    expected = math.sqrt(8 / 7 * (residual**2).sum()) / 16
    assert ratio_stderr(value, np.ones(16), groups) == pytest.approx(expected, rel=1e-12)


def test_fewer_than_eight_groups_count_as_items():
    value = np.random.default_rng(3).normal(size=14)
    few = ratio_stderr(value, np.ones(14), [f"g{i % 7}" for i in range(14)])
    assert few == pytest.approx(value.std(ddof=1) / math.sqrt(14), rel=1e-12)


def test_order_of_items_and_names_of_groups_do_not_matter():
    rng = np.random.default_rng(4)
    value, weight = rng.normal(size=30), rng.uniform(1, 2, 30)
    groups = [f"g{i % 10}" for i in range(30)]
    order = rng.permutation(30)
    renamed = [f"{9 - int(groups[i][1:])}x" for i in order]
    one = ratio_stderr(value, weight, groups)
    assert ratio_stderr(value[order], weight[order], renamed) == pytest.approx(one, rel=1e-12)


def test_one_item_has_a_value_and_a_reason_for_no_error():
    result = score(items([30.0], [10.0]))
    assert result.value == 3.0
    assert result.stderr is None
    assert result.n == 1
    assert "two" in result.reason
    assert ratio_stderr(np.array([30.0]), np.array([10.0]), ["a"]) is None


@pytest.mark.parametrize(
    ("value", "weight", "word"),
    [
        ([1.0, math.nan, 2.0], [1.0, 1.0, 1.0], "1 of 3"),
        ([1.0, math.inf], [1.0, 1.0], "1 of 2"),
        ([1.0, 2.0], [0.0, 0.0], "weight"),
        ([], [], "no items"),
    ],
)
def test_an_undefined_score_says_why(value, weight, word):
    result = score(items(value, weight))
    assert math.isnan(result.value)
    assert result.stderr is None
    assert word in result.reason


def test_columns_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="differ in length"):
        items([1.0, 2.0], [1.0])


def test_units_and_sides_follow_from_the_name():
    class Named:
        id, group = "a", "b"

    one = outcomes("self_probe/kl", [Named()], np.ones((2, 1)), np.ones(1))
    assert [(i.side, i.unit, i.higher_is_better) for i in one] == [
        ("source", "nats/token", False)
    ] * 2
    assert outcomes("target/cloze", [Named()], np.ones((1, 1)), np.ones(1))[0].higher_is_better
