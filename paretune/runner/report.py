"""Rebuilding a study's tables, figures and page from its ledger."""

from __future__ import annotations

from pathlib import Path

from paretune.report import write
from paretune.runner.record import record_of


def write_report(folder: Path | str) -> Path:
    """Write results.parquet, results.csv, figures and report.html anew; returns the page's path.

    Raises:
        UserError: the folder holds no study.
    """
    return write.write_report(record_of(Path(folder)), Path(folder))
