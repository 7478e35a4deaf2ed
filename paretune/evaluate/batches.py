"""Cutting items into forward passes, and big tensors into slices that memory and caches hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from paretune.evaluate.items import ArmModel

# Tokens in a row that ``ArmModel.rows`` speaks of, where the caller does not say
ROW_TOKENS = 512
# Bytes of one float32 [positions, V] slice: on a CPU it should stay in the cache (measured best
# between 2 and 8 MB), on a GPU it should be large enough to hide kernel launches
SLICE_BYTES = {"cpu": 4 * 2**20}
DEFAULT_SLICE_BYTES = 128 * 2**20


def batches(lengths: Sequence[int], arms: ArmModel, row_tokens: int) -> Iterator[list[int]]:
    """Indices of rows that go through the model together, longest first.

    Rows of similar length share a batch, so little is padded; a batch holds at most as many
    positions as ``arms.rows`` rows of ``row_tokens``, and at least one row.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    start = 0
    while start < len(order):
        size = max(1, arms.rows * row_tokens // max(1, lengths[order[start]]))
        yield order[start : start + size]
        start += size


def right_padded(rows: Sequence[NDArray[np.int64]]) -> torch.Tensor:
    """Rows of tokens as one int64 tensor [B, S], filled up with token 0 on the right."""
    tokens = np.zeros((len(rows), max(len(row) for row in rows)), dtype=np.int64)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = row
    return torch.from_numpy(tokens)


def position_slices(count: int, vocabulary: int, device: torch.device) -> Iterator[slice]:
    """Slices of ``count`` positions whose float32 [positions, V] is at most SLICE_BYTES."""
    size = max(1, SLICE_BYTES.get(device.type, DEFAULT_SLICE_BYTES) // (4 * vocabulary))
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
