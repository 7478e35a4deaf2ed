"""Paired differences, bootstrap and tidy results against numpy in float64."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))

from synthetic_study import items_frame, pocket_arms, record_of, scores_frame, study

from paretune.analyse.results import DTYPES, tidy, to_csv
from paretune.analyse.statistics import (
    align,
    bootstrap_scores,
    change_sign,
    paired_difference,
    percentile_interval,
)
from paretune.study.arms import ArmConfig


def test_equal_weights_agree_with_the_paired_t_interval() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(1, 1, 30), rng.normal(0, 1, 30)
    estimate = paired_difference(items_frame(a), items_frame(b))
    reference = stats.ttest_rel(a, b)
    low, high = reference.confidence_interval(0.95)
    assert estimate.value == pytest.approx(np.mean(a - b), rel=1e-12)
    assert estimate.stderr == pytest.approx(stats.sem(a - b), rel=1e-12)
    assert (estimate.low, estimate.high) == pytest.approx((low, high), rel=1e-10)
    assert estimate.n == 30
    assert estimate.reason is None


def test_a_ratio_with_clusters_agrees_with_the_formula_by_hand() -> None:
    rng = np.random.default_rng(2)
    n, groups = 40, [f"g{i % 10}" for i in range(40)]
    wa, wb = rng.integers(50, 99, n).astype(float), rng.integers(50, 99, n).astype(float)
    va, vb = 2 * wa + rng.normal(0, 5, n), 2.5 * wb + rng.normal(0, 5, n)
    estimate = paired_difference(
        items_frame(va, wa, groups), items_frame(vb, wb, groups), sign=-1.0
    )
    ra, rb = va.sum() / wa.sum(), vb.sum() / wb.sum()
    member = np.array([int(name[1:]) for name in groups])
    loo = np.array(
        [
            vb[member != g].sum() / wb[member != g].sum()
            - va[member != g].sum() / wa[member != g].sum()
            for g in range(10)
        ]
    )
    stderr = np.sqrt(9 / 10 * np.sum((loo - (rb - ra)) ** 2))  # the jackknife over clusters
    assert estimate.value == pytest.approx(rb - ra, rel=1e-12)
    assert estimate.stderr == pytest.approx(stderr, rel=1e-10)
    # Clusters are nearly equal, so the degrees of freedom are nearly 9
    assert 8.9 < estimate.degrees <= 9
    half = stats.t.ppf(0.975, estimate.degrees) * stderr
    assert estimate.high - estimate.value == pytest.approx(half, rel=1e-8)


def test_items_are_matched_by_name_not_by_place() -> None:
    a, b = items_frame([1.0, 5.0, 2.0, 8.0]), items_frame([0.0, 1.0, 4.0, 2.0])
    shuffled = b.iloc[[2, 0, 3, 1]].reset_index(drop=True)
    assert paired_difference(a, shuffled) == paired_difference(a, b)


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        (items_frame([1.0]), items_frame([0.5]), "one item has no standard error"),
        (items_frame([]), items_frame([]), "there are no items"),
        (items_frame([1.0, 2.0]), items_frame([1.0, 2.0], prefix="j"), "not the same"),
        (items_frame([1.0, 2.0]), items_frame([1.0, 2.0, 3.0]), "not the same"),
        (items_frame([1.0, np.nan]), items_frame([1.0, 2.0]), "not a finite number"),
        (items_frame([1.0, 2.0], [0.0, 0.0]), items_frame([1.0, 2.0]), "sum to zero"),
        (items_frame([1.0, 2.0]).assign(item="x"), items_frame([1.0, 2.0]), "occurs twice"),
    ],
)
def test_what_is_undefined_is_none_with_a_reason(a, b, reason) -> None:
    estimate = paired_difference(a, b)
    assert estimate.stderr is None
    assert estimate.low is None
    assert reason in estimate.reason
    assert (estimate.value == 0.5) == (reason.startswith("one item"))


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(400):
        w = rng.integers(100, 300, 50).astype(float)
        level = rng.normal(2, 0.5, 50)
        base = items_frame(w * level, w)
        arm = items_frame(w * (level - 0.1 + rng.normal(0, 0.3, 50)), w)
        e = paired_difference(arm, base, sign=-1.0)
        hits += e.low <= 0.1 <= e.high
    assert 0.92 <= hits / 400 <= 0.98


def test_signs_make_learning_and_forgetting_positive() -> None:
    assert change_sign("target", higher_is_better=False) == -1  # fewer bits: learned
    assert change_sign("target", higher_is_better=True) == 1
    assert change_sign("source", higher_is_better=False) == 1  # more bits: forgot
    assert change_sign("source", higher_is_better=True) == -1


def test_the_bootstrap_shares_its_draws_and_matches_the_linearised_error() -> None:
    rng = np.random.default_rng(4)
    w = rng.integers(100, 300, 100).astype(float)
    base = items_frame(w * rng.normal(2, 0.5, 100), w)
    arm = base.assign(value=base["value"] - 0.1 * w)
    draws = bootstrap_scores(align([base, arm, base]), 4000, seed=7)
    assert np.array_equal(draws, bootstrap_scores(align([base, arm, base]), 4000, seed=7))
    assert np.array_equal(draws[:, 0], draws[:, 2])
    assert draws[:, 0] - draws[:, 1] == pytest.approx(np.full(4000, 0.1))
    r = base["value"].sum() / w.sum()
    linear = np.sqrt(100 / 99 * np.sum((base["value"] - r * w) ** 2)) / w.sum()
    assert draws[:, 0].std() == pytest.approx(linear, rel=0.06)
    low, high = percentile_interval(draws[:, 0])
    assert (high - low) == pytest.approx(2 * 1.96 * linear, rel=0.08)


def test_tidy_has_one_row_a_score_with_the_paired_change() -> None:
    record = study()
    table = tidy(record)
    assert list(table.columns) == list(DTYPES)
    assert len(table) == 5 * (1 + 8 * 3)
    keys = list(zip(table["arm"], table["tokens"], table["metric"], strict=True))
    assert keys == sorted(keys)
    arm = pocket_arms()[3]
    row = table[
        (table["arm"] == arm.id) & (table["tokens"] == 200_000) & (table["metric"] == "prose/cloze")
    ].iloc[0]
    items = record.items(arm.id, 200_000, "prose/cloze")
    base = record.items("base", 0, "prose/cloze")
    assert row["change"] == pytest.approx(base["value"].mean() - items["value"].mean(), rel=1e-12)
    assert row["change"] > 0  # fewer right answers than the base is forgetting
    assert row["base_value"] == pytest.approx(base["value"].mean())
    assert (row["rank"], row["alpha"], row["targets"], row["method"]) == (4, 8.0, "all", "lora")
    own = table[table["arm"] == "base"]
    assert (own["change"] == 0).all()
    assert own["rank"].isna().all()


def test_csv_is_the_same_every_time_and_reads_back_to_the_bit(tmp_path: Path) -> None:
    text = to_csv(tidy(study()))
    assert text == to_csv(tidy(study()))
    (tmp_path / "results.csv").write_text(text)
    back = pd.read_csv(tmp_path / "results.csv", float_precision="round_trip")
    table = tidy(study())
    for name in ("value", "change", "change_stderr", "change_low", "change_high"):
        assert np.array_equal(back[name].to_numpy(), table[name].to_numpy(), equal_nan=True)


def test_a_score_without_outcomes_keeps_its_row_and_says_why() -> None:
    record = study(arms=pocket_arms()[:1], budgets=(50_000,))
    whole = record.items

    def items(arm: str, tokens: int, metric: str) -> pd.DataFrame:
        if arm != "base" and metric == "self_probe/kl":
            raise FileNotFoundError(metric)
        return whole(arm, tokens, metric)

    record.items = items
    table = tidy(record).set_index(["arm", "metric"])
    row = table.loc[(pocket_arms()[0].id, "self_probe/kl")]
    assert np.isfinite(row["value"])
    assert np.isnan(row["change"])
    assert "missing" in row["reason"]


def test_names_tell_apart_arms_of_one_label() -> None:
    arms = [
        ArmConfig(method="lora", rank=8, learning_rate=1e-3, seed=0),
        ArmConfig(method="lora", rank=8, learning_rate=1e-3, seed=1),
        ArmConfig(method="lora", rank=8, learning_rate=1e-3, targets="mlp"),
        ArmConfig(method="full", learning_rate=1e-3),
    ]
    items = {("base", 0, "self_probe/kl"): items_frame([0.0, 0.0])}
    record = record_of(arms, items, [10])
    names = list(record.names().values())
    assert len(set(names)) == 4
    assert names[3] == "full lr 0.001"
    assert "seed 1" in names[1]
    assert "targets mlp" in names[2]
    assert len(scores_frame(items)) == 1
