"""Pairs of settings, flips, permutation tests and power against scipy and cases done by hand."""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))

from synthetic_study import METRICS, items_frame, record_of, study

from paretune.analyse.flips import count_flips, flips, mcnemar, permutation_p, sign_p
from paretune.analyse.pairs import (
    Runs,
    compare_pairs,
    detectable,
    run_variance,
    seeded_difference,
    two_sources,
)
from paretune.analyse.power import POWER_80, needed, rounded
from paretune.analyse.statistics import (
    Aligned,
    align,
    bootstrap_scores,
    contrast,
    effective_degrees,
    holm,
    p_value,
)
from paretune.study.arms import ArmConfig

X, Y = "target/bits_per_byte", "self_probe/kl"


def plain(values: np.ndarray) -> Aligned:
    """Models [P, n] on items of weight 1."""
    return Aligned(values, np.ones_like(values), np.arange(values.shape[1]))


def test_holm_by_hand_and_against_its_definition() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    p = np.random.default_rng(0).random(9) ** 3
    order = np.argsort(p)
    for place, index in enumerate(order):
        largest = max(p[order[k]] * (9 - k) for k in range(place + 1))
        assert holm(list(p))[index] == pytest.approx(min(1, largest))


def test_p_is_that_of_the_paired_t_test() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(0.2, 1, 40), rng.normal(0, 1, 40)
    estimate = contrast(plain(np.array([a, b])), np.array([1.0, -1.0]))
    assert p_value(estimate) == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-9)


def test_unequal_clusters_cost_degrees_of_freedom() -> None:
    equal = Aligned(np.ones((1, 12)), np.ones((1, 12)), np.repeat(np.arange(4), 3))
    assert effective_degrees(equal) == pytest.approx(3)
    one_large = Aligned(np.ones((1, 12)), np.ones((1, 12)), np.array([0] * 9 + [1, 2, 3]))
    assert effective_degrees(one_large) < 1.5
    # The definition: the variance is a quadratic form of independent normal cluster means
    p = np.array([9, 1, 1, 1]) / 12
    scale = np.diag(1 / (1 - p))
    form = scale @ (np.diag(p) - np.outer(p, p)) @ scale
    expected = np.trace(form) ** 2 / np.trace(form @ form)
    assert effective_degrees(one_large) == pytest.approx(expected)


def test_draws_of_a_difference_have_the_width_of_its_interval() -> None:
    rng = np.random.default_rng(2)
    clusters = np.repeat(np.arange(9), [2, 3, 4, 5, 6, 7, 8, 9, 20])
    weight = rng.integers(50, 200, len(clusters)).astype(float)
    level = rng.normal(2, 0.3, 9)[clusters]
    arms = level + rng.normal(0.1, 0.2, (2, len(clusters)))
    made = Aligned(arms * weight, np.tile(weight, (2, 1)), clusters)
    estimate = contrast(made, np.array([1.0, -1.0]))
    draws = bootstrap_scores(made, 40_000, 5) @ np.array([1.0, -1.0])
    low, high = np.quantile(draws, [0.025, 0.975])
    assert (low, high) == pytest.approx((estimate.low, estimate.high), abs=0.03 * (high - low))


def test_accuracy_without_a_flip_still_has_an_interval() -> None:
    right = np.array([1.0, 0.0] * 20)
    none = contrast(plain(np.array([right, right])), np.array([1.0, -1.0]))
    assert none.value == 0
    assert none.stderr == pytest.approx(np.sqrt(2) / 42)
    # With flips it is the standard error of Bonett and Price, who add one flip of each kind
    after = right.copy()
    after[:6] = 1 - after[:6]
    after[8] = 0.0
    some = contrast(plain(np.array([after, right])), np.array([1.0, -1.0]))
    gained, lost, n = 3, 4, 40
    difference = (gained - lost) / n
    variance = ((gained + lost) / n - difference**2) / (n - 1) + 2 / (n + 2) ** 2
    assert some.stderr == pytest.approx(np.sqrt(variance))


def test_one_source_of_variance_is_the_t_interval_and_two_add() -> None:
    estimate, p = two_sources(0.3, (0.01, 20.0), (0.0, 0.0), 50)
    assert estimate.high - 0.3 == pytest.approx(stats.t.ppf(0.975, 20) * 0.1)
    assert p == pytest.approx(2 * stats.t.sf(3, 20), rel=1e-6)
    both, p_both = two_sources(0.3, (0.01, 20.0), (0.04, 2.0), 50)
    half = np.hypot(stats.t.ppf(0.975, 20) * 0.1, stats.t.ppf(0.975, 2) * 0.2)
    assert both.high - 0.3 == pytest.approx(half)
    assert both.stderr == pytest.approx(np.sqrt(0.05))
    # p and the interval tell the same: at this confidence it just reaches 0
    reach = np.hypot(stats.t.isf(p_both / 2, 20) * 0.1, stats.t.isf(p_both / 2, 2) * 0.2)
    assert reach == pytest.approx(0.3, rel=1e-6)


