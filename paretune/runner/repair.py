"""Finding what is torn or altered in the ledger, and setting it aside so that it is made anew.

Only the holder of an arm's lease repairs it. A damaged file keeps its content under
``NAME.damaged-1``; the process's log says which and why.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from paretune.data.store import HASHED
from paretune.errors import Damaged, UserError
from paretune.files import read_rows, read_sealed, sealed_lines, set_aside, sha256, write_text
from paretune.runner.ledger import BASE, Ledger
from paretune.study.arms import ArmConfig

Say = Callable[[str, str], None]
"""Called with the path of what was set aside, relative to the study, and the reason."""


class Repair:
    """Checks one arm's folder (or the base's) against its checksums."""

    def __init__(self, ledger: Ledger, say: Say) -> None:
        self.ledger = ledger
        self._say = say

    def study(self, arms: Sequence[ArmConfig]) -> None:
        """Check the files that all arms share, and each arm's arm.json.

        A damaged cohorts.json is formed again. A damaged arm.json of an arm that the study file
        does not name (a repeat) is written again when the repeats are chosen again.

        Raises:
            UserError: the folder's arms have other names than this version gives them.
        """
        for name in ("study.yaml", "ledger.json", "cohorts.json"):
            _clear(self.ledger.folder, f".*{name}.*.tmp")
        _clear(self.ledger.arm_folder(BASE), "**/.*.tmp")
        records = {arm.id: arm.record() for arm in arms}
        paths = sorted(self.ledger.folder.glob("arms/*/arm.json"))
        if paths and not {path.parent.name for path in paths} & records.keys():
            raise UserError(
                f"{self.ledger.folder}: its arms ({paths[0].parent.name}, ...) have other names "
                f"than this version gives them ({arms[0].id}, ...); go on with the version that "
                "began it"
            )
        for path in paths:
            self._whole(path, records.get(path.parent.name))
        self._whole(self.ledger.folder / "cohorts.json")

    def arm(self, arm: ArmConfig) -> None:
        """Check everything but the states to resume from, which are checked as they are read.

        Of checkpoints longer than 256 MiB the content is not read; ``paretune export`` does.
        """
        folder = self.ledger.arm_folder(arm.id)
        _clear(folder, "**/.*.tmp")
        self._whole(folder / "status.json")
        self._lines(folder / "train.jsonl")
        self.scores(arm.id)
        for path in sorted(folder.glob("checkpoints/*")):
            if path.name.isdigit():
                self._checkpoint(path)

    def scores(self, arm_id: str) -> None:
        """Keep the scores whose line and whose items are what was written; drop the others."""
        path = self.ledger.arm_folder(arm_id) / "scores.jsonl"
        rows = self._lines(path)
        kept = []
        for row in rows:
            items = self.ledger.items_path(arm_id, row["tokens"], row["metric"])
            if not items.exists():
                continue
            if sha256(items) != row["items_sha256"]:
                self.aside(items, "its checksum differs")
                continue
            kept.append(row)
        if len(kept) < len(rows):
            write_text(path, sealed_lines(kept))

    def aside(self, path: Path, reason: str) -> None:
        """Set a file or folder aside and note it."""
        new = set_aside(path)
        self._say(str(new.relative_to(self.ledger.folder)), reason)

    def _whole(self, path: Path, expected: dict[str, Any] | None = None) -> bool:
        """Whether a sealed JSON file is sound, or not there; a damaged one is set aside."""
        if not path.exists():
            return expected is None
        try:
            value = read_sealed(path)
        except UserError as error:
            self.aside(path, str(error).partition(": ")[2])
            return False
        if expected is not None and value != expected:
            self.aside(path, "it is not this arm's")
            return False
        return True

    def _lines(self, path: Path) -> list[dict[str, Any]]:
        """The good rows of a JSON-lines file; one with damaged rows is set aside and rewritten."""
        rows, damaged = read_rows(path, sealed=True)
        if damaged:
            lines = ", ".join(map(str, damaged))
            self.aside(path, f"line {lines}: {next(iter(damaged.values()))}")
            write_text(path, sealed_lines(rows))
        return rows

    def _checkpoint(self, folder: Path) -> None:
        try:
            sums = read_sealed(folder / "checksums.json")
        except (Damaged, FileNotFoundError) as error:
            self.aside(folder, str(error))
            return
        for name, expected in sums.items():
            path = folder / name
            if path.exists() and path.stat().st_size > HASHED:
                continue
            if not path.exists() or sha256(path) != expected:
                self.aside(folder, f"{name}: {'gone' if not path.exists() else 'altered'}")
                return


def clear_report(folder: Path) -> None:
    """Remove what a killed process left half-written of the report."""
    for pattern in (
        ".results.*.tmp",
        ".claims.json.*.tmp",
        ".report.html.*.tmp",
        ".answer.txt.*.tmp",
        "figures/.*.tmp",
    ):
        _clear(folder, pattern)


def _clear(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def set_aside_before(folder: Path) -> bool:
    """Whether a file or folder of this name was set aside and has not been made again."""
    return not folder.exists() and any(folder.parent.glob(f"{folder.name}.damaged-*"))
