"""Where rows come from: each kind of data in a study file, as an iterator over checked rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from paretune.data import arithmetic
from paretune.data.hub import HubRows
from paretune.data.local_files import local_rows
from paretune.data.python_packages import PythonCorpus
from paretune.data.rows import AnyRow, BadRow, Document, Fields, Pair, RowCounts
from paretune.errors import UserError
from paretune.study.sources import Arithmetic, DataConfig, Files, PocketProse, PythonPackages

Wanted = Callable[[str, str], bool]
"""Of a row's id and group: whether the reader wants it."""

PROSE = "heldout.jsonl"


class Source(Protocol):
    """A data set that can be read more than once, always in the same order."""

    left_out: Counter[str]

    def labels(self, counts: RowCounts) -> Iterator[tuple[str, str]]:
        """Id and group of the good rows; rows that have to be read for that pass ``counts``."""
        ...

    def rows(self, wanted: Wanted) -> Iterator[AnyRow]:
        """The wanted rows, and every bad one met on the way."""
        ...

    def facts(self) -> dict[str, Any]:
        """What to keep in the manifest about what has been read."""
        ...


class RowSource:
    """A source whose rows have to be read before their group is known."""

    def __init__(self, read: Callable[[], Iterator[AnyRow]], facts: dict[str, Any]) -> None:
        self._read = read
        self._facts = facts
        self.left_out: Counter[str] = Counter()

    def labels(self, counts: RowCounts) -> Iterator[tuple[str, str]]:
        for row in counts.keep(self._read()):
            yield row.id, row.group

    def rows(self, wanted: Wanted) -> Iterator[AnyRow]:
        for row in self._read():
            if isinstance(row, BadRow) or wanted(row.id, row.group):
                yield row

    def facts(self) -> dict[str, Any]:
        return self._facts


def open_source(data: DataConfig, *, where: str, pairs: bool) -> Source:
    """The source that a study file asks for.

    Args:
        where: the key of the study file, named in messages.
        pairs: prompt-response pairs are needed (`ift`), not documents.

    Raises:
        UserError: data of the wrong sort, a path that is not there, a package not installed.
    """
    if isinstance(data, PythonPackages):
        _needs_documents(data.from_, where, pairs)
        return PythonCorpus(data)
    if isinstance(data, PocketProse):
        _needs_documents(data.from_, where, pairs)
        return RowSource(_prose, {})
    if isinstance(data, Arithmetic):
        if not pairs:
            raise UserError(f"{where}: arithmetic gives prompts and responses, not running text")
        arithmetic.check_count(data.count)
        return RowSource(lambda: arithmetic.problems(data.count, data.seed), {})
    if isinstance(data, Files):
        if data.from_ == "text":
            _needs_documents("text", where, pairs)
        names, read = local_rows(data, where=where, pairs=pairs)
        return RowSource(read, {"files": names})
    rows = HubRows(data, where=where, pairs=pairs)
    return RowSource(rows, rows.facts)


def _needs_documents(kind: str, where: str, pairs: bool) -> None:
    if pairs:
        raise UserError(
            f"{where}: '{kind}' gives running text without prompts and responses, which regime "
            "ift needs; use json, parquet or hub data, or set regime: cpt"
        )


def _prose() -> Iterator[Document | Pair | BadRow]:
    import json
    from importlib import resources

    text = resources.files("paretune.pocket").joinpath(PROSE).read_text(encoding="utf-8")
    fields = Fields()
    for number, line in enumerate(text.rstrip("\n").split("\n"), start=1):
        row = json.loads(line)
        yield fields.read(row, id=str(row["id"]), place=f"{PROSE} line {number}")
