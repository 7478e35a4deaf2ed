"""Writing files so that a reader never sees half of one, and noticing what has been altered.

A *sealed* value carries ``crc``, the CRC-32 of its JSON text without that field, so that a flipped
bit which leaves valid JSON is found as surely as a torn file.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from paretune.errors import Damaged

LOG = logging.getLogger("paretune")
_SEAL = ', "crc": "'


def write_with(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, flush it to disk and rename it.

    The rename is atomic, so ``path`` holds either the old content or the whole new one.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except IsADirectoryError as error:
        raise _is_folder(path) from error
    except FileNotFoundError as error:
        if error.filename != str(temporary):
            raise
        raise _takes_nothing(path) from error
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder, and those around it, unless it is there.

    Raises:
        PermissionError: nothing can be made there, as in /proc, which says that there is no such
            folder.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:
        raise _takes_nothing(path) from error


def _takes_nothing(path: Path) -> PermissionError:
    return PermissionError(errno.EPERM, "nothing can be made there", str(path))


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` atomically."""
    write_with(path, lambda temporary: _write(temporary, content))


def write_text(path: Path, content: str) -> None:
    """Write ``content`` to ``path`` atomically, as UTF-8."""
    write_bytes(path, content.encode())


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def keep_json(path: Path, value: Any) -> None:
    """As :func:`write_json`; where writing is not allowed a warning says so, and that is all.

    For what is shown anyway, and can be made again: others' studies can often only be read.
    """
    try:
        write_json(path, value)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        LOG.warning("%s is not written: its folder can only be read", path)


def read_json(path: Path) -> Any:
    """Read one JSON value; a damaged file is a UserError that names it."""
    try:
        return json.loads(_text_of(path))
    except (ValueError, RecursionError) as error:
        raise Damaged(
            path, f"{path}: not readable as JSON ({error}); restore or delete it"
        ) from error


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Write ``value`` as indented JSON with its checksum, atomically."""
    write_json(path, {**value, "crc": _crc(_text(value))})


def read_sealed(path: Path, *, required: bool = True) -> dict[str, Any]:
    """Undo of :func:`write_sealed`.

    Args:
        required: refuse a value without a checksum, which an older ledger may hold.

    Raises:
        Damaged: not JSON, not an object, or its checksum differs.
    """
    value = read_json(path)
    crc = value.pop("crc", None) if isinstance(value, dict) else None
    try:
        right = isinstance(value, dict) and (
            crc == _crc(_text(value)) if required or crc is not None else True
        )
    except (ValueError, RecursionError):  # not a number, or half of a character
        right = False
    if not right:
        raise Damaged(path, f"{path}: damaged (its checksum differs)")
    return dict(value)


def append_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append rows as sealed JSON lines in one write and flush them to disk.

    A last line that a crash cut off is removed first, so that rows never run together.
    """
    text = sealed_lines(rows)
    if not text:
        return
    make_folder(path.parent)
    with path.open("a+b") as file:
        _drop_cut_off_line(file)
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def sealed_lines(rows: Iterable[dict[str, Any]]) -> str:
    """Rows as JSON lines, each with its checksum as the last field."""
    lines = []
    for row in rows:
        text = _text(row)
        lines.append(f'{text[:-1]}{_SEAL}{_crc(text)}"}}\n')
    return "".join(lines)


def read_jsonl(path: Path, *, sealed: bool = False) -> list[dict[str, Any]]:
    """All complete rows of a JSON-lines file; a cut-off last line is left out.

    Args:
        sealed: refuse a row without a checksum; one that has a checksum is checked in any case.

    Raises:
        Damaged: a line other than a cut-off last one is not JSON, or its checksum differs.
    """
    rows, damaged = read_rows(path, sealed=sealed)
    if damaged:
        number, reason = next(iter(damaged.items()))
        raise Damaged(path, f"{path}, line {number}: {reason}")
    return rows


def read_rows(path: Path, *, sealed: bool) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """The good rows of a JSON-lines file, and the reason for each line that is damaged."""
    rows: list[dict[str, Any]] = []
    damaged: dict[int, str] = {}
    if not path.exists():
        return rows, damaged
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                rows.append(_row(line.decode().rstrip("\n"), sealed))
            except (ValueError, RecursionError) as error:
                damaged[number] = f"not readable ({error})"
    return rows, damaged


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder to ``NAME.damaged-1`` (or -2 ...), out of every reader's way.

    Returns:
        The new path.
    """
    number = 1
    while (new := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    path.rename(new)
    return new


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with _opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _opened(path: Path) -> io.BufferedReader:
    """A file to read; a folder in its place is damage."""
    try:
        return path.open("rb")
    except IsADirectoryError as error:
        raise _is_folder(path) from error


def _is_folder(path: Path) -> Damaged:
    return Damaged(path, f"{path}: a folder, where a file should be; give another place")


def _text_of(path: Path) -> str:
    with _opened(path) as file:
        return file.read().decode()


def _row(text: str, sealed: bool) -> dict[str, Any]:
    """One line's value without its checksum; ValueError when it is not what was written."""
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("not an object")
    crc = value.pop("crc", None)
    if crc is None and not sealed:
        return value
    head, _, _ = text.rpartition(_SEAL)
    if crc != _crc(head + "}"):
        raise ValueError("its checksum differs")
    return value


def _text(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _crc(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)


def _drop_cut_off_line(file: Any) -> None:
    size = file.seek(0, os.SEEK_END)
    end = size
    while end > 0:
        start = max(0, end - 4096)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end != size:
        file.truncate(end)
    file.seek(0, os.SEEK_END)
