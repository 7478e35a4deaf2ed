"""The order in which blocks are read: a pure function of the seed, so any step can be resumed."""

from __future__ import annotations

from functools import lru_cache

import numpy as np


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Optimizer steps in one pass; blocks that do not fill a last batch wait for the next pass."""
    return max(1, count // batch_size)


def rows_for_step(count: int, batch_size: int, step: int, seed: int) -> np.ndarray:
    """Block indices [batch_size] (int64) of optimizer step ``step``, counted from 0.

    Epoch e follows permutation number e of the seed; what it leaves over after its last full batch
    is dropped.

    Raises:
        ValueError: fewer blocks than a batch holds, or a negative step.
    """
    if count < batch_size:
        raise ValueError(f"{count} blocks do not fill a batch of {batch_size}")
    if step < 0:
        raise ValueError(f"step {step} is negative")
    epoch, index = divmod(step, steps_per_epoch(count, batch_size))
    start = index * batch_size
    return _permutation(count, seed, epoch)[start : start + batch_size]


@lru_cache(maxsize=4)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    # Raw PCG64 output and a stable sort: unlike Generator.permutation, numpy guarantees the stream.
    keys = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(count)
    order = np.argsort(keys, kind="stable").astype(np.int64)
    order.setflags(write=False)
    return order
