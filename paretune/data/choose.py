"""Choosing evaluation items by seed, in turn from each group, so that none crowds out others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from paretune.data.rows import unit_hash

T = TypeVar("T")


def spread(
    items: Iterable[T], label: Callable[[T], tuple[str, str]], *, count: int, seed: int
) -> list[T]:
    """At most ``count`` items, one from each group in turn; in the order they were chosen.

    Args:
        label: group and id of an item; the id must be unique.
    """
    groups: dict[str, list[tuple[float, str, T]]] = {}
    for item in items:
        group, id = label(item)
        groups.setdefault(group, []).append((unit_hash("item", str(seed), id), id, item))
    order = sorted(groups, key=lambda group: (unit_hash("group", str(seed), group), group))
    queues = [sorted(groups[group], key=lambda entry: entry[:2]) for group in order]
    chosen: list[T] = []
    round_ = 0
    while len(chosen) < count and queues:
        for queue in queues:
            chosen.append(queue[round_][2])
        round_ += 1
        queues = [queue for queue in queues if len(queue) > round_]
    return chosen[:count]
