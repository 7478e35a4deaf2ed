"""Which rows are held out: by group, by a fixed hash, and never a text that training has too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

from paretune.data.rows import Document, Row, unit_hash

_SALT = "heldout"
SCAN = 200_000
"""Rows looked at to learn the groups, where neither side of the split has shown up before."""
LONG_LINE = 20
"""Characters of a line that counts when near-copies are looked for."""
FEWEST_LINES = 5
"""Such lines that a document must have to be called a near-copy."""


@dataclass(frozen=True)
class Split:
    """Held out is what hashes below ``share``; the hash is of the name alone.

    So the split does not change with the seed, the budget, or how much is read.

    Attributes:
        level: what is kept together: a ``group``, a ``document`` where there is one group only, or
            a part of the one document there is (``position``).
        out: a name held out although its hash says otherwise, because no other one would be.
        kept: a name kept in training for the same reason.
    """

    share: float
    level: Literal["group", "document", "position"]
    out: str | None = None
    kept: str | None = None

    def heldout(self, id: str, group: str) -> bool:
        """Whether a row is held out."""
        name = group if self.level == "group" else id
        if name in (self.out, self.kept):
            return name == self.out
        return unit_hash(_SALT, name) < self.share

    def manifest(self) -> dict[str, Any]:
        """The rule in words and numbers."""
        rule = {
            "group": "groups, by a hash of their names",
            "document": "documents, by a hash of their names: the data are one group",
            "position": "the end of the text: the data are one document",
        }
        return {"by": rule[self.level], "share": self.share}


def choose_split(labels: Iterable[tuple[str, str]], share: float) -> Split:
    """The split of rows with these (id, group), such that neither side is empty.

    Reading stops as soon as both sides have shown up.
    """
    groups = _Extremes()
    documents = _Extremes()
    for id, group in islice(labels, SCAN):
        groups.add(group)
        documents.add(id)
        if groups.straddle(share):
            return Split(share, "group")
    if groups.several:
        return _forced(share, "group", groups)
    return _forced(share, "document", documents) if documents.several else Split(share, "position")


@dataclass
class Copies:
    """Recognises training rows that say what a held-out row says.

    Attributes:
        keys: hashes of held-out content.
        lines: distinct long lines of held-out documents.
    """

    keys: set[str] = field(default_factory=set)
    lines: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, heldout: Iterable[Row]) -> Copies:
        """Remember these held-out rows."""
        copies = cls()
        for row in heldout:
            copies.keys.add(row.key)
            if isinstance(row, Document):
                copies.lines |= _long_lines(row.text)
        return copies

    def reason(self, row: Row) -> str | None:
        """Why a training row has to go, or None.

        An equal document or prompt goes, and so does a document of which more than half of the
        distinct long lines are held out (a vendored or renamed copy).
        """
        if row.key in self.keys:
            return "copy of a held-out row"
        if isinstance(row, Document):
            lines = _long_lines(row.text)
            if len(lines) >= FEWEST_LINES and len(lines & self.lines) > len(lines) / 2:
                return "near-copy of held-out text"
        return None


@dataclass
class _Extremes:
    """The names with the smallest and the largest hash."""

    low: tuple[float, str] | None = None
    high: tuple[float, str] | None = None

    def add(self, name: str) -> None:
        key = (unit_hash(_SALT, name), name)
        self.low = key if self.low is None else min(self.low, key)
        self.high = key if self.high is None else max(self.high, key)

    @property
    def several(self) -> bool:
        return self.low != self.high

    def straddle(self, share: float) -> bool:
        return bool(self.low and self.high and self.low[0] < share <= self.high[0])


def _forced(share: float, level: Literal["group", "document"], names: _Extremes) -> Split:
    assert names.low is not None
    assert names.high is not None
    if names.low[0] >= share:
        return Split(share, level, out=names.low[1])
    if names.high[0] < share:
        return Split(share, level, kept=names.high[1])
    return Split(share, level)


def _long_lines(text: str) -> set[str]:
    return {line for line in _stripped(text) if len(line) >= LONG_LINE}


def _stripped(text: str) -> Iterator[str]:
    return (line.strip() for line in text.splitlines())
