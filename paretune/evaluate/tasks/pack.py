"""Packing requests into trees: what token sequences share is computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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


def pack(requests: Sequence[Scored], capacity: int) -> Iterator[Packed]:
    """Rows of at most ``capacity`` tokens that score every request once, as they are made.

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
    members: list[tuple[int, int]] = []
    room = 0
    for place, index in enumerate(order):
        shared = _shared(inputs[order[place - 1]], inputs[index]) if members else 0
        if members and len(inputs[index]) - shared > room:
            yield _row(requests, inputs, members)
            members = []
        if not members:
            room, shared = capacity, 0
        members.append((index, shared))
        room -= len(inputs[index]) - shared
    if members:
        yield _row(requests, inputs, members)


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
    """One row from its R requests in order, each with how much it shares with the one before."""
    index_R = np.array([index for index, _ in members])
    shared_R = np.array([shared for _, shared in members])
    length_R = np.array([len(inputs[index]) for index in index_R])
    start_R = np.cumsum(length_R - shared_R) - (length_R - shared_R)
    size = int((length_R - shared_R).sum())
    depth_D = np.arange(length_R.max())
    # Which depths a request adds to the row itself, and the places where they stand
    own_RD = (depth_D >= shared_R[:, None]) & (depth_D < length_R[:, None])
    place_RD = np.where(own_RD, (start_R - shared_R)[:, None] + depth_D, -1)
    # A shared token stands where the last request before put it, which is the largest place so far
    path_RD = np.maximum.accumulate(place_RD, axis=0)
    # A subtree ends where the next request begins that shares no more than what is above its root
    next_RD = np.where(depth_D >= shared_R[:, None], start_R[:, None], size)
    after_RD = np.full_like(next_RD, size)
    after_RD[:-1] = np.minimum.accumulate(next_RD[::-1], axis=0)[::-1][1:]
    count_R = np.array([requests[index].count for index in index_R])
    owner_M = np.repeat(np.arange(len(members)), count_R)
    asked_depth_M = np.concatenate(
        [np.arange(end - count, end) for end, count in zip(length_R, count_R, strict=True)]
    )
    place_M = path_RD[owner_M, asked_depth_M]
    in_order = np.argsort(place_M, kind="stable")
    places, asked_M = np.unique(place_M[in_order], return_inverse=True)
    targets_M = np.concatenate(
        [requests[index].tokens[-count:] for index, count in zip(index_R, count_R, strict=True)]
    )
    row = TreeRow(
        tokens=np.concatenate([inputs[index][shared:] for index, shared in members]),
        positions=np.broadcast_to(depth_D, own_RD.shape)[own_RD],
        ends=after_RD[own_RD],
        places=places,
        asked=asked_M.astype(np.int64),
        targets=targets_M[in_order],
    )
    return Packed(row, index_R[owner_M][in_order])
