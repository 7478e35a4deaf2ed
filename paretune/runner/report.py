"""Rebuilding a study's tables, figures and page from its ledger."""

from __future__ import annotations

from pathlib import Path

from paretune.runner.record import record_of


def write_report(folder: Path | str) -> Path:
    """Write results.parquet, results.csv, figures and report.html anew; returns the page's path.

    Raises:
        UserError: the folder holds no study.
    """
    # Charts need libraries that a training machine may lack
    from paretune.report.write import write_report as write

    return write(record_of(Path(folder)), Path(folder))
