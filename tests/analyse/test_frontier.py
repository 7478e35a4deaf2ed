"""The frontier and matched learning against brute force and cases done by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))

from synthetic_study import items_frame, record_of, study

from paretune.analyse.frontier import frontier, not_dominated
from paretune.analyse.matched import (
    envelope_at,
    equal_rate,
    matched,
    matched_difference,
)
from paretune.analyse.points import measured
from paretune.study.arms import ArmConfig

X, Y = "target/bits_per_byte", "self_probe/kl"


def made(points: dict[ArmConfig, list[tuple[float, float]]], noise: float = 0.0, n: int = 100):
    """A study whose arms have exactly these (learning, forgetting), a budget after the other."""
    rng = np.random.default_rng(5)
    level = rng.normal(2, 0.3, n)
    items = {("base", 0, X): items_frame(level), ("base", 0, Y): items_frame(np.zeros(n))}
    budgets = [1000 * (i + 1) for i in range(max(len(p) for p in points.values()))]

    def spread() -> np.ndarray:
        values = rng.normal(0, noise, n)
        return values - values.mean()

    for arm, values in points.items():
        for tokens, (x, y) in zip(budgets, values, strict=False):
            items[arm.id, tokens, X] = items_frame(level - x + spread())
            items[arm.id, tokens, Y] = items_frame(np.full(n, y) + spread())
    return record_of(list(points), items, budgets)


def arm(rate: float, rank: int | None = None, seed: int = 0) -> ArmConfig:
    method = "full" if rank is None else "lora"
    return ArmConfig(method=method, rank=rank, learning_rate=rate, seed=seed)


def test_items_of_which_one_has_all_the_weight_give_no_probability() -> None:
    """They cannot be resampled: a probability of 0 would be made up."""
    one, weight = arm(1e-3), np.array([300.0, 0.0, 0.0])
    items = {
        ("base", 0, X): items_frame(2 * weight, weight),
        ("base", 0, Y): items_frame(0 * weight, weight),
        (one.id, 10, X): items_frame(1 * weight, weight),
        (one.id, 10, Y): items_frame(0.1 * weight, weight),
    }
    row = frontier(record_of([one], items, [10])).iloc[0]
    assert row["on_frontier"]
    assert np.isnan(row["probability"])
    assert np.isnan(row["learning_low"])


@pytest.mark.parametrize("base", [True, False])
def test_the_frontier_is_that_of_brute_force_ties_included(base: bool) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 6, (300, 7)).astype(float)
    y = rng.integers(-3, 6, (300, 7)).astype(float)
    kept = not_dominated(x, y, base=base)
    for r in range(300):
        others = [*zip(x[r], y[r], strict=True)] + ([(0.0, 0.0)] if base else [])
        for i in range(7):
            beaten = any(
                a >= x[r, i] and b <= y[r, i] and (a > x[r, i] or b < y[r, i]) for a, b in others
            )
            assert kept[r, i] == (not beaten)


def test_a_point_that_is_not_a_number_is_not_on_the_frontier() -> None:
    kept = not_dominated(np.array([[np.nan, 1.0]]), np.array([[0.1, 0.2]]))
    assert kept.tolist() == [[False, True]]


def test_points_far_apart_are_certain_and_one_worse_than_the_base_is_out() -> None:
    record = made({arm(1e-3): [(0.5, 0.2)], arm(2e-3): [(0.3, 0.6)], arm(3e-3): [(-0.2, 0.3)]}, 0.1)
    table = frontier(record).set_index("arm")
    probability = [table.loc[a.id, "probability"] for a in (arm(1e-3), arm(2e-3), arm(3e-3))]
    assert probability == [1.0, 0.0, 0.0]
    assert table["on_frontier"].sum() == 1
    row = table.loc[arm(1e-3).id]
    assert (row["learning"], row["forgetting"]) == pytest.approx((0.5, 0.2))
    assert row["learning_low"] < 0.5 < row["learning_high"]


def test_twins_share_the_frontier() -> None:
    same = made({arm(1e-3): [(0.5, 0.2)], arm(2e-3): [(0.5, 0.2)]})
    assert frontier(same)["probability"].tolist() == [1.0, 1.0]
    # Equal in truth and apart only by noise: each is beaten on both axes in a quarter of draws
    noisy = made({arm(1e-3): [(0.5, 0.2)], arm(2e-3): [(0.5, 0.2)]}, 0.1, n=400)
    assert frontier(noisy)["probability"].to_numpy() == pytest.approx([0.75, 0.75], abs=0.05)


def test_the_frontier_is_the_same_every_time() -> None:
    assert frontier(study()).equals(frontier(study()))


def test_the_envelope_by_hand() -> None:
    x = np.array([[0.2, 0.4, 0.6, 0.5, 0.1]])
    y = np.array([[0.1, 0.2, 0.6, 0.9, 0.15]])
    # (0.5, 0.9) and (0.1, 0.15) lie above the hull of the others
    assert envelope_at(x, y, 0.2)[0] == pytest.approx(0.1)
    assert envelope_at(x, y, 0.3)[0] == pytest.approx(0.15)
    assert envelope_at(x, y, 0.55)[0] == pytest.approx(0.5)
    assert envelope_at(x, y, 0.6)[0] == pytest.approx(0.6)
    assert envelope_at(x, y, 0.15)[0] == pytest.approx(0.1)  # flat to the left, within reach
    assert np.isnan(envelope_at(x, y, 0.05)[0])
    assert np.isnan(envelope_at(x, y, 0.61)[0])


def test_the_envelope_is_the_lowest_chord_of_brute_force() -> None:
    rng = np.random.default_rng(6)
    x, y = rng.normal(0, 1, (200, 9)), rng.normal(0, 1, (200, 9))
    level = rng.normal(0, 0.8, 200)
    got = envelope_at(x, y, level)
    for r in range(200):
        best = np.inf
        for i in range(9):
            for j in range(9):
                if x[r, j] >= level[r]:
                    best = min(best, y[r, j])
                if x[r, i] < level[r] <= x[r, j]:
                    t = (level[r] - x[r, i]) / (x[r, j] - x[r, i])
                    best = min(best, y[r, i] + t * (y[r, j] - y[r, i]))
        if x[r].min() <= level[r] <= x[r].max():
            assert got[r] == pytest.approx(best, abs=1e-12)
        else:
            assert np.isnan(got[r])


def test_matched_learning_interpolates_each_method_and_says_what_is_out_of_reach() -> None:
    record = made(
        {
            arm(1e-3): [(0.2, 0.1), (0.6, 0.5)],
            arm(2e-3): [(0.4, 0.2)],
            arm(1e-3, 4): [(0.1, 0.1), (0.3, 0.3)],
            arm(1e-3, 16): [(0.2, 0.1), (0.5, 0.4)],
        }
    )
    table = matched(record, [0.3, 0.45]).set_index(["group", "learning"])
    assert table.loc[("full", 0.3), "forgetting"] == pytest.approx(0.15)
    assert table.loc[("full", 0.45), "forgetting"] == pytest.approx(0.275)
    assert table.loc[("lora r4", 0.3), "forgetting"] == pytest.approx(0.3)
    assert table.loc[("lora r16", 0.3), "forgetting"] == pytest.approx(0.2)
    assert table.loc[("lora", 0.3), "forgetting"] == pytest.approx(0.2)
    out = table.loc[("lora r4", 0.45)]
    assert np.isnan(out["forgetting"])
    assert out["reason"].startswith("cannot be compared: its learning spans 0.1 to 0.3")
    inside = table.loc[("full", 0.45)]
    assert (inside["low"], inside["high"]) == pytest.approx((0.275, 0.275))  # no noise, no width


def test_the_difference_at_matched_learning_has_an_interval_around_the_truth() -> None:
    record = made(
        {arm(1e-3): [(0.2, 0.0), (0.5, 0.3)], arm(1e-3, 4): [(0.2, 0.3), (0.4, 0.5)]}, 0.2, n=200
    )
    result = matched_difference(record, "full", "lora")
    assert result.level == pytest.approx(0.4, abs=1e-9)
    assert result.difference.value == pytest.approx(-0.3, abs=1e-6)
    # The scale of the standard error: two independent means of 200 at standard deviation 0.2
    assert result.difference.stderr == pytest.approx(0.2 * np.sqrt(2 / 200), rel=0.5)
    assert result.difference.low < -0.3 < result.difference.high < 0


def test_methods_that_do_not_overlap_cannot_be_compared() -> None:
    record = made({arm(1e-3): [(0.6, 0.2)], arm(1e-3, 4): [(0.1, 0.1), (0.2, 0.2)]})
    result = matched_difference(record, "full", "lora")
    assert result.difference.value is None
    assert "cannot be compared: lora reached 0.2" in result.difference.reason
    alone = matched_difference(made({arm(1e-3): [(0.6, 0.2)]}), "full", "lora")
    assert alone.difference.reason == "cannot be compared: lora has no points"


def test_seeds_of_one_arm_count_once_by_their_mean() -> None:
    record = made({arm(1e-3, 4, s): [(0.2, 0.1 * s), (0.4, 0.2 + 0.2 * s)] for s in (0, 1)})
    # By their means the curve runs from (0.2, 0.05) to (0.4, 0.3); seed 0 alone would be at 0.1
    assert matched(record, [0.3])["forgetting"].tolist() == pytest.approx([0.175, 0.175])
    assert measured(record).values.shape == (4, 2)


def test_equal_rate_is_lora_minus_full_paired() -> None:
    record = made({arm(1e-3): [(0.6, 0.5)], arm(1e-3, 4): [(0.2, 0.1)], arm(5e-3, 4): [(0.3, 0.2)]})
    table = equal_rate(record)
    assert len(table) == 1  # 5e-3 has no full arm
    row = table.iloc[0]
    assert (row["learning"], row["forgetting"]) == pytest.approx((-0.4, -0.4))
    assert row["learning_low"] == pytest.approx(-0.4)  # the same items: no noise between them


def test_a_point_without_outcomes_is_left_out_with_its_reason() -> None:
    record = made({arm(1e-3): [(0.6, 0.5)], arm(2e-3): [(0.2, 0.1)]})
    whole = record.items

    def items(name: str, tokens: int, metric: str):
        if name == arm(2e-3).id:
            raise FileNotFoundError(name)
        return whole(name, tokens, metric)

    record.items = items
    points = measured(record)
    assert [name for name, _ in points.points] == [arm(1e-3).id]
    assert "missing" in points.left_out[arm(2e-3).id, 1000]
