"""Packing as trees: every request keeps its own tokens, and what is shared is there once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paretune.evaluate.tasks.pack import Scored, pack

ALL = 1000
TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=7)


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=14),
    st.integers(1, 40),
    st.sampled_from([1, 7, ALL]),
)
def test_every_asked_token_stands_behind_its_own_request(
    pairs: list[tuple[list[int], list[int]]], capacity: int, portion: int
) -> None:
    requests = [Scored(np.array(before + after), len(after)) for before, after in pairs]
    depths: dict[int, list[int]] = {}
    for packed in pack(portions(requests, portion), capacity):
        row = packed.row
        size = len(row.tokens)
        assert size <= max(capacity, max(len(r.tokens) for r in requests))
        for index, target, owner in zip(row.asked, row.targets, packed.request, strict=True):
            place = row.places[index]
            seen = [k for k in range(size) if k <= place < row.ends[k]]
            whole = requests[owner].tokens.tolist()
            assert row.tokens[seen].tolist() == whole[: len(seen)]
            assert row.positions[seen].tolist() == list(range(len(seen)))
            assert target == whole[len(seen)]
            depths.setdefault(int(owner), []).append(len(seen))
    assert depths.keys() == set(range(len(requests)))
    for owner, found in depths.items():
        length = len(requests[owner].tokens)
        assert sorted(found) == list(range(length - requests[owner].count, length))


def portions(requests: list[Scored], size: int) -> list[list[Scored]]:
    return [requests[first : first + size] for first in range(0, len(requests), size)]


def test_a_row_holds_each_beginning_once() -> None:
    """With room for all of them the tokens of a row are the distinct beginnings."""
    draw = np.random.default_rng(0)
    requests = []
    for _ in range(20):
        context = draw.integers(0, 50, 12)
        requests += [Scored(np.r_[context, draw.integers(0, 50, 6)], 6) for _ in range(4)]
    beginnings = {tuple(r.tokens[:n]) for r in requests for n in range(1, len(r.tokens))}
    (packed,) = pack([requests], 10_000)
    assert len(packed.row.tokens) == len(beginnings)


@pytest.mark.parametrize("portion", [1, 7, ALL])
def test_rows_are_filled(portion: int) -> None:
    draw = np.random.default_rng(1)
    requests = [Scored(draw.integers(0, 9999, 30), 5) for _ in range(200)]
    rows = list(pack(portions(requests, portion), 512))
    assert all(len(packed.row.tokens) > 512 - 30 for packed in rows[:-1])
