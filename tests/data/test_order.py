from __future__ import annotations

import numpy as np
import pytest

from paretune.data.order import rows_for_step, steps_per_epoch


@pytest.mark.parametrize(("count", "batch"), [(12, 4), (13, 4), (7, 7), (100, 3)])
def test_an_epoch_reads_every_block_at_most_once_and_drops_only_the_remainder(
    count: int, batch: int
) -> None:
    steps = steps_per_epoch(count, batch)
    for epoch in range(3):
        rows = np.concatenate(
            [rows_for_step(count, batch, epoch * steps + step, seed=5) for step in range(steps)]
        )
        assert len(rows) == count - count % batch
        assert len(set(rows.tolist())) == len(rows)
        assert set(rows.tolist()) <= set(range(count))


def test_a_resumed_run_sees_the_batches_that_an_undisturbed_one_sees() -> None:
    undisturbed = [rows_for_step(50, 4, step, seed=3) for step in range(60)]
    for step in np.random.default_rng(0).permutation(60):  # in any order, from any step
        assert np.array_equal(rows_for_step(50, 4, int(step), seed=3), undisturbed[step])


def test_steps_are_slices_of_the_epochs_permutation() -> None:
    # numpy's raw PCG64 stream, sorted, is the definition of permutation e of a seed.
    for epoch in range(2):
        keys = np.random.PCG64(np.random.SeedSequence([9, epoch])).random_raw(10)
        expected = np.array(sorted(range(10), key=lambda i: keys[i]))
        got = np.concatenate([rows_for_step(10, 3, epoch * 3 + step, seed=9) for step in range(3)])
        assert np.array_equal(got, expected[:9])


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {tuple(rows_for_step(64, 64, epoch, seed)) for epoch in range(4) for seed in range(4)}
    assert len(orders) == 16


def test_the_caller_cannot_disturb_the_order() -> None:
    rows = rows_for_step(8, 4, 0, seed=0)
    with pytest.raises(ValueError):
        rows[0] = 99


def test_fewer_blocks_than_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="3 blocks do not fill a batch of 4"):
        rows_for_step(3, 4, 0, seed=0)