def test_seeds_pair_and_their_spread_counts() -> None:
    rng = np.random.default_rng(3)
    level, runs = rng.normal(0, 1, 200), rng.normal(0, 0.5, 3)
    a = level + runs[:, None] + 0.1
    b = level + runs[:, None] + rng.normal(0, 0.01, (3, 1))
    made = plain(np.concatenate([a, b]))
    found = seeded_difference(made, {0: 0, 1: 1, 2: 2}, {0: 3, 1: 4, 2: 5})
    differences = a.mean(axis=1) - b.mean(axis=1)
    assert found.seeds == 3
    assert found.estimate.value == pytest.approx(differences.mean())
    # The runs' common part cancels, and what is left is their spread about the mean difference
    assert found.item_variance == pytest.approx(0, abs=1e-20)
    assert found.seed_variance == pytest.approx(differences.var(ddof=1) / 3, rel=1e-6)
    half = stats.t.ppf(0.975, 2) * np.sqrt(differences.var(ddof=1) / 3)
    assert found.estimate.high - found.estimate.value == pytest.approx(half, rel=1e-6)
    assert found.p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, rel=1e-4)


def test_a_single_run_borrows_the_spread_of_others_or_says_that_it_has_none() -> None:
    rng = np.random.default_rng(4)
    level = rng.normal(0, 1, 100)
    runs = np.array([0.0, 0.2, 0.0, 0.1, 0.3])
    made = plain(level + runs[:, None])
    alone = seeded_difference(made, {0: 0}, {0: 1})
    assert "for these runs" in alone.note
    assert alone.seed_variance == 0
    known = run_variance(made, [{0: 0}, {0: 1}, {0: 2, 1: 3, 2: 4}])
    assert known.degrees == 2
    assert known.gross == pytest.approx(np.var([0.0, 0.1, 0.3], ddof=1))
    pooled = seeded_difference(made, {0: 0}, {0: 1}, runs=known)
    assert pooled.seed_variance == pytest.approx(2 * known.net)
    assert "pooled" in pooled.note


def test_every_pair_of_a_study_is_compared_once_and_corrected() -> None:
    table = compare_pairs(study())
    assert len(table) == 8 * 7 // 2
    assert table["p_holm"].tolist() == pytest.approx(holm(table["p"].tolist()))
    assert (table["p_holm"] >= table["p"]).all()
    record = study()
    row = table.iloc[0]
    frames = [record.items(row[name], record.budgets[-1], X) for name in ("b", "a")]
    scores = align(frames).scores
    assert row["difference"] == pytest.approx(scores[0] - scores[1])  # fewer bits: learned more
    assert compare_pairs(record, "no/such metric").empty


def test_seeds_of_one_setting_are_one_row() -> None:
    rng = np.random.default_rng(5)
    level = rng.normal(2, 0.3, 50)
    arms = [ArmConfig(method="full", learning_rate=r, seed=s) for r in (1e-3, 3e-3) for s in (0, 1)]
    items = {("base", 0, metric): items_frame(level) for metric in (X, Y)}
    for number, arm in enumerate(arms):
        for metric in (X, Y):
            items[arm.id, 10, metric] = items_frame(level - 0.1 * number + rng.normal(0, 0.1, 50))
    table = compare_pairs(record_of(arms, items, [10]))
    assert len(table) == 1
    assert table.loc[0, "seeds"] == 2


def test_settings_scored_on_other_items_are_rows_that_say_so() -> None:
    arms = [ArmConfig(method="full", learning_rate=rate) for rate in (1e-3, 2e-3, 3e-3)]
    level = np.linspace(1, 2, 20)
    items = {("base", 0, metric): items_frame(level) for metric in (X, Y)}
    for number, arm in enumerate(arms):
        for metric in (X, Y):
            items[arm.id, 10, metric] = items_frame(level[: 20 - number])
    table = compare_pairs(record_of(arms, items, [10]))
    assert len(table) == 3
    assert set(table["note"]) == {"the items are not the same ones"}
    assert table[["difference", "p", "p_holm", "item_stderr", "detectable"]].isna().all(axis=None)


