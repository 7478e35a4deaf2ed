"""What a study's folder says of the study as a whole: format, settings, cohorts, processes."""

from __future__ import annotations

import difflib
import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from paretune.errors import Damaged, UserError
from paretune.files import (
    append_jsonl,
    read_json,
    read_jsonl,
    read_rows,
    read_sealed,
    set_aside,
    write_sealed,
    write_text,
)
from paretune.runner.inside import refuse_links_out
from paretune.runner.rows import COHORTS, ENDED, FACTS, LOG_ROW, checked, fits
from paretune.study.config import Study
from paretune.study.secrets import all_redacted
from paretune.study.yamlfile import dump_study, parse_study
from paretune.version import VERSION

FORMAT = 2
"""Of the folder. 1 had no checksums; 2 seals every line and every JSON file."""
_FACTS = "ledger.json"


class StudyFolder:
    """The part of a ledger that all arms share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._format = 0

    @classmethod
    def open(cls, folder: Path) -> Self:
        """An existing study.

        Raises:
            UserError: ``folder`` holds no study.
        """
        for part in ("study.yaml", "arms"):
            if not (folder / part).exists():
                raise UserError(
                    f"{folder}: no study here ({part} is missing); "
                    "give the folder that `paretune run` wrote"
                )
        refuse_links_out(folder)
        ledger = cls(folder)
        ledger.check_format()
        return ledger

    @classmethod
    def create(cls, folder: Path, study: Study) -> Self:
        """Begin a study in ``folder``, or go on with it when it is the same one.

        Raises:
            UserError: the folder holds another study, or files that are not a study.
        """
        refuse_links_out(folder)
        ledger = cls(folder)
        frozen = folder / "study.yaml"
        resolved = dump_study(study)
        begun = ledger.facts().get("study")
        if frozen.exists() or begun:
            ledger.check_format()
            ledger._same_study(study, frozen, begun)
            return ledger
        ledger.check_place()
        ledger.set_facts(format=FORMAT, paretune=VERSION, study=_digest(resolved))
        write_text(frozen, resolved)
        return ledger

    def check_place(self) -> None:
        """Refuse a file, and a folder with files in it that are not a study.

        Raises:
            UserError: so it is.
        """
        folder = self.folder
        if (folder / "study.yaml").exists() or (folder / _FACTS).exists():
            return
        taken = next((one for one in (folder, *folder.parents) if one.is_file()), None)
        if taken is not None:
            raise UserError(f"{taken}: a file, so no study can be there; give a folder with --out")
        if folder.exists() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
            raise UserError(f"{folder}: not empty and not a study; give another folder with --out")

    def facts(self) -> dict[str, Any]:
        """What the study began with (ledger.json): format, version, study, base, data.

        There is a copy, since nothing else in the folder could replace it.

        Raises:
            Damaged: both are.
        """
        paths = self.folder / _FACTS, self.folder / f".{_FACTS}"
        if not any(path.exists() for path in paths):
            return {}
        for path in paths:
            facts = _facts(path)
            if facts is not None:
                return facts
        raise Damaged(
            paths[0],
            f"{paths[0]}: it and its copy .{_FACTS} are damaged; put one back from a backup, "
            "or begin a new study with --out",
        )

    def set_facts(self, **changes: Any) -> None:
        """Add to what :meth:`facts` tells."""
        facts = {**self.facts(), **changes}
        for path in (self.folder / f".{_FACTS}", self.folder / _FACTS):
            if _facts(path) != facts:
                write_sealed(path, facts)

    @property
    def format(self) -> int:
        """The folder's format; 1 where none is recorded."""
        if self._format < FORMAT:
            self._format = int(self.facts().get("format", 1))
        return self._format

    @property
    def sealed(self) -> bool:
        """Whether every line and JSON file must carry its checksum."""
        return self.format >= 2

    def check_format(self) -> None:
        """Refuse what a newer version wrote: reading it would be guessing.

        Raises:
            UserError: with both versions.
        """
        if self.format > FORMAT:
            raise UserError(
                f"{self.folder}: written by a newer version ({self.facts().get('paretune')}, "
                f"format {self.format}); this is {VERSION}, which knows formats up to {FORMAT}. "
                "Update paretune"
            )

    def study(self) -> Study:
        """The study as it was frozen when it began.

        Raises:
            Damaged: study.yaml is not what was written.
        """
        path = self.folder / "study.yaml"
        text = path.read_text(errors="replace")
        if _digest(text) != self.facts().get("study", _digest(text)):
            raise Damaged(
                path,
                f"{path}: changed since the study began; undo that, or run it again: "
                "`paretune run` with the same study file puts it back",
            )
        return parse_study(text, "study.yaml")

    def _same_study(self, study: Study, frozen: Path, begun: str | None) -> None:
        """Compare with the frozen study, which is put back where it is damaged."""
        resolved = dump_study(study)
        text = frozen.read_text(errors="replace") if frozen.exists() else ""
        if _digest(text) != (begun or _digest(text)):
            if _digest(resolved) != begun:
                raise Damaged(
                    frozen,
                    f"{frozen}: damaged, and the study file given is another than it was; give the "
                    "study file that began this folder, or another folder with --out",
                )
            if frozen.exists():
                set_aside(frozen)
            write_text(frozen, resolved)
            return
        if text != resolved:
            # Read by this version, which may know keys that the one before it did not
            before = parse_study(text, str(frozen))
            text = dump_study(_with_its_place(before, study))
        differences = _differences(text, resolved)
        if differences:
            raise UserError(
                f"{self.folder}: holds a study with other settings ({'; '.join(differences[:4])}); "
                "give another folder with --out, or undo the change"
            )

    def cohorts(self) -> list[list[str]]:
        """Arm ids of each cohort, in the order they run; empty before the plan is frozen."""
        path = self.folder / "cohorts.json"
        if not path.exists():
            return []
        if not self.sealed:
            old = read_json(path)
            held = {"cohorts": old} if isinstance(old, list) else old
            return list(checked(COHORTS, held, path)["cohorts"])
        return list(checked(COHORTS, read_sealed(path), path)["cohorts"])

    def set_cohorts(self, cohorts: list[list[str]]) -> None:
        """Freeze which arms train together."""
        write_sealed(self.folder / "cohorts.json", {"cohorts": cohorts})

    def note(self, runner: str, event: str, **facts: Any) -> None:
        """Add a line to a process's own log, runs/RUNNER.jsonl."""
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        path = self.folder / "runs" / f"{runner}.jsonl"
        append_jsonl(path, [{"time": time, "event": event, **all_redacted(facts)}])

    def log(self) -> list[dict[str, Any]]:
        """What every process noted, in the order of its clock; a damaged line is left out."""
        rows = [
            {"runner": path.stem, **row}
            for path in sorted((self.folder / "runs").glob("*.jsonl"))
            for row in read_rows(path, sealed=True)[0]
            if fits(LOG_ROW, row)
        ]
        return sorted(rows, key=lambda row: str(row["time"]))

    def runs(self) -> list[dict[str, Any]]:
        """A row for each process that has ended: versions, device, seconds by phase."""
        ended = [row for row in self.log() if row["event"] == "ended"]
        older = read_jsonl(self.folder / "runs.jsonl")
        return [row for row in older + ended if fits(ENDED, row)]


def _facts(path: Path) -> dict[str, Any] | None:
    try:
        facts: dict[str, Any] = checked(FACTS, read_sealed(path), path)
        return facts
    except (Damaged, FileNotFoundError):
        return None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _with_its_place(before: Study, now: Study) -> Study:
    """A study with another's choice of devices, which changes no result and may change."""
    place = now.config.training
    training = before.config.training.model_copy(
        update={"devices_per_cohort": place.devices_per_cohort, "offload": place.offload}
    )
    config = before.config.model_copy(update={"training": training})
    return before.model_copy(update={"config": config})


def _differences(old: str, new: str) -> list[str]:
    """Lines that differ between two frozen studies, as ``was X, now Y``."""
    changed = [
        line
        for line in difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=0)
        if line[:1] in "+-" and line[:3] not in ("+++", "---")
    ]
    return [("was" if line[0] == "-" else "now") + " " + line[1:].strip() for line in changed]
