"""Enough held-out or source rows to draw the evaluation items from, and not the whole data set."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from paretune.data.choose import spread
from paretune.data.pieces import parts
from paretune.data.rows import Document, Pair

BYTES_A_TOKEN = 12
"""Text kept for each token to score: two to three times what a tokenizer needs on average."""
GROUPS = 16
"""Groups looked for before reading stops; the standard error is taken over groups."""
PART = 32_768
"""Characters of a part of a long document."""
MOST_READ = 32 * 2**20
"""Bytes after which the search for more groups ends."""


@dataclass
class Sample:
    """Rows kept for evaluation, and the whole rows they were taken from."""

    kept: list[Document] | list[Pair]
    read: list[Document] | list[Pair]


def sample_documents(documents: Iterable[Document], *, items: int, block_length: int) -> Sample:
    """Read documents until there is text enough for ``items`` blocks, from 16 groups if possible.

    Of long documents only some parts are kept, in turn from each, so that a few books do not have
    to be tokenised whole. What is kept does not depend on the training budget.
    """
    need = BYTES_A_TOKEN * items * max(block_length, 128)
    read: list[Document] = []
    groups: set[str] = set()
    total = 0
    for document in documents:
        read.append(document)
        groups.add(document.group)
        total += document.size
        if total >= need and (len(groups) >= GROUPS or total >= max(MOST_READ, 4 * need)):
            break
    size = max(PART, 32 * block_length)
    every = [part for document in read for part in parts(document, size)]
    kept: set[str] = set()
    total = 0
    for part in spread(every, lambda part: (part.group, part.id), count=len(every), seed=0):
        if total >= need and len(kept) >= len(groups):
            break
        kept.add(part.id)
        total += part.size
    return Sample([part for part in every if part.id in kept], read)


def sample_pairs(pairs: Iterable[Pair], *, items: int) -> Sample:
    """Read pairs until there are twice as many as ``items``, for some may be too long."""
    read: list[Pair] = []
    for pair in pairs:
        read.append(pair)
        if len(read) >= max(2 * items, 64):
            break
    return Sample(read, read)
