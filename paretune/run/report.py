"""Rebuilding a study's tables, figures and page from its ledger."""

from __future__ import annotations

from pathlib import Path

from paretune.report.write import write_report
from paretune.run.record import record_of


def report(folder: Path | str) -> Path:
    """Write results.parquet, results.csv, figures and report.html anew; returns the page's path.

    Raises:
        UserError: the folder holds no study.
    """
    return write_report(record_of(Path(folder)), Path(folder))
