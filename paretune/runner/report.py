"""Rebuilding a study's tables, figures, claims and page from its ledger."""

from __future__ import annotations

import shlex
from pathlib import Path

from paretune.runner.claims import claims
from paretune.runner.record import record_of


def write_report(folder: Path | str, *, pdf: bool = False) -> Path:
    """Write results.parquet, results.csv, claims.json, figures, answer.txt and report.html anew.

    Args:
        folder: the study.
        pdf: also write the figures as PDF.

    Returns:
        The page's path.

    Raises:
        UserError: the folder holds no study.
    """
    # Charts need libraries that a training machine may lack
    from paretune.report.write import write_report as write

    folder = Path(folder)
    claims(folder)
    return write(record_of(folder), folder, pdf=pdf)


def told(folder: Path) -> str:
    """The answer of a study's report in one sentence, what to ask next, and where the page is."""
    sentence = (folder / "answer.txt").read_text(encoding="utf-8").partition("\n")[0]
    command = f"paretune advise {shlex.quote(str(folder))}"
    page = (folder / "report.html").resolve()
    return f"{sentence}\nwhich arm to take: {command}\nreport: {page}"
