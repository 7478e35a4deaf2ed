"""Rows of local files: JSON lines (plain or .gz), Parquet, and text with one document a file."""

from __future__ import annotations

import glob
import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from paretune.data.rows import AnyRow, BadRow, Fields
from paretune.errors import UserError
from paretune.study.sources import Files

SUFFIXES = {
    "json": (".jsonl", ".json", ".ndjson", ".jsonl.gz", ".json.gz", ".ndjson.gz"),
    "parquet": (".parquet",),
    "text": (".txt", ".text", ".md", ".rst", ".txt.gz"),
}
"""Files taken from a folder; a file or a pattern in the study file may have any name."""
TABLES = (".csv", ".tsv", ".xls", ".xlsx")
_MARK = b"\xef\xbb\xbf"  # a byte order mark, with which some editors begin a file


def local_rows(
    data: Files, *, where: str, pairs: bool
) -> tuple[list[str], Callable[[], Iterator[AnyRow]]]:
    """The names of the files, and a function that reads their rows from the start.

    Raises:
        UserError: a path that is not there, a pattern or folder without files.
    """
    paths = find_files(data, where=where)
    names = _short_names(paths)
    fields = Fields(data.text, data.prompt, data.response, data.group, pairs)
    read_one = {"json": _json_rows, "parquet": _parquet_rows, "text": _text_rows}[data.from_]

    def read() -> Iterator[AnyRow]:
        for path, name in zip(paths, names, strict=True):
            try:
                yield from read_one(path, name, fields)
            except (OSError, EOFError, zlib.error) as error:
                raise UserError(f"{where}: {path} cannot be read: {error}") from error

    return names, lambda: islice(read(), data.limit)


def table(path: Path) -> Any:
    """A whole file of rows, with every field, as a pyarrow table.

    Raises:
        UserError: it is neither JSON lines nor Parquet, or cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.name.endswith(SUFFIXES["parquet"]):
            return pq.read_table(path)
        rows = list(_json_values(path))
        bad = [f"line {number}: {row.reason}" for number, row in rows if isinstance(row, BadRow)]
        if bad or not rows:
            raise UserError(f"{path}: {bad[0] if bad else 'it holds no rows'}")
        return pa.Table.from_pylist([row for _, row in rows])
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read as JSON lines or Parquet ({error})") from error


def find_files(data: Files, *, where: str) -> list[Path]:
    """All files that ``path`` stands for, each once, sorted within a folder or pattern."""
    asked = [data.path] if isinstance(data.path, str) else list(data.path)
    found: dict[Path, None] = {}
    for text in asked:
        path = Path(text).expanduser()
        suffixes = SUFFIXES[data.from_]
        if path.is_dir():
            matches = [file for file in sorted(path.rglob("*")) if _in_folder(file, path, suffixes)]
            if not matches:
                raise UserError(
                    f"{where}: the folder {path} holds no {data.from_} file "
                    f"({', '.join(suffixes)}). Name the files, or a pattern such as {path}/*"
                )
        elif path.is_file():
            if data.from_ == "json" and path.suffix.lower() in TABLES:
                raise UserError(
                    f"{where}: {path} is a table, not JSON lines. pandas makes them: "
                    "pandas.read_csv(FILE).to_json('rows.jsonl', orient='records', lines=True)"
                )
            matches = [path]
        elif any(mark in text for mark in "*?["):
            matches = [Path(file) for file in sorted(glob.glob(str(path), recursive=True))]
            matches = [file for file in matches if file.is_file()]
            if not matches:
                raise UserError(f"{where}: no file matches {path}")
        else:
            raise UserError(
                f"{where}: there is no file {path}. A relative path is looked up beside the study "
                "file"
            )
        found |= dict.fromkeys(matches)
    return list(found)


def _in_folder(file: Path, folder: Path, suffixes: tuple[str, ...]) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return file.is_file() and not hidden and file.name.endswith(suffixes)


def _short_names(paths: list[Path]) -> list[str]:
    """Names without the folders that all share: unique, and the same on another machine."""
    absolute = [Path(os.path.abspath(path)) for path in paths]
    if len({path.name for path in absolute}) == len(absolute):
        return [path.name for path in absolute]
    common = os.path.commonpath([path.parent for path in absolute])
    return [path.relative_to(common).as_posix() for path in absolute]


def _json_rows(path: Path, name: str, fields: Fields) -> Iterator[AnyRow]:
    for number, raw in _json_values(path):
        place = f"{name} line {number}"
        if isinstance(raw, BadRow):
            yield BadRow(place, raw.reason)
        else:
            yield fields.read(raw, id=f"{name}:{number}", place=place)


def _json_values(path: Path) -> Iterator[tuple[int, Any]]:
    """Line number and value of each row; blank lines are passed over."""
    with _open(path) as file:
        head = file.read(1024).removeprefix(_MARK).lstrip()
    if head.startswith(b"["):
        # A list of rows over the whole file is common too; lines that begin with [ are bad rows.
        try:
            with _open(path) as file:
                values = json.loads(file.read())
            yield from enumerate(values, start=1)
            return
        except ValueError:
            pass
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(_MARK)
            if not line.strip():
                continue
            try:
                yield number, json.loads(line.decode())
            except UnicodeDecodeError:
                yield number, BadRow("", "not UTF-8")
            except (ValueError, RecursionError):
                yield number, BadRow("", "not JSON")


def _parquet_rows(path: Path, name: str, fields: Fields) -> Iterator[AnyRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            there = set(file.schema_arrow.names)
            # With a field missing the first rows are read whole, so that a message can name what
            # there is.
            columns = fields.names() if there.issuperset(fields.names()) else None
            number = 0
            for batch in file.iter_batches(batch_size=1024, columns=columns):
                for raw in batch.to_pylist():
                    number += 1
                    place = f"{name} row {number}"
                    yield fields.read(raw, id=f"{name}:{number}", place=place)
    except pa.ArrowException as error:
        raise OSError(f"it is not a Parquet file that can be read ({error})") from error


def _text_rows(path: Path, name: str, fields: Fields) -> Iterator[AnyRow]:
    with _open(path) as file:
        content = file.read()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        yield BadRow(name, "not UTF-8")
        return
    yield Fields().read({"text": text}, id=name, place=name)


def _open(path: Path) -> Any:
    return gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb")
