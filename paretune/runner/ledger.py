"""The study's folder: the only source of truth, readable with ls, cat and pandas."""

from __future__ import annotations

import fcntl
import math
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretune.errors import UserError
from paretune.files import (
    append_jsonl,
    read_json,
    read_jsonl,
    sha256,
    write_json,
    write_text,
    write_with,
)
from paretune.study.arms import ArmConfig
from paretune.study.config import Study
from paretune.study.yamlfile import dump_study, parse_study

if TYPE_CHECKING:
    import pandas as pd

    from paretune.evaluate.items import Items

BASE = "base"


class Ledger:
    """Reads and writes one study's folder. Each arm's results lie in the arm's own folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def open(cls, folder: Path) -> Ledger:
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
        return cls(folder)

    @classmethod
    def create(cls, folder: Path, study: Study) -> Ledger:
        """Begin a study in ``folder``, or go on with it when it is the same one.

        Raises:
            UserError: the folder holds another study, or files that are not a study.
        """
        ledger = cls(folder)
        frozen = folder / "study.yaml"
        resolved = dump_study(study)
        if frozen.exists():
            differences = _differences(frozen.read_text(), resolved)
            if differences:
                raise UserError(
                    f"{folder}: holds a study with other settings ({'; '.join(differences[:4])}); "
                    "give another folder with --out, or undo the change"
                )
            return ledger
        if folder.exists() and any(entry.name != ".lock" for entry in folder.iterdir()):
            raise UserError(f"{folder}: not empty and not a study; give another folder with --out")
        write_text(frozen, resolved)
        return ledger

    def study(self) -> Study:
        """The study as it was frozen when it began."""
        return parse_study((self.folder / "study.yaml").read_text(), "study.yaml")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one runner.

        Raises:
            UserError: another process runs this study.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    f"{self.folder}: another process is running this study; wait for it to end"
                ) from None
            yield

    def arm_folder(self, arm_id: str) -> Path:
        """Where an arm's results lie; the base's for ``base``."""
        return self.folder / BASE if arm_id == BASE else self.folder / "arms" / arm_id

    def register(self, arms: Iterable[ArmConfig]) -> None:
        """Make a folder for each arm, with its complete configuration."""
        for arm in arms:
            path = self.arm_folder(arm.id) / "arm.json"
            if not path.exists():
                write_json(path, arm.record())

    def arms(self) -> dict[str, ArmConfig]:
        """Every arm of the study, repeats under other seeds included, by id."""
        found = {}
        for path in sorted((self.folder / "arms").glob("*/arm.json")):
            arm = ArmConfig.model_validate(read_json(path))
            found[path.parent.name] = arm
        return found

    def cohorts(self) -> list[list[str]]:
        """Arm ids of each cohort, in the order they run; empty before the plan is frozen."""
        path = self.folder / "cohorts.json"
        cohorts: list[list[str]] = read_json(path) if path.exists() else []
        return cohorts

    def set_cohorts(self, cohorts: list[list[str]]) -> None:
        """Freeze which arms train together."""
        write_json(self.folder / "cohorts.json", cohorts)

    def write_scores(self, arm_id: str, tokens: int, results: list[Items]) -> None:
        """Keep every item's outcome, then the scores; a score's row means its items are there."""
        from paretune.evaluate.items import score

        rows = []
        for items in results:
            self._write_items(arm_id, tokens, items)
            value = score(items)
            rows.append(
                {
                    "tokens": tokens,
                    "metric": items.metric,
                    "side": items.side,
                    "unit": items.unit,
                    "higher_is_better": items.higher_is_better,
                    "value": value.value if math.isfinite(value.value) else None,
                    "stderr": value.stderr,
                    "n": value.n,
                    "reason": value.reason,
                    **({"note": items.note} if items.note else {}),
                }
            )
        append_jsonl(self.arm_folder(arm_id) / "scores.jsonl", rows)

    def scores(self, arm_id: str) -> list[dict[str, Any]]:
        """An arm's scores; a score written twice counts once."""
        rows = read_jsonl(self.arm_folder(arm_id) / "scores.jsonl")
        latest = {(row["tokens"], row["metric"]): row for row in rows}
        return [latest[key] for key in sorted(latest)]

    def shown(self, arm_id: str, tokens: int, metrics: list[str]) -> str:
        """A budget's scores on one line, for people."""
        values = {r["metric"]: r["value"] for r in self.scores(arm_id) if r["tokens"] == tokens}
        return "  ".join(
            f"{metric} {values[metric]:.4f}" if values.get(metric) is not None else f"{metric} -"
            for metric in metrics
        )

    def scored(self, arm_id: str, tokens: int, metrics: list[str]) -> bool:
        """Whether every metric of a budget is there."""
        have = {row["metric"] for row in self.scores(arm_id) if row["tokens"] == tokens}
        return set(metrics) <= have

    def items(self, arm_id: str, tokens: int, metric: str) -> pd.DataFrame:
        """Per-item outcomes: item, group, value, weight."""
        import pandas as pd

        return pd.read_parquet(self._items_path(arm_id, tokens, metric))

    def status(self, arm_id: str) -> dict[str, Any]:
        """state (planned, running, done, diverged), step, tokens, seconds, reason."""
        path = self.arm_folder(arm_id) / "status.json"
        status: dict[str, Any] = {"state": "planned", "step": 0, "tokens": 0, "seconds": 0.0}
        if path.exists():
            status.update(read_json(path))
        return status

    def set_status(self, arm_id: str, **changes: Any) -> None:
        """Update some fields of an arm's status."""
        write_json(self.arm_folder(arm_id) / "status.json", {**self.status(arm_id), **changes})

    def append_curve(self, arm_id: str, leg: str, rows: list[dict[str, Any]]) -> None:
        """Add steps to an arm's training curve."""
        path = self.arm_folder(arm_id) / "train.jsonl"
        append_jsonl(path, ({"leg": leg, **row} for row in rows))

    def cut_curve(self, arm_id: str, leg: str, step: int) -> None:
        """Forget the training curve of ``leg`` after ``step``: it will be written again."""
        path = self.arm_folder(arm_id) / "train.jsonl"
        if not path.exists():
            return
        rows = read_jsonl(path)
        kept = [row for row in rows if row["leg"] != leg or row["step"] <= step]
        temporary = path.with_name(".train.jsonl.new")
        temporary.unlink(missing_ok=True)
        append_jsonl(temporary, kept)
        if kept:
            temporary.replace(path)
        else:
            path.unlink()

    def checkpoint(self, arm_id: str, tokens: int) -> Path:
        """The folder of an arm's checkpoint at a budget."""
        return self.arm_folder(arm_id) / "checkpoints" / str(tokens)

    @contextmanager
    def writing_checkpoint(self, arm_id: str, tokens: int) -> Iterator[Path]:
        """A folder to fill; it gets checksums and takes its place when it is complete."""
        final = self.checkpoint(arm_id, tokens)
        temporary = final.with_name(f".{tokens}.{os.getpid()}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            yield temporary
            sums = {path.name: sha256(path) for path in sorted(temporary.iterdir())}
            write_json(temporary / "checksums.json", sums)
            shutil.rmtree(final, ignore_errors=True)
            temporary.replace(final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def check_checkpoint(self, arm_id: str, tokens: int) -> Path:
        """A checkpoint's folder, after its files were compared with their checksums.

        Raises:
            UserError: it is not there, or a file differs.
        """
        folder = self.checkpoint(arm_id, tokens)
        if not (folder / "checksums.json").exists():
            raise UserError(f"{folder}: there is no checkpoint (see checkpoints.keep in the study)")
        for name, expected in read_json(folder / "checksums.json").items():
            if not (folder / name).exists() or sha256(folder / name) != expected:
                raise UserError(f"{folder / name}: damaged (its checksum differs); train it again")
        return folder

    def note_run(self, row: dict[str, Any]) -> None:
        """Keep a row about one process: versions, device, seconds by phase."""
        append_jsonl(self.folder / "runs.jsonl", [row])

    def runs(self) -> list[dict[str, Any]]:
        """The rows of :meth:`note_run`."""
        return read_jsonl(self.folder / "runs.jsonl")

    def _write_items(self, arm_id: str, tokens: int, items: Items) -> None:
        import pandas as pd

        frame = pd.DataFrame(
            {"item": items.ids, "group": items.groups, "value": items.value, "weight": items.weight}
        )
        path = self._items_path(arm_id, tokens, items.metric)
        write_with(path, lambda temporary: frame.to_parquet(temporary, index=False))

    def _items_path(self, arm_id: str, tokens: int, metric: str) -> Path:
        name = metric.replace("/", ".") + ".parquet"
        return self.arm_folder(arm_id) / "items" / str(tokens) / name


def _differences(old: str, new: str) -> list[str]:
    """Lines that differ between two frozen studies, as ``was X, now Y``."""
    import difflib

    changed = [
        line
        for line in difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=0)
        if line[:1] in "+-" and line[:3] not in ("+++", "---")
    ]
    return [("was" if line[0] == "-" else "now") + " " + line[1:].strip() for line in changed]
