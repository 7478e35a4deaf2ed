"""Bringing a folder that an older version wrote to this version's format, or refusing it."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path

from paretune.errors import UserError
from paretune.files import (
    read_json,
    read_jsonl,
    sealed_lines,
    sha256,
    write_sealed,
    write_text,
)
from paretune.runner.ledger import BASE, Ledger
from paretune.runner.study_folder import FORMAT


def migrate(ledger: Ledger, note: Callable[[str], None]) -> None:
    """Seal what format 1 wrote without checksums; nothing else changes.

    Each file is replaced whole and the format is recorded last, so that a migration which was
    killed is simply done again. What the study began with (base, data) was not recorded in format
    1; from here on it is.

    Raises:
        UserError: an older version is running this study now, or a file is damaged.
    """
    if ledger.format >= FORMAT or not (ledger.folder / "arms").exists():
        return
    _no_older_runner(ledger.folder)
    for name in ("cohorts.json", *(f"arms/{arm}/status.json" for arm in _arms(ledger))):
        path = ledger.folder / name
        if path.exists():
            value = read_json(path)
            _seal(path, {"cohorts": value} if isinstance(value, list) else value)
    for arm_id in (BASE, *_arms(ledger)):
        folder = ledger.arm_folder(arm_id)
        if (folder / "arm.json").exists():
            _seal(folder / "arm.json", read_json(folder / "arm.json"))
        for path in folder.glob("checkpoints/*/checksums.json"):
            _seal(path, read_json(path))
        if (folder / "train.jsonl").exists():
            write_text(folder / "train.jsonl", sealed_lines(read_jsonl(folder / "train.jsonl")))
        rows = read_jsonl(folder / "scores.jsonl")
        for row in rows:
            row["items_sha256"] = sha256(ledger.items_path(arm_id, row["tokens"], row["metric"]))
        if rows:
            write_text(folder / "scores.jsonl", sealed_lines(rows))
    ledger.set_facts(format=FORMAT, migrated_from=1)
    note("the folder was written by an older version; its files carry checksums now")


def _arms(ledger: Ledger) -> list[str]:
    return sorted(path.parent.name for path in ledger.folder.glob("arms/*/arm.json"))


def _seal(path: Path, value: dict[str, object]) -> None:
    value.pop("crc", None)
    write_sealed(path, value)


def _no_older_runner(folder: Path) -> None:
    lock = folder / ".lock"
    if not lock.exists():
        return
    with lock.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"{folder}: an older version of paretune is running this study; wait for it to end"
            ) from None
