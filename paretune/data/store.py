"""The data folder of a study: what was prepared, for which settings, and if it is still whole."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from paretune.data.rows import Document, Pair, Row
from paretune.errors import Damaged, UserError
from paretune.files import make_folder, read_json, read_jsonl, sha256, write_json, write_text

FORMAT = 1
MANIFEST = "manifest.json"
HELDOUT = "heldout.jsonl"
TEXTS = "texts"
HASHED = 256 * 2**20
"""Bytes up to which a file's content is checked again; of a longer one only the size."""
_STALE_SECONDS = 3600
T = TypeVar("T", Document, Pair)


def start(folder: Path) -> None:
    """Make the folder, and clear away what an earlier, killed preparation left half written."""
    make_folder(folder / TEXTS)
    for file in sorted(folder.rglob(".*.tmp")):
        try:
            if time.time() - file.stat().st_mtime > _STALE_SECONDS:  # younger ones may be in use
                file.unlink()
        except FileNotFoundError:
            continue


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as JSON lines, whole or not at all."""
    write_text(path, "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows))


def read_documents(path: Path) -> list[Document]:
    """Read documents back."""
    return [_row(Document, row, path) for row in read_jsonl(path)]


def read_pairs(path: Path) -> list[Pair]:
    """Read pairs back."""
    return [_row(Pair, row, path) for row in read_jsonl(path)]


def _row(kind: type[T], row: dict[str, Any], path: Path) -> T:
    names = {field.name for field in fields(kind)}
    if row.keys() != names or not all(isinstance(value, str) for value in row.values()):
        raise Damaged(path, f"{path}: not what Paretune writes; put it back from a backup")
    return kind(**row)


def finish(folder: Path, names: Sequence[str], manifest: dict[str, Any]) -> None:
    """Write the manifest, last: that it is there says that everything else is."""
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
        for name in names
    }
    write_json(folder / MANIFEST, {"format": FORMAT, **manifest, "files": files})


def check(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a complete folder.

    Raises:
        UserError: it was prepared for other settings, or a file is gone or has changed.
    """
    try:
        return _check(folder, settings)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        path = folder / MANIFEST
        reason = f"{path}: not what Paretune writes ({error!r}); put it back from a backup"
        raise Damaged(path, reason) from error


def _check(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    manifest: dict[str, Any] = read_json(folder / MANIFEST)
    remedy = f"Choose another output folder, or delete {folder} to prepare the data again"
    if manifest.get("format") != FORMAT:
        raise UserError(f"{folder} was written by another version of paretune. {remedy}")
    before = manifest["settings"]
    for key in sorted(before.keys() | settings.keys()):
        if before.get(key) != settings.get(key):
            raise UserError(
                f"{folder} was prepared for another study: {key} was {_short(before.get(key))} "
                f"and is now {_short(settings.get(key))}. {remedy}"
            )
    for name, facts in manifest["files"].items():
        path = folder / name
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise ValueError(f"{name} lies elsewhere")
        if not path.is_file():
            raise Damaged(path, f"{path} is gone: put it back. {remedy}")
        size = path.stat().st_size
        if size != facts["bytes"] or (size <= HASHED and sha256(path) != facts["sha256"]):
            raise Damaged(path, f"{path} has changed since it was written: put it back. {remedy}")
    return manifest


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else text[:200] + "..."
