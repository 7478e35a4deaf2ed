"""The spectra of a study as its figures need them, read from the arms' folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from paretune.files import read_jsonl
from paretune.report.findings import Findings

if TYPE_CHECKING:
    import pandas as pd

TABLE, VALUES, TRUNCATION = "spectrum.parquet", "singular_values.parquet", "truncation.jsonl"


@dataclass(frozen=True)
class StudySpectra:
    """What the ledger holds about weights.

    Attributes:
        table: measures of every matrix, arm and budget, with ``arm`` and ``series`` columns.
        chosen: the full arm that the figures of single matrices show; None without one.
        folder: the study's.
        truncation: scored truncations of all arms, with an ``arm`` column.
    """

    table: pd.DataFrame
    chosen: str | None
    folder: Path
    truncation: pd.DataFrame

    @classmethod
    def of(cls, findings: Findings, folder: Path) -> StudySpectra | None:
        """Read them; None where no arm has any.

        The chosen arm is the full one that learned most at its last budget.
        """
        import pandas as pd

        tables, cuts = [], []
        for one in findings.series:
            for arm in one.arms:
                place = folder / "arms" / arm
                if (place / TABLE).exists():
                    frame = pd.read_parquet(place / TABLE)
                    tables.append(frame.assign(arm=arm, series=one.id, group=one.group))
                rows = read_jsonl(place / TRUNCATION)
                if rows:
                    cuts.append(pd.DataFrame(rows).assign(arm=arm, series=one.id))
        if not tables:
            return None
        table = pd.concat(tables, ignore_index=True)
        full = table[table["group"] == "full"]
        return cls(
            table,
            _best(findings, list(dict.fromkeys(full["arm"]))),
            folder,
            pd.concat(cuts, ignore_index=True) if cuts else pd.DataFrame(),
        )

    def of_chosen(self) -> pd.DataFrame:
        """The table's rows of the chosen full arm."""
        return self.table[self.table["arm"] == self.chosen]

    def values(self, arm: str) -> pd.DataFrame:
        """An arm's singular values: tokens, matrix, of, values."""
        import pandas as pd

        path = self.folder / "arms" / arm / VALUES
        if not path.exists():
            return pd.DataFrame(columns=["tokens", "matrix", "of", "values"])
        return pd.read_parquet(path)


def _best(findings: Findings, arms: list[str]) -> str | None:
    results = findings.results
    rows = results[(results["metric"] == findings.learning) & results["arm"].isin(arms)]
    rows = rows[rows["change"].notna()]
    if not len(rows):
        return arms[0] if arms else None
    last = rows[rows["tokens"] == rows["tokens"].max()]
    return str(last.sort_values(["change", "arm"], ascending=[False, True])["arm"].iloc[0])
