"""Packing requests into trees: what token sequences share is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paretune.model.tree import TreeRow


@dataclass(frozen=True)
class Scored:
    """A token sequence whose last tokens are scored, given all before them.

    Attributes:
        tokens: [n] int64, context and continuation.
        count: how many of the last tokens are the continuation.
    """

    tokens: NDArray[np.int64]
    count: int


@dataclass(frozen=True)
class Packed:
    """A row and whose tokens it scores.

    Attributes:
        request: [M] int64, the request that each asked token belongs to.
    """

    row: TreeRow
    request: NDArray[np.int64]


def pack(requests: Sequence[Scored], capacity: int) -> list[Packed]:
    """Rows of at most ``capacity`` tokens that score every request once.

    Requests are sorted by their tokens, so that those which share a beginning stand together, and
    rows are filled in that order: a new request adds only what it does not share with the one
    before. A row's first request is there whole. A longer request than ``capacity`` gets a row of
    its own.

    Raises:
        ValueError: a request without a token of context.
    """
    if any(not 0 < request.count < len(request.tokens) for request in requests):
        raise ValueError("a request scores at least one token, after one of context")
    # The last token is only a target; big-endian bytes sort as the tokens do
    inputs = [request.tokens[:-1] for request in requests]
    keys = [tokens.astype(">u4").tobytes() for tokens in inputs]
    order = sorted(range(len(requests)), key=keys.__getitem__)
    rows: list[list[tuple[int, int]]] = []
    room = 0
    for place, index in enumerate(order):
        shared = _shared(inputs[order[place - 1]], inputs[index]) if rows else 0
        if not rows or len(inputs[index]) - shared > room:
            rows.append([])
            room, shared = capacity, 0
        rows[-1].append((index, shared))
        room -= len(inputs[index]) - shared
    return [_row(requests, inputs, members) for members in rows]


def _shared(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    """How many first tokens two sequences have in common."""
    length = min(len(a), len(b))
    differ = np.flatnonzero(a[:length] != b[:length])
    return int(differ[0]) if len(differ) else length


def _row(
    requests: Sequence[Scored],
    inputs: Sequence[NDArray[np.int64]],
    members: Sequence[tuple[int, int]],
) -> Packed:
    """One row from its requests in order, each with how much it shares with the one before."""
    tokens: list[NDArray[np.int64]] = []
    positions: list[NDArray[np.int64]] = []
    asked: list[NDArray[np.int64]] = []
    targets: list[NDArray[np.int64]] = []
    owners: list[NDArray[np.int64]] = []
    parts: list[tuple[int, int]] = []  # place of its first new token, and that token's depth
    path = np.zeros(0, dtype=np.int64)  # places of the tokens from the root to the current one
    size = 0
    for index, shared in members:
        own = inputs[index]
        new = np.arange(size, size + len(own) - shared)
        parts.append((size, shared))
        path = np.concatenate([path[:shared], new])
        tokens.append(own[shared:])
        positions.append(np.arange(shared, len(own)))
        request = requests[index]
        asked.append(path[-request.count :])
        targets.append(request.tokens[-request.count :])
        owners.append(np.full(request.count, index))
        size += len(new)
    place_M = np.concatenate(asked)
    in_order = np.argsort(place_M, kind="stable")
    places, asked_M = np.unique(place_M[in_order], return_inverse=True)
    row = TreeRow(
        tokens=np.concatenate(tokens),
        positions=np.concatenate(positions),
        ends=_ends(parts, size),
        places=places,
        asked=asked_M.astype(np.int64),
        targets=np.concatenate(targets)[in_order],
    )
    return Packed(row, np.concatenate(owners)[in_order])


def _ends(parts: Sequence[tuple[int, int]], size: int) -> NDArray[np.int64]:
    """Where each subtree ends: at the next part that begins no deeper than the node."""
    ends = np.full(size, size, dtype=np.int64)
    open_places: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
    for number, (start, shared) in enumerate(parts):
        stop = parts[number + 1][0] if number + 1 < len(parts) else size
        closed = open_places[shared:]
        ends[closed] = start
        open_places = np.concatenate([open_places[:shared], np.arange(start, stop)])
    return ends
