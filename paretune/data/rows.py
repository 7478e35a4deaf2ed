"""What a data set is made of: documents, prompt-response pairs, and rows that are neither."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from paretune.errors import UserError

SHOWN = 3
EARLY = 1000
"""Bad rows shown in a message, and rows after which too many bad ones stop the reading early."""

FIELD_ROWS = 100
"""Rows that must all lack a field before its name is taken to be wrong."""


@dataclass(frozen=True)
class Document:
    """A text of the `cpt` regime; ``group`` names what belongs together (package, book, file)."""

    id: str
    group: str
    text: str

    @property
    def key(self) -> str:
        """SHA-256 of what the document says: equal for copies."""
        return _digest(self.text)

    @property
    def size(self) -> int:
        """UTF-8 bytes."""
        return len(self.text.encode())


@dataclass(frozen=True)
class Pair:
    """A prompt and its response, of the `ift` regime."""

    id: str
    group: str
    prompt: str
    response: str

    @property
    def key(self) -> str:
        """SHA-256 of the prompt: a prompt seen in training is no held-out prompt."""
        return _digest(self.prompt)

    @property
    def size(self) -> int:
        """UTF-8 bytes of prompt and response."""
        return len(self.prompt.encode()) + len(self.response.encode())


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used: where it is, why, and the fields it does have."""

    place: str
    reason: str
    missing: str | None = None
    fields: tuple[str, ...] = ()


Row = Document | Pair
AnyRow = Document | Pair | BadRow


@dataclass(frozen=True)
class Fields:
    """Which fields of a raw row make a document (``text``) or a pair (``prompt``, ``response``)."""

    text: str = "text"
    prompt: str = "prompt"
    response: str = "response"
    group: str | None = None
    pairs: bool = False

    def names(self) -> list[str]:
        """The fields that a row must have."""
        wanted = [self.prompt, self.response] if self.pairs else [self.text]
        return wanted + ([self.group] if self.group else [])

    def read(self, raw: Any, *, id: str, place: str) -> AnyRow:
        """Check one raw row (any JSON value) and make a document or a pair of it."""
        if not isinstance(raw, dict):
            return BadRow(place, f"a row must be an object with fields, not {_kind(raw)}")
        for name in self.names():
            if name not in raw:
                fields = tuple(str(key) for key in raw)
                return BadRow(place, f"no field '{name}'", missing=name, fields=fields)
        for name in self.names():
            reason = _unusable(name, raw[name], blank_ok=False, number_ok=name == self.group)
            if reason:
                return BadRow(place, reason)
        group = str(raw[self.group]) if self.group else id
        if self.pairs:
            return Pair(id, group, raw[self.prompt], raw[self.response])
        return Document(id, group, raw[self.text])


@dataclass
class RowCounts:
    """Counts the rows of one data set, shows the bad ones and stops when there are too many.

    Args:
        where: the key of the study file, named in messages.
        max_bad: largest share of bad rows.
    """

    where: str
    max_bad: float
    good: int = 0
    bad: dict[str, str] = field(default_factory=dict)
    """Reason by place; a row that is read twice counts once."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Good rows left out on purpose (copies), by reason."""
    _missing: dict[str, int] = field(default_factory=dict)
    _seen_fields: tuple[str, ...] = ()

    def keep(self, rows: Iterable[AnyRow]) -> Iterator[Row]:
        """The good rows; bad ones are counted.

        Raises:
            UserError: a field that no row has, or (at every 1000th row) too many bad rows. Call
                `check` at the end.
        """
        for row in rows:
            if isinstance(row, BadRow):
                self.add_bad(row)
                if not self.good:
                    self._check_fields(FIELD_ROWS)
            else:
                self.good += 1
                yield row
            if (self.good + len(self.bad)) % EARLY == 0:
                self.check()

    def add_bad(self, row: BadRow) -> None:
        """Count a bad row."""
        self.bad[row.place] = row.reason
        if row.missing:
            self._missing[row.missing] = self._missing.get(row.missing, 0) + 1
            self._seen_fields = self._seen_fields or row.fields

    def check(self) -> None:
        """Raise UserError when more than the allowed share of the rows is bad."""
        rows = self.good + len(self.bad)
        if not self.good:
            self._check_fields(1)
        if len(self.bad) <= self.max_bad * rows:
            return
        raise UserError(
            f"{self.where}: {len(self.bad)} of {rows} rows cannot be used, more than "
            f"training.max_bad_rows ({self.max_bad * 100:g}%) allows: {self.summary()}. "
            "Mend the data, or raise training.max_bad_rows to skip them"
        )

    def summary(self) -> str:
        """Bad rows by reason, and where the first ones are."""
        counts = Counter(self.bad.values())
        reasons = ", ".join(f"{n} {reason}" for reason, n in counts.most_common(5))
        first = "; ".join(f"{place}: {why}" for place, why in list(self.bad.items())[:SHOWN])
        return f"{reasons} (first: {first})"

    def manifest(self) -> dict[str, Any]:
        """The counts as JSON values."""
        return {
            "rows": self.good + len(self.bad),
            "bad_rows": dict(Counter(self.bad.values())),
            "bad_rows_first": [f"{place}: {why}" for place, why in list(self.bad.items())[:SHOWN]],
            "left_out": dict(self.dropped),
        }

    def show(self, note: Callable[[str], None]) -> None:
        """Tell the user about skipped rows, if any."""
        if self.bad:
            rows = self.good + len(self.bad)
            note(f"{self.where}: skipped {len(self.bad)} of {rows} rows: {self.summary()}")

    def _check_fields(self, enough: int) -> None:
        for name, count in self._missing.items():
            if count >= enough and count == len(self.bad):
                raise UserError(
                    f"{self.where}: no row has a field '{name}'; the fields are "
                    f"{', '.join(self._seen_fields) or 'none'}. Name the right one in the study "
                    "file (text, or prompt and response, or group)"
                )


def content_hash(rows: Iterable[Row]) -> str:
    """SHA-256 over the identity and content of rows, in their order."""
    digest = hashlib.sha256()
    for row in rows:
        update_hash(digest, row)
    return digest.hexdigest()


def update_hash(digest: Any, row: Row) -> None:
    """Feed one row to a running hash."""
    texts = (row.text,) if isinstance(row, Document) else (row.prompt, row.response)
    for part in (row.id, row.group, *texts):
        content = part.encode()
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)


def unit_hash(*parts: str) -> float:
    """A number in [0, 1) that depends on the parts alone: the same on every machine and run."""
    digest = hashlib.sha256("\x1f".join(parts).encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def _unusable(name: str, value: Any, *, blank_ok: bool, number_ok: bool) -> str | None:
    if number_ok and isinstance(value, int | float) and not isinstance(value, bool):
        return None
    if not isinstance(value, str):
        return f"'{name}' is not text but {_kind(value)}"
    if not blank_ok and not value.strip():
        return f"'{name}' is empty"
    try:
        value.encode()
    except UnicodeEncodeError:
        return f"'{name}' holds half of a surrogate pair, which is not text"
    return None


def _kind(value: Any) -> str:
    names = {type(None): "null", bool: "true or false", int: "a number", float: "a number"}
    names |= {list: "a list", dict: "an object", str: "a text", bytes: "bytes"}
    return names.get(type(value), type(value).__name__)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
