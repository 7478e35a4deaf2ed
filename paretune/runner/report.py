"""Rebuilding a study's tables, figures, claims and page from its ledger."""

from __future__ import annotations

import shlex
from contextlib import suppress
from pathlib import Path

from paretune.errors import UserError
from paretune.files import read_json
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
    _advise_again(folder)
    return write(record_of(folder), folder, pdf=pdf)


def _advise_again(folder: Path) -> None:
    """Advice that was asked for is given anew, so that it speaks of the scores of now."""
    path = folder / "advice.json"
    if not path.exists():
        return
    from paretune.runner.advise import advice

    with suppress(UserError):  # not ours, or its metric is gone: the page says what is wrong
        asked = read_json(path)
        if not isinstance(asked, dict):
            return
        limit, memory, metric = (asked.get(k) for k in ("limit", "memory", "forgetting_metric"))
        if isinstance(limit, int | float | None) and isinstance(memory, int | None):
            metric = metric if isinstance(metric, str) else None
            advice(folder, forget_at_most=limit, memory=memory, metric=metric)


def told(folder: Path) -> str:
    """The answer of a study's report in one sentence, what to ask next, and where the page is."""
    sentence = (folder / "answer.txt").read_text(encoding="utf-8").partition("\n")[0]
    command = f"paretune advise {shlex.quote(str(folder))}"
    page = (folder / "report.html").resolve()
    return f"{sentence}\nwhich arm to take: {command}\nreport: {page}"
