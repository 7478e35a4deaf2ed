"""The study's folder: the only source of truth, readable with ls, cat and pandas."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from paretune.errors import Damaged, UserError
from paretune.files import (
    append_jsonl,
    read_jsonl,
    read_sealed,
    sealed_lines,
    sha256,
    write_sealed,
    write_text,
    write_with,
)
from paretune.runner.rows import SCORES, STATUS, checked, not_of_kind, plain_name
from paretune.runner.study_folder import StudyFolder
from paretune.study.arms import ArmConfig
from paretune.study.secrets import all_redacted

if TYPE_CHECKING:
    import pandas as pd

    from paretune.evaluate.items import Items

BASE = "base"


class Ledger(StudyFolder):
    """Reads and writes one study's folder. Each arm's results lie in the arm's own folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._items_sums: dict[str, dict[tuple[int, str], str | None]] = {}

    def arm_folder(self, arm_id: str) -> Path:
        """Where an arm's results lie; the base's for ``base``."""
        if arm_id == BASE:
            return self.folder / BASE
        return self.folder / "arms" / plain_name(arm_id, f"{self.folder}/arms")

    def register(self, arms: Iterable[ArmConfig]) -> None:
        """Make a folder for each arm, with its complete configuration."""
        for arm in arms:
            path = self.arm_folder(arm.id) / "arm.json"
            if not path.exists():
                write_sealed(path, arm.record())

    def arms(self) -> dict[str, ArmConfig]:
        """Every arm of the study, repeats under other seeds included, by id."""
        found = {}
        for path in sorted((self.folder / "arms").glob("*/arm.json")):
            plain_name(path.parent.name, str(path.parents[1]))
            try:
                arm = ArmConfig.model_validate(read_sealed(path, required=self.sealed))
            except ValidationError as error:
                raise not_of_kind(error, path) from error
            found[path.parent.name] = arm
        return found

    def write_scores(self, arm_id: str, tokens: int, results: list[Items]) -> None:
        """Keep every item's outcome, then the scores; a score's row means its items are there."""
        from paretune.evaluate.items import score

        rows = []
        for items in results:
            sum_of_items = self._write_items(arm_id, tokens, items)
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
                    "items_sha256": sum_of_items,
                }
            )
        append_jsonl(self.arm_folder(arm_id) / "scores.jsonl", rows)

    def scores(self, arm_id: str) -> list[dict[str, Any]]:
        """An arm's scores; a score written twice counts once."""
        path = self.arm_folder(arm_id) / "scores.jsonl"
        rows = checked(SCORES, read_jsonl(path, sealed=self.sealed), path)
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
        """Per-item outcomes: item, group, value, weight.

        Raises:
            Damaged: they are not those that the score was computed from.
        """
        import pandas as pd

        if arm_id not in self._items_sums:
            self._items_sums[arm_id] = {
                (row["tokens"], row["metric"]): row.get("items_sha256")
                for row in self.scores(arm_id)
            }
        path = self.items_path(arm_id, tokens, metric)
        if not path.is_file():
            raise Damaged(path, f"{path}: gone; `paretune run` makes it anew")
        expected = self._items_sums[arm_id].get((tokens, metric))
        if expected is not None and sha256(path) != expected:
            raise Damaged(path, f"{path}: damaged (its checksum differs); `paretune run` mends it")
        return pd.read_parquet(path)

    def status(self, arm_id: str) -> dict[str, Any]:
        """state (planned, running, done, diverged), step, tokens, seconds, reason."""
        path = self.arm_folder(arm_id) / "status.json"
        status: dict[str, Any] = {"state": "planned", "step": 0, "tokens": 0, "seconds": 0.0}
        if path.exists():
            status.update(checked(STATUS, read_sealed(path, required=self.sealed), path))
        return status

    def set_status(self, arm_id: str, **changes: Any) -> None:
        """Update some fields of an arm's status."""
        record = {**self.status(arm_id), **all_redacted(changes)}
        write_sealed(self.arm_folder(arm_id) / "status.json", record)

    def append_curve(self, arm_id: str, leg: str, rows: list[dict[str, Any]]) -> None:
        """Add steps to an arm's training curve."""
        path = self.arm_folder(arm_id) / "train.jsonl"
        append_jsonl(path, ({"leg": leg, **row} for row in rows))

    def curve(self, arm_id: str) -> list[dict[str, Any]]:
        """The rows of an arm's training curve."""
        return read_jsonl(self.arm_folder(arm_id) / "train.jsonl", sealed=self.sealed)

    def cut_curve(self, arm_id: str, leg: str, step: int) -> None:
        """Forget the training curve of ``leg`` after ``step``: it will be written again."""
        path = self.arm_folder(arm_id) / "train.jsonl"
        if not path.exists():
            return
        rows = read_jsonl(path, sealed=self.sealed)
        kept = [row for row in rows if row["leg"] != leg or row["step"] <= step]
        if kept:
            write_text(path, sealed_lines(kept))
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
            write_sealed(temporary / "checksums.json", sums)
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
        sums = read_sealed(folder / "checksums.json", required=self.sealed)
        for name, expected in sums.items():
            plain_name(name, str(folder / "checksums.json"))
            if not (folder / name).exists() or sha256(folder / name) != expected:
                raise Damaged(
                    folder / name,
                    f"{folder / name}: damaged (its checksum differs); "
                    "`paretune run` makes it anew",
                )
        return folder

    def _write_items(self, arm_id: str, tokens: int, items: Items) -> str:
        """Write one metric's outcomes; returns the file's SHA-256."""
        import pandas as pd

        frame = pd.DataFrame(
            {"item": items.ids, "group": items.groups, "value": items.value, "weight": items.weight}
        )
        path = self.items_path(arm_id, tokens, items.metric)
        write_with(path, lambda temporary: frame.to_parquet(temporary, index=False))
        return sha256(path)

    def items_path(self, arm_id: str, tokens: int, metric: str) -> Path:
        """Where the outcomes of one metric lie."""
        name = metric.replace("/", ".") + ".parquet"
        return self.arm_folder(arm_id) / "items" / str(tokens) / name
