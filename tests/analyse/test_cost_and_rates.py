"""Hypervolume, learning-rate sensitivity and cost on studies whose answers are known."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from claims_studies import full, lora, made

from paretune.analyse.cost import costs, seconds_at, undominated
from paretune.analyse.hypervolume import hypervolume, hypervolumes
from paretune.analyse.sensitivity import sensitivity


def test_the_hypervolume_by_hand() -> None:
    x, y = np.array([[0.5, 1.0, 0.8, -1.0]]), np.array([[0.2, 0.6, 0.7, 0.0]])
    # 0 to 0.5 under 0.2, 0.5 to 1 under 0.6; the third is beaten, the fourth learned nothing
    assert hypervolume(x, y, 1.0)[0] == pytest.approx(0.5 * 0.8 + 0.5 * 0.4)
    assert hypervolume(x, y, 0.5)[0] == pytest.approx(0.5 * 0.3)  # beyond the reference: nothing
    assert hypervolume(np.array([[np.nan]]), np.array([[0.1]]), 1.0)[0] == 0


def test_the_hypervolume_is_the_share_of_random_points_that_are_dominated() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, 1, (3, 6)), rng.uniform(0, 1, (3, 6))
    spots = rng.uniform(0, 1, (40_000, 2))
    for r, area in enumerate(hypervolume(x, y, 1.0)):
        inside = ((x[r] >= spots[:, :1]) & (y[r] <= spots[:, 1:])).any(axis=1).mean()
        assert area == pytest.approx(inside, abs=0.01)


def test_hypervolumes_of_groups_hold_their_value_in_their_interval() -> None:
    record = made(
        {
            full(1e-4): [(0.5, 0.1), (0.8, 0.3)],
            full(1e-3): [(0.9, 0.5), (1.2, 0.9)],
            lora(8): [(0.4, 0.2), (0.7, 0.5)],
        }
    )
    table = hypervolumes(record).set_index("group")
    assert list(table.index) == ["all", "full", "lora", "lora r8"]
    assert table.loc["all", "hypervolume"] >= table.loc["full", "hypervolume"]
    assert (table["low"] < table["hypervolume"]).all()
    assert (table["hypervolume"] < table["high"]).all()
    area = 0.5 * 0.8 + 0.3 * 0.6 + 0.1 * 0.4
    assert table.loc["full", "hypervolume"] == pytest.approx(area)
    assert table.loc["full", "share"] == pytest.approx(area / (1.2 * 0.9))


def test_best_rate_basin_and_edge() -> None:
    learned = {1e-4: 0.6, 3e-4: 0.97, 1e-3: 1.0, 3e-3: 0.98, 1e-2: 0.2}
    values = {full(rate): [(x, 0.1)] for rate, x in learned.items()}
    values |= {lora(8, rate): [(x, 0.1)] for rate, x in ((1e-3, 0.3), (3e-3, 0.6), (1e-2, 0.9))}
    broken = lora(8, 3e-2)
    record = made(values, noise=0.01)
    record.arms[broken.id] = broken
    record.status[broken.id] = {"state": "diverged"}
    table = sensitivity(record).set_index("group")
    one = table.loc["full"]
    assert one["best_rate"] == 1e-3
    assert (one["basin_low"], one["basin_high"]) == (3e-4, 3e-3)
    assert one["basin_decades"] == pytest.approx(1.0)
    assert one["edge"] == 1e-2  # learned less than half of the best
    assert not one["at_edge"]
    assert one["probability"] > 0.9
    two = table.loc["lora r8"]
    assert two["ratio_to_full"] == pytest.approx(10)
    assert two["edge"] == 3e-2  # diverged
    assert not two["at_edge"]
    del record.arms[broken.id]
    assert sensitivity(record).set_index("group").loc["lora r8", "at_edge"]
    # One that diverged below the best rate says nothing of what lies above it
    slow = lora(8, 1e-4)
    record.arms[slow.id] = slow
    record.status[slow.id] = {"state": "diverged"}
    assert sensitivity(record).set_index("group").loc["lora r8", "at_edge"]


def test_cost_makes_cheap_points_count() -> None:
    small, large = lora(4), full()
    record = made({large: [(0.5, 0.1), (0.9, 0.2)], small: [(0.4, 0.2), (0.8, 0.3)]})
    record.status[small.id]["seconds"] = 5.0
    table = costs(record, {small.id: 100, large.id: 10_000}).set_index(["arm", "tokens"])
    point = table.loc[(small.id, 2000)]
    assert not point["on_frontier"]
    assert point["on_cost_frontier"]
    assert (point["seconds"], point["trained"], point["bytes"]) == (5.0, 100, 400)
    assert table.loc[(small.id, 1000), "seconds"] == pytest.approx(2.5)
    assert np.isnan(costs(record)["bytes"]).all()
    record.status[small.id] |= {"checkpoint_bytes": 2_000, "peak_memory": 5_000}
    kept = costs(record).set_index(["arm", "tokens"]).loc[small.id]
    assert (kept["bytes"] == 2_000).all()
    assert (kept["peak_memory"] == 5_000).all()
    record.status[small.id] = {"state": "done"}
    assert np.isnan(seconds_at(record, small.id, 1000))


def test_undominated_rows_of_brute_force() -> None:
    rows = np.random.default_rng(1).integers(0, 4, (60, 3)).astype(float)
    for row, kept in zip(rows, undominated(rows), strict=True):
        assert kept != any((o <= row).all() and (o < row).any() for o in rows)