def test_flips_by_hand_and_mcnemar_against_scipy() -> None:
    before = np.array([1, 1, 1, 0, 0, 0, 0, 1.0])
    after = np.array([1, 0, 1, 1, 1, 1, 0, 1.0])
    found = count_flips(before, after)
    assert (found.learned, found.forgotten, found.kept_right, found.kept_wrong) == (3, 1, 3, 1)
    assert found.n == 8
    assert found.net == pytest.approx(after.mean() - before.mean())
    assert found.p == pytest.approx(stats.binomtest(1, 4, 0.5).pvalue)
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(10, 0) == pytest.approx(2 * 0.5**10)


def test_flips_of_a_study_add_up_to_its_changes() -> None:
    record = study()
    table = flips(record)
    assert set(table["metric"]) == {"prose/cloze"}
    assert len(table) == 8 * 3
    base = record.items("base", 0, "prose/cloze")["value"]
    row = table.iloc[5]
    now = record.items(row["arm"], row["tokens"], "prose/cloze")["value"]
    assert row["net"] == pytest.approx(now.mean() - base.mean())
    assert row["learned"] + row["forgotten"] + row["kept_right"] + row["kept_wrong"] == len(base)


def test_means_of_tasks_and_shares_of_answers_have_no_flips(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their outcomes are not 0 or 1: counted so, every item of a mean of tasks was kept wrong."""
    arm = ArmConfig(method="full", learning_rate=1e-3)
    before, after, part = np.array([0.0, 1.0] * 10), np.ones(20), np.full(20, 1 / 60)
    frames = {
        "prose/cloze": (items_frame(before), items_frame(after)),
        "forgetting_score": (items_frame(before * part, part), items_frame(after * part, part)),
        "target/pass_at_1": (items_frame(before * 0.4), items_frame(after * 0.6)),
    }
    items = {}
    for metric, pair in frames.items():
        monkeypatch.setitem(METRICS, metric, ("source", "accuracy", True))
        items["base", 0, metric], items[arm.id, 10, metric] = pair
    table = flips(record_of([arm], items, [10]))
    assert list(table["metric"]) == ["prose/cloze"]
    assert table.loc[0, "learned"] == 10


def test_the_permutation_test_is_exact_where_it_can_be() -> None:
    rng = np.random.default_rng(6)
    a, b = rng.normal(0.5, 1, 10), rng.normal(0, 1, 10)
    d = a - b
    sums = np.array([np.dot(signs, d) for signs in product((1, -1), repeat=10)])
    tail = min((sums >= d.sum() - 1e-12).mean(), (sums <= d.sum() + 1e-12).mean())
    assert permutation_p(items_frame(b), items_frame(a)) == pytest.approx(2 * tail)
    assert permutation_p(items_frame(a), items_frame(a)) == 1.0
    assert permutation_p(items_frame(a), items_frame(b, prefix="j")) is None
    rises = int((d > 0).sum())
    sign = stats.binomtest(rises, 10, 0.5).pvalue
    assert sign_p(items_frame(b), items_frame(a)) == pytest.approx(sign)


def test_power_is_what_a_t_test_reaches() -> None:
    """The smallest detectable difference, put into scipy's power of a t test, gives 80%."""
    found = seeded_difference(plain(np.random.default_rng(7).normal(0, 1, (2, 60))), {0: 0}, {0: 1})
    smallest = detectable(found)
    shift = smallest / found.estimate.stderr
    power = stats.nct.sf(stats.t.ppf(0.975, 59), 59, shift)
    assert power == pytest.approx(0.80, abs=0.01)


def test_what_is_needed_settles_the_difference() -> None:
    rng = np.random.default_rng(8)
    values = rng.normal(0, 1, (2, 100))
    values[0] += 0.15 - (values[0] - values[1]).mean()
    found = seeded_difference(plain(values), {0: 0}, {0: 1})
    more = needed(found)
    assert more.seeds is None
    variance = found.item_variance * 100 / more.items
    assert 0.15**2 / variance == pytest.approx(POWER_80, rel=0.01)
    assert "items" in more.words
    same = seeded_difference(plain(np.ones((2, 5))), {0: 0}, {0: 1})
    assert needed(same) is None
    assert [rounded(x) for x in (3.2, 11.0, 101.0, 4321.0)] == [4, 11, 110, 4400]


def test_no_seed_can_mend_too_few_items() -> None:
    estimate, p = two_sources(0.1, (0.04, 50.0), (0.001, 2.0), 64)
    from paretune.analyse.pairs import Seeded

    one = Seeded(estimate, p, 0.04, 50.0, 0.001, 2.0, 3)
    assert needed(one).seeds is None
    assert needed(one).items > 64
    assert Runs().degrees == 0
