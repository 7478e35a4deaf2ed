"""Requests in portions, each tokenized while a model works on those before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby

from paretune.evaluate.tasks.pack import Scored

# Texts of a portion together. It makes a few rows for a GPU, and two cores tokenize it in the time
# that a model of 1B parameters takes for one of them
PORTION_CHARACTERS = 2**18
# Tokens that a tokenizer may add to a text: of beginning and end, and a space before it
ADDED_TOKENS = 4
# Characters of a token, about, where that is enough to know
TOKEN_CHARACTERS = 4

Pair = tuple[str, str]


class Portion:
    """Requests that are tokenized when they are first asked for, and kept.

    What cannot be tokenized fails each time anew, so no request is ever left out.

    Args:
        make: gives the requests, and how many of them were cut.

    Attributes:
        numbers: of the requests, among those of all portions.
        longest: no request has more tokens; a bound at first, exact once they are tokenized.
        size: about how many tokens all of them have; it stays as it is.
        cut: how many were cut, once they are tokenized.
    """

    def __init__(
        self,
        numbers: Sequence[int],
        make: Callable[[], tuple[Sequence[Scored], int]],
        longest: int,
        size: int,
    ) -> None:
        self.numbers = numbers
        self.size = size
        self._make: Callable[[], tuple[Sequence[Scored], int]] | None = make
        self._requests: Sequence[Scored] = ()
        self.longest = longest
        self.cut = 0

    def tokenized(self) -> Sequence[Scored]:
        """The requests, in the order of ``numbers``."""
        if self._make is not None:
            self._requests, self.cut = self._make()
            self.longest = max((len(each.tokens) for each in self._requests), default=0)
            self._make = None  # and with it the texts
        return self._requests


def made(requests: Sequence[Scored], first: int = 0) -> Portion:
    """A portion of requests that are tokenized already, numbered from ``first`` on."""
    longest = max((len(request.tokens) for request in requests), default=0)
    size = sum(len(request.tokens) for request in requests)
    return Portion(range(first, first + len(requests)), lambda: (requests, 0), longest, size)


def parted(pairs: Sequence[Pair]) -> Iterator[list[int]]:
    """Indices of contexts and continuations, in portions.

    They are sorted by their text, so that what shares a beginning is in one portion, and a context
    with all that continues it.
    """
    portion: list[int] = []
    size = 0
    order = sorted(range(len(pairs)), key=pairs.__getitem__)
    for _, group in groupby(order, key=lambda index: pairs[index][0]):
        members = list(group)
        portion += members
        size += sum(len(text) for index in members for text in pairs[index])
        if size >= PORTION_CHARACTERS:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion


def about_tokens(pairs: Iterable[Pair]) -> int:
    """Roughly how many tokens pairs have together."""
    return sum(len(context) + len(more) for context, more in pairs) // TOKEN_CHARACTERS


def most_tokens(pairs: Iterable[Pair]) -> int:
    """A bound on the tokens of each pair: a token stands for one byte of its text at least.

    Only a tokenizer that rewrites a text to a longer one (some normalization forms of Unicode do)
    can exceed it.
    """
    sizes = (len(context.encode()) + len(continuation.encode()) for context, continuation in pairs)
    return max(sizes, default=0) + ADDED_TOKENS
