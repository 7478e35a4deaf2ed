"""Cloze questions made of running text: which of four stretches is the true continuation?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from paretune.data.choose import spread
from paretune.data.rows import Document, unit_hash
from paretune.data.tokens import encode_with_bytes
from paretune.errors import UserError

OPTIONS = 4
_TRIES = 200


@dataclass(frozen=True)
class ClozeItem:
    """A question: ``options[answer]`` is what followed ``context``.

    Attributes:
        context: [C] int64.
        options: [4, L] int64, all different, all beginning where a word does.
    """

    id: str
    group: str
    context: np.ndarray
    options: np.ndarray
    answer: int


@dataclass(frozen=True)
class _Text:
    document: Document
    ids: np.ndarray
    starts: np.ndarray  # token indices at which a word begins, with room for a continuation


@dataclass(frozen=True)
class _Place:
    text: _Text
    at: int

    @property
    def label(self) -> tuple[str, str]:
        return self.text.document.group, f"{self.text.document.id}@{self.at:07d}"


def cloze_items(
    documents: Iterable[Document],
    tokenizer: Any,
    *,
    context: int = 48,
    continuation: int = 16,
    count: int,
    seed: int,
    where: str = "cloze",
) -> list[ClozeItem]:
    """At most ``count`` questions, sorted by group and id; no two share a token of their text.

    The wrong options are stretches of equal length from elsewhere in the same document, or from
    the same group or any document where that is too short. None overlaps the question's own text.

    Args:
        where: the key of the study file, for messages.

    Raises:
        UserError: the documents are too short for a single question.
    """
    texts = [_read(document, tokenizer, continuation) for document in documents]
    places = [place for text in texts for place in _places(text, context, continuation)]
    items: list[ClozeItem] = []
    # A place whose options cannot be filled gives way to the next, so all are put in order.
    for place in spread(places, lambda place: place.label, count=len(places), seed=seed):
        if len(items) == count:
            break
        item = _item(place, texts, context, continuation, seed)
        if item is not None:
            items.append(item)
    if not items:
        raise UserError(
            f"{where}: the texts are too short for cloze: a question takes "
            f"{context + continuation} tokens of one document and three other stretches. Give "
            "longer documents, or leave out the metric cloze"
        )
    return sorted(items, key=lambda item: (item.group, item.id))


def _read(document: Document, tokenizer: Any, continuation: int) -> _Text:
    ids, _, characters = encode_with_bytes(tokenizer, document.text)
    first = np.ones(len(ids), dtype=bool)  # pieces of one character: only the first begins anything
    first[1:] = characters[1:] != characters[:-1]
    begins = first & _word_starts(document.text, characters)
    if begins.sum() < len(ids) // 16:  # a script that writes no spaces
        begins = first
    starts = np.flatnonzero(begins)
    return _Text(document, ids, starts[starts + continuation <= len(ids)])


def _word_starts(text: str, characters: np.ndarray) -> np.ndarray:
    """Tokens [T] that take in the white space before a word (which a tokenizer may not show).

    A context never ends in a space that some of the options would repeat and others not.
    """
    space = np.array([character.isspace() for character in text], dtype=bool)
    begins = space[characters]
    hidden = space[characters[1:] - 1] & ~space[characters[:-1]] & (characters[1:] > 0)
    begins[1:] |= hidden
    return np.asarray(begins)


def _places(text: _Text, context: int, continuation: int) -> Iterator[_Place]:
    """Starts of continuations such that the questions lie one after another."""
    free = 0
    for start in text.starts.tolist():
        if start - context >= free:
            yield _Place(text, start)
            free = start + continuation


def _item(
    place: _Place, texts: list[_Text], context: int, continuation: int, seed: int
) -> ClozeItem | None:
    group, id = place.label
    truth = place.text.ids[place.at : place.at + continuation]
    options = [truth]
    pools = (
        [place.text],
        [text for text in texts if text.document.group == group],
        texts,
    )
    for number, pool in enumerate(pools):
        options += _wrong(
            place, pool, options, context, continuation, f"{seed}\x1f{id}\x1f{number}"
        )
    if len(options) < OPTIONS:
        return None
    answer = int(unit_hash("answer", str(seed), id) * OPTIONS)
    wrong = options[1:]
    return ClozeItem(
        id=id,
        group=group,
        context=place.text.ids[place.at - context : place.at].copy(),
        options=np.stack([*wrong[:answer], truth, *wrong[answer:]]),
        answer=answer,
    )


def _wrong(
    place: _Place,
    pool: list[_Text],
    options: list[np.ndarray],
    context: int,
    continuation: int,
    key: str,
) -> list[np.ndarray]:
    """Stretches unlike ``options`` and each other, at most as many as are missing."""
    total = sum(len(text.starts) for text in pool)
    found: list[np.ndarray] = []
    for attempt in range(_TRIES if total else 0):
        if len(options) + len(found) == OPTIONS:
            break
        index = int(unit_hash("option", key, str(attempt)) * total)
        for text in pool:
            if index < len(text.starts):
                break
            index -= len(text.starts)
        at = int(text.starts[index])
        if text is place.text and place.at - context - continuation < at < place.at + continuation:
            continue
        stretch = text.ids[at : at + continuation].copy()
        if not any(np.array_equal(stretch, other) for other in [*options, *found]):
            found.append(stretch)
    return found
