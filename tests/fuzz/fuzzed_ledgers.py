"""Ledgers that were damaged or made hostile, with their checksums right or wrong.

``Original`` is a finished study; ``damages`` draws what is done to a copy of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hostile_values import NAMES, VALUES
from hypothesis import strategies as st

from paretune.files import sealed_lines, write_sealed

OUTSIDE = "outside"
"""Beside the copy: a folder that nothing may touch."""
_FIELDS = [
    "tokens", "metric", "side", "unit", "higher_is_better", "value", "stderr", "n", "reason",
    "items_sha256", "state", "step", "seconds", "diverged_at", "leg", "loss", "grad_norm", "method",
    "rank", "alpha", "targets", "seed", "schedule", "learning_rate", "format", "study", "paretune",
    "versions", "device", "command", "started", "finished", "arms", "name", "note",
]  # fmt: skip


@dataclass(frozen=True)
class Damage:
    """What is done to one file: ``how``, with what, and whether its seal is made right again."""

    file: str
    how: str
    value: Any
    at: float
    sealed: bool


def files_of(original: Path) -> list[str]:
    """All files of a study, relative to its folder, the small ones first."""
    found = [path for path in original.rglob("*") if path.is_file()]
    return sorted(str(path.relative_to(original)) for path in found)


@st.composite
def damages(draw: st.DrawFn, files: list[str]) -> list[Damage]:
    """One to three damages of these files."""
    texts = [name for name in files if name.endswith((".json", ".jsonl", ".yaml"))]
    found = []
    for _ in range(draw(st.integers(1, 3))):
        file = draw(st.sampled_from(draw(st.sampled_from([texts, texts, files]))))
        how = draw(
            st.sampled_from(
                ["field", "field", "field", "row", "bytes", "cut", "empty", "gone", "folder",
                 "link", "link-folder", "rename", "repeat", "text"]
            )
        )  # fmt: skip
        value: Any = draw(VALUES)
        if how in ("rename", "text"):
            value = draw(st.sampled_from(NAMES))
        elif how == "field":
            value = (draw(st.sampled_from(_FIELDS)), value)
        elif how == "bytes":
            value = draw(st.binary(min_size=1, max_size=8))
        found.append(Damage(file, how, value, draw(st.floats(0, 1)), draw(st.booleans())))
    return found


def copy_of(original: Path, folder: Path) -> Path:
    """A fresh copy in ``folder``, weights as hard links, with something beside it to protect."""
    study = folder / "study"
    for old in (study, folder / OUTSIDE):
        shutil.rmtree(old, ignore_errors=True)
    for other in folder.iterdir() if folder.exists() else ():
        shutil.rmtree(other) if other.is_dir() and not other.is_symlink() else other.unlink()

    def copy(source: str, target: str) -> None:
        os.link(source, target) if source.endswith(".safetensors") else shutil.copy(source, target)

    shutil.copytree(original, study, copy_function=copy)
    outside = folder / OUTSIDE
    (outside / "checkpoints").mkdir(parents=True)
    for name in ("arm.json", "scores.jsonl", "status.json", "canary"):
        (outside / name).write_text("{}\n")
    return study


def untouched(folder: Path) -> bool:
    """Whether nothing beside the copy has changed."""
    outside = folder / OUTSIDE
    names = sorted(str(path.relative_to(outside)) for path in outside.rglob("*"))
    return names == ["arm.json", "canary", "checkpoints", "scores.jsonl", "status.json"] and all(
        (outside / name).read_text() == "{}\n" for name in names if name != "checkpoints"
    )


def apply(damage: Damage, study: Path) -> None:
    """Do it; a file that an earlier damage took away is passed over."""
    path = study / damage.file
    if not path.is_file() or path.resolve() != study.resolve() / damage.file:
        return
    how, value = damage.how, damage.value
    if how in ("field", "row"):
        _change_json(path, damage)
    elif how == "gone":
        path.unlink()
    elif how == "folder":
        path.unlink()
        path.mkdir()
    elif how == "link":
        path.unlink()
        path.symlink_to(study.parent / OUTSIDE / "canary")
    elif how == "link-folder":
        folder = path.parent
        if folder != study:
            shutil.rmtree(folder)
            folder.symlink_to(study.parent / OUTSIDE)
    elif how == "rename":
        _rename(path, value, study)
    else:
        content = path.read_bytes()
        at = int(damage.at * len(content))
        new = {
            "bytes": lambda: content[:at] + value + content[at + len(value) :],
            "cut": lambda: content[:at],
            "empty": lambda: b"",
            "repeat": lambda: content + content[at:],
            "text": lambda: content[:at] + value.encode("utf-8", "surrogatepass") + content[at:],
        }[how]()
        path.unlink()
        path.write_bytes(new)


def _rename(path: Path, name: str, study: Path) -> None:
    """Give a file, or a folder that it is in, another name in the same place."""
    target = path.parent if len(name) % 2 and path.parent != study else path
    with contextlib.suppress(OSError, ValueError):
        target.rename(target.parent / (name.replace("/", "").strip(".") or "_"))


def _change_json(path: Path, damage: Damage) -> None:
    """Change a field of a JSON file or of a line, or put a value in the place of all of it.

    What an earlier damage has left unreadable stays as it is.
    """
    try:
        for line in path.read_bytes().splitlines() if path.suffix == ".jsonl" else ():
            json.loads(line)
        if path.suffix == ".json":
            json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_bytes().splitlines()]
        if not rows:
            return
        at = min(int(damage.at * len(rows)), len(rows) - 1)
        rows[at] = _changed(rows[at], damage)
        _write_rows(path, rows, damage.sealed)
        return
    if path.suffix != ".json":
        return
    value = _changed(json.loads(path.read_bytes()), damage)
    path.unlink()
    if damage.sealed and isinstance(value, dict):
        value.pop("crc", None)
        try:
            write_sealed(path, value)
            return
        except (TypeError, ValueError, UnicodeEncodeError):
            pass
    path.write_bytes(json.dumps(value).encode("utf-8", "surrogatepass"))


def _changed(row: Any, damage: Damage) -> Any:
    if damage.how == "row" or not isinstance(row, dict):
        return damage.value
    name, value = damage.value
    known = [key for key in row if key != "crc"]
    if name not in row and known:
        name = known[int(damage.at * 7919) % len(known)]
    if damage.at > 0.9:
        row.pop(name, None)
        return row
    return {**row, name: value}


def _write_rows(path: Path, rows: list[Any], sealed: bool) -> None:
    path.unlink()
    if sealed and all(isinstance(row, dict) for row in rows):
        for row in rows:
            row.pop("crc", None)
        try:
            path.write_text(sealed_lines(rows))
            return
        except (TypeError, ValueError, UnicodeEncodeError):
            pass
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(lines.encode("utf-8", "surrogatepass"))
