"""Packing requests into trees: what token sequences share is computed once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

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


class _Entry(NamedTuple):
    """A request in the order of packing: by its tokens, then by its number.

    Attributes:
        key: sorts as the tokens do.
        inputs: [n - 1] int64, the tokens of the row; the last token is only a target.
    """

    key: bytes
    number: int
    inputs: NDArray[np.int64]
    request: Scored


Members = Sequence[tuple[_Entry, int]]  # each with how much it shares with the one before


def pack(portions: Iterable[Sequence[Scored]], capacity: int) -> Iterator[Packed]:
    """Rows of at most ``capacity`` tokens that score every request once, as they are made.

    The requests of a portion are sorted by their tokens, so that those which share a beginning
    stand together, and rows are filled in that order: a new request adds only what it does not
    share with the one before. A row's first request is there whole. A longer request than
    ``capacity`` gets a row of its own. A row that a portion does not fill goes on with the next.

    Args:
        portions: of requests, which are numbered through. Each is asked for when the rows that
            those before fill are out.

    Raises:
        ValueError: a request without a token of context.
    """
    members: list[tuple[_Entry, int]] = []
    room, count = capacity, 0
    for portion in portions:
        entries = sorted(_entries(portion, count))
        count += len(portion)
        for entry in entries:
            shared = _shared(members[-1][0].inputs, entry.inputs) if members else 0
            if members and len(entry.inputs) - shared > room:
                yield _row(members)
                members, room, shared = [], capacity, 0
            members.append((entry, shared))
            room -= len(entry.inputs) - shared
    if members:
        yield _row(members)


def _entries(requests: Sequence[Scored], first: int) -> list[_Entry]:
    """Requests numbered from ``first`` on."""
    found = []
    for number, request in enumerate(requests, first):
        if not 0 < request.count < len(request.tokens):
            raise ValueError("a request scores at least one token, after one of context")
        inputs = request.tokens[:-1]
        # Big-endian bytes sort as the tokens do
        found.append(_Entry(inputs.astype(">u4").tobytes(), number, inputs, request))
    return found


def _shared(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    """How many first tokens two sequences have in common."""
    length = min(len(a), len(b))
    differ = a[:length] != b[:length]
    first = int(differ.argmax()) if length else 0
    return first if length and differ[first] else length


def _row(members: Members) -> Packed:
    """One row from its R requests in order."""
    index_R = np.array([entry.number for entry, _ in members])
    shared_R = np.array([shared for _, shared in members])
    length_R = np.array([len(entry.inputs) for entry, _ in members])
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
    count_R = np.array([entry.request.count for entry, _ in members])
    owner_M = np.repeat(np.arange(len(members)), count_R)
    asked_depth_M = np.concatenate(
        [np.arange(end - count, end) for end, count in zip(length_R, count_R, strict=True)]
    )
    place_M = path_RD[owner_M, asked_depth_M]
    in_order = np.argsort(place_M, kind="stable")
    places, asked_M = np.unique(place_M[in_order], return_inverse=True)
    targets_M = np.concatenate(
        [entry.request.tokens[-entry.request.count :] for entry, _ in members]
    )
    row = TreeRow(
        tokens=np.concatenate([entry.inputs[shared:] for entry, shared in members]),
        positions=np.broadcast_to(depth_D, own_RD.shape)[own_RD],
        ends=after_RD[own_RD],
        places=places,
        asked=asked_M.astype(np.int64),
        targets=targets_M[in_order],
    )
    return Packed(row, index_R[owner_M][in_order])
